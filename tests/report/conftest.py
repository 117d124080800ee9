"""The run that the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_runs import CARD, evaluation, write_evaluations, write_metrics, write_samples


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run of twenty rounds: 1.65 -> 1.14 kB in 192 s."""
    path = tmp_path / "demo run"
    (path / "final").mkdir(parents=True)
    (path / "checkpoint-000020").mkdir()
    (path / "config.yaml").write_text(
        "name: demo\nmodel: {path: builtin}\nlora: {rank: 16}\nrun: {rounds: 20, timeout_seconds: 600}\n"
    )
    write_metrics(path, 20)
    write_evaluations(path, evaluation(0, -1.65), evaluation(10, -1.3, 0.983), evaluation(20, -1.14, 0.981))
    for number, value in ((0, -1.6), (10, -1.3), (20, -1.1)):
        write_samples(path, number, values=[value - 0.01 * i for i in range(6)])
    (path / "final/pytorch_lora_weights.safetensors").write_bytes(bytes(431_000))
    (path / "final/README.md").write_text(CARD)
    (path / "checkpoint-000020/state.json").write_text("{}")
    return path
