"""Solved trajectories: of Gaussian data the ODE is known in closed form, and so is where it ends."""

import pytest
import torch
from test_distillation import latents, schedule
from tiny_pipelines import small_unet

from rlcm.distillation.loss import student_of
from rlcm.distillation.solved import solve, solved_loss
from rlcm.types import Conditioning

CONDITION = Conditioning({"encoder_hidden_states": torch.zeros(5, 1, 16)})


def gaussian(of, std, mean=0.0):
    """Return the exact denoiser of Gaussian pictures: mean + alpha std^2 / (alpha^2 std^2 + sigma^2) (x - alpha mean)."""

    def run(unet, x, t, condition, embedding):
        alpha, sigma = of.rates(t, x)
        # Without a prompt, the second half of a double batch, the mean is 0.
        means = torch.full((len(x), 1, 1, 1), mean)
        means[5:] = 0.0
        return means + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * means)

    return run


def times(number):
    rows = torch.linspace(999, 999 / number, number)
    return torch.stack([rows - 3 * i for i in range(5)]).round().long().clamp(min=1)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_trajectories_of_gaussian_pictures_end_where_they_must(std):
    """Along the probability-flow ODE, x_t / sqrt(alpha^2 std^2 + sigma^2) stays as it is, and std times it is the end."""
    of, x_t, at = schedule("sample"), latents(), times(40)
    states, end = solve(None, of, x_t, at, CONDITION, CONDITION, torch.ones(5), run=gaussian(of, std))
    assert states.shape == (5, 40, 4, 8, 8)
    assert torch.equal(states[:, 0], x_t)

    def scaled(x, t):
        alpha, sigma = of.rates(t, x)
        return x / (alpha**2 * std**2 + sigma**2).sqrt()

    expected = scaled(x_t, at[:, 0])
    for k in (10, 25, 39):
        torch.testing.assert_close(scaled(states[:, k], at[:, k]), expected, rtol=0, atol=0.03)
    torch.testing.assert_close(end, std * expected, rtol=0, atol=0.05 * max(1.0, std))


def test_guidance_moves_the_end_along_the_difference_of_the_means():
    of, x_t, at = schedule("sample"), latents(), times(20)
    ends = [
        solve(None, of, x_t, at, CONDITION, CONDITION, torch.full((5,), scale), run=gaussian(of, 1.0, mean=0.7))[1]
        for scale in (0.0, 1.0, 3.0)
    ]
    first, second = ends[1] - ends[0], ends[2] - ends[1]
    assert float(first.mean()) > 0.3
    torch.testing.assert_close(second, 2 * first, rtol=0, atol=1e-3)  # linear denoisers: linear in the guidance


def test_a_student_that_knows_the_end_has_no_loss_and_one_that_errs_has_its_error():
    of, end = schedule("sample"), latents(seed=2)
    student = student_of(small_unet(), 8)
    states, at = latents(seed=3), torch.tensor([999, 700, 500, 259, 100])
    for error in (0.0, 0.5):
        loss = solved_loss(
            student, of, states, at, end, CONDITION, torch.full((5,), 3.0), run=lambda u, x, t, c, e, error=error: end + error
        )
        assert float(loss) == pytest.approx(max(0.0, error - 1e-3), abs=2e-3)


def test_only_the_student_learns():
    torch.manual_seed(0)
    of, teacher = schedule("v_prediction"), small_unet().requires_grad_(False)
    student = student_of(teacher, 8).requires_grad_(True)
    condition = Conditioning({"encoder_hidden_states": torch.randn(5, 3, 16)})
    at = times(3)
    states, end = solve(teacher, of, latents(), at, condition, condition, torch.full((5,), 2.0))
    assert not states.requires_grad
    solved_loss(student, of, states[:, 1], at[:, 1], end, condition, torch.full((5,), 2.0)).backward()
    assert float(student.time_embedding.cond_proj.weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in teacher.parameters())
