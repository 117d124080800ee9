"""What a pipeline that was passed brings, and no file that it names holds: adapters in it, and weights that were changed."""

from __future__ import annotations

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
from rlcm.policy.policy import ADAPTER

ADAPTERS = "adapters of the model that was passed"
"""Under this name a run notes which adapters its model brought."""
CHANGED = "parts of the model that was passed whose weights are not those of its folder"
"""Under this name a run notes which."""
BROUGHT = {ADAPTERS: "adapters", CHANGED: "weights of"}
"""What each of them is called in a sentence."""
_ROUNDING = 2.0**-7
"""Of a weight; as much as bf16 rounds it by, and twice that."""
_UNFUSED = 1e-6
"""Of a tensor's largest weight: what adding a LoRA and taking it away again leaves in fp32."""


def brought_by(pipeline: Any) -> dict[str, str]:
    """Return what a loaded pipeline brings that no file holds, by what a run notes it under; files are read whole."""
    found = {ADAPTERS: active_adapters(pipeline), CHANGED: changed_parts(pipeline)}
    return {key: ", ".join(names) for key, names in found.items() if names}


def active_adapters(pipeline: Any) -> list[str]:
    """Return the names of the adapters that are active in a loaded pipeline, without those of trainings."""
    parts = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
    layers = (layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer))
    return sorted({name for layer in layers if not layer.disable_adapters for name in layer.active_adapters} - {ADAPTER})


def changed_parts(pipeline: Any) -> list[str]:
    """Return the parts of a loaded pipeline whose weights are others than in the folder that it names.

    What rounding to another precision changes does not count. What cannot be compared is left out: a pipeline that names no folder
    and no model in the Hub's cache, quantised weights, and files that are not in safetensors format.
    """
    folder = _folder(str(getattr(pipeline, "name_or_path", None) or ""))
    if folder is None:
        return []
    parts = {
        name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module) and name not in NOT_NEEDED
    }
    return sorted(name for name, part in parts.items() if _is_changed(part, folder / name))


def _folder(path: str) -> Path | None:
    """Return where the files of a pipeline lie that names a folder, or a model of the Hub that is in its cache."""
    place = existing(path, "model.path") if path else None
    if place is None and HUB_ID.fullmatch(path):
        index = try_to_load_from_cache(path, INDEX)
        place = Path(index).parent if isinstance(index, str) else None
    return place if place is not None and (place / INDEX).is_file() else None


def _is_changed(part: torch.nn.Module, folder: Path) -> bool:
    """Return whether a part's weights are those of none of the variants in its folder."""
    variants: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        variants.setdefault(file.stem.partition(".")[2].partition("-")[0], []).append(file)
    held = {key.replace(".base_layer.", "."): value for key, value in part.state_dict().items()}
    return bool(variants) and all(_differs(files, held) for files in variants.values())


def _differs(files: list[Path], held: Mapping[str, Any]) -> bool:
    try:
        return any(_is_other(stored, held[key]) for key, stored in _stored(files) if isinstance(held.get(key), torch.Tensor))
    except (OSError, SafetensorError, ValueError, RuntimeError):  # what is wrong with them is said where they are loaded
        return False


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
    allowed = _ROUNDING * expected.abs() + _UNFUSED * expected.abs().max() if expected.numel() else expected
    return bool(((now - expected).abs() > allowed).any())
