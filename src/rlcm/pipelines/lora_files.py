"""LoRAs as they lie on disk: which file of a folder is meant, and what PEFT wrote beside or inside it about its strength."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from peft.utils.other import get_pattern_key
from torch import Tensor

from rlcm.errors import ConfigError, MissingFileError, WeightsError
from rlcm.paths import existing, shown
from rlcm.pipelines.hub import HUB_ID, download, files_on_hub
from rlcm.pipelines.settings import LoraSettings
from rlcm.runs.weights import read_weights

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
"""What diffusers and PEFT call a LoRA's file; one of them is taken where the settings name none."""
PEFT_CONFIG = "adapter_config.json"
_IN_METADATA = "lora_adapter_metadata"
_LARGEST_ALPHA = 1e6
"""Beyond it a LoRA is broken, and not strong."""
_ALTERING = ("pissa", "olora", "corda", "loftq")
"""What PEFT calls beginnings of a LoRA that are taken out of the model's own weights."""


def require_local(loras: Iterable[LoraSettings]) -> None:
    """Do nothing if the LoRAs that are no ids of the Hub are there; errors as `locate`."""
    for number, lora in enumerate(loras):
        setting = f"model.loras.{number}.path"
        if existing(lora.path, setting) is not None or not HUB_ID.fullmatch(lora.path):
            locate(lora, setting, local_files_only=True)


def locate(lora: LoraSettings, setting: str, *, local_files_only: bool) -> tuple[Path, Path | None]:
    """Return the file of a LoRA, downloaded where it has to be, and PEFT's configuration of it if there is one.

    Args:
        setting: of the LoRA's path, such as `model.loras.0.path`.

    Raises:
        MissingFileError: if there is none.
        ConfigError: if there are several.
    """
    place, absent = existing(lora.path, setting), f"{setting}={lora.path!r} has no file {lora.weight_name}"
    if place is not None and place.is_dir():
        result = next((place / name for name in ("final", "best") if (place / name / LORA_FILE).is_file()), None)
        if result is not None and lora.weight_name is None and not any(place.glob("*.safetensors")):
            raise MissingFileError(
                f"{setting}={lora.path!r} is the folder of a run; its LoRA is in {shown(result)}, so give that."
            )
        file = place / (lora.weight_name or choose_file([file.name for file in place.iterdir()], setting, lora.path))
        if not file.is_file():
            raise MissingFileError(f"{absent}; correct weight_name or leave it out.")
        return file, _config_beside(file)
    if place is not None:
        if lora.weight_name not in (None, place.name):
            raise ConfigError(f"{setting}={lora.path!r} is a file itself, and not {lora.weight_name}; leave weight_name out.")
        return place, _config_beside(place)
    if not HUB_ID.fullmatch(lora.path):
        raise MissingFileError(f"{setting}={lora.path!r} is neither a file, a folder nor a Hub id; correct the path.")

    def get(name: str) -> Path:
        return download(lora.path, name, lora.revision, setting, local_files_only=local_files_only)

    try:
        file = get(lora.weight_name or LORA_FILE)
    except EntryNotFoundError as error:
        if lora.weight_name or local_files_only:
            wanted = absent if lora.weight_name else f"{setting}={lora.path!r} has no {LORA_FILE} in the Hub's cache"
            raise MissingFileError(f"{wanted}; set weight_name to a file that is there.") from error
        file = get(choose_file(files_on_hub(lora.path, lora.revision, setting), setting, lora.path))
    if file.name != PEFT_FILE:
        return file, None
    try:
        return file, get(PEFT_CONFIG)
    except EntryNotFoundError:
        return file, None


def choose_file(names: Sequence[str], setting: str, place: str) -> str:
    """Return the file that is meant where the settings name none.

    Args:
        names: of the files in a folder or repository.
        setting: of the LoRA's path, such as `model.loras.0.path`.
        place: its path, for messages.

    Raises:
        MissingFileError: if none of them can be a LoRA.
        ConfigError: if several can.
    """
    found = sorted(name for name in names if name.lower().endswith(".safetensors"))
    usual = [name for name in (LORA_FILE, PEFT_FILE) if name in found]
    chosen = usual or [name for name in found if "/" not in name] or found
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise ConfigError(
            f"{setting}={place!r} holds {len(chosen)} files that may be meant: {', '.join(chosen[:6])}; name one of them, such as "
            f"model.loras='[{{path: {place}, weight_name: {chosen[0]}}}]'"
        )
    pickled = sorted(name for name in names if name.lower().endswith((".bin", ".pt", ".pth", ".ckpt")))
    raise MissingFileError(
        f"{setting}={place!r} holds no .safetensors file"
        + (f", and rlcm opens no pickles such as {pickled[0]}" if pickled else "")
        + "; give a folder or Hub id that holds a LoRA in safetensors."
    )


@dataclass(frozen=True, slots=True)
class Strength:
    """By what PEFT multiplies a LoRA's change of a layer: alpha / r, or alpha / sqrt(r)."""

    alpha: float | None = None
    """None: the rank."""
    patterns: Mapping[str, float] = field(default_factory=dict)
    """Other alphas, by ends of the names of layers."""
    root: bool = False
    """Whether it is divided by the root of the rank."""

    def alpha_of(self, layer: str, rank: int) -> float:
        """Return the alpha of a layer, where alpha / rank is its strength."""
        chosen = self.patterns.get(get_pattern_key(list(self.patterns), layer), self.alpha)
        if chosen is None:
            return float(rank)
        return float(chosen) * math.sqrt(rank) if self.root else float(chosen)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """What a LoRA's file says."""

    tensors: dict[str, Tensor]
    strengths: dict[str, Strength]
    """By component, "" for all: what was written down of it apart from the tensors."""

    def strength(self, component: str) -> Strength:
        """Return what was written down for a component."""
        return self.strengths.get(component) or self.strengths.get("") or Strength()


def read_file(file: Path, setting: str, beside: Path | None = None) -> LoraFile:
    """Return the content of a LoRA's file.

    Args:
        file: safetensors.
        setting: how the user named it, for messages.
        beside: PEFT's configuration that belongs to it, if there is one.

    Raises:
        MissingFileError, WeightsError: as `read_weights`, and if it is of a kind that is no plain LoRA.
        ConfigError: if what is written down about it is not understood.
    """
    tensors, metadata = read_weights(file, setting)
    strengths: dict[str, Strength] = {}
    if _IN_METADATA in metadata:
        known = _json(metadata[_IN_METADATA], f"{setting}: its metadata")
        if "lora_alpha" in known:
            strengths[""] = _strength(known, f"{setting}: its metadata")
        for component in sorted({key.partition(".")[0] for key in known if "." in key}):
            own = {key.partition(".")[2]: value for key, value in known.items() if key.startswith(f"{component}.")}
            strengths[component] = _strength(own, f"{setting}: its metadata")
    elif beside is not None:
        try:
            text = beside.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{beside} cannot be read ({error}); copy the folder of the LoRA again.") from error
        strengths[""] = _strength(_json(text, str(beside)), str(beside))
    return LoraFile(tensors, strengths)


def _config_beside(file: Path) -> Path | None:
    """Return PEFT's configuration of a LoRA's file; one that lies beside several files is that of PEFT's own."""
    config = file.parent / PEFT_CONFIG
    if not config.is_file():
        return None
    others = [other for other in file.parent.iterdir() if other.suffix.lower() == ".safetensors"]
    return config if file.name == PEFT_FILE or len(others) == 1 else None


def _json(text: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is no JSON ({error}); save the LoRA again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{place} is a {type(found).__name__} in place of an object; save the LoRA again.")
    return found


def _strength(config: Mapping[str, Any], place: str) -> Strength:
    for flag in ("use_dora", "use_rslora"):
        if not isinstance(config.get(flag), bool | None):
            raise ConfigError(f"{place}: {flag}={config[flag]!r} is neither true nor false; save the LoRA again.")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA" or config.get("use_dora"):
        name = "a DoRA" if config.get("use_dora") else kind
        raise WeightsError(
            f"{place} says that this is {name}, which rlcm cannot add; give a plain LoRA, or merge it beforehand."
        )
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_ALTERING):
        raise WeightsError(
            f"{place} says init_lora_weights={begun}, which changes the model itself before training, so that the file alone is not "
            "what was learnt; convert it to a plain LoRA first, as PEFT's documentation of that method says."
        )
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    numbers: list[Any] = [alpha, *patterns.values()] if isinstance(patterns, dict) else ["?"]
    if not all(value is None or (type(value) in (int, float) and abs(value) <= _LARGEST_ALPHA) for value in numbers):
        raise ConfigError(
            f"{place}: lora_alpha={alpha!r}, alpha_pattern={patterns!r} are no numbers that a LoRA has; save it again."
        )
    try:
        for pattern in patterns:
            re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{place}: alpha_pattern has {pattern!r} ({error}); save the LoRA again.") from error
    return Strength(alpha, patterns, bool(config.get("use_rslora")))
