"""The cases: real rounds in every precision, the doctor on every shipped configuration, the demo; the most worth comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_cases import models
from benchmarks.rounding import demo
from benchmarks.sizes.measuring import has_setting, measure
from benchmarks.sizes.tiny import PIXELS
from rlcm.doctor import diagnose
from rlcm.pipelines.precision import DTYPES, resolve
from rlcm.pipelines.quantisation import quantise
from rlcm.policy.window import ALL
from rlcm.training.config import load_config
from rlcm.training.prompts import load_prompts


@dataclass(frozen=True)
class Case:
    """Something to run, and to write a row about."""

    name: str
    seconds: float
    """How long it may take on a large GPU: a guess. It is not begun where less time is left."""
    run: Callable[[bool], dict[str, Any]]
    """From whether the models are tiny to the row."""
    is_compiled: bool = False


def rounds(shape: str, precision: str, compiled: bool, is_tiny: bool) -> dict[str, Any]:
    """Return the row of two rounds: the check before the first update, images a second, memory, the mismatch.

    Args:
        precision: fp32, bf16, fp16, or fp32+tf32.
    """
    name = precision.partition("+")[0]
    prompts = ["207", "250"] if shape.startswith("pixel") else (["a cat", "a dog"] if is_tiny else "animals")
    with models.tf32("tf32" in precision) as settings:
        pipeline = models.make(shape, is_tiny, DTYPES[name])
        found = measure(
            pipeline,
            models.shape_named(shape, is_tiny),
            compiled=compiled,
            rounds=1,
            pixels=PIXELS.get(shape) if is_tiny else None,
            model={"precision": name, **settings},
            prompts=prompts,
        )
    if not torch.cuda.is_available():
        del found["measured_peak"]  # of the whole process, with all cases before
    return {"kind": "rounds", "shape": shape, "precision": precision, **found}


def doctor(config: str, is_tiny: bool) -> dict[str, Any]:
    """Return the row of the doctor's findings on a shipped configuration: random weights, and a reward that needs none."""
    settings, shape = load_config(f"configs/{config}.yaml"), models.shape_for(config)
    values = settings.model_dump()
    if any(reward.name not in ("jpeg_compressibility", "jpeg_incompressibility") for reward in settings.rewards):
        values["rewards"] = [{"name": "brightness"}]
    values["evaluation"] |= {"held_out": []}
    if not torch.cuda.is_available():
        values["model"]["precision"] = "fp32"
    if is_tiny:
        rollout = settings.rollout
        branches, same_prompt = min(rollout.branches, 2), min(rollout.images_per_prompt, 2)
        values["rollout"] |= {"batch_size": 8, "sample_batch_size": 4, "branches": branches, "images_per_prompt": same_prompt}
        if settings.sampler.timesteps is None:
            all_noisy = settings.sampler.noisy_steps == ALL
            values["sampler"] |= {"steps": 2, "noisy_steps": ALL if all_noisy else "first:1"}
        values["algorithm"]["minibatches"] = min(settings.algorithm.minibatches, 2)
        values["prompts"] = load_prompts(settings.prompts).prompts[:3]
        values["model"] |= {"height": PIXELS.get(str(shape)), "width": PIXELS.get(str(shape))}
    settings = type(settings).model_validate(values)
    pipeline = None
    if shape is not None:
        device, dtype = resolve(settings.model)
        pipeline = models.make(shape, is_tiny, dtype, settings.model)
        if settings.model.quantisation != "none":  # which acts on loading, and these weights are made
            network = getattr(pipeline, "unet", None) or pipeline.transformer
            quantise(network.to("cpu"), settings.model.quantisation)
            network.to(device)
            settings = settings.model_copy(update={"model": settings.model.model_copy(update={"quantisation": "none"})})
    diagnosis = diagnose(settings, **({} if pipeline is None else {"model": pipeline}))
    findings = {finding.name: finding for finding in diagnosis.findings}
    numbers = {name: finding.numbers for name, finding in findings.items() if finding.numbers}
    return {
        "kind": "doctor",
        "config": config,
        "ok": diagnosis.ok,
        "verdict": diagnosis.verdict(),
        "said": {name: finding.value for name, finding in findings.items()},
        "numbers": numbers,
        "measured_peak": models.peak(),
    }


def train_demo(is_tiny: bool) -> dict[str, Any]:
    """Return the row of the demo, as `rlcm train` runs it; one small round of it where all is tiny."""
    few = ("run.rounds=1", "evaluation.images=2", "evaluation.grid=2", "rollout.batch_size=16", "prompts=[a cat, a dog]")
    return {"kind": "demo", **demo.train(None, 0, few if is_tiny else ())}


def _rounds(shape: str, precision: str, seconds: float, compiled: bool = False) -> Case:
    name = f"{shape}-{precision}{'-compiled' * compiled}"
    return Case(name, seconds, partial(rounds, shape, precision, compiled), compiled)


def _doctor(config: str, seconds: float) -> Case:
    return Case(f"doctor-{config}", seconds, partial(doctor, config))


FEW_STEPS = ("z-image-turbo", "flux2-klein-4b", "sd3.5-large-turbo", "krea-2-turbo", "ernie-image-turbo")
"""The flow-matching models that have a configuration for 24 and one for 80 GB."""
CASES = (
    _rounds("sd15", "bf16", 20),
    _rounds("sd15", "fp16", 15),
    _rounds("sd15", "fp32+tf32", 20),
    Case("demo", 60, train_demo),
    _doctor("lcm-dreamshaper-v7-compressibility", 15),
    _rounds("sdxl", "bf16", 25),
    *(_doctor(f"sdxl-lcm-lora-{memory}gb", 25) for memory in (12, 16, 24)),
    _rounds("sd15", "bf16", 60, compiled=True),
    _doctor("sana-sprint-0.6b", 25),
    _rounds("sana-0.6b", "bf16", 25),
    _doctor("sd-turbo", 15),
    _doctor("sdxl-turbo", 25),
    _doctor("pixel-consistency", 10),
    _doctor("flux-schnell-80gb", 60),
    *(_doctor(f"{model}-{memory}gb", 60) for model in FEW_STEPS for memory in (24, 80)),
    *(_doctor(f"qwen-image-lightning-{memory}gb", 120) for memory in (48, 80)),
    *(_doctor(f"sdxl-{lora}-24gb", 25) for lora in ("hyper-sd", "dmd2", "lightning")),
    _doctor("ddpo-dreamshaper-v7-compressibility", 30),
    _doctor("builtin", 10),
    _doctor("sana-sprint-1.6b", 30),
    _rounds("sdxl", "fp16", 20),
    _rounds("sdxl", "fp32+tf32", 40),
    _rounds("sdxl", "bf16", 90, compiled=True),
    _rounds("sana-0.6b", "fp32+tf32", 30),
    _rounds("sana-0.6b", "bf16", 60, compiled=True),
    _doctor("three-rewards", 10),
    _doctor("builtin-ddpo", 20),
    _rounds("flux", "bf16", 60),
    *(_rounds(shape, "bf16", 60) for shape in ("z-image", "klein-4b", "sd3.5-large", "krea-2", "ernie-image")),
    _rounds("qwen-image", "bf16", 120),
    *(_doctor(f"lcm-dreamshaper-v7-{task}", 15) for task in ("aesthetic", "alignment", "incompressibility")),
    *(_doctor(f"ddpo-dreamshaper-v7-{task}", 30) for task in ("aesthetic", "alignment", "incompressibility")),
    _rounds("sana-0.6b", "fp16", 20),
    _rounds("pixel-64", "bf16", 10),
)
"""In this order; what the time does not suffice for is named in the results."""


def chosen(names: list[str] | None, is_tiny: bool) -> tuple[list[Case], dict[str, str]]:
    """Return the cases to run, and why the others are not, by their names."""
    taken, left = [], {}
    for case in CASES:
        if names is not None and case.name not in names:
            continue
        if case.is_compiled and not has_setting("compile"):
            left[case.name] = "this version has no model.compile"
        elif case.is_compiled and is_tiny and names is None:
            left[case.name] = "compiling is left out of --tiny; name the case with --only"
        else:
            taken.append(case)
    return taken, left
