"""LoRAs given to a model: each spelling does what the factors say, and a file that does not fit, whole, is refused by name."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_spellings import ALPHA, RANK, dotted, factors_for, kohya, peft, processors
from safetensors.torch import save, save_file
from tiny_pipelines import flux, schedule, sdxl, stable_diffusion
from tiny_runs import tiny_config

from rlcm.doctor import diagnose
from rlcm.errors import ConfigError, MissingFileError, UsageError, WeightsError
from rlcm.pipelines import LoraSettings, ModelSettings, load_pipeline, loading
from rlcm.pipelines.loading import read_loras
from rlcm.pipelines.lora_keys import kohya_flux, kohya_sdxl, tensors_of
from rlcm.pipelines.loras import apply_loras
from rlcm.policy.adapter import add_lora

pytestmark = pytest.mark.usefixtures("_known_networks")
TO = ("to_q", "to_k", "to_out.0")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models on disk and loaded, and factors for each."""
    root = tmp_path_factory.mktemp("models")
    lcm = diffusers.LCMScheduler(**schedule(clip_sample=False))
    made = {
        "sd": stable_diffusion(lcm),
        "xl": sdxl(lcm),
        "flux": flux(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)),
    }
    for name, pipeline in made.items():
        pipeline.save_pretrained(root / name)
    unet, text = made["sd"].unet, made["sd"].text_encoder
    return SimpleNamespace(root=root, pipelines=made, lora=factors_for(unet, *TO), text=factors_for(text, "q_proj"))


def model(models, name, *paths, **lora):
    loras = tuple(LoraSettings(path=str(path), **lora) for path in paths)
    return ModelSettings(path=str(models.root / name), device="cpu", loras=loras)


def wrote(folder, tensors, name="lora.safetensors", metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata=metadata)
    return folder / name


@pytest.fixture
def _known_networks(models, monkeypatch):
    """In place of networks made anew from their configuration for every file."""
    monkeypatch.setattr(loading, "bare_part", lambda given, part: getattr(models.pipelines[Path(given.path).name], part, None))


def tuned(models, name, path, component="unet", **lora):
    """Return the weights of a component that has been given a LoRA, whose adapters are then added to it."""
    pipeline = models.pipelines[name]
    loras = read_loras(model(models, name, path, **lora), type(pipeline).__name__)
    if lora.get("fuse", True):
        parts = {part: copy.deepcopy(getattr(pipeline, part)) for part in {component, *loras[0].factors}}
        apply_loras(SimpleNamespace(**parts), loras)
        return parts[component].state_dict()
    pipeline = copy.deepcopy(pipeline)
    apply_loras(pipeline, loras)
    pipeline.fuse_lora(components=[component])
    pipeline.unload_lora_weights()
    return getattr(pipeline, component).state_dict()


def refused(models, path, match, error=WeightsError, name="sd", **lora):
    with pytest.raises(error, match=match) as caught:
        read_loras(model(models, name, path, **lora), type(models.pipelines[name]).__name__)
    assert isinstance(caught.value, UsageError)
    return str(caught.value)


def expected(models, name, component, lora):
    """Return the weights of a component with a LoRA added by our own sum."""
    network = copy.deepcopy(getattr(models.pipelines[name], component))
    add_lora(network, lora)
    return network.state_dict()


def same(found, wanted):
    return all(torch.allclose(found[key], wanted[key], atol=1e-6) for key in wanted)


SPELLINGS = {
    "diffusers": lambda m: peft(m.lora, "unet."),
    "diffusers, old": lambda m: dotted(m.lora),
    "diffusers, first": lambda m: processors(m.lora),
    "diffusers, first, without the network": lambda m: processors(m.lora, ""),
    "PEFT": lambda m: peft(m.lora, "base_model.model."),
    "PEFT without prefix": lambda m: peft(m.lora),
    "PEFT with the adapter's name": lambda m: peft(m.lora, "base_model.model.", "default."),
    "PEFT inside the pipeline": lambda m: peft(m.lora, "unet.base_model.model."),
    "PEFT around the pipeline": lambda m: peft(m.lora, "base_model.model.unet.", "style."),
    "kohya": lambda m: kohya(m.lora),
    "ComfyUI": lambda m: kohya(m.lora, "diffusion_model.", "."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_does_what_the_factors_say(models, tmp_path, spelling):
    file = wrote(tmp_path, SPELLINGS[spelling](models))
    wanted = expected(models, "sd", "unet", models.lora)
    assert not same(models.pipelines["sd"].unet.state_dict(), wanted)
    assert same(tuned(models, "sd", file), wanted)
    assert same(tuned(models, "sd", file, fuse=False), wanted)


def test_a_pipeline_is_loaded_with_its_lora_or_not_at_all(models, tmp_path, monkeypatch):
    monkeypatch.undo()
    file = wrote(tmp_path, peft(models.lora, "base_model.model."))
    wanted = expected(models, "sd", "unet", models.lora)
    assert same(load_pipeline(model(models, "sd", file)).unet.state_dict(), wanted)
    text = peft({"text_model.encoder.layers.0.self_attn.odd": next(iter(models.text.values()))}, "text_encoder.")
    other = wrote(tmp_path / "other", peft(models.lora, "unet.") | text)
    monkeypatch.setattr(loading, "_read_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(WeightsError, match=r"2 of its \d+ tensors have no layer in this model: text_encoder\.text_model"):
        load_pipeline(model(models, "sd", other))


@pytest.mark.parametrize("spelling", ["diffusers", "old", "kohya"])
@pytest.mark.parametrize("fuse", [True, False])
def test_a_lora_for_network_and_text_encoder_reaches_both(models, tmp_path, spelling, fuse):
    inside = {f"text_model.{name.removeprefix('text_model.')}": part for name, part in models.text.items()}
    old = {f"text_encoder.{name.replace('q_proj', 'to_q_lora')}": part for name, part in inside.items()}
    tensors = {
        "diffusers": peft(models.lora, "unet.") | peft(inside, "text_encoder."),
        "old": processors(models.lora)
        | {f"{n}.{d}.weight": t for n, p in old.items() for d, t in (("down", p.down), ("up", p.up * ALPHA / RANK))},
        "kohya": kohya(models.lora) | kohya(inside, "lora_te_"),
    }[spelling]
    file = wrote(tmp_path, tensors)
    for component, lora in (("unet", models.lora), ("text_encoder", models.text)):
        assert same(tuned(models, "sd", file, component, fuse=fuse), expected(models, "sd", component, lora))


def test_kohyas_names_of_sdxl_and_flux(models, tmp_path):
    unet, transformer = models.pipelines["xl"].unet, models.pipelines["flux"].transformer
    xl, fx = factors_for(unet, *TO, "conv1", "proj_in"), factors_for(transformer, "to_q", "to_v", "proj_mlp", "to_out.0")
    shapes = unet.config.layers_per_block, unet.config.up_block_types
    inside = {f"text_model.{name.removeprefix('text_model.')}": part for name, part in models.text.items()}
    files = {
        "xl": tensors_of(kohya_sdxl(xl, *shapes), torch.float32) | kohya(inside, "lora_te1_"),
        "flux": tensors_of(kohya_flux(fx, 32), torch.float32),
    }
    for name, lora, component in (("xl", xl, "unet"), ("flux", fx, "transformer")):
        wanted = expected(models, name, component, lora)
        assert same(tuned(models, name, wrote(tmp_path / name, files[name]), component), wanted)
    twice = files["flux"] | peft({name: part for name, part in fx.items() if name.endswith("to_q")}, "transformer.")
    refused(models, wrote(tmp_path / "twice", twice), r"two LoRAs in one: .*to_q is in it twice", name="flux")
    plain = kohya(xl)  # with diffusers' names of the layers, as LCM-LoRA for SDXL has them
    assert same(
        load_pipeline(model(models, "xl", wrote(tmp_path / "own", plain))).unet.state_dict(), expected(models, "xl", "unet", xl)
    )
    refused(
        models, tmp_path / "xl" / "lora.safetensors", r"does not fit StableDiffusionPipeline: .*Their names are those of SDXL"
    )
    refused(
        models, tmp_path / "flux" / "lora.safetensors", r"do.* not fit StableDiffusionPipeline.*double_blocks.*those of FLUX"
    )
    refused(
        models, wrote(tmp_path / "sd", kohya(models.lora)), "double|does not fit FluxPipeline.*Stable Diffusion", name="flux"
    )
    refused(models, tmp_path / "sd" / "lora.safetensors", r"does not fit StableDiffusionXLPipeline: its factors", name="xl")


def test_the_strength_that_peft_wrote_down_counts(models, tmp_path):
    tensors = peft(models.lora, "base_model.model.", folded=False)
    one = next(iter(models.lora))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {}}
    wanted = expected(models, "sd", "unet", models.lora)

    def found(name="adapter_model.safetensors", metadata=None, **changes):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        file = wrote(folder, tensors, name, metadata)
        if metadata is None:
            (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        return tuned(models, "sd", file)

    assert same(found(), wanted)
    assert same(found("renamed.safetensors"), wanted)
    assert same(found(use_rslora=None, use_dora=False), wanted)
    assert same(found(use_rslora=True, lora_alpha=ALPHA / RANK**0.5), wanted)
    assert not same(found(alpha_pattern={one: 9.0}), wanted)
    kept = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": ALPHA})}
    assert same(found(metadata=kept), wanted)
    for changes, match, error in (
        ({"use_dora": True}, "says that this is a DoRA", WeightsError),
        ({"peft_type": "LOHA"}, "LOHA, which rlcm cannot add", WeightsError),
        ({"use_dora": "false"}, "use_dora='false' is neither true nor false", ConfigError),
        ({"use_rslora": 1}, "use_rslora=1 is neither true nor false", ConfigError),
        ({"lora_alpha": "much"}, "are no numbers", ConfigError),
        ({"lora_alpha": 10**400}, "are no numbers that a LoRA has", ConfigError),
        ({"alpha_pattern": {"to_q": float("nan")}}, "are no numbers that a LoRA has", ConfigError),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern has", ConfigError),
    ):
        with pytest.raises(error, match=match):
            found(**changes)
    folder = tmp_path / "odd"
    file = wrote(folder, tensors)
    for text in ("[]", "{", "[" * 100_000, "\xff"):
        (folder / "adapter_config.json").write_text(text, encoding="latin-1")
        refused(models, file, r"adapter_config\.json (is no JSON|is a list|cannot be read)", ConfigError)


def changed(tensors, key, value):
    return {**tensors, key: value} if value is not None else {k: v for k, v in tensors.items() if k != key}


def test_files_that_are_no_lora_for_the_model(models, tmp_path):
    good = peft(models.lora, "unet.")
    down, up = next(key for key in good if ".lora_A." in key), next(key for key in good if ".lora_B." in key)
    stem = down.removesuffix(".lora_A.weight")
    whole = models.pipelines["sd"].unet.state_dict()
    cases = {
        r"1 of its \d+ tensors have no layer in this model: unet\.odd\.to_q\.lora_A\.weight": changed(
            good, "unet.odd.to_q.lora_A.weight", torch.ones(2, 8)
        ),
        r"no layer in this model: .*lora_B\.bias": changed(good, f"{stem}.lora_B.bias", torch.ones(8)),
        "lacks its other factor": changed(good, up, None),
        "are not those of a layer": changed(good, down, torch.ones(RANK, 5)),
        r"its factors \(3, 8\)|are not those of a layer": changed(good, down, torch.ones(3, *good[down].shape[1:])),
        "is a DoRA": changed(good, f"{stem}.lora_magnitude_vector", torch.ones(8)),
        "is a LoHa": {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.ones(2, 2)},
        "is a LoKr": {"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": torch.ones(2, 2)},
        "a LyCORIS other": {"lora_unet_mid_block_attentions_0_proj_in.diff": torch.ones(2, 2)},
        "is a textual inversion": {"emb_params": torch.ones(2, 16)},
        "is an IP-Adapter": {"image_proj.proj.weight": torch.ones(2, 16)},
        r"is no LoRA: it holds <cat>": {"<cat>": torch.ones(16)},
        "as the weights of a whole model do; those go into model.path": whole,
        "holds two LoRAs in one": peft(models.lora, adapter="a.") | peft(models.lora, adapter="b."),
        "is stored as int8, which is no precision of a LoRA": changed(good, down, good[down].to(torch.int8)),
        "holds NaN or infinity": changed(good, down, torch.full_like(good[down], torch.nan)),
        r"\.alpha is no single number": changed(
            kohya(models.lora), next(iter(kohya({stem[5:]: models.lora[stem[5:]]}))).split(".")[0] + ".alpha", torch.ones(2)
        ),
    }
    for number, (match, tensors) in enumerate(cases.items()):
        refused(models, wrote(tmp_path / f"{number}", tensors), match)
        refused(models, tmp_path / f"{number}", match, fuse=False)


def test_the_folder_of_a_run_is_told_where_its_lora_is(models, tmp_path):
    wrote(tmp_path / "run" / "final", peft(models.lora, "unet."), "pytorch_lora_weights.safetensors")
    refused(models, tmp_path / "run", r"is the folder of a run; its LoRA is in .*run/final, so give that", MissingFileError)
    named = tuned(models, "sd", tmp_path / "run", weight_name="final/pytorch_lora_weights.safetensors")
    assert same(named, tuned(models, "sd", tmp_path / "run" / "final"))


def test_files_that_cannot_be_read(models, tmp_path):
    data = save(peft(models.lora, "unet."))
    cases = {
        r"is empty": b"",
        r"pointer of Git LFS.*git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        r"is a pickle of PyTorch, which rlcm does not open": b"PK\x03\x04" + data,
        r"is a pickle, which": b"\x80\x02}q\x00." + b" " * 80,
        r"is a web page": b"<!DOCTYPE html><html></html>",
        r"is damaged or cut short": data[:-8],
        r"is no safetensors file": b"nothing of the kind" * 20,
        r"holds no weights at all": save({}),
    }
    for name, (match, content) in zip("abcdefgh", cases.items(), strict=True):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        refused(models, tmp_path / f"{name}.safetensors", match)
    (tmp_path / "x.bin").write_bytes(b"PK\x03\x04")
    refused(models, tmp_path, "is a pickle of PyTorch", weight_name="x.bin")
    refused(models, tmp_path / "a.safetensors", r"is a file itself, and not x\.bin", ConfigError, weight_name="x.bin")
    refused(models, tmp_path / "nowhere.safetensors", "neither a file, a folder nor a Hub id", MissingFileError)


def test_which_file_of_a_folder_is_meant(models, tmp_path):
    tensors = peft(models.lora, "unet.")
    for name in ("b.safetensors", "a.safetensors"):
        wrote(tmp_path, tensors, name)
    said = refused(models, tmp_path, r"2 files that may be meant: a\.safetensors, b\.safetensors; name one", ConfigError)
    remedy = said[said.index("model.loras=") :].strip(".").removeprefix("model.loras=").strip("'")
    (chosen,) = tiny_config(tmp_path, model={"loras": yaml.safe_load(remedy)}).model.loras
    wanted = expected(models, "sd", "unet", models.lora)
    assert same(tuned(models, "sd", chosen.path, weight_name=chosen.weight_name), wanted)
    refused(models, tmp_path, r"has no file c\.safetensors", MissingFileError, weight_name="c.safetensors")
    wrote(tmp_path, tensors, "pytorch_lora_weights.safetensors")  # the usual name is the one that is meant
    assert same(tuned(models, "sd", tmp_path), wanted)
    wrote(tmp_path, tensors, "adapter_model.safetensors")
    refused(models, tmp_path, "2 files that may be meant: pytorch_lora", ConfigError)
    bins = tmp_path / "bins"
    bins.mkdir()
    (bins / "pytorch_lora_weights.bin").write_bytes(b"PK")
    refused(
        models, bins, r"no \.safetensors file, and rlcm opens no pickles such as pytorch_lora_weights\.bin", MissingFileError
    )


def test_a_lora_of_zeros_is_added_and_said_to_do_nothing(models, tmp_path, caplog):
    zeros = {key: tensor * (".lora_A." in key) for key, tensor in peft(models.lora, "unet.").items()}
    plain = models.pipelines["sd"].unet.state_dict()
    assert not caplog.messages
    assert same(tuned(models, "sd", wrote(tmp_path, zeros)), plain)
    assert "changes nothing: all of its factors are zero" in caplog.text


def test_a_change_that_the_precision_cannot_hold(models, tmp_path):
    file = wrote(tmp_path, {key: tensor * 1e4 for key, tensor in peft(models.lora, "unet.").items()})
    pipeline = copy.deepcopy(models.pipelines["sd"]).to(torch.float16)
    loras = read_loras(model(models, "sd", file), "StableDiffusionPipeline")
    with pytest.raises(WeightsError, match=r"beyond float16; take fp32 \(model\.precision=fp32"):
        apply_loras(pipeline, loras)


def test_the_doctor_is_red(models, tmp_path):
    lora = {"path": str(wrote(tmp_path, peft({"odd.to_q": next(iter(models.lora.values()))}))), "fuse": False}
    config = tiny_config(tmp_path, model={"path": str(models.root / "sd"), "device": "cpu", "loras": [lora]})
    found = diagnose(config)
    assert not found.ok
    assert "does not fit StableDiffusionPipeline" in " ".join(finding.remedy for finding in found.findings if not finding.ok)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_wrong_with_a_file_it_is_a_clear_refusal(models, tmp_path, data):
    """A property: a file with one thing wrong never passes, and never ends in another error."""
    tensors = data.draw(st.sampled_from([peft(models.lora, "unet."), kohya(models.lora), dotted(models.lora)]))
    content = bytearray(save(tensors))
    what = data.draw(st.sampled_from(["cut", "rename", "drop", "shape"]))
    key = data.draw(st.sampled_from(sorted(key for key in tensors if not key.endswith(".alpha"))))
    if what == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif what == "rename":
        other = data.draw(st.text(min_size=1, max_size=20).filter(lambda name: name not in tensors and name != "__metadata__"))
        content = save({other if k == key else k: t for k, t in tensors.items()})
    elif what == "drop":
        content = save({k: t for k, t in tensors.items() if k != key})
    else:
        content = save(
            tensors
            | {key: torch.ones(data.draw(st.lists(st.integers(0, 3), max_size=3).filter(lambda s: len(s) != 2 or 0 in s)))}
        )
    file = tmp_path / "lora.safetensors"
    file.write_bytes(bytes(content))
    refused(models, file, r"model\.loras\.0\.path")
