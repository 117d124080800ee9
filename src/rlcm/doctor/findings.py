"""What the doctor says: findings, and the diagnosis that they make."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What was looked at, such as `memory`."""
    value: str
    """What was found, for people."""
    ok: bool = True
    """Whether it may stay as it is."""
    remedy: str = ""
    """What to change if it is not ok."""
    numbers: dict[str, float] = field(default_factory=dict)
    """The same for programs."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order in which they were made. The first bad ones may have kept later ones from being made."""

    findings: list[Finding]
    """What was found."""

    @property
    def ok(self) -> bool:
        """Whether nothing needs to be changed."""
        return all(finding.ok for finding in self.findings)

    def verdict(self) -> str:
        """Return "ok", or the list of what to change."""
        bad = [finding for finding in self.findings if not finding.ok]
        if not bad:
            return "ok"
        return "\n".join(["change:", *(f"  {number}. {finding.remedy}" for number, finding in enumerate(bad, 1))])

    def as_dict(self) -> dict[str, Any]:
        """Return {"ok": bool, "findings": [{"name", "value", "ok", "remedy", "numbers"} ...]}, ready for JSON.

        The remedy is "" where all is well; numbers that are not finite are left out.
        """
        return {"ok": self.ok, "findings": [_plain(finding) for finding in self.findings]}


def _plain(finding: Finding) -> dict[str, Any]:
    numbers = {key: value for key, value in finding.numbers.items() if math.isfinite(value)}
    return asdict(finding) | {"remedy": "" if finding.ok else finding.remedy, "numbers": numbers}
