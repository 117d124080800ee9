"""Finished runs of tiny models, and the key maps of other tools, for the tests of the exported formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny_pipelines import schedule, sdxl, stable_diffusion
from tiny_runs import PROMPTS, lcm_pipeline, stir, tiny_config
from torch import Tensor, nn

from rlcm.pipelines import load_pipeline, make_denoiser
from rlcm.policy.policy import Policy
from rlcm.runs.rundir import RunDirectory
from rlcm.training.config import TrainConfig
from rlcm.training.final import save_final


@dataclass
class FinishedRun:
    """A run's folder, the model that it tuned, and what the tuned and the base model draw."""

    path: Path
    model: str
    config: TrainConfig
    tuned: Tensor
    base: Tensor
    pipeline: Any
    """The tuned one."""

    def fresh(self) -> Any:
        """Return the base model by plain diffusers, with the run's scheduler."""
        return load_pipeline(self.config.model)


def lcm_scheduler() -> diffusers.LCMScheduler:
    return diffusers.LCMScheduler(**schedule(clip_sample=False))


def sd_pipeline() -> Any:
    return stable_diffusion(lcm_scheduler())


def sdxl_pipeline(**unet: Any) -> Any:
    return sdxl(lcm_scheduler(), **unet)


SMALL: dict[str, dict[str, Any]] = {
    "FluxPipeline": {"height": 32, "width": 32, "max_sequence_length": 16},
    "SanaSprintPipeline": {"num_inference_steps": 2, "height": 32, "width": 32, "use_resolution_binning": False},
    **{
        kind: {"height": 16, "width": 16}
        for kind in ("ZImagePipeline", "Flux2KleinPipeline", "QwenImagePipeline", "Krea2Pipeline", "ErnieImagePipeline")
    },
    "StableDiffusion3Pipeline": {"height": 16, "width": 16, "sigmas": [1.0, 2 / 3, 1 / 3]},
    "PixArtAlphaPipeline": {"height": 16, "width": 16, "use_resolution_binning": False},
}
"""What keeps pictures small where the pipeline's own size is that of its published models."""
SD, SDXL, LCM = (sd_pipeline, {"guidance": 1.0}), (sdxl_pipeline, {"guidance": 1.0}), (lcm_pipeline, {"guidance": 3.0})


def images(pipeline: Any, guidance: float | None) -> Tensor:
    """Return what a diffusers pipeline draws for the prompts, in a few steps, always from the same noise."""
    call: dict[str, Any] = {"num_inference_steps": 3} | ({} if guidance is None else {"guidance_scale": guidance})
    call |= SMALL.get(type(pipeline).__name__, {})
    torch.manual_seed(7)  # FLUX passes no generator to its scheduler
    noise = [torch.Generator().manual_seed(100 + i) for i in range(len(PROMPTS))]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt=list(PROMPTS), generator=noise, output_type="pt", **call).images.float()


def finished_run(
    folder: Path,
    make: Any,
    sampler: dict[str, Any],
    rank: int,
    alpha: float,
    size: float = 0.15,
    model: dict[str, Any] | None = None,
    **lora: Any,
) -> FinishedRun:
    """Return a run that has ended, over the pipeline that `make` returns, or over the built-in one for None.

    Args:
        size: of the noise in the adapter.
        model: further settings of the model.
        lora: further settings of the adapter.
    """
    path = "builtin" if make is None else str(folder / "model")
    if make is not None:
        make().save_pretrained(path)
    config = tiny_config(
        folder,
        model={"path": path, **(model or {})},
        sampler={"steps": 3, **sampler},
        lora={"rank": rank, "alpha": alpha, **lora},
    )
    pipeline = load_pipeline(config.model)
    guidance = config.sampler.guidance
    base = images(pipeline, guidance)
    policy = stir(Policy(make_denoiser(pipeline, config.sampler, config.model), config.lora), size=size)
    run = save_run(policy, config)
    return FinishedRun(run.path, path, config, images(pipeline, guidance), base, pipeline)


def save_run(policy: Policy, config: TrainConfig) -> RunDirectory:
    """Write the folder of a run that has ended: its configuration and its result."""
    run = RunDirectory.create(Path(config.output), config.name)
    run.write_text("config.yaml", config.dump())
    save_final(policy, config, [], run)
    return run


def sdxl_names(unet: Any) -> dict[str, str]:
    """Return the names that ComfyUI's `unet_to_diffusers` gives to the layers of a UNet: its own by diffusers'."""
    resnet = {
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    deep = unet.config.layers_per_block
    names = {
        "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }  # fmt: skip

    def add(theirs: str, ours: str, module: Any) -> None:
        for name, layer in module.named_modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                names[f"{ours}.{name}"] = f"{theirs}.{resnet.get(name, name)}"

    for x, block in enumerate(unet.down_blocks):
        n = 1 + (deep + 1) * x
        for i, layer in enumerate(block.resnets):
            add(f"input_blocks.{n}.0", f"down_blocks.{x}.resnets.{i}", layer)
            if hasattr(block, "attentions"):
                add(f"input_blocks.{n}.1", f"down_blocks.{x}.attentions.{i}", block.attentions[i])
            n += 1
        names[f"down_blocks.{x}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
    for place, kind, number in ((0, "resnets", 0), (1, "attentions", 0), (2, "resnets", 1)):
        add(f"middle_block.{place}", f"mid_block.{kind}.{number}", getattr(unet.mid_block, kind)[number])
    for x, block in enumerate(unet.up_blocks):
        n = (deep + 1) * x
        for i, layer in enumerate(block.resnets):
            place = 0
            add(f"output_blocks.{n}.{place}", f"up_blocks.{x}.resnets.{i}", layer)
            if hasattr(block, "attentions"):
                place += 1
                add(f"output_blocks.{n}.{place}", f"up_blocks.{x}.attentions.{i}", block.attentions[i])
            if i == deep:
                names[f"up_blocks.{x}.upsamplers.0.conv"] = f"output_blocks.{n}.{place + 1}.conv"
            n += 1
    return names


def comfyui_unet_map(pipeline: Any) -> dict[str, list[str]]:
    """Return the layers that ComfyUI patches for each key of a LoRA for a UNet."""
    unet, found = pipeline.unet, {}
    for name, layer in unet.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            found["lora_unet_" + name.replace(".", "_")] = [name]
    for ours, theirs in sdxl_names(unet).items():
        found["lora_unet_" + theirs.replace(".", "_")] = [ours]
    return found


def flux_layers(pipeline: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the layers of FLUX's first implementation, and those of diffusers whose outputs each has, in order."""
    for i in range(len(pipeline.transformer.transformer_blocks)):
        block, place = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        yield place + "img_attn.qkv", [block + f"attn.to_{x}" for x in "qkv"]
        yield place + "txt_attn.qkv", [block + f"attn.add_{x}_proj" for x in "qkv"]
        yield place + "img_attn.proj", [block + "attn.to_out.0"]
        yield place + "txt_attn.proj", [block + "attn.to_add_out"]
        yield place + "img_mlp.0", [block + "ff.net.0.proj"]
        yield place + "img_mlp.2", [block + "ff.net.2"]
        yield place + "txt_mlp.0", [block + "ff_context.net.0.proj"]
        yield place + "txt_mlp.2", [block + "ff_context.net.2"]
        yield place + "img_mod.lin", [block + "norm1.linear"]
        yield place + "txt_mod.lin", [block + "norm1_context.linear"]
    for i in range(len(pipeline.transformer.single_transformer_blocks)):
        block, place = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        yield place + "linear1", [*(block + f"attn.to_{x}" for x in "qkv"), block + "proj_mlp"]
        yield place + "linear2", [block + "proj_out"]
        yield place + "modulation.lin", [block + "norm.linear"]


def kohya_flux_map(pipeline: Any) -> dict[str, list[str]]:
    """Return the layers that kohya's key of FLUX stands for."""
    return {"lora_unet_" + theirs.replace(".", "_"): ours for theirs, ours in flux_layers(pipeline)}


def comfyui_transformer_map(pipeline: Any) -> dict[str, list[str]]:
    """Return the layers that ComfyUI patches for each key of a LoRA for FLUX or PixArt, whose slices are diffusers' layers."""
    return {
        f"transformer.{name}": [name] for name, layer in pipeline.transformer.named_modules() if isinstance(layer, nn.Linear)
    }


@torch.no_grad()
def patched(network: Any, tensors: dict[str, Tensor], key_map: dict[str, list[str]]) -> None:
    """Add a LoRA to a network as these tools do: weight += alpha / r up down, by their key map; every key must be known."""
    names = {key.removesuffix(".lora_up.weight") for key in tensors if key.endswith(".lora_up.weight")}
    assert len(tensors) == 3 * len(names)
    for name in names:
        layers = [network.get_submodule(layer) for layer in key_map[name]]
        down, up = tensors[f"{name}.lora_down.weight"].float(), tensors[f"{name}.lora_up.weight"].float()
        change = tensors[f"{name}.alpha"].item() / down.shape[0] * (up.flatten(1) @ down.flatten(1))
        for layer, rows in zip(layers, change.split([len(layer.weight) for layer in layers]), strict=True):
            layer.weight += rows.view_as(layer.weight)
