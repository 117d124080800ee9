"""Runs side by side: who reaches what reward after how much time, how many reward queries and network calls."""

from __future__ import annotations

from rlcm.studies.compare.methods import Method, curve_of, read_methods
from rlcm.studies.compare.page import write_comparison
from rlcm.studies.compare.speedup import AXES, at, compare

__all__ = ["AXES", "Method", "at", "compare", "curve_of", "read_methods", "write_comparison"]
