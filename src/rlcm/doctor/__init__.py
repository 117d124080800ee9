"""Whether a run will work, before it is begun."""

from __future__ import annotations

from rlcm.doctor.checkup import diagnose
from rlcm.doctor.findings import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
