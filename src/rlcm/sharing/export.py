"""The result in the form other tools take: a LoRA file in diffusers' format, and a model card beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from rlcm.errors import MissingFileError
from rlcm.policy.policy import ADAPTER, Policy
from rlcm.report.templating import render
from rlcm.runs.rundir import RunDirectory, run_errors
from rlcm.runs.serialization import write_bytes
from rlcm.sharing.lora_keys import Factors
from rlcm.training.config import TrainConfig, load_config

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"


def save_final(
    policy: Policy, config: TrainConfig, evaluations: Sequence[dict[str, Any]], directory: RunDirectory, code: str = ""
) -> Path:
    """Write `final/` of a run: the tuned LoRA (averaged, where the run keeps an average) and its model card; see `model_card`."""
    best = directory.path / "best" / WEIGHTS_NAME
    if config.evaluation.final == "best" and best.is_file():
        folder = directory.path / "final"
        with run_errors(folder):
            folder.mkdir(exist_ok=True)
            write_bytes(folder / WEIGHTS_NAME, best.read_bytes())
    else:
        folder = _save_present(policy, directory.path / "final")
    directory.write_text("final/README.md", model_card(config, evaluations, code))
    return folder


def save_best(policy: Policy, directory: RunDirectory) -> Path:
    """Write `best/` of a run: the LoRA as it was when an evaluation found it best."""
    return _save_present(policy, directory.path / "best")


def finished_run(run: Path) -> tuple[TrainConfig, Path]:
    """Return the configuration of a run and the file of its tuned LoRA.

    Raises:
        MissingFileError: if the folder is no run's, or the run has no tuned weights yet.
    """
    if not (run / "config.yaml").is_file():
        raise MissingFileError(f"{run} holds no run (there is no config.yaml); give the folder that `rlcm train` printed.")
    return load_config(run / "config.yaml"), tuned_weights(run)


def tuned_weights(run: Path) -> Path:
    """Return the file of a run's tuned LoRA.

    Raises:
        MissingFileError: if the run has none yet.
    """
    weights = run / "final" / WEIGHTS_NAME
    if not weights.is_file():
        rounds = max((int(path.name.partition("-")[2]) for path in run.glob("checkpoint-[0-9]*")), default=0)
        end = f", or end it at once with `rlcm train --resume {run} run.rounds={rounds}`" if rounds else ""
        raise MissingFileError(f"{weights} does not exist: the run has not ended; go on with `rlcm train --resume {run}`{end}.")
    return weights


def read_lora(config: TrainConfig, weights: Path) -> dict[str, Factors]:
    """Return the factors of a run's LoRA by layer, with the alpha that it was trained with.

    The file has alpha / rank multiplied into its up matrices; here it is taken out of them again.
    """
    tensors: dict[str, Tensor] = load_file(weights)
    downs = {key.split(".", 1)[1].removesuffix(".lora_A.weight"): key for key in tensors if key.endswith(".lora_A.weight")}
    scale = config.lora.alpha / config.lora.rank
    return {
        name: Factors(tensors[key], tensors[key.replace(".lora_A.", ".lora_B.")] / scale, config.lora.alpha)
        for name, key in downs.items()
    }


@torch.no_grad()
def add_lora(network: nn.Module, lora: Mapping[str, Factors]) -> None:
    """Add a LoRA to the weights of a network: the sum is taken in fp32, and rounded to their precision."""
    for name, factors in lora.items():
        weight: Any = network.get_submodule(name).weight
        weight.copy_(weight.float() + factors.change().to(weight.device))


def _save_present(policy: Policy, folder: Path) -> Path:
    with run_errors(folder):
        folder.mkdir(exist_ok=True)
    with policy.averaged():
        save_lora(policy, folder / WEIGHTS_NAME)
    return folder


def save_lora(policy: Policy, file: Path) -> None:
    """Write the adapter in diffusers' LoRA format.

    The factor alpha / rank is multiplied into the up matrices, so that the adapter comes out at full strength in every
    loader, those that ignore alpha or take it to be the rank included.
    """
    scale = policy.settings.alpha / policy.settings.rank
    network = getattr(policy.denoiser, "network", "unet")
    tensors: dict[str, Tensor] = {}
    for name, tensor in get_peft_model_state_dict(policy.denoiser.module, adapter_name=ADAPTER).items():
        value = tensor.detach().float().cpu()
        tensors[f"{network}.{name}"] = (value * scale if ".lora_B." in name else value).contiguous()
    with run_errors(file):
        write_bytes(file, to_bytes(tensors, metadata={"format": "pt"}))


def model_card(config: TrainConfig, evaluations: Sequence[dict[str, Any]], code: str = "") -> str:
    """Return the model card of a run as Markdown.

    Args:
        config: of the run.
        evaluations: from the untrained model's to that of the weights.
        code: Python that draws a picture with them, of `rlcm.sharing.hub_card.local_usage`; nothing leaves it out.
    """
    before, after = (evaluations[0], evaluations[-1]) if evaluations else (None, None)
    return render("training/templates/model_card.md.jinja", config=config, before=before, after=after, code=code)
