"""From rewards to advantages: baselines, per-prompt statistics, dense rewards and the choice of the branch step.

Statistics are taken in float64 on the CPU over ALL images of a round (gather the processes' rewards first); answers are
float32 on the rewards' device and never carry gradient. Standard deviations are those of the population (divided by n).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

EPS = 1e-6
"""Added to a standard deviation before dividing by it."""

BranchSchedule = Literal["uniform", "last", "mixed"] | Sequence[float]
"""How a branch step is drawn: by name, or one probability a noisy step."""


class PromptStatistics:
    """Running rewards of every prompt, and the advantages that follow from them.

        A = (r - mean_p) / (std_p + 1e-6)

    mean_p and std_p are those of the prompt's last `buffer_size` rewards, this round's included, once they are at least
    `min_count`; until then those of the whole batch. Black et al. 2023 (DDPO, arXiv:2305.13301), as in RLCM
    (arXiv:2404.03673).

    Args:
        buffer_size: how many rewards a prompt remembers, >= 1; the oldest leave first.
        min_count: how many it needs before its own statistics are used, 1 .. buffer_size.
        normalise_std: False subtracts the mean only.

    Raises:
        ValueError: if buffer_size < 1 or min_count is not within 1 .. buffer_size.
    """

    def __init__(self, buffer_size: int, min_count: int, *, normalise_std: bool = True) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be >= 1, got {buffer_size}")
        if not 1 <= min_count <= buffer_size:
            raise ValueError(f"min_count must be within 1 .. buffer_size={buffer_size}, got {min_count}")
        self.buffer_size = buffer_size
        self.min_count = min_count
        self.normalise_std = normalise_std
        self._buffers: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Remember this round's rewards and return their advantages.

        Rewards all equal (in the prompt's buffer, or in the batch where it stands in) carry no preference: advantage 0.

        Args:
            prompts: B strings, one an image.
            rewards: [B], finite.

        Returns:
            [B] advantages.

        Raises:
            ValueError: if the lengths disagree or a reward is not finite. The buffers are then as before.
        """
        values = _values(rewards)
        if len(prompts) != len(values):
            raise ValueError(f"{len(prompts)} prompts for {len(values)} rewards")
        for prompt, value in zip(prompts, values.tolist(), strict=True):
            self._buffers.setdefault(prompt, deque(maxlen=self.buffer_size)).append(value)
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        result = torch.empty_like(values)
        for prompt, index in rows.items():
            buffer = self._buffers[prompt]
            population = torch.tensor(buffer, dtype=torch.float64) if len(buffer) >= self.min_count else values
            result[index] = _standardise(values[index], population, self.normalise_std)
        return _like(result, rewards)

    def engaged_fraction(self, prompts: Sequence[str]) -> float:
        """Return the share of images whose prompt has enough rewards for statistics of its own, 0 .. 1."""
        engaged = [len(self._buffers.get(prompt, ())) >= self.min_count for prompt in prompts]
        return sum(engaged) / max(len(engaged), 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered rewards, oldest first, as JSON-able values; a float survives JSON bit for bit."""
        return {"buffers": {prompt: list(buffer) for prompt, buffer in self._buffers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; under a smaller buffer_size the newest rewards stay."""
        self._buffers = {
            prompt: deque(map(float, buffer), maxlen=self.buffer_size) for prompt, buffer in state["buffers"].items()
        }


def batch(rewards: Tensor, *, normalise_std: bool = True) -> Tensor:
    """Return advantages against the whole batch.

        A = (r - mean) / (std + 1e-6)

    Args:
        rewards: [B], finite.
        normalise_std: False subtracts the mean only.

    Returns:
        [B] advantages; all 0 where the rewards are all equal (or there is one).

    Raises:
        ValueError: if rewards is not [B] or not finite.
    """
    values = _values(rewards)
    return _like(_standardise(values, values, normalise_std), rewards)


def group(rewards: Tensor, group_index: Tensor, *, normalise_std: bool = True) -> Tensor:
    """Return advantages against the other images of the same group.

        A = (r - mean_g) / (std_g + 1e-6)

    Shao et al. 2024, section 4.1 (GRPO, arXiv:2402.03300); without the division, Liu et al. 2025 (arXiv:2503.20783): the
    division gives groups of small spread a larger say.

    Args:
        rewards: [B], finite.
        group_index: [B] integers; equal means same group (the prompt, or the state of branched rollouts).
        normalise_std: False subtracts the mean only.

    Returns:
        [B] advantages; 0 throughout a group of one image or of equal rewards, which has nothing to compare.

    Raises:
        ValueError: if the shapes disagree or a reward is not finite.
    """
    values, groups, count = _groups(rewards, group_index)
    sizes = _sum(torch.ones_like(values), groups, count)
    centred = values - (_sum(values, groups, count) / sizes)[groups]
    centred[_flat(values, groups, count)[groups]] = 0
    if normalise_std:
        std = (_sum(centred.square(), groups, count) / sizes).sqrt()
        centred = centred / (std + EPS)[groups]
    return _like(centred, rewards)


def leave_one_out(rewards: Tensor, group_index: Tensor, *, normalise_std: bool = False) -> Tensor:
    """Return advantages against the mean of the group's OTHER images.

        A_i = r_i - mean_{j != i} r_j = n / (n - 1) (r_i - mean)

    Kool et al. 2019; RLOO, Ahmadian et al. 2024 (arXiv:2402.14740). The baseline does not depend on the image that it
    judges, so the policy gradient is unbiased, in scale as well.

    Args:
        rewards: [B], finite.
        group_index: [B] integers; equal means same group.
        normalise_std: True divides by the root mean square of all answers + 1e-6: one number for the whole batch, since the
            group's own spread would give `group` again, times n / (n - 1).

    Returns:
        [B] advantages; 0 throughout a group of one image (no other to compare with) or of equal rewards.

    Raises:
        ValueError: if the shapes disagree or a reward is not finite.
    """
    values, groups, count = _groups(rewards, group_index)
    sizes = _sum(torch.ones_like(values), groups, count)
    others = (_sum(values, groups, count)[groups] - values) / (sizes[groups] - 1).clamp(min=1)
    result = values - others
    result[_flat(values, groups, count)[groups]] = 0
    if normalise_std and len(result):
        result = result / (result.square().mean().sqrt() + EPS)
    return _like(result, rewards)


def zero_variance_groups(rewards: Tensor, group_index: Tensor) -> int:
    """Return how many groups teach nothing: all rewards equal, or one image only.

    Args:
        rewards: [B], finite.
        group_index: [B] integers; equal means same group.

    Raises:
        ValueError: if the shapes disagree or a reward is not finite.
    """
    return int(_flat(*_groups(rewards, group_index)).sum())


def clip_advantages(advantages: Tensor, limit: float) -> Tensor:
    """Return the advantages clamped to [-limit, limit].

    Args:
        advantages: any shape.
        limit: > 0.

    Raises:
        ValueError: if limit <= 0.
    """
    if not limit > 0:
        raise ValueError(f"limit must be > 0, got {limit}")
    return advantages.clamp(-limit, limit)


def scored_calls(num_calls: int, every: int) -> list[int]:
    """Return which of a trajectory's network calls are scored: the first, every n-th after it, and always the last.

    Args:
        num_calls: H >= 1.
        every: n >= 1; 1 scores all of them.

    Raises:
        ValueError: if num_calls or every is below 1.
    """
    if num_calls < 1 or every < 1:
        raise ValueError(f"num_calls and every must be >= 1, got {num_calls} and {every}")
    return sorted({*range(0, num_calls, every), num_calls - 1})


def hold_potentials(scores: Tensor, scored: Sequence[int], num_calls: int) -> Tensor:
    """Return a potential for every network call, each the last one scored up to there.

    An action then sees only what was known before it was drawn, so `reward_to_go` of the shaped rewards stays unbiased.

    Args:
        scores: [B, S] rewards of the predictions at the calls `scored`.
        scored: S ascending calls, as `scored_calls` returns them: they begin with 0 and end with num_calls - 1.
        num_calls: H.

    Returns:
        [B, H].

    Raises:
        ValueError: if the calls are not ascending from 0 to num_calls - 1, or not one a column.
    """
    calls = torch.tensor(scored)
    if scores.dim() != 2 or scores.shape[1] != len(scored):
        raise ValueError(f"scores must be [B, {len(scored)}], got {list(scores.shape)}")
    if len(scored) == 0 or scored[0] != 0 or scored[-1] != num_calls - 1 or bool((calls.diff() <= 0).any()):
        raise ValueError(f"scored must ascend from 0 to {num_calls - 1}, got {list(scored)}")
    column = torch.searchsorted(calls, torch.arange(num_calls), right=True) - 1
    return scores[:, column.to(scores.device)]


def shaped_rewards(potentials: Tensor) -> Tensor:
    """Return the reward of every network call of a trajectory, from the rewards of its x_0 predictions.

        r_0 = R(x0_0),   r_t = R(x0_t) - R(x0_{t-1}),   sum_t r_t = R(x0_{H-1})

    Potential-based shaping, Ng et al. 1999: the sum telescopes to the final reward, so the optimum is unchanged.

    Args:
        potentials: [B, H] R of the prediction of every call; the last is the image's.

    Returns:
        [B, H]. Column t + 1 is what the action drawn at call t earned; column 0 no action had a part in, so the rewards of
        the H - 1 actions are the columns 1 onwards.

    Raises:
        ValueError: if potentials is not [B, H] with H >= 1.
    """
    if potentials.dim() != 2 or potentials.shape[1] < 1:
        raise ValueError(f"potentials must be [B, H] with H >= 1, got {list(potentials.shape)}")
    return torch.cat((potentials[:, :1], potentials.diff(dim=1)), dim=1)


def reward_to_go(rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """Return what is still to come from every action on.

        G_t = sum_{k >= t} gamma^(k - t) r_k

    For shaped rewards and gamma = 1 this is R(x0_final) - R(x0_t): the final reward against the prediction as a baseline.
    Below 1 near gains count more than the final reward, and the optimum moves.

    Args:
        rewards: [B, A] reward of every action.
        gamma: discount, 0 .. 1.

    Returns:
        [B, A].

    Raises:
        ValueError: if rewards is not [B, A] or gamma is out of range.
    """
    return _discounted_sum(rewards, _unit("gamma", gamma))


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalised advantage estimates.

        A_t = sum_{k >= t} (gamma lam)^(k - t) delta_k,   delta_t = r_t + gamma V_{t+1} - V_t,   V after the last action = 0

    Schulman et al. 2015, eq. 16 (arXiv:1506.02438). lam = 0 is delta_t: little variance, all of V's error; lam = 1 is
    reward-to-go minus V_t: unbiased whatever V is.

    Args:
        rewards: [B, A] reward of every action.
        values: [B, A] expected reward-to-go of the states in which they were drawn.
        gamma: discount, 0 .. 1.
        lam: 0 .. 1.

    Returns:
        [B, A].

    Raises:
        ValueError: if the shapes disagree or gamma or lam is out of range.
    """
    if values.shape != rewards.shape or rewards.dim() != 2:
        raise ValueError(f"rewards and values must both be [B, A], got {list(rewards.shape)} and {list(values.shape)}")
    following = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    delta = rewards + _unit("gamma", gamma) * following - values
    return _discounted_sum(delta, gamma * _unit("lam", lam))


def branch_probabilities(schedule: BranchSchedule, num_noisy: int) -> Tensor:
    """Return the probability with which each noisy step is the branch step.

    Args:
        schedule: "uniform" 1/A each; "last" always the last noisy step; "mixed" half the draws the last, half uniform; or
            A probabilities that sum to 1.
        num_noisy: A >= 1.

    Returns:
        [A] float64, sums to 1.

    Raises:
        ValueError: if the schedule is unknown, not A long, negative or does not sum to 1 (within 1e-6).
    """
    if num_noisy < 1:
        raise ValueError(f"num_noisy must be >= 1, got {num_noisy}: without a noisy step there is nowhere to branch")
    uniform = torch.full((num_noisy,), 1 / num_noisy, dtype=torch.float64)
    last = torch.zeros(num_noisy, dtype=torch.float64)
    last[-1] = 1
    if isinstance(schedule, str):
        named = {"uniform": uniform, "last": last, "mixed": (uniform + last) / 2}
        if schedule not in named:
            raise ValueError(f"schedule must be uniform, last, mixed or {num_noisy} probabilities, got {schedule!r}")
        return named[schedule]
    given = torch.tensor(list(schedule), dtype=torch.float64)
    if given.shape != (num_noisy,):
        raise ValueError(f"schedule must hold {num_noisy} probabilities, one a noisy step, got {len(given)}")
    if not (bool((given >= 0).all()) and abs(given.sum().item() - 1) <= 1e-6):
        raise ValueError(f"schedule must hold probabilities >= 0 that sum to 1, got {list(schedule)}")
    return given / given.sum()


def choose_branch_steps(
    num_images: int, noisy_steps: Tensor, schedule: BranchSchedule, rng: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the step at which each trajectory branches, and the weight that makes up for the choice.

        E[w g_i] = sum_j p_j (1 / p_j) g_j = sum_j g_j

    so weighted terms of one step estimate the sum over all steps that have a chance. "last" and other schedules with
    zeros leave out the terms of the steps that they never choose.

    The draws are systematic: step j is chosen floor(B p_j) or ceil(B p_j) times, exactly B p_j on average, in random order.
    That varies less than independent draws and has the same expectation.

    Args:
        num_images: B >= 1, of the whole round.
        noisy_steps: [A] table rows of the steps that draw noise.
        schedule: see `branch_probabilities`.
        rng: CPU generator; None takes torch's global one.

    Returns:
        steps: [B] rows out of noisy_steps, on its device.
        weights: [B] float32 1 / p of the chosen step, on its device.

    Raises:
        ValueError: if num_images < 1, noisy_steps is not [A], or the schedule does not fit it.
    """
    if num_images < 1 or noisy_steps.dim() != 1:
        raise ValueError(f"num_images must be >= 1 and noisy_steps [A], got {num_images} and {list(noisy_steps.shape)}")
    probabilities = branch_probabilities(schedule, len(noisy_steps))
    # Only steps with a chance take part, so that rounding at the ends of the scale cannot select another.
    possible = probabilities.nonzero().flatten()
    edges = probabilities[possible].cumsum(0)
    offset = torch.rand((), generator=rng, dtype=torch.float64)
    points = (torch.arange(num_images, dtype=torch.float64) + offset) / num_images
    position = possible[torch.searchsorted(edges, points, right=True).clamp(max=len(possible) - 1)]
    position = position[torch.randperm(num_images, generator=rng)]
    weights = (1 / probabilities[position]).float()
    return noisy_steps[position.to(noisy_steps.device)], weights.to(noisy_steps.device)


def _values(rewards: Tensor) -> Tensor:
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be [B], got {list(rewards.shape)}")
    values = rewards.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError(f"rewards must be finite, got {int((~values.isfinite()).sum())} that are not")
    return values


def _like(result: Tensor, rewards: Tensor) -> Tensor:
    return result.float().to(rewards.device)


def _standardise(values: Tensor, population: Tensor, normalise_std: bool) -> Tensor:
    # Compared, not std == 0: the mean of equal numbers is not always one of them.
    if len(population) == 0 or bool((population == population[0]).all()):
        return torch.zeros_like(values)
    centred = values - population.mean()
    return centred / (population.std(correction=0) + EPS) if normalise_std else centred


def _groups(rewards: Tensor, group_index: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the values [B], groups renumbered 0 .. G-1 [B], and G."""
    values = _values(rewards)
    if group_index.shape != rewards.shape:
        raise ValueError(f"group_index must be {list(rewards.shape)} like rewards, got {list(group_index.shape)}")
    names, groups = group_index.cpu().unique(return_inverse=True)
    return values, groups, len(names)


def _sum(values: Tensor, groups: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, groups, values)


def _flat(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return which groups [G] hold one value only, once or many times."""
    highest = values.new_zeros(count).scatter_reduce(0, groups, values, "amax", include_self=False)
    lowest = values.new_zeros(count).scatter_reduce(0, groups, values, "amin", include_self=False)
    return highest == lowest


def _discounted_sum(values: Tensor, factor: float) -> Tensor:
    if values.dim() != 2:
        raise ValueError(f"rewards must be [B, A], got {list(values.shape)}")
    result = values.clone()
    for t in range(values.shape[1] - 2, -1, -1):
        result[:, t] += factor * result[:, t + 1]
    return result


def _unit(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be within 0 .. 1, got {value}")
    return value
