"""Every shipped configuration on a tiny random model of its classes."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_flow import ernie, klein, krea, qwen_image, sd3, z_image
from tiny_pipelines import flux, pixel, sana, schedule, sdxl, stable_diffusion

from rlcm.pipelines.quantisation import PACKAGES
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.prompts import load_prompts

ROOT = Path(__file__).parents[1]


def latent_consistency() -> Any:
    scheduler = diffusers.LCMScheduler(**schedule(steps_offset=1, clip_sample=False))
    return stable_diffusion(scheduler, diffusers.LatentConsistencyModelPipeline, time_cond_proj_dim=8)


def euler(**changes: Any) -> Any:
    return diffusers.EulerDiscreteScheduler(**schedule(steps_offset=1, **changes))


def flow(make: Any, **changes: Any) -> Any:
    """Return a function that makes a flow-matching pipeline with the scheduler that its model is published with."""
    return lambda: make(diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **changes}))


FLOW = {
    "z-image-turbo": flow(z_image),
    "flux2-klein-4b": flow(klein, use_dynamic_shifting=True),
    "sd3.5-large-turbo": flow(sd3),
    "qwen-image-lightning": flow(
        qwen_image,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    ),
    "krea-2-turbo": flow(krea, shift=1.0, use_dynamic_shifting=True, max_image_seq_len=6400),
    "ernie-image-turbo": flow(ernie),
}
MEMORY = {name: (48, 80) if name.startswith("qwen") else (24, 80) for name in FLOW}
FLOW_CONFIGS = [f"{name}-{memory}gb" for name in FLOW for memory in MEMORY[name]]

# What `model.path` of each configuration holds, as far as its classes and its scheduler's settings go.
TINY = {
    "builtin": latent_consistency,
    "builtin-ddpo": lambda: stable_diffusion(diffusers.DDIMScheduler(**schedule(steps_offset=1, clip_sample=False))),
    **{
        f"ddpo-dreamshaper-v7-{task}": lambda: stable_diffusion(
            diffusers.DDIMScheduler(**schedule(steps_offset=1, clip_sample=False))
        )
        for task in ("aesthetic", "alignment", "compressibility", "incompressibility")
    },
    "flux-schnell-80gb": lambda: flux(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), guidance_embeds=False),
    **{f"{name}-{memory}gb": make for name, make in FLOW.items() for memory in MEMORY[name]},
    "lcm-dreamshaper-v7-aesthetic": latent_consistency,
    "lcm-dreamshaper-v7-alignment": latent_consistency,
    "lcm-dreamshaper-v7-compressibility": latent_consistency,
    "lcm-dreamshaper-v7-incompressibility": latent_consistency,
    "pixel-consistency": lambda: pixel(1000),
    "sana-sprint-0.6b": sana,
    "sana-sprint-1.6b": sana,
    "sd-turbo": lambda: stable_diffusion(euler(timestep_spacing="trailing")),
    **{f"sdxl-lcm-lora-{memory}gb": lambda: sdxl(euler()) for memory in (12, 16, 24)},
    **{f"sdxl-{lora}-24gb": lambda: sdxl(euler()) for lora in ("hyper-sd", "dmd2", "lightning")},
    "sdxl-turbo": lambda: sdxl(
        diffusers.EulerAncestralDiscreteScheduler(**schedule(steps_offset=1, timestep_spacing="trailing"))
    ),
    "three-rewards": latent_consistency,
}


def tiny(name: str, folder: Path) -> TrainConfig:
    """Return a configuration on a tiny model: its sampler, learning and memory settings, few images, a simple reward."""
    TINY[name]().save_pretrained(folder / "model")
    config = load_config(f"configs/{name}.yaml")
    if config.model.quantisation != "none":
        pytest.importorskip(PACKAGES[config.model.quantisation])
    # FLUX and its kind have a size of their own, hundreds of pixels on these models.
    size = 16 if name.startswith("flux") or name in FLOW_CONFIGS else None
    model = {"path": str(folder / "model"), "revision": None, "variant": None, "loras": (), "height": size, "width": size}
    rollout = config.rollout
    if name in FLOW_CONFIGS:  # slower than the others, for their encoders of prompts
        rollout = rollout.model_copy(update={"images_per_prompt": 2, "sample_batch_size": 2})
    group = rollout.branches * rollout.images_per_prompt
    images = 2 * group if group > 1 else 6 if config.sampler.steps < 50 else 2
    changes: dict[str, Any] = {
        "output": str(folder),
        "model": config.model.model_copy(update={**model, "precision": "fp32", "device": "cpu"}),
        "rollout": rollout.model_copy(update={"batch_size": images}),
        "algorithm": config.algorithm.model_copy(update={"minibatches": min(config.algorithm.minibatches, 2)}),
        "evaluation": config.evaluation.model_copy(update={"images": 4}),
        "prompts": load_prompts(config.prompts).prompts[:3],
        "run": config.run.model_copy(update={"rounds": 2, "tracker": "none"}),
    }
    return TrainConfig.model_validate(config.model_copy(update=changes).model_dump())


def redness(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))
