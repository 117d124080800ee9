"""Whether a run's base model is still the one that it was trained on: its LoRA does something else on another one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError, UnreadableFileError, UsageError
from rlcm.paths import command, shown
from rlcm.pipelines.contents import ADAPTERS
from rlcm.pipelines.noted import changed_since
from rlcm.pipelines.settings import ModelSettings
from rlcm.report.run import DEPENDS_ON
from rlcm.report.values import mapping
from rlcm.runs.files import read_json
from rlcm.runs.weights import listed


def require_whole_base(run: Path) -> None:
    """Do nothing if what a run was trained on can be loaded from what it names.

    Raises:
        ConfigError: if it was trained on a pipeline with adapters that no file of the run holds.
    """
    if brought := mapping(_noted(run).get("contents")).get(ADAPTERS):
        raise ConfigError(
            f"{shown(run)} was trained on a pipeline that was passed with the adapters {brought} in it, and no file of the run holds "
            f"them. Load them into a pipeline as then, its LoRA beside them: pipe.load_lora_weights({str(run / 'final')!r}, "
            "adapter_name='tuned'), and pipe.set_adapters with all of their names. For runs that hold them, give their files as "
            "model.loras."
        )


def other_base(model: ModelSettings, run: Path) -> str:
    """Return a sentence where a run's base model has changed since the run was trained; nothing where it has not, or is not known.

    Small files are compared whole, and large ones by pieces of them, which the run has noted.

    Args:
        model: of the run, where it lies now.
        run: its folder.
    """
    found: list[str] = []
    noted = _noted(run)
    with contextlib.suppress(UnreadableFileError, UsageError, OSError, ValueError, AttributeError, TypeError):
        found = changed_since(model, mapping(noted.get("contents")), mapping(noted.get("pieces")))
    if not found:
        return ""
    return (
        f"the base model of {shown(run)} is not the one that the run was trained on; other than then: {listed(found, 3)}. The LoRA "
        f"does something else on it than the run measured. Put the model back, correct model.path in {shown(run / 'config.yaml')}, "
        f"or train anew with {command('rlcm', 'train', run / 'config.yaml', 'name=NEW')}."
    )


def _noted(run: Path) -> Mapping[str, Any]:
    """Return what a run noted of what it depends on; nothing where that cannot be read."""
    with contextlib.suppress(UnreadableFileError, OSError):
        return mapping(read_json(run / DEPENDS_ON))
    return {}
