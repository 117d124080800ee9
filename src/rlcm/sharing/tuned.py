"""A run's model with what the run has learnt in it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from rlcm.pipelines import bare_network, load_pipeline, make_denoiser
from rlcm.policy.adapter import Factors, adapter_weights, add_lora, check_lora, read_lora
from rlcm.policy.policy import Policy
from rlcm.processes.usual import usual_torch
from rlcm.sharing.base import other_base
from rlcm.training.config import TrainConfig
from rlcm.training.final import require_whole_base, tuned_weights

logger = logging.getLogger(__name__)
_said: set[tuple[Path, str]] = set()  # what was warned of already


def tuned_lora(config: TrainConfig, weights: Path) -> dict[str, Factors]:
    """Return the LoRA that a run has learnt, by layer; nothing but small files and pieces of its model are read to check it.

    That the model is another than the run was trained on is said once.

    Args:
        config: of the run.
        weights: the file in its `final/`.

    Raises:
        MissingFileError: if the file, or the model, is not there.
        WeightsError: if the file is damaged, or is not the LoRA of this run's model and settings.
    """
    lora = read_lora(config.lora, weights)
    check_lora(bare_network(config.model), lora, config.lora, weights)
    run = weights.parent.parent
    if (text := other_base(config.model, run)) and (run, text) not in _said:
        _said.add((run, text))
        logger.warning("%s", text)
    if not any(factors.up.any() for factors in lora.values()):
        logger.warning("%s changes nothing: its factors are zero, as before the first round.", weights)
    return lora


@usual_torch()
def tuned_pipeline(config: TrainConfig, run: Path | None, *, beside: bool = False) -> Any:
    """Return a run's model with its tuned LoRA in it, or the model alone where there is no run.

    Args:
        beside: where the weights are of half precision or quantised, keep the LoRA beside them in fp32, as training has it:
            slower, but small changes are not rounded away. Otherwise, and in fp32 always, it is added to the weights, which
            are then not quantised.

    Raises:
        MissingFileError: if the run has no tuned weights yet.
        WeightsError: if they are damaged, or another run's.
    """
    if run is None:
        return load_pipeline(config.model)
    require_whole_base(run)
    lora = tuned_lora(config, tuned_weights(run))
    model = config.model if beside else config.model.model_copy(update={"quantisation": "none"})
    denoiser = make_denoiser(load_pipeline(model), config.sampler, model)
    if beside and (denoiser.dtype != torch.float32 or model.quantisation != "none"):
        policy = Policy(denoiser, config.lora)
        policy.load(adapter_weights(policy, lora))
        denoiser.module.requires_grad_(False)
    else:
        add_lora(denoiser.module, lora)
    return denoiser.pipeline
