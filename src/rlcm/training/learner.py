"""One round: prompts, rollout, reward, advantage, update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlcm.errors import ConfigError, PreflightError, RewardError
from rlcm.learning import advantages
from rlcm.learning.algorithm import Leash
from rlcm.learning.backprop import RewardBackprop
from rlcm.learning.credit import Credit
from rlcm.learning.experience import action_number, of_actions
from rlcm.learning.forward import ForwardMatching
from rlcm.learning.mismatch import WORTH_A_WARNING, remedy, standard_distance
from rlcm.learning.optimisation import Optimisation
from rlcm.learning.steps import Updates
from rlcm.learning.updates import PolicyGradient
from rlcm.policy.noise import image_seed
from rlcm.policy.policy import check_shapes
from rlcm.policy.rollout import decode_images, rollout
from rlcm.processes.distributed import World
from rlcm.rewards import RawScores, Scores
from rlcm.rewards.boundary import Beside, result
from rlcm.runs.weights import require_finite
from rlcm.training.build import Parts
from rlcm.training.config import TrainConfig
from rlcm.training.evaluate import gather_scores
from rlcm.training.prompts import deal
from rlcm.types import Experience, Trajectory


@dataclass(slots=True)
class Learnt:
    """What came of a round."""

    scores: Scores
    """Of all images of all processes."""
    reward_queries: int
    network_calls: int
    metrics: dict[str, float]


class Learner:
    """Samples, scores and learns, a round at a time.

    Args:
        parts: what the run is made of.
        config: of the run, resolved.
        world: the processes that share the work.
        note: takes a line for the user.

    Raises:
        ConfigError: if the round cannot be shared out between the processes.
    """

    def __init__(self, parts: Parts, config: TrainConfig, world: World, note: Callable[[str], None]) -> None:
        self.parts, self.config, self.world, self._note = parts, config, world, note
        self._has_warned = False
        self.sampling = parts.evaluator.sampling
        self.sampling.is_fixed = world.is_lockstep
        self.optimisation = Optimisation(parts.policy, config.optimizer, world)
        self.leash = Leash(config.algorithm, config.optimizer.max_pace)
        micro = config.run.micro_batch_size
        kind = ForwardMatching if config.algorithm.is_forward else PolicyGradient
        self.update: Updates = kind(self.optimisation, config.algorithm, self.leash, micro, self._states_of_a_minibatch())
        self.backprop = RewardBackprop(self.optimisation, config.algorithm, self.leash, parts.rewards, micro)
        backprop = config.algorithm.loss == "reward_backprop"
        alone = config.rollout.batch_size // config.rollout.branches
        uneven = world.is_lockstep and alone % world.size
        if config.algorithm.follows_reward and (uneven or alone < world.size):
            name = "loss" if backprop else "last_call_weight"
            raise ConfigError(
                f"rollout.batch_size={config.rollout.batch_size} for {world.size} processes: "
                f"algorithm.{name}={getattr(config.algorithm, name)} needs an image for each of them, and with run.sharding=fsdp2 "
                f"equally many; use a multiple of {world.size * config.rollout.branches}."
            )
        self._targets: Literal["final", "next"] | None = None
        if config.algorithm.consistency_coefficient:
            self._targets = config.algorithm.consistency_target
        elif config.algorithm.is_forward:
            self._targets = "final"
        self._learn = self._from_gradients if backprop else self._from_actions
        self._batch_sizes = (self.sampling, (self.backprop if backprop else self.update).micro_batch)
        for size in self._batch_sizes:
            size.told = note
        if (cap := config.algorithm.importance_cap) is not None and not self.update.is_recomputed:
            note(
                f"algorithm.importance_cap={cap:g} has no effect: on this device the pass that samples and the one that learns compute "
                "the same; algorithm.old_policy=learning would use it"
            )
        # The comparable images: a trajectory's branches, or the trajectories of one prompt, dealt side by side.
        branches, same_prompt = config.rollout.branches, config.rollout.images_per_prompt
        self.credit = Credit(config.algorithm, branches if branches > 1 else same_prompt)

    def round(self, number: int, progress: float) -> Learnt:
        """Sample, score and learn once; `follow` is to be told afterwards.

        Args:
            number: of the round, from 1; prompts and noise follow from it and the run's seed.
            progress: share of the run that was over before it, 0 <= progress < 1, the same on all processes.
        """
        rollouts = self.config.rollout
        groups = rollouts.batch_size // rollouts.branches // rollouts.images_per_prompt
        dealt = deal(groups, len(self.parts.prompts), self.config.seed, (number - 1) * groups)
        learnt = self._learn(number, progress, dealt.repeat_interleave(rollouts.images_per_prompt))
        if "kl" in learnt.metrics:
            learnt.metrics["kl_coefficient"] = self.leash.coefficient
        return learnt

    def follow(self, learnt: Learnt, progress: float) -> None:
        """Let the leash follow what a round came to.

        Args:
            progress: share of the run that is over with it, 0 < progress <= 1, the same on all processes.
        """
        if "kl" in learnt.metrics:
            self.leash.follow(learnt.metrics["kl"], progress)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later round depends on, as tensors and JSON-able values."""
        return {
            "adapter": dict(self.parts.policy.named_parameters),
            "average": self.parts.policy.average,
            "optimizer": self.optimisation.optimizer.state_dict(),
            "skipped_in_a_row": self.optimisation.skipped_in_a_row,
            "kl_coefficient": self.leash.coefficient,
            "pace": self.leash.pace,
            "batch_sizes": {size.setting: size.size for size in self._batch_sizes},
            "statistics": self.credit.statistics.state_dict(),
            "rewards": self.parts.rewards.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; batch sizes that did not fit then are not tried again.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, RuntimeError: if it is not that of such a learner.
            WeightsError: if a weight in it is not finite.
        """
        policy = self.parts.policy
        require_finite(state["adapter"].items(), "the checkpoint")
        policy.load(state["adapter"])
        if policy.average is not None:
            require_finite(state["average"].items(), "the checkpoint")
            check_shapes(state["average"], policy.average)
            for name, tensor in policy.average.items():
                tensor.copy_(state["average"][name])
        self.optimisation.load(state["optimizer"])
        self.optimisation.skipped_in_a_row = int(state["skipped_in_a_row"])
        self.leash.take_up(float(state["kl_coefficient"]), float(state.get("pace", 1.0)))
        for size in self._batch_sizes:
            size.size = min(size.size, state["batch_sizes"][size.setting])
        self.credit.statistics.load_state_dict(state["statistics"])
        self.parts.rewards.load_state_dict(state["rewards"])

    def _from_actions(self, number: int, progress: float, prompt_index: Tensor) -> Learnt:
        """Sample, score and take policy-gradient steps."""
        config, rollouts, count = self.config, self.config.rollout, len(prompt_index)
        started = time.perf_counter()
        seeds = [image_seed(config.seed, number, i) for i in range(count)]
        rng = torch.Generator().manual_seed(image_seed(config.seed, number, "learning"))
        branch_steps, weights = self._branch_steps(count, rng)
        noisy = self.parts.policy.noisy_steps
        scored = self.credit.scored_states(len(noisy))

        mine, played = self.world.rows(count)
        trajectories: list[Trajectory] = []
        answers: list[tuple[Future[RawScores], Future[RawScores] | None]] = []

        def sample(rows: Tensor) -> tuple[Trajectory, Tensor | None]:
            part = rollout(
                self.parts.policy,
                self.parts.conditioning,
                prompt_index[rows],
                [seeds[i] for i in rows.tolist()],
                branch_steps=None if branch_steps is None else branch_steps[rows],
                branches=rollouts.branches,
                antithetic=rollouts.antithetic,
                keep_predictions=bool(scored),
                keep_targets=self._targets,
                keep_last=config.algorithm.last_call_weight > 0,
            )
            return part, self._predicted_images(part, noisy[scored]) if scored else None

        # The scoring of a batch runs beside the sampling of the next, where the rewards leave torch's global state alone.
        with self.world.together(), Beside() as scoring:
            for part, predicted in self.sampling.over(played, sample, each=rollouts.branches):
                answer = scoring.submit(self._score, part.images, part.prompt_index)
                also = None if predicted is None else scoring.submit(self._score, predicted, part.prompt_index)
                answers.append((answer, also))
                trajectories.append(part)
                if not self.parts.rewards.may_run_beside:
                    result(also or answer)
            sampled = time.perf_counter()
            images = [result(answer) for answer, _ in answers]
            states = [result(answer) for _, answer in answers if answer]
        raw = gather_scores(self.world, images, len(mine) * rollouts.branches)
        of_states = gather_scores(self.world, states, len(mine) * len(scored)) if scored else None
        scores = self.parts.rewards.mix(raw)
        known = scores.valid.view(count, -1)
        ahead: Scores | None = None
        if of_states is not None:
            ahead = self.parts.rewards.mix(of_states, update=False)
            known = known & ahead.valid.view(count, -1).all(1, keepdim=True)
        scored_at = time.perf_counter()
        self._require_something_to_learn(number, scores, raw)

        trajectory = Trajectory.cat(trajectories)
        actions = trajectory.actions.shape[1]
        experience, whose = of_actions(trajectory, mine, weights, known.any(1))
        learned: dict[str, float] = {}
        charges = None
        if self.leash.coefficient and config.algorithm.kl_form == "reward":
            experience = self.update.settled(experience, self.parts.conditioning)
            charges = self._charges(experience, whose, (count, actions), learned)
        returns = self.credit.returns_of(scores, (count, actions), ahead, charges)
        factors = self.parts.rewards.weights(scores.parts) if self.credit.is_decoupled else None
        prompts = [self.parts.prompts.prompts[i] for i in prompt_index.tolist()]
        worth = self.credit.advantages(returns, prompts, known, factors)
        if isinstance(self.update, ForwardMatching):
            experience, whose = self.update.of_images(trajectory, mine, known, worth[:, 0], seeds)
        else:
            experience.advantages = worth[whose, action_number(whose) if worth.shape[1] > 1 else 0]
        if number == 1:
            self._preflight(experience, scores)
        lr = self._lr(progress)
        last_call = None
        if config.algorithm.last_call_weight:
            asked = (self.parts.conditioning, self.parts.prompts.prompts, self.parts.prompts.metadata)
            last_call = self.backprop.through_last_call(trajectory, mine, scores, *asked)
        learned |= self.update.update(experience, whose, count, self.parts.conditioning, rng, lr, progress, last_call)
        self._warn_of_mismatch(learned)
        ended = time.perf_counter()
        metrics = {
            **learned,
            "own_statistics": self.credit.statistics.engaged_fraction(prompts),
            **({"idle_groups": self.credit.idle_groups(returns, known)} if self.credit.group_size > 1 else {}),
            "lr": lr,
            "time/sample": sampled - started,
            "time/reward_wait": scored_at - sampled,
            "reward_wait_share": (scored_at - sampled) / (ended - started),
            "time/update": ended - scored_at,
        }
        return Learnt(scores, len(scores.total) + count * len(scored), self._network_calls(count, branch_steps), metrics)

    def _from_gradients(self, number: int, progress: float, prompt_index: Tensor) -> Learnt:
        """Take a step along the reward's own gradient."""
        started = time.perf_counter()
        mine = list(self.world.share(len(prompt_index)))
        index = prompt_index[mine]
        lr = self._lr(progress)
        raw, learned = self.backprop.update(
            self.parts.conditioning.take(index),
            [self.parts.prompts.prompts[i] for i in index.tolist()],
            [self.parts.prompts.metadata[i] for i in index.tolist()],
            [image_seed(self.config.seed, number, i) for i in mine],
            len(prompt_index),
            lr,
        )
        scores = self.parts.rewards.mix(gather_scores(self.world, [raw], len(mine)))
        learned |= {"lr": lr, "time/update": time.perf_counter() - started}
        return Learnt(scores, len(prompt_index), len(prompt_index) * len(self.parts.policy.table), learned)

    def _states_of_a_minibatch(self) -> int:
        """Return the most states that a process has in a minibatch, if no image is dropped: the same number on all processes."""
        rollouts = self.config.rollout
        count = rollouts.batch_size // rollouts.branches
        if self.config.algorithm.is_forward:
            each = rollouts.branches * self.config.algorithm.noise_levels
        else:
            each = 1 if rollouts.branches > 1 else len(self.parts.policy.noisy_steps)
        return each * min(-(-count // self.config.algorithm.minibatches), -(-count // self.world.size))

    def _require_something_to_learn(self, number: int, scores: Scores, raw: RawScores) -> None:
        if not scores.valid.any():
            reason = raw.failures[0] if raw.failures else "no reason given"
            raise RewardError(f"no image of round {number} could be scored, so there is nothing to learn from ({reason})")
        compared = [scores.total, *(scores.parts.values() if self.credit.is_decoupled else [])]
        if number == 1 and not any(values[scores.valid].std() > 0 for values in compared):
            raise PreflightError(
                f"all {len(scores.total)} images of the first round have the same reward ({scores.total[0].item()}), so there is "
                "nothing to learn from; check the reward function, or use more images a round (rollout.batch_size)."
            )

    def _score(self, images: Tensor, prompt_index: Tensor) -> RawScores:
        """Return the scores of images [b, K, 3, h, w] of b trajectories, flat."""
        index = prompt_index.repeat_interleave(images.shape[1]).tolist()
        prompts, metadata = self.parts.prompts.prompts, self.parts.prompts.metadata
        return self.parts.rewards.score(images.flatten(0, 1), [prompts[i] for i in index], [metadata[i] for i in index])

    def _predicted_images(self, part: Trajectory, calls: Tensor) -> Tensor:
        """Return the images [b, calls, 3, h, w] that plain trajectories predict at the given network calls."""
        assert part.predictions is not None
        decoded = [decode_images(self.parts.policy.denoiser, x) for x in part.predictions[:, calls].unbind(1)]
        part.predictions = None
        return torch.stack(decoded, 1)

    def _branch_steps(self, count: int, rng: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Return where each trajectory branches and how much it weighs; plain trajectories branch nowhere and weigh 1."""
        if self.config.rollout.branches == 1:
            return None, torch.ones(count)
        noisy = self.parts.policy.noisy_steps
        steps, weights = advantages.choose_branch_steps(count, noisy, self.config.rollout.branch_schedule, rng)
        # Plain trajectories average over their steps, so branched ones estimate the average too.
        return steps, weights / len(noisy)

    def _charges(self, experience: Experience, whose: Tensor, shape: tuple[int, int], metrics: dict[str, float]) -> Tensor:
        """Return what the leash takes off the reward of every action [B, A, K] of all processes; note the divergence.

        Args:
            shape: B trajectories in the round, A actions of each.
        """
        assert isinstance(self.update, PolicyGradient)
        ratios, divergences = self.update.reference_log_ratios(experience, self.parts.conditioning)
        ratios, owners = self.world.gather_rows(ratios), self.world.gather_rows(whose)
        metrics["kl"] = self.world.gather_rows(divergences).mean().item()
        charges = torch.zeros(*shape, ratios.shape[1])
        charges[owners, action_number(owners)] = self.leash.coefficient * ratios
        return charges

    def _preflight(self, experience: Experience, scores: Scores) -> None:
        with self.world.together():
            found = self.update.micro_batch.fit(lambda: self.update.check(experience, self.parts.conditioning))
        if not found:
            return
        reached, total = round(found["parameters_with_gradient"]), len(self.parts.policy.named_parameters)
        # A new LoRA begins with one of its two matrices at zero, so that only that one has a gradient at first.
        where = "every layer" if reached in (total, total / 2) else f"{reached} of {total} tensors"
        gradients = f"gradients reach {where} of the LoRA"
        if not reached:
            gradients = "the first images compared are worth the same, so it does not show yet whether gradients reach the LoRA"
        mismatch = ""
        if "mismatch_kl" in found:
            mismatch = f", sampling and learning apart by a KL of {found['mismatch_kl']:.1e} an action"
        self._note(
            f"checked: ratio off 1 by {found['ratio_deviation']:.1e}{mismatch}; {gradients}; "
            f"reward {scores.total[scores.valid].mean():.4g} +- {scores.total[scores.valid].std():.2g}"
        )
        if isinstance(self.update, PolicyGradient) and scores.is_right_or_wrong:
            self._note(
                "every reward is 0 or 1, right or wrong: from such rewards algorithm.loss=nft learns more on the built-in model "
                "(docs/algorithms/forward-process.md)"
            )

    def _warn_of_mismatch(self, metrics: Mapping[str, float]) -> None:
        """Tell the user, once, where the policy that learns is noticeably another than the one that sampled."""
        distance = standard_distance(metrics.get("mismatch_kl", 0.0), math.prod(self.parts.policy.denoiser.latent_shape))
        if distance > WORTH_A_WARNING and not self._has_warned:
            self._has_warned = True
            self._note(
                f"sampling and learning round so differently that an action's mean moves by {distance:.2g} of its standard deviation "
                f"(no matter up to {WORTH_A_WARNING}): {remedy(self.config.algorithm)}."
            )

    def _network_calls(self, count: int, branch_steps: Tensor | None) -> int:
        calls = len(self.parts.policy.table)
        if branch_steps is None:
            return count * calls
        shared = branch_steps + 1
        return int((shared + (calls - shared) * self.config.rollout.branches).sum())

    def _lr(self, progress: float) -> float:
        """Return the learning rate of a round, at the leash's pace, by the share of the run that came before it."""
        settings = self.config.optimizer
        lr = settings.lr * (1 - progress) if settings.schedule == "linear" else settings.lr
        return lr * self.leash.pace
