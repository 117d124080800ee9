"""Learning on the forward process: finished images, noised again to the sampler's levels and weighed by their advantages.

No log-probability is needed, so any image can be learnt from, however it was drawn; what it costs is a pass for every image, where
a branched rollout shares one among all branches of a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from rlcm.learning import losses
from rlcm.learning.steps import Updates
from rlcm.policy import gaussian
from rlcm.policy.noise import draw, image_seed, stream
from rlcm.transfer import send
from rlcm.types import Conditioning, Denoiser, Experience, Trajectory, TransitionTable


def marginals(table: TransitionTable, first: float) -> tuple[Tensor, Tensor]:
    """Return how a latent at each row is made of its image and of noise, if every prediction were right.

        x_i = alpha_i x0 + sigma_i z,   alpha_0 = 0,  sigma_0 = `first`
        alpha' = b0 + bm / am + k alpha,   sigma'^2 = (k sigma)^2 + std^2,   k = bx - bm ax / am

    A row's mean is linear in x0 and x once its output m is put as (x0 - ax x) / am, so this holds for every sampler of the table.

    Args:
        table: of H rows; its clip is left out of account.
        first: std of the first latents.

    Returns:
        alpha [H] and sigma [H], fp32.
    """
    of_x0 = (table.b0 + table.bm / table.am).double()
    of_x = (table.bx - table.bm * table.ax / table.am).double()
    alpha, sigma = torch.zeros(len(table)).double(), torch.full((len(table),), first).double()
    for row in range(len(table) - 1):
        alpha[row + 1] = of_x0[row] + of_x[row] * alpha[row]
        sigma[row + 1] = ((of_x[row] * sigma[row]).square() + table.std[row].double().square()).sqrt()
    return alpha.float(), sigma.float()


def noised(
    denoiser: Denoiser,
    levels: tuple[Tensor, Tensor],
    images: Tensor,
    prompt_index: Tensor,
    advantages: Tensor,
    seeds: Sequence[int],
    count: int,
) -> Experience:
    """Return images noised to `count` rows of the sampler each: M images make M count states.

    Each image draws its own rows, no row twice.

    Args:
        levels: alpha [H] and sigma [H] of the rows, on the CPU, as `marginals` returns them.
        images: [M, *latent] final latents x0.
        prompt_index: [M].
        advantages: [M].
        seeds: M, one an image, of the rows and the noise.
        count: 1 .. H.

    Returns:
        states x_i, rows as steps, x0 as the only action [M count, 1, *latent]; old means are yet to be filled in.
    """
    alpha, sigma = levels
    streams = [stream(seed) for seed in seeds]
    drawn = [torch.randperm(len(alpha), generator=own)[:count].tolist() for own in streams]
    rows = torch.tensor(drawn, dtype=torch.long).flatten()
    x0 = images.repeat_interleave(count, dim=0)
    shape = (-1, *[1] * (x0.dim() - 1))
    z = torch.stack([draw(streams, denoiser.latent_shape) for _ in range(count)], 1).flatten(0, 1) if streams else x0.cpu()
    states = send(alpha[rows].view(shape), x0.device) * x0 + send(sigma[rows].view(shape) * z, x0.device)
    return Experience(
        states=states,
        steps=send(rows, x0.device),
        prompt_index=prompt_index.repeat_interleave(count),
        old_means=torch.zeros_like(x0),
        actions=x0.unsqueeze(1),
        advantages=advantages.repeat_interleave(count).unsqueeze(1),
        weights=torch.ones(len(x0), device=x0.device),
    )


def first_std(denoiser: Denoiser) -> float:
    """Return the std of the first latents, which are noise alone."""
    return float(denoiser.scale_noise(torch.ones(1, *denoiser.latent_shape, device=denoiser.device)).flatten()[0])


class ForwardMatching(Updates):
    """Optimiser steps along Advantage Weighted Matching or DiffusionNFT (`algorithm.loss`), with the leash beside them.

    The distance of a prediction from its image is that of the velocities of the variance-preserving path with the same noise:

        d = (alpha^2 + sigma^2) / sigma^2 mean((f(x_i, i) - x0)^2),   log r = d_old - d
    """

    answer: ClassVar[int] = 0

    @cached_property
    def levels(self) -> tuple[Tensor, Tensor]:
        """alpha [H] and sigma [H] of the sampler's rows, on the CPU; see `marginals`."""
        return marginals(self.policy.table.to("cpu"), first_std(self.policy.denoiser))

    @cached_property
    def _velocity_weight(self) -> Tensor:
        """[H] of the distance at each row, on the device."""
        alpha, sigma = self.levels
        return send((alpha.square() + sigma.square()) / sigma.square(), self.policy.denoiser.device)

    @cached_property
    def _reach(self) -> Tensor:
        """[H] how far a row's mean moves with its prediction, on the device."""
        table = self.policy.table
        return table.b0 + table.bm / table.am

    def of_images(
        self, trajectory: Trajectory, mine: Tensor, known: Tensor, advantages: Tensor, seeds: Sequence[int]
    ) -> tuple[Experience, Tensor]:
        """Return this process's finished images as states to learn from, and which trajectory each belongs to.

        Args:
            trajectory: of this process, with the final x_0 as targets.
            mine: [b] which of the round's B trajectories they are.
            known: [B, K] bool: images that have a score; the others drop out.
            advantages: [B, K].
            seeds: B, one a trajectory.
        """
        assert trajectory.targets is not None
        images, count = trajectory.targets[:, 0], self.algorithm.noise_levels
        branches = images.shape[1]
        kept = known[mine].flatten().nonzero().squeeze(1)
        own = [image_seed(seeds[i], "noised", branch) for i in mine.tolist() for branch in range(branches)]
        experience = noised(
            self.policy.denoiser,
            self.levels,
            images.flatten(0, 1)[send(kept, images.device)],
            trajectory.prompt_index.repeat_interleave(branches)[kept],
            advantages[mine].flatten()[kept],
            [own[i] for i in kept.tolist()],
            count,
        )
        return experience, mine.repeat_interleave(branches)[kept].repeat_interleave(count)

    def _watched(self, first: bool) -> list[str]:
        return [
            *("loss", "clip_fraction", "ratio_deviation", "kl_from_sampling", "matching"),
            *(["kl"] if self.leash.coefficient else []),
        ]

    def _extreme(self, first: bool) -> list[str]:
        return ["ratio_deviation_max"]

    def loss(
        self, part: Experience, conditioning: Conditioning, *, size: int | None = None, first: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings, policy = self.algorithm, self.policy
        part = part.to(policy.denoiser.device)
        conditions = conditioning.take(part.prompt_index)
        prediction, means, stds = policy.step(part.states, part.steps, conditions)
        old = prediction.detach() if first else part.old_means
        target, advantages, real = part.actions[:, 0], part.advantages[:, 0], slice(size or None)
        weight = self._velocity_weight[part.steps]
        distance, old_distance = (weight * losses.consistency_l2(guess, target) for guess in (prediction, old))
        log_ratio = old_distance.detach() - distance
        if settings.loss == "awm":
            loss = losses.ppo_clip(log_ratio, advantages, clip_range=settings.clip_range)
        else:
            good = 0.5 + advantages / (2 * settings.advantage_clip)
            loss = losses.nft(prediction, old, target, good.clamp(0, 1), beta=settings.nft_beta)
        deviations, scale = log_ratio.detach()[real].expm1().abs(), settings.log_prob_reduction
        # A row that draws no noise is measured as if its std were 1, as everywhere.
        spread = torch.where(stds > 0, stds, 1.0)
        reach = self._reach[part.steps].view(-1, *[1] * (old.dim() - 1))
        metrics = {
            "old_means": old,
            "clip_fraction": (deviations > settings.clip_range).float().mean(),
            "ratio_deviation": deviations.mean(),
            "ratio_deviation_max": deviations.max(),
            "kl_from_sampling": gaussian.kl(reach * prediction.detach(), reach * old, spread, scale)[real].mean(),
            "matching": distance.detach()[real].mean(),
        }
        if self.leash.coefficient:
            with torch.no_grad(), policy.reference():
                reference = policy.step(part.states, part.steps, conditions)[1]
            kl = gaussian.kl(means, reference, spread, scale)
            loss = loss + losses.kl_penalty(kl, coefficient=self.leash.coefficient)
            metrics["kl"] = kl.detach()[real].mean()
        return loss * part.weights, metrics
