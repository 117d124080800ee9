"""Policy and consistency losses, each a pure function of tensors.

Every loss is returned PER ELEMENT, in the shape of its arguments: [N, K] for N states with K actions, [P] for pairs, [N] for
rows. The caller weighs, sums over the whole global batch and divides by the global count, so that micro-batches and
processes add up to exactly the loss of one large batch. Lower is better; rewards and advantages never carry gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ppo_clip(log_ratio: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """Clipped surrogate policy loss of every action.

        L = -min(r A, clip(r, 1 - e, 1 + e) A),   r = exp(log_ratio)

    Schulman et al. 2017, eq. 7 (arXiv:1707.06347).

    Args:
        log_ratio: [N, K] log pi(a|s) - log pi_old(a|s), on the scale of the chosen reduction (mean, sqrt or sum over the
            latent entries), to which `clip_range` belongs. Carries grad.
        advantages: [N, K], higher is better.
        clip_range: e > 0. At 1 or more the lower side never clips.

    Returns:
        [N, K] the loss of every action.

    Raises:
        ValueError: if the shapes disagree or clip_range <= 0.
    """
    _require_shape("advantages", advantages, log_ratio)
    _require_positive("clip_range", clip_range)
    ratio = log_ratio.exp()
    advantages = advantages.detach()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def divergence_ppo(log_ratio: Tensor, advantages: Tensor, kl: Tensor, *, limit: float) -> Tensor:
    """Policy loss of every action, with a trust region in the divergence in place of a clip of the ratio.

        L = -M r A,   M = 0 where KL > d and A (r - 1) > 0, else 1

    Flow-DPPO, Ping et al. 2026 (arXiv:2606.11025). The policies are Gaussian, so the divergence at a state is known exactly, while the
    ratio of one action is a noisy sample of it. What leads back towards the old policy always counts.

    Args:
        log_ratio: [N, K] log pi(a|s) - log pi_old(a|s). Carries grad.
        advantages: [N, K], higher is better.
        kl: [N] KL divergence of the policy from the old one at the state, >= 0; never carries grad.
        limit: d > 0, on the scale of `kl`.

    Returns:
        [N, K] the loss of every action.

    Raises:
        ValueError: if the shapes disagree or limit <= 0.
    """
    _require_shape("advantages", advantages, log_ratio)
    if kl.shape != log_ratio.shape[:1]:
        raise ValueError(f"kl must have the shape {list(log_ratio.shape[:1])}, got {list(kl.shape)}")
    _require_positive("limit", limit)
    ratio, advantages = log_ratio.exp(), advantages.detach()
    leaves = (kl.detach() > limit).unsqueeze(1) & (advantages * log_ratio.detach() > 0)
    return -(ratio * advantages).masked_fill(leaves, 0.0)


def reinforce(log_prob: Tensor, advantages: Tensor) -> Tensor:
    """Score-function policy loss of every action.

        L = -A log pi(a|s),   grad L = -A grad log pi(a|s)

    Williams 1992. Only its gradient has a meaning, and only while the policy is the one that drew the actions. A log-ratio
    to the sampling policy may stand for the log-probability: they differ by a constant.

    Args:
        log_prob: [N, K] log pi(a|s), or the log-ratio. Carries grad.
        advantages: [N, K], higher is better.

    Returns:
        [N, K] the loss of every action.

    Raises:
        ValueError: if the shapes disagree.
    """
    _require_shape("advantages", advantages, log_prob)
    return -log_prob * advantages.detach()


def rebel(log_ratio_a: Tensor, log_ratio_b: Tensor, reward_a: Tensor, reward_b: Tensor, *, eta: float) -> Tensor:
    """Squared error of the relative reward that the policy's log-ratios imply, for every pair.

        L = ((log_ratio_a - log_ratio_b) / eta - (r_a - r_b))^2

    Gao et al. 2024, algorithm 1 (arXiv:2404.16767). The two of a pair answer one prompt (see `pair_by_prompt`), so that what
    the prompt alone adds to a reward cancels. The optimum of an exact regression is pi ~ pi_old exp(eta r).

    Args:
        log_ratio_a: [P] log pi - log pi_old of the whole trajectory (summed over its noisy steps), or of the branched action
            where the two share a state. Carries grad.
        log_ratio_b: [P] that of the other one. Carries grad.
        reward_a: [P] rewards, or advantages (a baseline common to the pair cancels).
        reward_b: [P] those of the other one.
        eta: > 0, the step size: large moves the policy far per unit of reward.

    Returns:
        [P] the loss of every pair: a mean over pairs, never a sum over time inside a sum over the batch.

    Raises:
        ValueError: if the shapes disagree or eta <= 0.
    """
    _require_shape("log_ratio_b", log_ratio_b, log_ratio_a)
    _require_shape("reward_a", reward_a, log_ratio_a)
    _require_shape("reward_b", reward_b, log_ratio_a)
    _require_positive("eta", eta)
    return ((log_ratio_a - log_ratio_b) / eta - (reward_a - reward_b).detach()).square()


def nft(prediction: Tensor, old: Tensor, target: Tensor, goodness: Tensor, *, beta: float) -> Tensor:
    """Contrast of a positive and a negative policy, both matched to a noised image, one a row.

        f+ = (1 - b) f_old + b f,   f- = (1 + b) f_old - b f
        L = g |f+ - x0|^2 / sg|f+ - x0|_1 + (1 - g) |f- - x0|^2 / sg|f- - x0|_1,   norms as means over entries

    DiffusionNFT, Zheng et al. 2025 (arXiv:2509.16117), for predictions of x0. A good image draws the policy
    towards it, a bad one pushes it away, by the policy's own mirror image about the old one.

    Args:
        prediction: [N, *latent] f(x_t, t). Carries grad.
        old: [N, *latent] that of the policy that sampled; never carries grad.
        target: [N, *latent] x0.
        goodness: [N] g in [0, 1]; .5 is a middling image.
        beta: b > 0.

    Returns:
        [N] the loss of every row.

    Raises:
        ValueError: if the shapes disagree or beta <= 0.
    """
    _require_shape("old", old, prediction)
    _require_shape("target", target, prediction)
    _require_positive("beta", beta)
    if goodness.shape != prediction.shape[:1]:
        raise ValueError(f"goodness must have the shape {list(prediction.shape[:1])}, got {list(goodness.shape)}")
    old, target, goodness = old.detach(), target.detach(), goodness.detach()

    def matched(guess: Tensor) -> Tensor:
        away = (guess - target).flatten(1)
        return away.square().mean(1) / away.detach().abs().mean(1).clamp(min=1e-5)

    good = matched(torch.lerp(old, prediction, beta))
    bad = matched(torch.lerp(old, prediction, -beta))
    return goodness * good + (1 - goodness) * bad


def pair_by_prompt(prompt_index: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Return random pairs of rows that share a prompt, each row in at most one pair.

    A prompt with n rows gives floor(n / 2) pairs: the odd one out, drawn at random, is dropped, and so is a prompt's only row.

    Args:
        prompt_index: [B] integers; equal means comparable. Pass the index of the state instead where branches of one state
            are to be compared.
        rng: CPU generator; None takes torch's global one.

    Returns:
        [P, 2] int64 rows of `prompt_index`, on its device; P is 0 where no prompt has two rows.

    Raises:
        ValueError: if prompt_index is not one-dimensional.
    """
    if prompt_index.dim() != 1:
        raise ValueError(f"prompt_index must be [B], got {list(prompt_index.shape)}")
    shuffled = torch.randperm(len(prompt_index), generator=rng)
    prompts = prompt_index.cpu()[shuffled]
    order = torch.argsort(prompts, stable=True)
    rows, prompts = shuffled[order], prompts[order]
    counts = torch.unique_consecutive(prompts, return_counts=True)[1]
    rank = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    first = ((rank % 2 == 0) & (rank + 1 < counts.repeat_interleave(counts))).nonzero().flatten()
    return torch.stack((rows[first], rows[first + 1]), dim=1).to(prompt_index.device)


def kl_penalty(kl: Tensor, *, coefficient: float) -> Tensor:
    """Return the price of straying from the reference policy.

        L = c KL(pi || pi_ref)

    Added to a loss it carries grad; detached, summed over a trajectory's steps and subtracted from the reward, it shapes
    what the advantages see.

    Args:
        kl: any shape, >= 0, closed form of the two Gaussians (`rlcm.policy.gaussian`).
        coefficient: c >= 0.

    Returns:
        the shape of kl.

    Raises:
        ValueError: if coefficient < 0.
    """
    if not coefficient >= 0:
        raise ValueError(f"coefficient must be >= 0, got {coefficient}")
    return coefficient * kl


def adaptive_coefficient(coefficient: float, kl: float, target: float, *, minimum: float = 1e-8, maximum: float = 1e8) -> float:
    """Return the next round's KL coefficient.

        c <- c (1 + 0.1 clip(kl / target - 1, -1, 1))

    The proportional controller of Ziegler et al. 2019, section 2.2 (arXiv:1909.08593), with a clip of 1 in place of .2, since
    a run here has tens of rounds.

    Note:
        Doubling and halving (Schulman et al. 2017, section 4) overshoots: on the built-in model it first let the pictures go
        blank and then took back most of what was learnt.

    Args:
        coefficient: the present one, > 0.
        kl: what this round measured, in the unit of `target`.
        target: > 0.
        minimum: least answer, so that a long stay below the target can be undone in finite time.
        maximum: largest answer, likewise.

    Raises:
        ValueError: if coefficient or target <= 0, kl is not finite, or the bounds are not 0 < minimum <= maximum.
    """
    _require_positive("coefficient", coefficient)
    _require_positive("target", target)
    if not math.isfinite(kl):
        raise ValueError(f"kl must be finite, got {kl}")
    if not 0 < minimum <= maximum:
        raise ValueError(f"bounds must be 0 < minimum <= maximum, got {minimum} and {maximum}")
    error = min(max(kl / target - 1, -1.0), 1.0)
    return min(max(coefficient * (1 + 0.1 * error), minimum), maximum)


def consistency_huber(prediction: Tensor, target: Tensor, *, c: float = 0.00054) -> Tensor:
    """Pseudo-Huber distance of x_0 predictions from where their trajectory ends, one a row.

        d = sqrt(mean((f - y)^2) + c^2) - c

    Song & Dhariwal 2023 (arXiv:2310.14189). About |f - y|^2 / 2c below c and |f - y| above.

    Note:
        The paper takes the norm and c = 0.00054 sqrt(D); here both are divided by sqrt(D), so that neither the loss nor its
        weight depends on the resolution.

    Args:
        prediction: [N, *latent] f(x_t, t). Carries grad.
        target: [N, *latent] the final x_0 of the trajectory, or the prediction at its next step; never carries grad.
        c: > 0, where quadratic turns linear, in units of the latent's root mean square.

    Returns:
        [N] the distance of every row, >= 0.

    Raises:
        ValueError: if the shapes disagree or c <= 0.
    """
    _require_positive("c", c)
    return (consistency_l2(prediction, target) + c * c).sqrt() - c


def consistency_l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of x_0 predictions from where their trajectory ends, one a row.

        d = mean((f - y)^2)

    Args:
        prediction: [N, *latent] f(x_t, t). Carries grad.
        target: [N, *latent] the final x_0 of the trajectory, or the prediction at its next step; never carries grad.

    Returns:
        [N] the distance of every row, >= 0.

    Raises:
        ValueError: if the shapes disagree or there is no latent axis.
    """
    _require_shape("target", target, prediction)
    if prediction.dim() < 2:
        raise ValueError(f"prediction must be [N, *latent], got {list(prediction.shape)}")
    return (prediction - target.detach()).square().flatten(1).mean(1)


def ppo_statistics(log_ratio: Tensor, clip_range: float) -> dict[str, float]:
    """Return what tells whether a PPO update is healthy.

    Args:
        log_ratio: [N, K], not empty, on the scale of the chosen reduction.
        clip_range: e > 0.

    Returns:
        clip_fraction: share of actions with |r - 1| > e.
        ratio_mean: mean of r.
        ratio_max_deviation: largest |r - 1|.
        approx_kl: mean of (r - 1) - log r, >= 0 (Schulman 2020). Its expectation is KL(pi_old || pi) where the log-ratio is
            the SUM over latent entries; on the mean or sqrt scale it measures only the size of log r (about log^2 r / 2).

    Raises:
        ValueError: if log_ratio is empty or clip_range <= 0.
    """
    _require_positive("clip_range", clip_range)
    if log_ratio.numel() == 0:
        raise ValueError("log_ratio must not be empty")
    # float64: in float32 the rounding of r itself (6e-8) is no longer small beside r - 1 of 1e-5.
    log_ratio = log_ratio.detach().cpu().double()
    excess = log_ratio.expm1()
    return {
        "clip_fraction": (excess.abs() > clip_range).double().mean().item(),
        "ratio_mean": 1 + excess.mean().item(),
        "ratio_max_deviation": excess.abs().max().item(),
        "approx_kl": (excess - log_ratio).mean().item(),
    }


def _require_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"{name} must have the shape {list(like.shape)}, got {list(tensor.shape)}")


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
