"""The choice of the branch step: its probabilities, weights that make it unbiased, and refusals."""

import math

import pytest
import torch

from rlcm.learning import advantages


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("last", [0.0, 0.0, 1.0]),
        ("mixed", [1 / 6, 1 / 6, 2 / 3]),
        ([0.5, 0.0, 0.5], [0.5, 0.0, 0.5]),
    ],
)
def test_branch_steps_follow_their_probabilities(schedule: advantages.BranchSchedule, expected: list[float]) -> None:
    assert advantages.branch_probabilities(schedule, 3).tolist() == pytest.approx(expected)
    rows, rng, drawn = torch.tensor([2, 5, 6]), generator(), []
    for _ in range(300):
        steps, weights = advantages.choose_branch_steps(7, rows, schedule, rng)
        counts = [int((steps == row).sum()) for row in rows.tolist()]
        assert sum(counts) == 7
        assert all(abs(count - 7 * p) < 1 for count, p in zip(counts, expected, strict=True))
        torch.testing.assert_close(weights, torch.tensor([1 / expected[rows.tolist().index(step)] for step in steps.tolist()]))
        drawn.append(steps)
    chosen = torch.stack(drawn)
    for row, p in zip(rows.tolist(), expected, strict=True):
        # Each of the 7 images alone sees the schedule: standard error sqrt(p (1 - p) / 300) <= 0.029.
        assert ((chosen == row).double().mean(0) - p).abs().max() < 0.12
        assert abs((chosen == row).double().mean().item() - p) < 0.01


def test_branch_weights_make_the_choice_unbiased() -> None:
    terms = torch.tensor([1.0, -4.0, 10.0, 0.5])
    rng = generator()
    for schedule in ("uniform", "mixed", [0.1, 0.2, 0.3, 0.4]):
        estimates = []
        for _ in range(2000):
            steps, weights = advantages.choose_branch_steps(6, torch.arange(4), schedule, rng)
            estimates.append((weights * terms[steps]).mean())
        stacked = torch.stack(estimates)
        error = stacked.std().item() / math.sqrt(2000)
        assert abs(stacked.mean().item() - 7.5) < 4 * error + 1e-5


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.branch_probabilities("first", 3),  # type: ignore[arg-type]
        lambda: advantages.branch_probabilities([0.5, 0.5], 3),
        lambda: advantages.branch_probabilities([0.5, 0.6, -0.1], 3),
        lambda: advantages.branch_probabilities("uniform", 0),
        lambda: advantages.choose_branch_steps(0, torch.arange(3), "uniform"),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must"):
        call()
