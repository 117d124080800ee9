"""Taking a result elsewhere: other tools' formats, the Hub, and a run's model with what it has learnt."""

from __future__ import annotations

from rlcm.sharing.base import other_base
from rlcm.sharing.formats import export_run
from rlcm.sharing.tuned import tuned_lora, tuned_pipeline

__all__ = ["export_run", "other_base", "tuned_lora", "tuned_pipeline"]
