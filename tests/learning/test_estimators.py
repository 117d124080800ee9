"""The policy gradient's estimators: their expectation on a Gaussian chain with an exact gradient.

The chain: x' = a_i theta_i x + s_i z for the A noisy steps, then the image phi x, and a quadratic reward. Means and variances follow
in closed form, and with them the exact gradient in every theta_i and in phi.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlcm.learning import advantages, losses

DRIFT = torch.tensor([0.9, 0.8, 0.7])
NOISE = torch.tensor([0.3, 0.4, 0.5])
THETA = torch.tensor([1.1, 0.9, 1.2])
PHI = 1.0
D = 8
A = 3
CALLS = A + 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reward_of(x: Tensor) -> Tensor:
    """Return the reward [...] of images [..., D]."""
    return -(x - 1).square().sum(-1)


def exact_gradient(std_final: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return d E[reward] / d theta [A] and / d phi, for x_0 ~ N(1, 1) in D dimensions."""
    theta = THETA.double().requires_grad_()
    phi = torch.tensor(PHI, dtype=torch.float64, requires_grad=True)
    mean, variance = torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for i in range(A):
        factor = DRIFT[i].double() * theta[i]
        mean, variance = factor * mean, factor**2 * variance + NOISE[i].double() ** 2
    objective = -D * (phi**2 * variance + std_final**2 + (phi * mean - 1) ** 2)
    slopes = torch.autograd.grad(objective, (theta, phi))
    return slopes[0].float(), slopes[1].float()


def chain(x: Tensor, start: int, rng: torch.Generator) -> Tensor:
    """Return the last state reached from x [..., D], which stands before noisy step `start`."""
    for i in range(start, A):
        x = DRIFT[i] * THETA[i] * x + NOISE[i] * torch.randn(x.shape, generator=rng)
    return x


def first_states(*shape: int, rng: torch.Generator) -> Tensor:
    return 1 + torch.randn(*shape, D, generator=rng)


@dataclass
class Estimate:
    """Gradients in theta of many independent groups, and what one group costs."""

    gradients: Tensor
    """[M, A]."""
    forwards: float
    """Network calls of a group: sampling and the update's forward passes."""
    backwards: float

    def error(self) -> Tensor:
        return self.gradients.std(0) / math.sqrt(len(self.gradients))

    def variance_at_unit_cost(self, backward_price: float) -> float:
        cost = self.forwards + backward_price * self.backwards
        return cost * self.gradients.var(0).sum().item()


def plain(groups: int, size: int, rng: torch.Generator) -> Estimate:
    """`size` trajectories a group, each from its own noise; every step of each is an action with one noise."""
    theta = THETA.repeat(groups, 1).requires_grad_()
    x, log_prob = first_states(groups, size, rng=rng), torch.zeros(groups, size, A)
    for i in range(A):
        z = torch.randn(x.shape, generator=rng)
        following = DRIFT[i] * THETA[i] * x + NOISE[i] * z
        mean = DRIFT[i] * theta[:, i, None, None] * x
        log_prob[..., i] = -(following - mean).square().sum(-1) / (2 * NOISE[i] ** 2)
        x = following
    rewards = reward_of(PHI * x)
    index = torch.arange(groups).repeat_interleave(size)
    advantage = advantages.leave_one_out(rewards.flatten(), index).view(groups, size, 1)
    loss = losses.reinforce(log_prob, advantage.expand(-1, -1, A)).sum(2).mean(1)
    return Estimate(-torch.autograd.grad(loss.sum(), theta)[0], forwards=size * (CALLS + A), backwards=size * A)


def branched(
    groups: int, branches: int, schedule: advantages.BranchSchedule, rng: torch.Generator, ppo: bool = False
) -> Estimate:
    """One state a group, `branches` noises of it, each completed; one forward and one backward of that state."""
    theta = THETA.repeat(groups, 1).requires_grad_()
    x = first_states(groups, rng=rng)
    steps, weights = advantages.choose_branch_steps(groups, torch.arange(A), schedule, rng)
    forwards = 0.0
    losses_of_groups = []
    for i in range(A):
        rows = (steps == i).nonzero().flatten()
        if len(rows) > 0:
            state = x[rows, None]
            actions = DRIFT[i] * THETA[i] * state + NOISE[i] * torch.randn(len(rows), branches, D, generator=rng)
            rewards = reward_of(PHI * chain(actions, i + 1, rng))
            index = torch.arange(len(rows)).repeat_interleave(branches)
            advantage = advantages.leave_one_out(rewards.flatten(), index).view(-1, branches)
            mean = DRIFT[i] * theta[rows, i, None, None] * state
            log_prob = -(actions - mean).square().sum(-1) / (2 * NOISE[i] ** 2)
            if ppo:
                loss = losses.ppo_clip(log_prob - log_prob.detach(), advantage, clip_range=1e-4)
            else:
                loss = losses.reinforce(log_prob, advantage)
            losses_of_groups.append((weights[rows, None] * loss).mean(1))
            forwards += len(rows) * (i + 1 + branches * (CALLS - i - 1) + 1)
        x = DRIFT[i] * THETA[i] * x + NOISE[i] * torch.randn(x.shape, generator=rng)
    gradients = -torch.autograd.grad(torch.cat(losses_of_groups).sum(), theta)[0]
    return Estimate(gradients, forwards=forwards / groups, backwards=1.0)


GROUP = 8
MANY = 200_000


def test_plain_and_branched_agree_with_the_exact_gradient() -> None:
    exact = exact_gradient()[0]
    for name, estimate in (
        ("plain", plain(MANY, GROUP, generator())),
        ("uniform", branched(MANY, GROUP, "uniform", generator(1))),
        ("mixed", branched(MANY, GROUP, "mixed", generator(2))),
        ("uniform, PPO at ratio 1", branched(MANY, GROUP, "uniform", generator(3), ppo=True)),
    ):
        found, error = estimate.gradients.mean(0), estimate.error()
        print(f"{name}: {found.tolist()} +- {error.tolist()} (Monte Carlo), exact {exact.tolist()}")
        assert ((found - exact).abs() < 4 * error).all()
        assert (error < 0.05 * exact.abs()).all()  # the comparison is a sharp one


def test_branching_at_the_last_step_estimates_that_step_alone() -> None:
    estimate = branched(MANY, GROUP, "last", generator())
    found, error, exact = estimate.gradients.mean(0), estimate.error(), exact_gradient()[0]
    assert found[:2].tolist() == [0.0, 0.0]
    assert abs(found[2] - exact[2]) < 4 * error[2]


def test_branching_has_lower_variance_at_equal_cost() -> None:
    ours, theirs = branched(MANY, GROUP, "uniform", generator()), plain(MANY, GROUP, generator(1))
    for price, counted in ((0.0, "forward calls"), (2.0, "forward calls + 2 x backward calls")):
        new, old = ours.variance_at_unit_cost(price), theirs.variance_at_unit_cost(price)
        print(f"variance x {counted}: branched {new:.4g}, plain {old:.4g}, ratio {new / old:.2f}")
        assert new < old
    print(f"a group: branched {ours.forwards:.1f} forward and {ours.backwards} backward calls, ", end="")
    print(f"plain {theirs.forwards} and {theirs.backwards}")


def test_final_step_exploration_agrees_with_the_exact_gradient() -> None:
    # The action is the image, phi x + s z: K noises, K rewards, one call; only phi is learnt, also at H = 1.
    std_final, branches = 0.3, 6
    rng = generator()
    x = chain(first_states(MANY, rng=rng), 0, rng)
    phi = torch.full((MANY, 1, 1), PHI, requires_grad=True)
    actions = (phi * x[:, None]).detach() + std_final * torch.randn(MANY, branches, D, generator=rng)
    index = torch.arange(MANY).repeat_interleave(branches)
    advantage = advantages.leave_one_out(reward_of(actions).flatten(), index).view(MANY, branches)
    log_prob = -(actions - phi * x[:, None]).square().sum(-1) / (2 * std_final**2)
    loss = losses.reinforce(log_prob, advantage).mean(1)
    gradients = -torch.autograd.grad(loss.sum(), phi)[0].flatten()
    error = gradients.std().item() / math.sqrt(MANY)
    exact = exact_gradient(std_final)[1].item()
    print(f"final step: {gradients.mean().item():.4f} +- {error:.4f}, exact {exact:.4f}")
    assert abs(gradients.mean().item() - exact) < 4 * error < 0.1 * abs(exact)


def test_antithetic_branches_want_the_plain_group_mean() -> None:
    # An action's partner has the opposite score: E[score r_partner] = -g. Against the group mean that makes up for the
    # action's own share exactly; leave-one-out comes out K / (K - 1) times too long.
    std_final, branches = 0.3, 4
    rng = generator()
    x = chain(first_states(MANY, rng=rng), 0, rng)
    z = std_final * torch.randn(MANY, branches // 2, D, generator=rng)
    z = torch.cat((z, -z), dim=1)
    rewards = reward_of(PHI * x[:, None] + z).flatten()
    index = torch.arange(MANY).repeat_interleave(branches)
    score = (z * x[:, None]).sum(-1) / std_final**2
    exact = exact_gradient(std_final)[1].item()
    for found, factor in (
        (advantages.group(rewards, index, normalise_std=False), 1.0),
        (advantages.leave_one_out(rewards, index), branches / (branches - 1)),
    ):
        gradients = (found.view(MANY, branches) * score).mean(1)
        error = gradients.std().item() / math.sqrt(MANY)
        assert abs(gradients.mean().item() - factor * exact) < 4 * error < 0.05 * abs(exact)


@pytest.mark.parametrize(("every", "value"), [(1, 0.0), (2, 0.0), (1, -5.0)])
def test_shaping_leaves_the_expected_gradient_unchanged(every: int, value: float) -> None:
    # The prediction of call i is theta_i x_i, the last call's is the image; with lambda 1 any value function will do.
    rng = generator()
    theta = THETA.repeat(MANY * 2, 1).requires_grad_()
    x, log_probs, predictions = first_states(MANY * 2, rng=rng), [], []
    for i in range(A):
        following = DRIFT[i] * THETA[i] * x + NOISE[i] * torch.randn(x.shape, generator=rng)
        log_probs.append(-(following - DRIFT[i] * theta[:, i, None] * x).square().sum(-1) / (2 * NOISE[i] ** 2))
        predictions.append(reward_of(THETA[i] * x))
        x = following
    calls = advantages.scored_calls(CALLS, every)
    scores = torch.stack([*predictions, reward_of(PHI * x)], dim=1)[:, calls]
    rewards = advantages.shaped_rewards(advantages.hold_potentials(scores, calls, CALLS))[:, 1:]
    advantage = advantages.gae(rewards, torch.full_like(rewards, value), 1.0, 1.0)
    loss = losses.reinforce(torch.stack(log_probs, dim=1), advantage)
    gradients = -torch.autograd.grad(loss.sum(), theta)[0]
    error = gradients.std(0) / math.sqrt(len(gradients))
    exact = exact_gradient()[0]
    print(f"shaped, every {every}: {gradients.mean(0).tolist()} +- {error.tolist()}, exact {exact.tolist()}")
    assert ((gradients.mean(0) - exact).abs() < 4 * error).all()
