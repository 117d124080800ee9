"""Exported results: each format, read by its tool's own rules, draws what the tuned policy draws, at full strength."""

from pathlib import Path

import diffusers
import pytest
import torch
from click.testing import CliRunner
from exported_runs import (
    LCM,
    SD,
    SDXL,
    comfyui_transformer_map,
    comfyui_unet_map,
    finished_run,
    images,
    kohya_flux_map,
    lcm_scheduler,
    patched,
    save_run,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import flux, pixart, pixel, sana
from tiny_runs import largest_difference, stir, tiny_config

from rlcm import cli
from rlcm.errors import MissingFileError, RunDirectoryError, UsageError
from rlcm.pipelines import FAMILIES, load_pipeline, make_denoiser
from rlcm.pipelines.lora_keys import kohya_flux, kohya_sdxl, tensors_of
from rlcm.pipelines.settings import LoraSettings
from rlcm.policy.adapter import Factors, read_lora
from rlcm.policy.policy import Policy
from rlcm.sharing.formats import AVAILABLE, export_run, merged_pipeline
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.run_config import run_config

FULL_STRENGTH = [(4, 8), (16, 16), (8, 2)]
CLOSE, SEEN = 1e-4, 1e-3
EVERY_LAYER = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out", "linear_1", "linear_2",
)  # fmt: skip


def flux_pipeline():
    return flux(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))


FLUX = (flux_pipeline, {})
UNETS = {"sd": SD, "sdxl": SDXL, "lcm": LCM, "builtin": (None, {"guidance": 3.0})}


def by_diffusers(run, file):
    """Return what the base model draws with a LoRA that diffusers has loaded."""
    pipeline = run.fresh()
    pipeline.load_lora_weights(file)
    return images(pipeline, run.config.sampler.guidance)


def by_key_map(run, file, key_map):
    """Return what the base model draws with a LoRA that was added to its weights by a tool's key map."""
    pipeline = run.fresh()
    patched(getattr(pipeline, FAMILIES[type(pipeline).__name__].network), load_file(file), key_map(pipeline))
    return images(pipeline, run.config.sampler.guidance)


def by_itself(run, folder):
    """Return what a merged pipeline draws."""
    return images(diffusers.DiffusionPipeline.from_pretrained(folder), run.config.sampler.guidance)


def halved(file, tmp_path):
    """Return a copy of a LoRA with half of every alpha."""
    tensors = {key: value / 2 if key.endswith(".alpha") else value for key, value in load_file(file).items()}
    save_file(tensors, tmp_path / "halved.safetensors")
    return tmp_path / "halved.safetensors"


@pytest.mark.parametrize(("rank", "alpha"), FULL_STRENGTH)
@pytest.mark.parametrize("kind", UNETS)
def test_a_unets_lora_has_its_full_strength_everywhere(kind, rank, alpha, tmp_path):
    size = 0.05 if kind == "builtin" else 0.3
    run = finished_run(tmp_path, *UNETS[kind], rank, alpha, size)
    assert largest_difference(run.base, run.tuned) > 20 * SEEN
    for form in ("diffusers", "kohya"):
        assert largest_difference(by_diffusers(run, export_run(run.path, form)), run.tuned) < CLOSE, form
    file = export_run(run.path, "comfyui")
    assert largest_difference(by_key_map(run, file, comfyui_unet_map), run.tuned) < CLOSE
    assert largest_difference(by_itself(run, export_run(run.path, "merged")), run.tuned) < CLOSE


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_halved_alpha_would_be_seen(kind, tmp_path):
    run = finished_run(tmp_path, *UNETS[kind], 4, 8, 0.3)
    assert largest_difference(by_diffusers(run, halved(export_run(run.path, "kohya"), tmp_path)), run.tuned) > SEEN
    weak = halved(export_run(run.path, "comfyui"), tmp_path)
    assert largest_difference(by_key_map(run, weak, comfyui_unet_map), run.tuned) > SEEN


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_every_layer_of_a_unet_has_its_name(kind, tmp_path):
    run = finished_run(tmp_path, *UNETS[kind], 4, 6, 0.1, target_modules=EVERY_LAYER)
    assert largest_difference(run.base, run.tuned) > 20 * SEEN
    file = export_run(run.path, "kohya")
    layers = [name for name in load_file(file) if name.endswith(".alpha")]
    assert len(layers) == len(read_lora(run.config.lora, run.path / "final" / WEIGHTS_NAME)) > 50
    assert largest_difference(by_key_map(run, file, comfyui_unet_map), run.tuned) < CLOSE
    assert largest_difference(by_diffusers(run, file), run.tuned) < CLOSE


def test_sdxl_layers_have_the_names_of_published_loras():
    small = Factors(torch.zeros(1, 1), torch.zeros(1, 1), 1.0)
    up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    ours = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj": "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
        "up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_out.0": "output_blocks_2_1_transformer_blocks_3_attn2_to_out_0",
        "up_blocks.1.attentions.0.proj_out": "output_blocks_3_1_proj_out",
        "up_blocks.2.resnets.2.conv1": "output_blocks_8_0_in_layers_2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
    }
    for name, theirs in ours.items():
        assert list(kohya_sdxl({name: small}, 2, up)) == [f"lora_unet_{theirs}"]
    with pytest.raises(ValueError, match="cond_proj has no counterpart"):
        kohya_sdxl({"time_embedding.cond_proj": small}, 2, up)


FLUX_LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_v_proj", "to_add_out", "ff.net.0.proj", "ff_context.net.2", "proj_mlp",
    "transformer_blocks.0.norm1.linear", "single_transformer_blocks.0.proj_out",
)  # fmt: skip


@pytest.mark.parametrize(("rank", "alpha", "layers"), [(4, 8, None), (16, 16, FLUX_LAYERS), (8, 2, FLUX_LAYERS)])
def test_flux_comes_out_at_full_strength(rank, alpha, layers, tmp_path):
    wide = {} if layers is None else {"target_modules": layers}
    run = finished_run(tmp_path, *FLUX, rank, alpha, 0.3, **wide)
    assert largest_difference(run.base, run.tuned) > 20 * SEEN
    assert largest_difference(by_diffusers(run, export_run(run.path, "diffusers")), run.tuned) < CLOSE
    kohya, comfyui = export_run(run.path, "kohya"), export_run(run.path, "comfyui")
    for file, key_map in ((kohya, kohya_flux_map), (comfyui, comfyui_transformer_map)):
        assert largest_difference(by_key_map(run, file, key_map), run.tuned) < CLOSE
        assert largest_difference(by_key_map(run, halved(file, tmp_path), key_map), run.tuned) > SEEN
    assert largest_difference(by_itself(run, export_run(run.path, "merged")), run.tuned) < CLOSE


@pytest.mark.parametrize("parts", [("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.to_v", "proj_mlp"), ("attn.to_q",)])
def test_diffusers_reads_flux_of_full_width_from_kohyas_names(parts):
    # diffusers' converter knows the published width only, 3072, so weights are compared in place of images.
    torch.manual_seed(0)
    width, rank = 3072, 2
    sizes = {"proj_mlp": 4 * width}
    lora = {
        f"single_transformer_blocks.3.{part}": Factors(torch.randn(rank, width), torch.randn(sizes.get(part, width), rank), 5.0)
        for part in parts
    } | {
        f"transformer_blocks.7.{part}": Factors(torch.randn(rank, width), torch.randn(width, rank), 5.0)
        for part in ("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_k_proj", "attn.to_out.0")
    }
    found = diffusers.FluxPipeline.lora_state_dict(tensors_of(kohya_flux(lora, width), torch.float32))
    for key in [key for key in found if key.endswith(".lora_A.weight")]:
        name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        change = found[key.replace("lora_A", "lora_B")] @ found[key]
        wanted = lora.pop(name).change() if name in lora else torch.zeros_like(change)
        assert largest_difference(change, wanted) < 1e-4
    assert not lora


def test_other_families_have_the_formats_that_exist(tmp_path):
    for number, (make, sampler, forms) in enumerate(
        [
            (sana, {"steps": 2}, ("diffusers", "merged")),
            (lambda: pixart(lcm_scheduler()), {"guidance": 1.0}, ("comfyui", "merged")),
        ]
    ):
        run = finished_run(tmp_path / str(number), make, sampler, 4, 10, 0.4)
        assert largest_difference(run.base, run.tuned) > 20 * SEEN
        for form in forms:
            made = export_run(run.path, form)
            if form == "diffusers":
                found = by_diffusers(run, made)
            elif form == "comfyui":
                found = by_key_map(run, made, comfyui_transformer_map)
            else:
                found = by_itself(run, made)
            assert largest_difference(found, run.tuned) < CLOSE
        with pytest.raises(UsageError, match=f"--format kohya.*choose --format {forms[0]} or --format merged"):
            export_run(run.path, "kohya")


@pytest.mark.parametrize(
    ("form", "name"), [("kohya", "e.txt"), ("diffusers", "x.BIN"), ("kohya", "x.Safetensors"), ("merged", "x.ckpt")]
)
def test_no_folder_is_made_of_a_files_name(form, name, tmp_path):
    run = finished_run(tmp_path, *UNETS["sd"], *FULL_STRENGTH[0], 0.3)
    with pytest.raises(UsageError, match=rf"{name}'(: a merged pipeline is a folder| ends like a file)"):
        export_run(run.path, form, tmp_path / name)
    assert not (tmp_path / name).exists()
    export_run(run.path, "kohya", tmp_path / "v1.5")
    assert (tmp_path / "v1.5").is_dir()


def test_a_merged_folder_comes_with_a_word_on_its_guidance(tmp_path):
    run = finished_run(tmp_path, *UNETS["builtin"], *FULL_STRENGTH[0], 0.05)
    found = CliRunner().invoke(cli.main, ["export", str(run.path), "--format", "merged"])
    assert (found.exit_code, found.output.count("draw from this one with `--guidance 3`")) == (0, 1), found.output
    assert "guidance" not in CliRunner().invoke(cli.main, ["export", str(run.path)]).output


def test_a_lora_that_belongs_beside_others_says_so(tmp_path, monkeypatch):
    run = finished_run(tmp_path, *UNETS["builtin"], *FULL_STRENGTH[0], 0.05)
    whole = run_config(run.path)
    beside = whole.model_copy(update={"model": whole.model.model_copy(update={"loras": (LoraSettings(path="runs/a/final"),)})})
    monkeypatch.setattr("rlcm.cli.work.share.run_config", lambda _: beside)
    found = CliRunner().invoke(cli.main, ["export", str(run.path), "--format", "kohya"])
    assert (
        "note: the run was tuned on its base model with other LoRAs in it (runs/a/final); this file has its own" in found.output
    )
    assert "other LoRAs" not in CliRunner().invoke(cli.main, ["export", str(run.path), "--format", "merged"]).output


def test_a_pixel_model_is_merged(tmp_path):
    pixel().save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path, model={"path": str(tmp_path / "model")}, sampler={"guidance": None}, prompts=["1", "2"])
    run = save_run(stir(Policy(make_denoiser(load_pipeline(config.model), config.sampler, config.model), config.lora)), config)
    merged = diffusers.DiffusionPipeline.from_pretrained(export_run(run.path, "merged"))
    lora, base = read_lora(config.lora, run.path / "final" / WEIGHTS_NAME), load_pipeline(config.model)
    assert lora
    for name, factors in lora.items():
        found = merged.unet.get_submodule(name).weight - base.unet.get_submodule(name).weight
        assert largest_difference(found, factors.change()) < 1e-6
    assert AVAILABLE["ConsistencyModelPipeline"] == ("merged",)
    assert AVAILABLE.keys() == FAMILIES.keys()


def test_weights_in_half_precision(tmp_path):
    run = finished_run(tmp_path, *SD, 4, 8, 0.3)
    for form in ("diffusers", "kohya"):
        file = export_run(run.path, form, tmp_path / f"{form}.safetensors", "fp16")
        halves = {key: value.dtype for key, value in load_file(file).items() if not key.endswith(".alpha")}
        assert set(halves.values()) == {torch.float16}
        assert largest_difference(by_diffusers(run, file), run.tuned) < 5e-3
    folder = export_run(run.path, "merged", tmp_path / "half", "fp16")
    assert diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16).unet.dtype == torch.float16
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


@pytest.mark.parametrize("form", ["diffusers", "kohya", "merged"])
def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path, form):
    run = finished_run(tmp_path, *SD, 4, 8, 0.3)
    weights, ending = run.path / "final" / WEIGHTS_NAME, "" if form == "merged" else ".safetensors"
    with safe_open(weights, "pt") as stored:
        metadata = stored.metadata()
    save_file({key: 1e6 * value for key, value in load_file(weights).items()}, weights, metadata)
    said = "is beyond float16; take fp32" if form == "merged" else "some of the LoRA's weights are too large for it"
    with pytest.raises(UsageError, match=f"{said}.*--precision fp32"):
        export_run(run.path, form, tmp_path / f"half{ending}", "fp16")
    assert not (tmp_path / f"half{ending}").exists()
    assert export_run(run.path, form, tmp_path / f"whole{ending}", "fp32").exists()


def test_merging_takes_loras_that_the_model_came_with_along(tmp_path):
    first = finished_run(tmp_path / "first", *SD, 4, 8, 0.3)
    loras = [{"path": str(first.path / "final"), "scale": 0.5, "fuse": False}]
    config = first.config.model_copy(update={"model": first.config.model.model_validate({"path": first.model, "loras": loras})})
    found = images(merged_pipeline(config, first.path / "final" / WEIGHTS_NAME), 1.0)
    plain = first.fresh()
    plain.load_lora_weights(first.path / "final")
    plain.set_adapters(plain.get_active_adapters(), 1.5)
    assert largest_difference(found, images(plain, 1.0)) < CLOSE
    assert largest_difference(found, first.tuned) > SEEN


def test_files_say_rank_and_alpha_and_go_where_they_are_wanted(tmp_path):
    run = finished_run(tmp_path, *SD, 8, 2)
    assert export_run(run.path, "kohya") == run.path / "export/kohya/run.safetensors"
    assert export_run(run.path, "diffusers", tmp_path / "a") == tmp_path / "a/pytorch_lora_weights.safetensors"
    file = export_run(run.path, "kohya", tmp_path / "b/c.safetensors")
    assert file == tmp_path / "b/c.safetensors"
    with safe_open(file, "pt") as opened:
        assert {"ss_network_dim": "8", "ss_network_alpha": "2"}.items() <= opened.metadata().items()
        alphas = {float(opened.get_tensor(key)) for key in opened.keys() if key.endswith(".alpha")}  # noqa: SIM118
    assert alphas == {2.0}


def test_an_export_replaces_neither_a_run_nor_another_lora(tmp_path):
    run = finished_run(tmp_path, *SD, 4, 4)
    final = run.path / "final"
    before = (final / WEIGHTS_NAME).read_bytes()
    for place in (final, final / WEIGHTS_NAME):
        with pytest.raises(UsageError, match="holds a run"):
            export_run(run.path, "diffusers", place, "fp16")
    assert (final / WEIGHTS_NAME).read_bytes() == before
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / WEIGHTS_NAME).write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=rf"would replace {WEIGHTS_NAME}"):
        export_run(run.path, "diffusers", tmp_path / "loras")
    for _ in range(2):  # another name in that folder, and what was exported there before
        assert export_run(run.path, "kohya", tmp_path / "loras").name == "run.safetensors"
    for _ in range(2):  # a name that was typed
        export_run(run.path, "kohya", run.path / "mine.safetensors")
    for theirs in (b"somebody's", before):
        (tmp_path / "theirs.safetensors").write_bytes(theirs)
        for form in ("kohya", "diffusers"):
            with pytest.raises(UsageError, match=r"would replace a file that `rlcm export` did not write"):
                export_run(run.path, form, tmp_path / "theirs.safetensors")
        assert (tmp_path / "theirs.safetensors").read_bytes() == theirs
    (tmp_path / "a.bin").write_text("")
    with pytest.raises(UsageError, match=r"is a file already.*ends in \.safetensors"):
        export_run(run.path, "kohya", tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("there", "error"),
    [(False, SafetensorError("Error: I/O error: No space left on device (os error 28)")), (True, Exception("(os error 28)"))],
)
def test_of_a_pipeline_that_a_full_disk_refuses_nothing_stays(tmp_path, monkeypatch, there, error):
    """safetensors and tokenizers have errors of their own for what the operating system says."""
    run = finished_run(tmp_path, *SD, 4, 4)
    folder = tmp_path / "merged"
    if there:
        (tmp_path / "real").mkdir()
        folder.symlink_to("real")

    def full(self, path, **_):
        (Path(path) / "vae").mkdir(parents=True)
        raise error

    with monkeypatch.context() as disk:
        disk.setattr(diffusers.DiffusionPipeline, "save_pretrained", full)
        with pytest.raises(RunDirectoryError, match=r"cannot write .*merged: No space left on device.* free some space"):
            export_run(run.path, "merged", folder)
    assert not list(folder.iterdir())
    assert (export_run(run.path, "merged", folder) / "model_index.json").is_file()


def test_what_cannot_be_exported_says_why(tmp_path):
    run = finished_run(tmp_path, *SD, 4, 4)
    with pytest.raises(UsageError, match=r"a merged pipeline is a folder"):
        export_run(run.path, "merged", tmp_path / "x.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UsageError, match=r"is a folder; a name that ends in \.safetensors must be a file's"):
        export_run(run.path, "kohya", tmp_path / "folder.safetensors")
    with pytest.raises(UsageError, match=r"holds something already"):
        export_run(run.path, "merged", run.path)
    with pytest.raises(MissingFileError, match=r"holds no run"):
        export_run(tmp_path / "model", "kohya")
    (run.path / "final" / WEIGHTS_NAME).unlink()
    with pytest.raises(MissingFileError, match=r"the run has not ended; go on with `rlcm train --resume"):
        export_run(run.path, "kohya")


def test_a_layer_without_a_name_there_is_refused(tmp_path):
    run = finished_run(tmp_path, *FLUX, 4, 4, target_modules=("to_q", "x_embedder"))
    with pytest.raises(UsageError, match=r"x_embedder has no counterpart. Choose --format diffusers or --format merged"):
        export_run(run.path, "kohya")
