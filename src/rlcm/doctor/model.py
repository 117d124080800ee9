"""What the doctor looks at in the model: its licence, its prompts, its sampler, its adapter."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from rlcm.doctor.findings import Finding
from rlcm.pipelines import restrictions, truncated_prompts
from rlcm.policy.policy import Policy
from rlcm.policy.samplers import REPLAY_TOLERANCE, build_table, replay_error
from rlcm.training.config import TrainConfig
from rlcm.training.trainer import Trainer
from rlcm.types import Conditioning


def licences(config: TrainConfig, pipeline: Any) -> list[Finding]:
    """Return what the licences of the model and of its LoRAs restrict, as far as it is known; nothing where nothing is."""
    return [Finding("licence", note.removeprefix("licence: ")) for note in restrictions(config.model, pipeline)]


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
    scheduler = denoiser.pipeline.scheduler
    # As the scheduler has it, with noise in all steps: one of the run's own may be without.
    table = build_table(copy.deepcopy(scheduler), **options)
    error = replay_error(table, scheduler, **options)
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
