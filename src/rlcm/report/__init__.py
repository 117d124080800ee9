"""The page and the picture that show what a run did, made from the files of its directory and nothing else."""

from __future__ import annotations

from rlcm.report.page import write_report
from rlcm.report.picture import before_after_picture, curve_picture
from rlcm.report.reading import read_run

__all__ = ["before_after_picture", "curve_picture", "read_run", "write_report"]
