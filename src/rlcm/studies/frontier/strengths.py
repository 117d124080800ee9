"""What a run has learnt at a part of its strength: evaluated like the run itself, without any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError, RLCMError
from rlcm.pipelines.settings import STRONGEST, DrawSettings
from rlcm.policy.adapter import adapter_weights
from rlcm.processes.usual import usual_torch
from rlcm.report.values import finite, mapping
from rlcm.runs.digests import of_file
from rlcm.runs.files import read_json
from rlcm.runs.rundir import RunDirectory
from rlcm.sharing import tuned_lora
from rlcm.training.build import build
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.final import finished_run, tuned_weights
from rlcm.training.locations import located
from rlcm.training.values import read_value

FILE = "strengths.json"
"""In a run's folder."""


def check_strengths(text: str) -> tuple[float, ...]:
    """Return the numbers of a text such as 0.25,0.5,1, each read as the playground's strength is.

    Raises:
        ConfigError: if it is not that.
    """
    try:
        return tuple(
            parse_settings(DrawSettings, {"strength": read_value(DrawSettings, "strength", part)}).strength
            for part in text.split(",")
        )
    except ConfigError as error:
        why = str(error).removesuffix(".")
        raise ConfigError(
            f"--strengths {text!r} is not a list of numbers from 0 to {STRONGEST:g} ({why}); write it like "
            "--strengths 0.25,0.5,0.75,1."
        ) from None


@usual_torch()
def measure_strengths(
    run: Path, strengths: Sequence[float], note: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Evaluate a finished run's LoRA at some strengths on the run's own fixed set, and keep that in `strengths.json` of the run.

        W(s) = W_base + s (W_tuned - W_base)

    At 1 it is what the run's own evaluation of these weights found, at 0 its base model. What was measured of the same weights
    is not measured again.

    Args:
        note: is told what is being drawn.

    Returns:
        evaluations as in eval.json, each with its `strength`, by strength; that of the base model first.

    Raises:
        MissingFileError: if the run has no tuned weights, or something of it is not there.
        RLCMError: and its children, as at the beginning of a training.
    """
    config, weights = finished_run(run)
    kept = {entry["strength"]: entry for entry in read_strengths(run)}
    wanted = sorted({0.0, *strengths} - kept.keys())
    if not wanted:
        return [kept[strength] for strength in sorted(kept)]
    parts = build(_as_it_lies_here(config, run))
    policy = parts.policy
    whole = adapter_weights(policy, tuned_lora(config, weights))
    for strength in sorted({0.0, *wanted}):  # the base model first: normalised rewards are on its scale
        note(f"{run}: strength {strength:g}")
        policy.load({name: tensor * strength if ".lora_B." in name else tensor for name, tensor in whole.items()})
        kept[strength] = {"strength": strength} | parts.evaluator(policy).summary()
    found = [kept[strength] for strength in sorted(kept)]
    RunDirectory(run).write_json(FILE, {"weights": of_file(weights), "strengths": found})
    return found


def read_strengths(run: Path) -> list[dict[str, Any]]:
    """Return what `measure_strengths` kept in a run; nothing if it is of other weights than the run has now, or cannot be read."""
    try:
        found = mapping(read_json(run / FILE))
        if found.get("weights") != of_file(tuned_weights(run)):
            return []
    except (RLCMError, OSError):
        return []
    entries = found.get("strengths")
    known = [entry for entry in map(mapping, entries if isinstance(entries, list) else []) if _is_whole(entry)]
    return known if known and known[0]["strength"] == 0 else []


def _is_whole(entry: Mapping[str, Any]) -> bool:
    return finite(entry.get("strength")) is not None and finite(mapping(entry.get("reward")).get("mean")) is not None


def _as_it_lies_here(config: TrainConfig, run: Path) -> TrainConfig:
    """Return a run's configuration to be evaluated with: in the folder where it lies today, and of the weights in its final/."""
    place = run.resolve()
    lora = config.lora.model_copy(update={"ema_decay": 0.0})  # final/ has the averaged weights already
    quiet = config.run.model_copy(update={"tracker": "none"})
    return located(config).model_copy(update={"output": str(place.parent), "name": place.name, "lora": lora, "run": quiet})
