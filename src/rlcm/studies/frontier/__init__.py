"""What reward costs: how far runs strayed from their base model, and how much of its diversity they kept, at every reward."""

from __future__ import annotations

from rlcm.studies.frontier.page import print_table, write_frontier
from rlcm.studies.frontier.points import frontier
from rlcm.studies.frontier.strengths import check_strengths, measure_strengths, read_strengths

__all__ = ["check_strengths", "frontier", "measure_strengths", "print_table", "read_strengths", "write_frontier"]
