"""A run's model with what the run has learnt in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlcm.pipelines import PipelineDenoiser, load_pipeline, make_denoiser
from rlcm.policy.adapter import Factors, add_lora, read_lora
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.training.config import TrainConfig
from rlcm.training.final import tuned_weights


def tuned_pipeline(config: TrainConfig, run: Path | None, *, beside: bool = False) -> Any:
    """Return a run's model with its tuned LoRA in it, or the model alone where there is no run.

    Args:
        beside: where the weights are of half precision or quantised, keep the LoRA beside them in fp32, as training has it:
            slower, but small changes are not rounded away. Otherwise, and in fp32 always, it is added to the weights, which
            are then not quantised.

    Raises:
        MissingFileError: if the run has no tuned weights yet.
    """
    if run is None:
        return load_pipeline(config.model)
    weights = tuned_weights(run)
    model = config.model if beside else config.model.model_copy(update={"quantisation": "none"})
    denoiser = make_denoiser(load_pipeline(model), config.sampler, model)
    lora = read_lora(config.lora, weights)
    if beside and (denoiser.dtype != torch.float32 or model.quantisation != "none"):
        _put_beside(denoiser, lora, config.lora)
    else:
        add_lora(denoiser.module, lora)
    return denoiser.pipeline


def _put_beside(denoiser: PipelineDenoiser, lora: Mapping[str, Factors], settings: AdapterSettings) -> None:
    """Give a network the adapter of a training, with the weights of its LoRA."""
    policy = Policy(denoiser, settings)
    weights = {}
    for parameter in policy.named_parameters:
        layer, _, matrix = parameter.partition(".lora_")
        weights[parameter] = lora[layer].down if matrix.startswith("A.") else lora[layer].up
    policy.load(weights)
    denoiser.module.requires_grad_(False)
