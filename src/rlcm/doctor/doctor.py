"""`rlcm doctor`: build a run, play a small round of it, and say whether it will work and how long it will take.

Nothing is written: no run directory, no weights. The round is the trainer's own, on fewer images.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from torch import nn

import rlcm
from rlcm.builtin import DEMO
from rlcm.errors import PreflightError, RewardError, RLCMError, SamplerError, UsageError
from rlcm.pipelines import truncated_prompts
from rlcm.pipelines.precision import resolve
from rlcm.policy.policy import Policy
from rlcm.policy.samplers import REPLAY_TOLERANCE, replay_error
from rlcm.training.build import memory_need, sampled_at_once
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.trainer import Trainer
from rlcm.types import Conditioning

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")
IMAGES_ON_CPU = 8
GROUPS_ON_CPU = 4
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What was looked at, such as `memory`."""
    value: str
    """What was found, for people."""
    ok: bool = True
    """Whether it may stay as it is."""
    remedy: str = ""
    """What to change if it is not ok."""
    numbers: dict[str, float] = field(default_factory=dict)
    """The same for programs."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order in which they were made. The first bad ones may have kept later ones from being made."""

    findings: list[Finding]
    """What was found."""

    @property
    def ok(self) -> bool:
        """Whether nothing needs to be changed."""
        return all(finding.ok for finding in self.findings)

    def verdict(self) -> str:
        """Return "ok", or the list of what to change."""
        bad = [finding for finding in self.findings if not finding.ok]
        if not bad:
            return "ok"
        return "\n".join(["change:", *(f"  {number}. {finding.remedy}" for number, finding in enumerate(bad, 1))])

    def as_dict(self) -> dict[str, Any]:
        """Return {"ok": bool, "findings": [{"name", "value", "ok", "remedy", "numbers"} ...]}, ready for JSON.

        The remedy is "" where all is well; numbers that are not finite are left out.
        """
        return {"ok": self.ok, "findings": [_plain(finding) for finding in self.findings]}


def diagnose(config: TrainConfig, *, told: Callable[[Finding], None] | None = None, **objects: Any) -> Diagnosis:
    """Return what is to be said about a run of this configuration on this machine.

    Sampling, the most expensive part, is left out when the precision or the memory will not do.

    Args:
        told: is called with every finding as soon as it is made.
        objects: model, rewards and prompts in place of the configuration's, as `rlcm.Trainer` takes them; a pipeline keeps
            the adapter that it gets.
    """
    findings: list[Finding] = []

    def add(*new: Finding) -> None:
        for finding in new:
            findings.append(finding)
            if told is not None:
                told(finding)

    add(versions())
    try:
        add(*machine(config))
        if not all(finding.ok for finding in findings):
            return Diagnosis(findings)
        trainer = Trainer(_small(config), **objects)
        policy = trainer.parts.policy
        add(prompts(trainer), sampler(trainer, config), adapter(trainer), memory(policy, config))
        if all(finding.ok for finding in findings):
            add(*first_round(trainer, config))
    except torch.OutOfMemoryError as error:
        add(Finding("memory", str(error).splitlines()[0], ok=False, remedy=_LESS_MEMORY))
    except RLCMError as error:
        add(Finding(_names(error), "failed", ok=False, remedy=str(error)))
    return Diagnosis(findings)


def versions() -> Finding:
    """Return which versions of Python and of the libraries are installed."""
    found = {"rlcm": rlcm.__version__, "python": platform.python_version()}
    missing = []
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    return Finding("versions", text, not missing, f"install {', '.join(missing)}: pip install -c constraints.txt -e .")


def machine(config: TrainConfig) -> tuple[Finding, Finding]:
    """Return the device, and the precision of the frozen weights on it.

    Raises:
        ConfigError: if the machine lacks the device.
    """
    device, dtype = resolve(config.model)
    name = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    dtype_name = str(dtype).removeprefix("torch.")
    native = (
        dtype == torch.float32
        or (device.type == "cuda" and (dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)))
        or (device.type == "mps" and dtype == torch.float16)
        or (device.type == "cpu" and dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported())
    )
    instead = "fp16" if device.type == "cuda" else "fp32"
    return (
        Finding("device", f"{device.type} ({name})"),
        Finding(
            "precision",
            f"{dtype_name} weights; latents, transitions and LoRA in float32",
            native,
            f"model.precision={config.model.precision}: this {device.type} device does not compute in {dtype_name} and "
            f"emulates it, up to a hundred times slower; use model.precision={instead} or auto.",
        ),
    )


def prompts(trainer: Trainer) -> Finding:
    """Return how many prompts there are, and how many the model cannot read to their end."""
    texts = trainer.parts.prompts.prompts
    cut = truncated_prompts(trainer.parts.policy.denoiser.pipeline, list(dict.fromkeys(texts)))  # type: ignore[attr-defined]
    found = f"{len(texts)} prompts" + (f", {len(cut)} of them longer than the model reads" if cut else "")
    return Finding("prompts", found, numbers={"prompts": len(texts), "cut_short": len(cut)})


def sampler(trainer: Trainer, config: TrainConfig) -> Finding:
    """Return what the sampler is, and how far its table is from the installed scheduler's own steps."""
    denoiser: Any = trainer.parts.policy.denoiser
    options = type(denoiser).table_options(denoiser.pipeline, config.sampler, config.model)
    table = trainer.parts.evaluator.table
    error = replay_error(table, denoiser.pipeline.scheduler, **options)
    actions = len(trainer.parts.policy.table.noisy_steps())
    return Finding(
        "scheduler replay",
        f"{table.name}, {len(table)} steps, {actions} of them actions; off the scheduler's own steps by {error:.1e}",
        error <= REPLAY_TOLERANCE,
        f"The table of {table.name} differs from the scheduler's steps by {error:.1e} (accepted: {REPLAY_TOLERANCE:.0e}); "
        "install the diffusers version of constraints.txt.",
        {"steps": len(table), "actions": actions, "replay_error": error},
    )


def adapter(trainer: Trainer) -> Finding:
    """Return how many layers carry the adapter, and whether the network's output depends on it."""
    policy = trainer.parts.policy
    modules = [name.split(".lora_")[0] for name in policy.named_parameters]
    targets = policy.settings.target_modules
    unbound = [target for target in targets if not any(f".{module}".endswith(f".{target}") for module in modules)]
    layers = sum(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in policy.denoiser.module.modules())
    change = _effect(policy, trainer.parts.conditioning.take(torch.zeros(1, dtype=torch.long)))
    remedy = (
        f"lora.target_modules: {', '.join(unbound)} matches no layer of {type(policy.denoiser.module).__name__}; correct or drop it."
        if unbound
        else "the network's output does not change with its adapter, so training would do nothing; choose other layers with "
        "lora.target_modules."
    )
    return Finding(
        "adapter",
        f"{len(policy.layers)} layers of rank {policy.settings.rank}, {sum(p.numel() for p in policy.parameters):,} parameters; "
        f"a changed adapter moves the network's output by {change:.1e}",
        not unbound and change > 0,
        remedy,
        {"layers": len(policy.layers), "linear_and_convolution_layers": layers, "relative_change": change},
    )


def memory(policy: Policy, config: TrainConfig) -> Finding:
    """Return the estimated need against what the device has; the weights are there already."""
    denoiser: Any = policy.denoiser
    need = memory_need(denoiser, config)
    there = available_memory(denoiser.device) + need.weights
    return Finding(
        "memory",
        f"{need}; {there / GIB:.1f} GiB to be had",
        need.total <= there,
        f"the run needs about {need.total / GIB:.1f} GiB and there are {there / GIB:.1f}: {_LESS_MEMORY}",
        {"need_bytes": need.total, "there_bytes": there},
    )


def first_round(trainer: Trainer, config: TrainConfig) -> list[Finding]:
    """Play one small round (two on a GPU, where the first one warms up) and return what it showed.

    Raises:
        RLCMError: what would stop the run itself.
    """
    found = trainer.round()
    states = (
        trainer.config.rollout.batch_size
        // config.rollout.branches
        * (1 if config.rollout.branches > 1 else len(trainer.parts.policy.table.noisy_steps()))
    )
    # The first round's update comes after a check on its first micro-batch, which takes as long as learning from it.
    found["time/update"] *= states / (states + min(states, config.run.micro_batch_size))
    if trainer.parts.policy.denoiser.device.type == "cuda":
        steady = trainer.round()
        found |= {key: value for key, value in steady.items() if key.startswith("time/")}
    images = trainer.config.rollout.batch_size
    dropped = int(found["dropped_images"])
    deviation, norm = found.get("ratio_deviation_max", float("nan")), found.get("grad_norm", float("nan"))
    return [
        Finding(
            "reward",
            f"{found['reward']:.4g} +- {found['reward_std']:.2g} on {images} images"
            + (f", {dropped} more could not be scored" if dropped else ""),
            not dropped,
            f"rewards: {dropped} of {images} images could not be scored; mend the reward or its server.",
            {"mean": found["reward"], "std": found["reward_std"], "dropped": dropped},
        ),
        Finding(
            "ratio",
            f"off 1 by {deviation:.1e} at the first minibatch",
            deviation <= 1e-5,
            "sampling and learning do not compute the same thing; use model.precision=fp32.",
            {"deviation": deviation},
        ),
        Finding(
            "gradients",
            f"norm {norm:.2e}",
            norm > 0 and not found["skipped_updates"],
            f"the first update was left out because its gradient is not finite or zero; lower optimizer.lr={config.optimizer.lr} "
            "or use model.precision=fp32.",
            {"norm": norm},
        ),
        speed(found, images, len(trainer.parts.evaluator.table), config),
    ]


def speed(found: dict[str, float], images: int, steps: int, config: TrainConfig) -> Finding:
    """Return images per second by phase, and how long the whole run will take at that speed.

    Args:
        found: a round's metrics.
        images: that it sampled.
        steps: network calls of one image in an evaluation, which never branches.
        config: of the whole run.
    """
    sample, update = found["time/sample"] / images, config.algorithm.inner_epochs * found["time/update"] / images
    a_round = (sample + update + found["time/reward_wait"] / images) * config.rollout.batch_size
    rounds = config.run.rounds * a_round
    if config.run.time_limit_minutes is not None:
        rounds = min(rounds, config.run.time_limit_minutes * 60)
    looks = 2 + ((config.run.rounds - 1) // config.evaluation.every if config.evaluation.every else 0)
    calls = found["network_calls"] / images  # fewer than `steps` where branches share them
    total = rounds + looks * config.evaluation.images * sample * steps / calls
    numbers = {
        "images_per_second": config.rollout.batch_size / a_round,
        "sampled_per_second": 1 / sample,
        "learned_per_second": 1 / update,
        "seconds_a_round": a_round,
        "seconds_in_all": total,
    }
    return Finding(
        "speed",
        f"{numbers['images_per_second']:.2g} images/s (sampling {1 / sample:.2g}, learning {1 / update:.2g}); "
        f"{config.run.rounds} rounds and {looks} evaluations: about {duration(total)}",
        numbers=numbers,
    )


def duration(seconds: float) -> str:
    """Return a length of time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process can still take on a device."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if sys.platform == "linux" and limit.is_file() and limit.read_text().strip() != "max":
        # A container's limit; the files in its cache count as used, which makes the answer a little too small.
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def run_doctor(config: str | None, changes: Sequence[str], as_json: bool) -> bool:
    """Run `rlcm doctor`: print every finding as it is made and the verdict, or all as JSON; return whether all is well."""
    settings = load_config(config or DEMO, changes)
    if as_json:
        diagnosis = diagnose(settings)
        click.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        diagnosis = diagnose(settings, told=_print)
        click.echo(diagnosis.verdict())
    return diagnosis.ok


def _print(finding: Finding) -> None:
    mark = click.style("ok   ", fg="green") if finding.ok else click.style("wrong", fg="red", bold=True)
    click.echo(f"{mark} {finding.name:<18}{finding.value}")


_LESS_MEMORY = (
    "lower rollout.sample_batch_size and run.micro_batch_size (results stay the same), set model.gradient_checkpointing=true, "
    "model.offload_text_encoders=true or model.vae_slicing=true, or make smaller images with model.height and model.width."
)


def _plain(finding: Finding) -> dict[str, Any]:
    numbers = {key: value for key, value in finding.numbers.items() if math.isfinite(value)}
    return asdict(finding) | {"remedy": "" if finding.ok else finding.remedy, "numbers": numbers}


def _small(config: TrainConfig) -> TrainConfig:
    """Return the configuration with fewer images a round, one update, and everything that decides success as it is."""
    rollout, algorithm = config.rollout, config.algorithm
    group = rollout.branches * rollout.images_per_prompt
    few = IMAGES_ON_CPU if group == 1 else GROUPS_ON_CPU * group
    enough = sampled_at_once(rollout) if resolve(config.model)[0].type == "cuda" else min(few, rollout.batch_size)
    images = -(-enough // group) * group
    return config.model_copy(
        update={
            "rollout": rollout.model_copy(update={"batch_size": images}),
            "algorithm": algorithm.model_copy(update={"minibatches": 1, "inner_epochs": 1}),
        }
    )


@torch.no_grad()
def _effect(policy: Policy, conditioning: Conditioning) -> float:
    """Return |change of the network's output| / |output| when noise is added to the adapter; the adapter is put back."""
    denoiser = policy.denoiser
    source = torch.Generator().manual_seed(0)
    x = denoiser.scale_noise(torch.randn((1, *denoiser.latent_shape), generator=source))
    step = torch.zeros(1, dtype=torch.long, device=x.device)
    before = {name: p.detach().clone() for name, p in policy.named_parameters.items()}
    plain = denoiser.denoise(x, step, conditioning)
    policy.load({name: p + 0.05 * torch.randn(p.shape, generator=source).to(p) for name, p in before.items()})
    changed = denoiser.denoise(x, step, conditioning)
    policy.load(before)
    return float((changed - plain).norm() / plain.norm())


def _names(error: RLCMError) -> str:
    """Return what an error is about, in the words of the other findings."""
    kinds: Sequence[tuple[type[RLCMError], str]] = (
        (SamplerError, "sampler"),
        (RewardError, "reward"),
        (PreflightError, "first round"),
        (UsageError, "settings"),
    )
    return next((name for kind, name in kinds if isinstance(error, kind)), "training")
