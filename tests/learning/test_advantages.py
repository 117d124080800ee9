"""Advantages by hand, invariances, limits, and the estimators' expectation on a Gaussian chain with an exact gradient."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlcm.learning import advantages, losses

REWARDS = torch.tensor([1.0, 3.0, 5.0, 2.0, 2.0, 9.0, -1.0])
GROUPS = torch.tensor([4, 4, 4, 0, 0, 7, 4])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Baselines


def test_group_by_hand() -> None:
    # Group 4: 1, 3, 5, -1: mean 2, population std sqrt 5. Group 0: equal. Group 7: one image.
    expected = torch.tensor([-1.0, 1.0, 3.0, 0.0, 0.0, 0.0, -3.0])
    torch.testing.assert_close(advantages.group(REWARDS, GROUPS, normalise_std=False), expected)
    torch.testing.assert_close(advantages.group(REWARDS, GROUPS), expected / math.sqrt(5), atol=1e-5, rtol=1e-5)


def test_leave_one_out_by_hand() -> None:
    # Group 4, image 0: 1 - (3 + 5 - 1) / 3 = -4/3: n/(n-1) times the deviation from the mean.
    expected = torch.tensor([-1.0, 1.0, 3.0, 0.0, 0.0, 0.0, -3.0]) * 4 / 3
    found = advantages.leave_one_out(REWARDS, GROUPS)
    torch.testing.assert_close(found, expected)
    scaled = advantages.leave_one_out(REWARDS, GROUPS, normalise_std=True)
    torch.testing.assert_close(scaled, found / found.square().mean().sqrt(), atol=1e-5, rtol=1e-5)


def test_batch_by_hand() -> None:
    # Mean 3, squared deviations 4 0 4 1 1 36 16 = 62.
    torch.testing.assert_close(advantages.batch(REWARDS, normalise_std=False), REWARDS - 3)
    torch.testing.assert_close(advantages.batch(REWARDS), (REWARDS - 3) / math.sqrt(62 / 7), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shift", "scale"), [(100.0, 1.0), (0.0, 50.0), (-7.0, 0.25)])
def test_shifted_and_scaled_rewards_leave_normalised_advantages_unchanged(shift: float, scale: float) -> None:
    def running(rewards: Tensor) -> Tensor:
        statistics = advantages.PromptStatistics(4, 2)
        return statistics.advantages([f"prompt {group}" for group in GROUPS.tolist()], rewards)

    estimators = [
        running,
        advantages.batch,
        lambda rewards: advantages.group(rewards, GROUPS),
        lambda rewards: advantages.leave_one_out(rewards, GROUPS, normalise_std=True),
    ]
    for estimate in estimators:
        torch.testing.assert_close(estimate(REWARDS * scale + shift), estimate(REWARDS), atol=1e-4, rtol=1e-4)


def test_groups_do_not_depend_on_order_or_names() -> None:
    order = torch.randperm(7, generator=generator())
    renamed = (GROUPS * 1000 - 5)[order]
    for estimate in (advantages.group, advantages.leave_one_out):
        torch.testing.assert_close(estimate(REWARDS[order], renamed), estimate(REWARDS, GROUPS)[order])


def test_equal_rewards_give_exactly_zero() -> None:
    # The mean of seven times 0.1 is not 0.1 in floating point, and 1e-17 / 1e-6 would not be 0.
    rewards, one = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.long)
    statistics = advantages.PromptStatistics(8, 1)
    for found in (
        advantages.batch(rewards),
        advantages.group(rewards, one),
        advantages.leave_one_out(rewards, one),
        statistics.advantages(["fox"] * 7, rewards),
    ):
        assert torch.equal(found, torch.zeros(7))


def test_zero_variance_groups() -> None:
    assert advantages.zero_variance_groups(REWARDS, GROUPS) == 2
    assert advantages.zero_variance_groups(REWARDS, torch.zeros(7, dtype=torch.long)) == 0


def test_clip_advantages() -> None:
    assert advantages.clip_advantages(torch.tensor([[-3.0, 0.5], [1.0, 20.0]]), 2).tolist() == [[-2.0, 0.5], [1.0, 2.0]]


# Per-prompt running statistics


def test_prompt_statistics_by_hand() -> None:
    statistics = advantages.PromptStatistics(buffer_size=3, min_count=2, normalise_std=False)
    # Round 1: fox has two rewards (mean 2); owl has one and takes the batch's mean 4.
    first = statistics.advantages(["fox", "owl", "fox"], torch.tensor([1.0, 8.0, 3.0]))
    assert first.tolist() == [-1.0, 4.0, 1.0]
    # Round 2: fox remembers 3, 5, 7 (1 has left): mean 5; owl 8, 2: mean 5.
    second = statistics.advantages(["fox", "fox", "owl"], torch.tensor([5.0, 7.0, 2.0]))
    assert second.tolist() == [0.0, 2.0, -3.0]
    assert statistics.state_dict() == {"buffers": {"fox": [3.0, 5.0, 7.0], "owl": [8.0, 2.0]}}
    assert statistics.engaged_fraction(["fox", "owl", "cat", "cat"]) == 0.5


def test_prompt_statistics_divide_by_the_population_std() -> None:
    statistics = advantages.PromptStatistics(buffer_size=8, min_count=2)
    # fox 1, 3: std 1. owl alone: batch 1, 8, 3: mean 4, std sqrt(26/3).
    found = statistics.advantages(["fox", "owl", "fox"], torch.tensor([1.0, 8.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 4 / math.sqrt(26 / 3), 1.0]), atol=1e-5, rtol=1e-5)


def test_prompt_statistics_resume_bit_for_bit() -> None:
    rng = generator()
    rounds = [(["fox", "owl", "fox", "elk"], torch.rand(4, generator=rng)) for _ in range(4)]
    whole, begun = advantages.PromptStatistics(5, 3), advantages.PromptStatistics(5, 3)
    uninterrupted = [whole.advantages(*round_) for round_ in rounds]
    for round_ in rounds[:2]:
        begun.advantages(*round_)
    resumed = advantages.PromptStatistics(5, 3)
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    for round_, expected in zip(rounds[2:], uninterrupted[2:], strict=True):
        assert torch.equal(resumed.advantages(*round_), expected)
    assert resumed.state_dict() == whole.state_dict()


def test_refused_rewards_leave_the_buffers_alone() -> None:
    statistics = advantages.PromptStatistics(4, 1)
    statistics.advantages(["fox"], torch.tensor([1.0]))
    for prompts, rewards in ((["fox", "owl"], [1.0, math.nan]), (["fox"], [1.0, 2.0])):
        with pytest.raises(ValueError, match="rewards"):
            statistics.advantages(prompts, torch.tensor(rewards))
    assert statistics.state_dict() == {"buffers": {"fox": [1.0]}}


# Dense rewards


def test_shaping_telescopes() -> None:
    potentials = torch.randn(3, 5, generator=generator())
    shaped = advantages.shaped_rewards(potentials)
    assert torch.equal(shaped[:, 0], potentials[:, 0])
    torch.testing.assert_close(shaped.cumsum(1), potentials)
    # From the action at call t on, what is still to come is the final reward minus the prediction's.
    torch.testing.assert_close(advantages.reward_to_go(shaped[:, 1:]), potentials[:, -1:] - potentials[:, :-1])


def test_reward_to_go_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
    assert advantages.reward_to_go(rewards, 0.5).tolist() == [[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]]
    assert advantages.reward_to_go(rewards, 0.0).tolist() == rewards.tolist()
    assert rewards[0].tolist() == [1.0, 2.0, 4.0]


def test_gae_limits() -> None:
    rewards, values = torch.randn(2, 4, 3, generator=generator())
    following = torch.cat((values[:, 1:], torch.zeros(4, 1)), dim=1)
    torch.testing.assert_close(advantages.gae(rewards, values, 0.9, 0.0), rewards + 0.9 * following - values)
    torch.testing.assert_close(advantages.gae(rewards, values, 0.9, 1.0), advantages.reward_to_go(rewards, 0.9) - values)


def test_gae_between_its_limits() -> None:
    # delta = (1 + .5 * 4 - 2, 3 - 4) = (1, -1); A_0 = 1 + .5 * .5 * -1 = .75.
    found = advantages.gae(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]]), 0.5, 0.5)
    assert found.tolist() == [[0.75, -1.0]]


@pytest.mark.parametrize(
    ("num_calls", "every", "calls"), [(1, 3, [0]), (4, 1, [0, 1, 2, 3]), (5, 2, [0, 2, 4]), (6, 2, [0, 2, 4, 5])]
)
def test_scored_calls_and_held_potentials(num_calls: int, every: int, calls: list[int]) -> None:
    assert advantages.scored_calls(num_calls, every) == calls
    full = torch.randn(3, num_calls, generator=generator())
    held = advantages.hold_potentials(full[:, calls], calls, num_calls)
    expected = [max(call for call in calls if call <= column) for column in range(num_calls)]
    assert torch.equal(held, full[:, expected])


# The choice of the branch step


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


# Estimators on a Gaussian chain: x' = a_i theta_i x + s_i z for the A noisy steps, then the image phi x, and a quadratic
# reward. Means and variances follow in closed form, and with them the exact gradient in every theta_i and in phi.

DRIFT = torch.tensor([0.9, 0.8, 0.7])
NOISE = torch.tensor([0.3, 0.4, 0.5])
THETA = torch.tensor([1.1, 0.9, 1.2])
PHI = 1.0
D = 8
A = 3
CALLS = A + 1


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


# Refusals


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.PromptStatistics(0, 1),
        lambda: advantages.PromptStatistics(4, 5),
        lambda: advantages.batch(torch.zeros(3, 2)),
        lambda: advantages.batch(torch.tensor([1.0, math.inf])),
        lambda: advantages.group(torch.zeros(3), torch.zeros(2, dtype=torch.long)),
        lambda: advantages.leave_one_out(torch.zeros(3), torch.zeros(3, 1, dtype=torch.long)),
        lambda: advantages.zero_variance_groups(torch.tensor([math.nan]), torch.tensor([0])),
        lambda: advantages.clip_advantages(torch.zeros(3), 0.0),
        lambda: advantages.scored_calls(0, 1),
        lambda: advantages.hold_potentials(torch.zeros(3, 2), [0, 2], 4),
        lambda: advantages.hold_potentials(torch.zeros(3, 3), [0, 3], 4),
        lambda: advantages.shaped_rewards(torch.zeros(3)),
        lambda: advantages.reward_to_go(torch.zeros(3)),
        lambda: advantages.reward_to_go(torch.zeros(3, 2), 1.5),
        lambda: advantages.gae(torch.zeros(3, 2), torch.zeros(3, 1), 1.0, 1.0),
        lambda: advantages.gae(torch.zeros(3, 2), torch.zeros(3, 2), 1.0, -0.1),
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
