"""What tests of runs share."""

import pytest

from rlcm.training import keeping


@pytest.fixture
def _no_report(request, monkeypatch):
    """Leave the report out, which takes longer than a tiny run; those that ask for it have it."""
    if "with_report" not in request.fixturenames:
        monkeypatch.setattr(keeping, "write_report", lambda folder: folder / "report.html")


@pytest.fixture
def with_report():
    """Ask for the report."""
