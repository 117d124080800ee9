"""The check-up of a run: build it, play a small round of it, and say whether it will work and how long it will take.

Nothing is written: no run directory, no weights. The round is the trainer's own, on fewer images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlcm.doctor.faster import faster
from rlcm.doctor.findings import Diagnosis, Finding
from rlcm.doctor.first_round import first_round, small
from rlcm.doctor.machine import LESS_MEMORY, folder, machine, memory, versions
from rlcm.doctor.model import adapter, licences, prompts, sampler
from rlcm.errors import PreflightError, RewardError, RLCMError, SamplerError, UsageError
from rlcm.training.config import TrainConfig, checked
from rlcm.training.trainer import Trainer


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

    config = checked(config)
    add(versions(), *folder(config))
    try:
        add(*machine(config))
        if not all(finding.ok for finding in findings):
            return Diagnosis(findings)
        add(*licences(config, objects.get("model")))
        trainer = Trainer(small(config), **objects)
        policy = trainer.parts.policy
        add(prompts(trainer), sampler(trainer, config), adapter(trainer), memory(policy, config))
        if all(finding.ok for finding in findings):
            add(*first_round(trainer, config))
            denoiser: Any = policy.denoiser
            add(*faster(config, denoiser.device, denoiser.dtype, denoiser.module))
    except torch.OutOfMemoryError as error:
        add(Finding("memory", str(error).splitlines()[0], ok=False, remedy=LESS_MEMORY))
    except RLCMError as error:
        add(Finding(_names(error), "failed", ok=False, remedy=str(error)))
    return Diagnosis(findings)


def _names(error: RLCMError) -> str:
    """Return what an error is about, in the words of the other findings."""
    kinds: Sequence[tuple[type[RLCMError], str]] = (
        (SamplerError, "sampler"),
        (RewardError, "reward"),
        (PreflightError, "first round"),
        (UsageError, "settings"),
    )
    return next((name for kind, name in kinds if isinstance(error, kind)), "training")
