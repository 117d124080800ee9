"""Whether a run's base model is still the one that it was trained on: its LoRA does something else on another one."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rlcm.errors import UnreadableFileError, UsageError
from rlcm.paths import shown
from rlcm.pipelines.noted import changed_since
from rlcm.pipelines.settings import ModelSettings
from rlcm.report.values import mapping
from rlcm.runs.again import repeated
from rlcm.runs.weights import listed
from rlcm.training.final import noted_by


def other_base(model: ModelSettings, run: Path) -> str:
    """Return a sentence where a run's base model has changed since the run was trained; nothing where it has not, or is not known.

    Small files are compared whole, and large ones by pieces of them, which the run has noted.

    Args:
        model: of the run, where it lies now.
        run: its folder.
    """
    found: list[str] = []
    noted = noted_by(run)
    with contextlib.suppress(UnreadableFileError, UsageError, OSError, ValueError, AttributeError, TypeError):
        found = changed_since(model, mapping(noted.get("contents")), mapping(noted.get("pieces")))
    if not found:
        return ""
    return (
        f"the base model of {shown(run)} is not the one that the run was trained on; other than then: {listed(found, 3)}. The LoRA "
        f"does something else on it than the run measured. Put the model back, correct model.path in {shown(run / 'config.yaml')}, "
        f"or train again with {repeated(run)}."
    )
