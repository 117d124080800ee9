"""Reward back-propagation: for rewards with a gradient, follow it through the decoder and the last network calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import PreflightError
from rlcm.learning import losses
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.optimisation import Optimisation
from rlcm.policy import gaussian
from rlcm.policy.noise import draw, stream
from rlcm.processes.memory_retry import BatchSize
from rlcm.rewards import RawScores, RewardMix, Scores
from rlcm.transfer import send
from rlcm.types import Conditioning, Trajectory


class RewardBackprop:
    """Turns prompts and noise into one optimiser step along the gradient of the reward.

        L = -R(decode(x_H)),   x_{t+1} = mean(x_t) + std z,   gradient through the last K of H calls

    DRaFT-K, Clark et al. 2023 (arXiv:2309.17400). The noise is fixed, so the gradient goes through the means alone.

    Args:
        rewards: all differentiable.
        micro_batch_size: trajectories of a backward pass.
    """

    def __init__(
        self,
        optimisation: Optimisation,
        algorithm: AlgorithmSettings,
        leash: Leash,
        rewards: RewardMix,
        micro_batch_size: int,
    ) -> None:
        self.optimisation, self.policy, self.world = optimisation, optimisation.policy, optimisation.world
        self.algorithm, self.leash, self.rewards = algorithm, leash, rewards
        self.micro_batch = BatchSize(micro_batch_size, "run.micro_batch_size", is_fixed=self.world.is_lockstep)

    def update(
        self,
        conditioning: Conditioning,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        images: int,
        lr: float,
    ) -> tuple[RawScores, dict[str, float]]:
        """Learn from a round; return this process's scores and the round's metrics.

        Args:
            conditioning: this process's rows, one an image, as prompts, metadata and seeds are.
            images: of the round, over all processes.
            lr: learning rate of this round.

        Raises:
            RewardError: if a reward fails.
            PreflightError: if no gradient reaches the adapter.
            TrainingError: after three updates in a row that were skipped for a loss or gradient that is not finite.
        """

        def gradients() -> tuple[RawScores, dict[str, float]]:
            """Leave this process's gradients in the parameters; return its scores and the sums of its metrics."""
            self.optimisation.begin(lr)
            scores: list[RawScores] = []
            watched = ("loss", *(["kl"] if self.leash.coefficient else []))
            found_sums: list[Tensor] = []
            for rows in torch.arange(len(prompts)).split(self.micro_batch.size):
                index = rows.tolist()
                image, kl = self._images(conditioning.take(rows), [seeds[i] for i in index])
                found = self.rewards.differentiable(
                    image, [prompts[i] for i in index], [metadata[i] for i in index], update=False
                )
                loss = -found.total
                sums = {}
                if kl is not None:
                    loss = loss + losses.kl_penalty(kl, coefficient=self.leash.coefficient)
                    sums["kl"] = kl.detach().sum()
                (loss.sum() / images).backward()
                sums["loss"] = loss.detach().sum()
                found_sums.append(torch.stack([sums[key] for key in watched]))
                scores.append(RawScores(found.parts, found.valid))
            rows_of_sums = torch.stack(found_sums).tolist() if found_sums else []  # the one time that the device is waited for
            return RawScores.cat(scores), {key: sum(row[i] for row in rows_of_sums) for i, key in enumerate(watched)}

        with self.world.together():
            scores, sums = self.micro_batch.fit(gradients)
        norm = self.optimisation.gather_gradients()
        if norm == 0:
            raise PreflightError(
                "no gradient of the reward reaches the adapter, so nothing would be learnt; check lora.target_modules, and that "
                "the reward is not flat (algorithm.loss=ppo_clip needs no gradient)."
            )
        keys = sorted(sums)
        reduced = self.world.sum(torch.tensor([sums[key] for key in keys], dtype=torch.float64)) / images
        metrics = dict(zip(keys, reduced.tolist(), strict=True))
        return scores, metrics | self.optimisation.step(metrics["loss"], norm)

    def through_last_call(
        self,
        trajectory: Trajectory,
        mine: Tensor,
        scores: Scores,
        conditioning: Conditioning,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Callable[[int], None]:
        """Return what adds the reward's own gradient through the last call of a rollout, so many images at once.

            L = -w mean(R(decode(mean(x_H-1)))) / std(R),   w = `algorithm.last_call_weight`, mean and std over the round

        A round whose images are all worth the same teaches nothing.

        Args:
            trajectory: of this process, with its last states.
            mine: [b] which of the round's B trajectories they are.
            scores: of the round's images, B K; those without a score weigh nothing.
            conditioning: to whose rows the trajectory's `prompt_index` points, as prompts and metadata.
        """
        assert trajectory.last_states is not None
        branches = trajectory.last_states.shape[1]
        rows = trajectory.prompt_index.repeat_interleave(branches)
        named, told = [prompts[i] for i in rows.tolist()], [metadata[i] for i in rows.tolist()]
        valid = scores.valid.view(-1, branches)
        unit = scores.total[scores.valid].std(correction=0)
        weight = self.algorithm.last_call_weight / (unit * valid.sum()) if unit > 0 else torch.zeros(())
        scale = valid[mine].flatten() * weight
        states, conditions = trajectory.last_states.flatten(0, 1), conditioning.take(rows)
        return lambda at_once: self.last_call(states, conditions, named, told, scale, at_once)

    def last_call(
        self,
        states: Tensor,
        conditioning: Conditioning,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        scale: Tensor,
        at_once: int,
    ) -> None:
        """Add to the parameters' gradients that of the reward through the last network call alone, from states of a rollout.

            L = -sum scale R(decode(mean(x_H-1)))

        Args:
            states: [M, *latent] what the last call was given.
            conditioning: M rows, one an image, as prompts and metadata are.
            scale: [M] weight of each image.
            at_once: images of a backward pass.
        """
        device, last = self.policy.denoiser.device, len(self.policy.table) - 1
        for rows in torch.arange(len(states)).split(at_once):
            index = rows.tolist()
            x = send(states[send(rows, states.device)], device)
            _, mean, _ = self.policy.step(x, torch.full((len(x),), last, device=device), conditioning.take(rows))
            named, told = [prompts[i] for i in index], [metadata[i] for i in index]
            found = self.rewards.differentiable(self._shown(mean), named, told, update=False)
            (-(found.total * send(scale[rows], found.total.device)).sum()).backward()

    def _shown(self, latents: Tensor) -> Tensor:
        """Return the images that latents decode to, as the reward sees them."""
        decoded = self.policy.denoiser.decode(latents)
        # The reward sees what is shown; its gradient passes the clamp, or saturated pixels could never come back.
        return decoded + (decoded.clamp(0, 1) - decoded).detach()

    def _images(self, conditioning: Conditioning, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return images [b, 3, h, w] that carry the gradient, and their KL divergence per call [b] under a leash.

        A call that draws no noise, such as the last, has no divergence: there it is half the mean squared distance of the means, as
        of a Gaussian of unit std.
        """
        policy, denoiser = self.policy, self.policy.denoiser
        calls, scale = len(policy.table), self.algorithm.log_prob_reduction
        through = range(max(0, calls - self.algorithm.backprop_calls), calls)
        streams = [stream(seed) for seed in seeds]
        x = denoiser.scale_noise(send(draw(streams, denoiser.latent_shape), denoiser.device))
        divergences = []
        for row, std in enumerate(policy.stds):
            step = torch.full((len(x),), row, device=x.device)
            with torch.set_grad_enabled(row in through):
                _, mean, _ = policy.step(x, step, conditioning)
            if row in through and self.leash.coefficient:
                with torch.no_grad(), policy.reference():
                    _, reference, _ = policy.step(x, step, conditioning)
                divergences.append(gaussian.kl(mean, reference, torch.full((len(x),), std or 1.0, device=x.device), scale))
            x = mean + std * send(draw(streams, denoiser.latent_shape), x.device) if std else mean
        return self._shown(x), torch.stack(divergences).mean(0) if divergences else None
