"""What a pipeline that was passed brings, and no file that it names holds: adapters in it, and weights that were changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open

from rlcm.paths import existing
from rlcm.pipelines.described import INDEX, NOT_NEEDED
from rlcm.pipelines.hub import HUB_ID
from rlcm.pipelines.settings import ModelSettings
from rlcm.policy.policy import ADAPTER

ADAPTERS = "adapters of the model that was passed"
"""Under this name a run notes which adapters its model brought."""
CHANGED = "parts of the model that was passed whose weights are not those of its folder"
"""Under this name a run notes which."""
BROUGHT = {ADAPTERS: "adapters", CHANGED: "weights of"}
"""What each of them is called in a sentence."""
_ROUNDING = 2.0**-7
"""Of a weight; as much as bf16 rounds it by, and twice that."""
_SMALLEST = 2.0**-24
"""As much as fp16 rounds the smallest weights by, and twice that."""
_UNFUSED = 1e-6
"""Of a tensor's largest weight: what adding a LoRA and taking it away again leaves in fp32."""


def brought_by(pipeline: Any, settings: ModelSettings) -> dict[str, str]:
    """Return what a loaded pipeline brings that no file holds, by what a run notes it under; files are read whole.

    Args:
        settings: with which the run's model would be loaded.
    """
    found = {ADAPTERS: active_adapters(pipeline), CHANGED: changed_parts(pipeline, settings)}
    return {key: ", ".join(names) for key, names in found.items() if names}


def active_adapters(pipeline: Any) -> list[str]:
    """Return the names of the adapters that are active in a loaded pipeline, without those of trainings."""
    parts = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
    layers = (layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer))
    return sorted({name for layer in layers if not layer.disable_adapters for name in layer.active_adapters} - {ADAPTER})


def changed_parts(pipeline: Any, settings: ModelSettings) -> list[str]:
    """Return the parts of a loaded pipeline that are of another class than in the folder that it names, or have other weights.

    What rounding to another precision changes does not count. What cannot be compared is left out: a pipeline that names no folder
    and no model in the Hub's cache, quantised weights, and files that are not in safetensors format.
    """
    folder = _folder(str(getattr(pipeline, "name_or_path", None) or ""), settings.revision)
    if folder is None:
        return []
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = []
    for name, part in pipeline.components.items():
        part = getattr(part, "_orig_mod", part)  # of torch.compile
        if not isinstance(part, torch.nn.Module) or name in NOT_NEEDED:
            continue
        entry = index.get(name)
        is_other = isinstance(entry, list) and len(entry) == 2 and entry[1] not in (None, type(part).__name__)
        if is_other or _is_changed(part, folder / name, settings.variant):
            found.append(name)
    return sorted(found)


def _folder(path: str, revision: str | None) -> Path | None:
    """Return where the files of a pipeline lie that names a folder, or a model of the Hub that is in its cache."""
    place = existing(path, "model.path") if path else None
    if place is None and HUB_ID.fullmatch(path):
        index = try_to_load_from_cache(path, INDEX, revision=revision)
        place = Path(index).parent if isinstance(index, str) else None
    return place if place is not None and (place / INDEX).is_file() else None


def _is_changed(part: torch.nn.Module, folder: Path, variant: str | None) -> bool:
    """Return whether a part's weights are those of none of the variants that would be loaded from its folder."""
    variants: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        variants.setdefault(variant_of(file), []).append(file)
    wanted = [variants[variant]] if variant in variants else list(variants.values())
    held = {key.replace(".base_layer.", "."): value for key, value in part.state_dict().items()}
    compared = [_differs(files, held) for files in wanted]
    return True in compared and False not in compared


def variant_of(file: Path) -> str | None:
    """Return the variant of a file of weights: fp16 for model.fp16.safetensors and model.fp16-00001-of-00002.safetensors."""
    return file.stem.partition(".")[2].partition("-")[0] or None


def _differs(files: list[Path], held: Mapping[str, Any]) -> bool | None:
    """Return whether weights are others than in files; None where they have no name in common, or cannot be read."""
    compared = None
    try:
        for key, stored in _stored(files):
            if isinstance(held.get(key), torch.Tensor):
                compared = _is_other(stored, held[key])
            if compared:
                return True
    except (OSError, SafetensorError, ValueError, RuntimeError):  # what is wrong with them is said where they are loaded
        return None
    return compared


def _stored(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                yield key, opened.get_tensor(key)


def _is_other(stored: torch.Tensor, held: torch.Tensor) -> bool:
    """Return whether weights in memory are others than a file's, beyond what precision explains."""
    if held.is_meta or not held.is_floating_point() or held.dtype.itemsize == 1 or not stored.is_floating_point():
        return False
    if stored.shape != held.shape:
        return True
    expected, now = stored.float(), held.detach().cpu().float()
    allowed = _ROUNDING * expected.abs() + _SMALLEST
    if expected.numel():
        allowed += _UNFUSED * expected.abs().max()
    return not bool((((now - expected).abs() <= allowed) | (now.isnan() & expected.isnan())).all())
