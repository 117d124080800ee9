"""The Python that draws with a run's result in plain diffusers, as the run sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlcm.paths import existing
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.flow import FlowDenoiser
from rlcm.pipelines.scheduling import SCHEDULERS, changed_shift, is_flow
from rlcm.pipelines.settings import BUILTIN
from rlcm.policy.window import ALL, shown
from rlcm.training.config import TrainConfig

DEFAULT_ETA = {"ddim": 1.0, "tcd": 0.3}
"""What rlcm takes where `sampler.eta` is left out, and diffusers takes another."""
WITHOUT_LOADER = ("PixArtAlphaPipeline", "PixArtSigmaPipeline", "ConsistencyModelPipeline")
"""Pipelines into which diffusers loads no LoRA, so that one on the Hub would be of no use."""


def usage(config: TrainConfig, repo: str, kind: str, base_model: str | None, prompt: str) -> str:
    """Return the Python that draws a picture with the adapter, in plain diffusers, as the run sampled."""
    sampler, model = config.sampler, config.model
    scheduler = SCHEDULERS.get(sampler.scheduler)
    noise = sampler.eta in (None, 1)
    lines = [f"from diffusers import DiffusionPipeline{f', {scheduler[0]}' if scheduler else ''}"]
    if model.path in BUILTIN:
        lines += ["from rlcm.builtin import model_path", "", f'base = model_path("{BUILTIN[model.path]}")']
        lines.append("pipe = DiffusionPipeline.from_pretrained(base)")
    else:
        where = {"revision": model.revision, "variant": model.variant}
        lines += ["", f"pipe = DiffusionPipeline.from_pretrained({_call([base_model or own_name(config)], where)})"]
    options = {
        **(scheduler[1] if scheduler else {}),
        **(changed_shift(FAMILIES[kind], sampler, kind) if _is_flow(kind) else {}),
    }
    if "stochastic_sampling" in options or (sampler.scheduler == "auto" and _is_flow(kind)):
        options["stochastic_sampling"] = noise  # its flag may be either in the model's files; what the run did is `eta`
    if scheduler or options:
        changes = "".join(f", {key}={value!r}" for key, value in options.items())
        name = scheduler[0] if scheduler else "pipe.scheduler"
        lines.append(f"pipe.scheduler = {name}.from_config(pipe.scheduler.config{changes})")
    for number, lora in enumerate(model.loras):
        where = {"weight_name": lora.weight_name, "revision": lora.revision, "adapter_name": f"base_{number}"}
        lines.append(f"pipe.load_lora_weights({_call([lora.path], where)})")
    lines.append(f"pipe.load_lora_weights({_call([repo], {'adapter_name': 'tuned' if model.loras else None})})")
    if model.loras:
        names = [*(f"base_{number}" for number in range(len(model.loras))), "tuned"]
        lines.append(f"pipe.set_adapters({_quoted(names)}, {[*(lora.scale for lora in model.loras), 1.0]})")
    if (others := _without_diffusers(config, kind)) is not None:
        lines.append(f"# The run sampled with {others}, which diffusers has not: `rlcm sample` draws as it did.")
    lines.append(_picture(config, kind, prompt))
    return "\n".join(lines)


def local_usage(config: TrainConfig, kind: str) -> str:
    """Return the Python that draws a picture with the weights in `final/` of a run, started in the run's folder."""
    loras = tuple(lora.model_copy(update={"path": _whole_path(lora.path)}) for lora in config.model.loras)
    path = config.model.path if config.model.path in BUILTIN else _whole_path(config.model.path)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": path, "loras": loras})})
    if kind not in WITHOUT_LOADER:
        return usage(config, "final", kind, path, "a fox")
    return "\n".join(
        [
            f"# Diffusers loads no LoRA into a {kind}, so write the whole pipeline first, in this folder:",
            "#     rlcm export . --format merged",
            "from diffusers import DiffusionPipeline",
            "",
            'pipe = DiffusionPipeline.from_pretrained("export/merged")',
            _picture(config, kind, "a fox"),
        ]
    )


def _whole_path(path: str) -> str:
    """Return the absolute path of a folder or file of this machine, and any other name as it is."""
    return str(existing(path, "model") or path)


def _is_flow(kind: str) -> bool:
    return kind in FAMILIES and is_flow(FAMILIES[kind])


def _without_diffusers(config: TrainConfig, kind: str) -> str | None:
    """Return the settings by which the run draws noise as no scheduler of diffusers does, None where there are none."""
    sampler = config.sampler
    found = []
    if _is_flow(kind) and sampler.eta is not None and 0 < sampler.eta < 1:
        found.append(f"sampler.eta={sampler.eta:g}")
    if sampler.noisy_steps != ALL:
        found.append(f"sampler.noisy_steps={shown(sampler.noisy_steps)}")
    if kind == "SanaSprintPipeline" and sampler.timesteps is not None:
        found.append(f"sampler.timesteps={list(sampler.timesteps)}")
    return " and ".join(found) or None


def _picture(config: TrainConfig, kind: str, prompt: str) -> str:
    """Return the line that draws and saves a picture."""
    given: dict[str, Any] = {"prompt": prompt} if kind == "Flux2KleinPipeline" else {}  # whose first argument is an image
    if kind == "ConsistencyModelPipeline":  # which draws classes
        given = {"class_labels": int(prompt) if prompt.isdecimal() else 0}
    sampling = _sampling(config, kind)
    call = _call([] if given else [prompt], {**given, **sampling})
    if kind == "SanaSprintPipeline" and sampling["num_inference_steps"] != 2:
        call += ", intermediate_timesteps=None"  # beside other steps it refuses its own default
    return f'pipe({call}).images[0].save("picture.png")'


def call_arguments(config: TrainConfig, kind: str) -> dict[str, Any]:
    """Return the arguments of a call of the pipeline that samples as the run does, those that are left out not among them."""
    return {name: value for name, value in _sampling(config, kind).items() if value is not None}


def _sampling(config: TrainConfig, kind: str) -> dict[str, Any]:
    sampler = config.sampler
    timesteps = None if sampler.timesteps is None else list(sampler.timesteps)
    if timesteps is not None and not _is_flow(kind):
        timesteps = [int(t) for t in timesteps]
    steps: int | None = sampler.calls
    family = FAMILIES.get(kind)
    if timesteps is None and family is not None and issubclass(family, FlowDenoiser) and not family.levels_are_the_pipelines:
        timesteps = [round(level, 6) for level in family.levels(sampler.steps)]
    if timesteps is not None and kind == "SanaSprintPipeline":
        steps, timesteps = len(timesteps) - 1, None  # its call fails with any
    elif timesteps is not None:
        steps = None
    guided_by = getattr(family, "guided_by", "guidance_scale")
    return {
        "num_inference_steps": steps,
        "sigmas" if _is_flow(kind) else "timesteps": timesteps,
        guided_by: sampler.guidance,
        # Qwen-Image is guided where it is told what to avoid, even if that is nothing.
        "negative_prompt": sampler.negative_prompt
        or ("" if guided_by == "true_cfg_scale" and (sampler.guidance or 0) > 1 else None),
        "eta": None if _is_flow(kind) else sampler.eta if sampler.eta is not None else DEFAULT_ETA.get(sampler.scheduler),
        "original_inference_steps": sampler.original_inference_steps if kind.startswith("LatentConsistency") else None,
        "use_resolution_binning": False if kind.startswith(("Sana", "PixArt")) else None,  # the size is that of the run
        "use_pe": False if kind == "ErnieImagePipeline" else None,  # prompts as they are
        "height": config.model.height,
        "width": config.model.width,
    }


def _call(given: Sequence[str], named: Mapping[str, Any]) -> str:
    """Return the arguments of a call as Python, those that are None left out."""
    named = {key: value for key, value in named.items() if value is not None}
    return ", ".join([*map(_quoted, given), *(f"{key}={_quoted(value)}" for key, value in named.items())])


def _quoted(value: Any) -> str:
    """Return a value as Python, texts in double quotes."""
    if isinstance(value, str):
        # Three backticks would end the block of Markdown that the code stands in.
        return json.dumps(value, ensure_ascii=False).replace("```", "\\x60" * 3)
    return "[" + ", ".join(map(_quoted, value)) + "]" if isinstance(value, list) else repr(value)


def own_name(config: TrainConfig) -> str:
    """Return the base model's name without the folders of this machine."""
    return config.model.path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
