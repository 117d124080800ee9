"""What cannot work is refused before any weight is read or downloaded, with what to use instead."""

import json
import os
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from lora_spellings import factors_for, peft
from safetensors.torch import save_file
from tiny_pipelines import flux, pixart, pixel, sana, schedule, sdxl, stable_diffusion
from tiny_runs import tiny_config

from rlcm.builtin import model_path
from rlcm.errors import ConfigError, MissingFileError, SamplerError, UsageError
from rlcm.pipelines import (
    LoraSettings,
    ModelSettings,
    SamplerSettings,
    bare_network,
    load_pipeline,
    loading,
    make_denoiser,
    preview_table,
    unpinned,
)
from rlcm.pipelines import hub as hub_files
from rlcm.training.build import build

COMMIT = "0123456789" * 4


class WeightsRead(Exception):
    """Loading has begun."""


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    def refuse(*_):
        raise WeightsRead

    monkeypatch.setattr(loading, "_read_weights", refuse)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models on disk, by name."""
    root = tmp_path_factory.mktemp("models")
    lcm = diffusers.LCMScheduler(**schedule())
    models = {
        "lcm": stable_diffusion(lcm),
        "pndm": stable_diffusion(diffusers.PNDMScheduler(**schedule(skip_prk_steps=True, steps_offset=1))),
        "ddim": stable_diffusion(diffusers.DDIMScheduler(**schedule())),
        "xl": sdxl(lcm),
        "flux": flux(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), guidance_embeds=False),
        "sana": sana(),
        "pixel": pixel(),
        "pixart": pixart(lcm),
    }
    for name, pipeline in models.items():
        pipeline.save_pretrained(root / name)
    return root


def start(folder, tmp_path, **changes):
    prompts = ["1", "2"] if folder.name == "pixel" else ["a cat", "a dog"]
    sampler = {"steps": 3, "guidance": None, **changes.pop("sampler", {})}
    model = {"path": str(folder), **changes.pop("model", {})}
    build(tiny_config(tmp_path, model=model, sampler=sampler, prompts=prompts, rewards=["brightness"], **changes))


REFUSED = {
    "no table": ("pndm", {}, r"PNDMScheduler.*needs earlier model outputs.*Set sampler\.scheduler to one of lcm, tcd, ddim"),
    "another family's": ("lcm", {"scheduler": "scm"}, r"'scm' does not fit StableDiffusionPipeline.*one of lcm, tcd"),
    "one step": ("lcm", {"steps": 1}, "draws no noise in any step"),
    "one step of SANA": ("sana", {"steps": 1}, "draws no noise in any step"),
    "one step of FLUX": ("flux", {"steps": 1, "scheduler": "flow_lcm"}, "draws no noise in any step"),
    "one step on pixels": ("pixel", {"steps": 1}, "draws no noise in any step"),
    "eta 0 of DDIM": ("ddim", {"eta": 0.0}, r"eta=0.*deterministic"),
    "eta 0 of TCD": ("lcm", {"eta": 0.0, "scheduler": "tcd"}, r"eta=0.*deterministic"),
    "eta 0 of flow matching": ("flux", {"eta": 0.0}, r"sampler\.eta=0 .*Use 0 < sampler\.eta <= 1"),
    "eta of a sampler that draws all noise anew": ("flux", {"scheduler": "flow_lcm", "eta": 0.5}, "eta=0.5 is no setting"),
    "a window without a noisy step": ("lcm", {"noisy_steps": [2]}, r"noisy_steps=\[2\]: none of these steps draws noise"),
    "a window that is not there": ("lcm", {"noisy_steps": [3]}, r"there is no step 3"),
    "an eta where there is none": ("lcm", {"eta": 0.5}, "eta=0.5 is no setting of LCMScheduler"),
    "an odd grid": ("lcm", {"steps": 60}, "LCMScheduler does not accept num_steps=60"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_samplers_that_cannot_be_used(folders, tmp_path, case):
    model, sampler, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        start(folders / model, tmp_path, sampler=sampler)


@pytest.mark.parametrize(
    ("model", "sampler"),
    [
        ("pndm", {"scheduler": "lcm"}),
        ("pndm", {"scheduler": "ddim", "eta": 1.0}),
        ("flux", {"scheduler": "flow_euler_stochastic"}),
        ("flux", {}),
        ("flux", {"eta": 0.2, "noisy_steps": "first:1"}),
        ("lcm", {"noisy_steps": [1, 2]}),
        ("lcm", {"steps": 1, "final_std": 0.05}),
        ("sana", {}),
        ("pixel", {}),
        ("xl", {"scheduler": "euler_ancestral"}),
        ("pixart", {"scheduler": "tcd"}),
    ],
)
def test_a_sampler_that_the_configuration_chooses_takes_the_place_of_the_models_own(folders, tmp_path, model, sampler):
    with pytest.raises(WeightsRead):
        start(folders / model, tmp_path, sampler=sampler)


def test_the_preview_is_the_table_that_the_loaded_model_gets(folders):
    for name, sampler in (
        ("pndm", SamplerSettings(scheduler="tcd", steps=4, guidance=1.0)),
        ("lcm", SamplerSettings(steps=2, guidance=1.0, final_std=0.1)),
        ("sana", SamplerSettings(steps=2)),
        ("pixel", SamplerSettings(steps=3)),
        ("flux", SamplerSettings(steps=3, scheduler="flow_lcm")),
        ("flux", SamplerSettings(steps=3, eta=0.5, noisy_steps="last:1")),
    ):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folders / name)
        loaded = make_denoiser(pipeline, sampler).table
        preview = preview_table(ModelSettings(path=str(folders / name)), sampler)
        assert preview.name == loaded.name
        for column in ("timesteps", "ax", "am", "b0", "bx", "bm", "std"):
            assert torch.equal(getattr(preview, column), getattr(loaded, column)), (name, column)


def test_a_diffusers_that_steps_differently_is_refused_with_both_numbers(folders, tmp_path, monkeypatch):
    step = diffusers.LCMScheduler.step

    def drifted(*args, **kwargs):
        return tuple(value * 1.001 for value in step(*args, **kwargs))

    monkeypatch.setattr(diffusers.LCMScheduler, "step", drifted)
    message = r"LCM differs from the scheduler's own step by 9\.\d+e-04 .* accepted 1e-05"
    with pytest.raises(SamplerError, match=message):
        start(folders / "lcm", tmp_path)
    with pytest.raises(SamplerError, match=message):
        make_denoiser(stable_diffusion(diffusers.LCMScheduler(**schedule())), SamplerSettings(steps=3, guidance=1.0))


def test_a_scheduler_that_diffusers_does_not_have(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders / "lcm", copy)
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"] = ["my_module", "MyScheduler"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SamplerError, match=r"samples with MyScheduler.*no such scheduler"):
        start(copy, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_scheduler_configuration(folders, tmp_path, content):
    copy = tmp_path / "copy"
    shutil.copytree(folders / "lcm", copy)
    (copy / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"scheduler_config\.json is not a configuration"):
        start(copy, tmp_path)
    (copy / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(MissingFileError, match="lacks scheduler/scheduler_config"):
        start(copy, tmp_path)


@pytest.mark.parametrize("model", ["lcm", "xl", "flux", "sana", "pixart", "pixel"])
def test_adapters_that_bind_to_nothing(folders, tmp_path, model):
    sampler = {"scheduler": "flow_lcm"} if model == "flux" else {}
    with pytest.raises(ConfigError, match=r"lora\.target_modules=\['query'\] matches no layer of .*to_q"):
        start(folders / model, tmp_path, sampler=sampler, lora={"target_modules": ["query"]})
    network = bare_network(ModelSettings(path=str(folders / model)))
    assert all(p.is_meta for p in network.parameters())


def test_without_network(folders, tmp_path):
    with pytest.raises(MissingFileError, match=r"model\.path='nobody/nothing'.*network"):
        build(tiny_config(tmp_path, model={"path": "nobody/nothing", "local_files_only": True}, rewards=["brightness"]))
    lora = {"path": "nobody/lora", "revision": COMMIT}
    with pytest.raises(MissingFileError, match=r"model\.loras\.0\.path='nobody/lora'.*network"):
        start(folders / "lcm", tmp_path, model={"loras": [lora], "local_files_only": True})


@pytest.fixture
def hub(folders, monkeypatch):
    """A Hub that serves those folders under the name `hub/...`, and what was asked of it."""
    asked = []

    def download(path, name, revision=None, local_files_only=False):
        asked.append((path, name, revision))
        file = folders / Path(path).name / name
        if not file.is_file():
            raise EntryNotFoundError(name)
        return str(file)

    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    return asked


def test_of_a_model_on_the_hub_only_small_files_are_downloaded_first(hub, tmp_path):
    model = {"path": "hub/pndm", "revision": COMMIT}
    with pytest.raises(SamplerError, match="keeps this model's PNDMScheduler"):
        start(Path("hub/pndm"), tmp_path, model=model)
    assert set(hub) == {("hub/pndm", name, COMMIT) for name in ("model_index.json", "scheduler/scheduler_config.json")}
    with pytest.raises(WeightsRead):
        start(Path("hub/pndm"), tmp_path, model=model, sampler={"scheduler": "lcm"})
    assert {name for _, name, _ in hub} == {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json"}


def test_somebody_who_waits_for_the_hub_is_told_so_once(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hub_files, "_told", set())
    with pytest.raises(WeightsRead):
        start(Path("hub/pndm"), tmp_path, model={"path": "hub/pndm", "revision": COMMIT}, sampler={"scheduler": "lcm"})
    words = "asking the Hugging Face Hub for hub/pndm, which is no folder in the working directory"
    assert caplog.messages.count(words) == 1


def test_loras_on_the_hub_come_from_their_revision_and_before_the_model(hub, folders, tmp_path, monkeypatch):
    lora = peft(factors_for(bare_network(ModelSettings(path=str(folders / "lcm"))), "to_q"))
    for name in ("lora/pytorch_lora_weights.safetensors", "odd/style.safetensors", "peft/adapter_model.safetensors"):
        (folders / name).parent.mkdir()
        save_file(lora, folders / name)
    with pytest.raises(WeightsRead):
        start(folders / "lcm", tmp_path, model={"loras": [{"path": "hub/lora", "revision": COMMIT}]})
    assert hub == [("hub/lora", "pytorch_lora_weights.safetensors", COMMIT)]
    with pytest.raises(MissingFileError, match=r"model\.loras\.0\.path='hub/lora' has no file b\.safetensors"):
        start(folders / "lcm", tmp_path, model={"loras": [{"path": "hub/lora", "weight_name": "b.safetensors"}]})
    monkeypatch.setattr(hub_files, "list_repo_files", lambda path, revision: [f.name for f in (folders / path[4:]).iterdir()])
    for name, asked in (("odd", ["style.safetensors"]), ("peft", ["adapter_model.safetensors", "adapter_config.json"])):
        hub.clear()
        with pytest.raises(WeightsRead):
            start(folders / "lcm", tmp_path, model={"loras": [{"path": f"hub/{name}", "revision": COMMIT}]})
        assert [file for _, file, _ in hub] == ["pytorch_lora_weights.safetensors", *asked]
    save_file(lora, folders / "odd" / "other.safetensors")
    with pytest.raises(ConfigError, match=r"other\.safetensors, style\.safetensors; name one"):
        start(folders / "lcm", tmp_path, model={"loras": [{"path": "hub/odd", "revision": COMMIT}]})


def test_what_the_hub_may_change_is_noted():
    def notes(**model):
        return unpinned(ModelSettings(**model))

    assert notes() == notes(path="a/b", revision=COMMIT, loras=(LoraSettings(path="a/c", revision=COMMIT),)) == []
    (main,) = notes(path="a/b")
    assert main.startswith("unpinned: a/b")
    assert "main branch" in main
    assert "set model.revision" in main
    branch, lora = notes(path="a/b", revision="fp16", loras=(LoraSettings(path="a/c"),))
    assert "branch or tag fp16" in branch
    assert "set model.loras.0.revision" in lora
    with pytest.raises(ValueError, match="revision"):
        LoraSettings(path="a/c", revision="")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"num_train_timesteps": 10**12}, {"num_train_timesteps": True}, {"beta_end": float("nan")}, [1]),
        *({"beta_end": float("-inf")}, {"lambda_min_clipped": float("inf")}),
    ],
)
def test_a_scheduler_that_no_model_was_trained_with(tmp_path, wrong):
    folder = tmp_path / "model"
    shutil.copytree(model_path("student"), folder, copy_function=os.link)
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(config | wrong if isinstance(wrong, dict) else wrong))
    with pytest.raises(ConfigError, match=r"scheduler_config\.json"):
        load_pipeline(ModelSettings(path=str(folder)))
