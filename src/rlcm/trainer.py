"""The loop: prompts, rollout, reward, advantage, update, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlcm import advantages
from rlcm.build import Parts, build, sampled_at_once
from rlcm.checkpoint import newest_checkpoint, save_checkpoint
from rlcm.config import TrainConfig, load_config
from rlcm.distributed import World
from rlcm.errors import CheckpointError, PreflightError, RewardError
from rlcm.export import save_final
from rlcm.interrupts import Interrupts
from rlcm.noise import image_seed
from rlcm.prompts import deal
from rlcm.report import write_report
from rlcm.rewards import RawScores, RewardSettings, Scores
from rlcm.rollout import rollout
from rlcm.rundir import RunDirectory, default_name
from rlcm.trackers import make_tracker
from rlcm.types import Experience, Trajectory
from rlcm.updates import PolicyGradient


class Watcher(Protocol):
    """Is told what a trainer does; see `rlcm.progress`."""

    def note(self, text: str) -> None:
        """Take a line for the user."""

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        """Take a finished round's metrics."""


class Trainer:
    """Tunes a model to rewards.

        trainer = Trainer(TrainConfig(), prompts=["a fox"], rewards=[my_function])
        trainer.train()

    Args:
        config: everything that is not passed as an object.
        model: a loaded diffusers pipeline, or a path in place of `config.model.path`.
        rewards: reward functions, summed, in place of `config.rewards`; see `rlcm.types.Reward`.
        prompts: prompts in place of `config.prompts`.
        watcher: is told of every round.

    Raises:
        UsageError: if the settings do not fit together, before anything expensive and before anything is written.
    """

    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        model: Any = None,
        rewards: Sequence[Callable[..., Any]] | None = None,
        prompts: Sequence[str] | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        config = config or TrainConfig()
        if isinstance(model, (str, Path)):
            config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(model)})})
            model = None
        self.world = World()
        self.watcher = watcher
        self.parts: Parts = build(config, pipeline=model, rewards=rewards, prompts=prompts)
        self.config = config = _resolved(config, self.parts, model, rewards, prompts)
        self.update = PolicyGradient(
            self.parts.policy, config.algorithm, config.optimizer, config.run.micro_batch_size, self.world
        )
        self.statistics = advantages.PromptStatistics(
            config.algorithm.stat_buffer_size, config.algorithm.stat_min_count, normalise_std=config.algorithm.normalise_std
        )
        self.round_number = 0
        self.counters = {"seconds": 0.0, "reward_queries": 0, "network_calls": 0}
        self.evaluations: list[dict[str, Any]] = []
        self.directory: RunDirectory | None = None

    @classmethod
    def resume(cls, run: Path | str, **objects: Any) -> Trainer:
        """Return the trainer of an interrupted run, as it was at its newest whole checkpoint.

        Args:
            run: the run's folder.
            objects: model, rewards and prompts that were passed as objects to the first trainer, and the watcher.

        Raises:
            CheckpointError: if there is no whole checkpoint.
        """
        run = Path(run)
        config = load_config(run / "config.yaml")
        checkpoint, damaged = newest_checkpoint(run)
        trainer = cls(config, **objects)
        trainer._load_state(checkpoint.state)
        trainer.directory = RunDirectory(run)
        trainer.directory.keep_rounds(trainer.round_number)
        for text in damaged:
            trainer._note(f"{text}; going on from {checkpoint.path.name} instead")
        trainer._note(f"going on after round {trainer.round_number} of {config.run.rounds}")
        return trainer

    def train(self) -> Path:
        """Run all rounds that are left and return the run's folder, with the tuned LoRA in `final/`.

        An interrupt (Ctrl-C, SIGTERM) ends it after the present round with a checkpoint; a second one at once.

        Raises:
            RLCMError: and its children; what was written before stays.
        """
        config, resumed = self.config, self.directory is not None
        directory = self.directory = self.directory or RunDirectory.create(Path(config.output), config.name)
        if not resumed:
            directory.write_text("config.yaml", config.dump())
            for text in self.parts.notes:
                self._note(text)
            self._evaluate("base")
        try:
            finished = self._rounds(directory)
            if finished:
                self._evaluate("tuned")
        except RewardError:
            self._checkpoint()
            raise
        if finished:
            self._checkpoint()
            save_final(self.parts.policy, config, self.evaluations, directory)
            write_report(directory.path)
        return directory.path

    def _rounds(self, directory: RunDirectory) -> bool:
        """Run the rounds that are left and return True, or False after an interrupt, with a checkpoint."""
        config = self.config
        with closing(make_tracker(config.run.tracker, directory.path)) as tracker, Interrupts() as interrupts:
            while self.round_number < config.run.rounds and not self._out_of_time():
                metrics = self.round()
                directory.add_metrics(metrics)
                tracker.log(metrics, self.round_number)
                if self.watcher:
                    self.watcher.round(metrics, config.run.rounds)
                last = self.round_number == config.run.rounds or self._out_of_time()
                if config.evaluation.every and self.round_number % config.evaluation.every == 0 and not last:
                    self._evaluate("tuned")
                if interrupts.wanted and not last:
                    self._checkpoint()
                    self._note(f"stopped after round {self.round_number}; go on with: rlcm train --resume {directory.path}")
                    return False
                if config.run.save_every and self.round_number % config.run.save_every == 0 and not last:
                    self._checkpoint()
        return True

    def round(self) -> dict[str, float]:
        """Sample, score and learn once; return the round's metrics."""
        config, rollouts, policy = self.config, self.config.rollout, self.parts.policy
        started = time.perf_counter()
        number = self.round_number + 1
        count = rollouts.batch_size // rollouts.branches
        groups = count // rollouts.images_per_prompt
        dealt = deal(groups, len(self.parts.prompts), config.seed, (number - 1) * groups)
        prompt_index = dealt.repeat_interleave(rollouts.images_per_prompt)
        seeds = [image_seed(config.seed, number, i) for i in range(count)]
        rng = torch.Generator().manual_seed(image_seed(config.seed, number, "learning"))
        branch_steps, weights = self._branch_steps(count, rng)

        mine = torch.tensor(list(self.world.share(count)), dtype=torch.long)
        trajectories, answers = [], []
        # One worker: the scoring of a batch runs beside the sampling of the next.
        with ThreadPoolExecutor(1) as scoring:
            for rows in mine.split(max(1, sampled_at_once(rollouts) // rollouts.branches)):
                part = rollout(
                    policy,
                    self.parts.conditioning,
                    prompt_index[rows],
                    [seeds[i] for i in rows.tolist()],
                    branch_steps=None if branch_steps is None else branch_steps[rows],
                    branches=rollouts.branches,
                    antithetic=rollouts.antithetic,
                )
                trajectories.append(part)
                answers.append(scoring.submit(self._score, part))
            sampled = time.perf_counter()
            raw = self._gather([answer.result() for answer in answers])
        scores = self.parts.rewards.mix(raw)
        scored = time.perf_counter()
        if not scores.valid.any():
            reason = raw.failures[0] if raw.failures else "no reason given"
            raise RewardError(f"no image of round {number} could be scored, so there is nothing to learn from ({reason})")
        if number == 1 and not (scores.total[scores.valid].std() > 0):
            raise PreflightError(
                f"all {len(scores.total)} images of the first round have the same reward ({scores.total[0].item()}), so there is "
                "nothing to learn from; check the reward function, or use more images a round (rollout.batch_size)."
            )
        worth = self._advantages(scores, prompt_index, count)
        trajectory = Trajectory.cat(trajectories)
        experience, whose = self._experience(trajectory, worth, scores.valid, mine, weights)
        if number == 1:
            self._preflight(experience, scores)
        lr = self._lr()
        learned = self.update.update(experience, whose, count, self.parts.conditioning, rng, lr)
        ended = time.perf_counter()

        self.round_number = number
        self.counters["seconds"] += ended - started
        self.counters["reward_queries"] += len(scores.total)
        self.counters["network_calls"] += self._network_calls(count, branch_steps)
        found = scores.total[scores.valid]
        return {
            "round": number,
            **self.counters,
            "reward": found.mean().item(),
            "reward_std": found.std().item(),
            **{f"rewards/{label}": values[scores.valid].mean().item() for label, values in scores.parts.items()},
            "dropped_images": float((~scores.valid).sum()),
            "own_statistics": self.statistics.engaged_fraction([self.parts.prompts.prompts[i] for i in prompt_index.tolist()]),
            **learned,
            "lr": lr,
            "images_per_second": len(scores.total) / (ended - started),
            "time/sample": sampled - started,
            "time/reward_wait": scored - sampled,
            "time/update": ended - scored,
        }

    def _score(self, part: Trajectory) -> RawScores:
        branches = part.images.shape[1]
        index = part.prompt_index.repeat_interleave(branches).tolist()
        prompts, metadata = self.parts.prompts.prompts, self.parts.prompts.metadata
        return self.parts.rewards.score(part.images.flatten(0, 1), [prompts[i] for i in index], [metadata[i] for i in index])

    def _gather(self, answers: Sequence[RawScores]) -> RawScores:
        raw = RawScores.cat(answers)
        parts = {label: self.world.gather_rows(values) for label, values in raw.parts.items()}
        return RawScores(parts, self.world.gather_rows(raw.valid), raw.failures)

    def _branch_steps(self, count: int, rng: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Return where each trajectory branches and how much it weighs; plain trajectories branch nowhere and weigh 1."""
        if self.config.rollout.branches == 1:
            return None, torch.ones(count)
        noisy = self.parts.policy.table.noisy_steps().cpu()
        steps, weights = advantages.choose_branch_steps(count, noisy, self.config.rollout.branch_schedule, rng)
        # Plain trajectories average over their steps, so branched ones estimate the average too.
        return steps, weights / len(noisy)

    def _advantages(self, scores: Scores, prompt_index: Tensor, count: int) -> Tensor:
        """Return the advantages [B, K] of all processes' images; those that were not scored get 0."""
        settings, branches = self.config.algorithm, self.config.rollout.branches
        prompts = [self.parts.prompts.prompts[i] for i in prompt_index.repeat_interleave(branches).tolist()]
        valid = scores.valid.nonzero().squeeze(1)
        rewards = scores.total[valid]
        if settings.advantage == "prompt_statistics":
            found = self.statistics.advantages([prompts[i] for i in valid.tolist()], rewards)
        elif settings.advantage == "batch":
            found = advantages.batch(rewards, normalise_std=settings.normalise_std)
        else:
            # The comparable images: a trajectory's branches, or the trajectories of one prompt, dealt side by side.
            size = branches if branches > 1 else self.config.rollout.images_per_prompt
            group = torch.arange(count * branches) // size
            estimator = advantages.group if settings.advantage == "group" else advantages.leave_one_out
            found = estimator(rewards, group[valid], normalise_std=settings.normalise_std)
        result = torch.zeros(count * branches)
        result[valid] = advantages.clip_advantages(found, settings.advantage_clip)
        return result.view(count, branches)

    def _experience(
        self, trajectory: Trajectory, worth: Tensor, valid: Tensor, mine: Tensor, weights: Tensor
    ) -> tuple[Experience, Tensor]:
        """Return this process's states, flat over images and steps, and which trajectory each belongs to."""
        steps = trajectory.steps.shape[1]
        keep = valid.view(len(worth), -1)[mine].any(1).repeat_interleave(steps)
        whose = mine.repeat_interleave(steps)
        experience = Experience(
            states=trajectory.states.flatten(0, 1),
            steps=trajectory.steps.flatten(),
            prompt_index=trajectory.prompt_index.repeat_interleave(steps),
            old_means=trajectory.means.flatten(0, 1),
            actions=trajectory.actions.flatten(0, 1),
            advantages=worth[mine].repeat_interleave(steps, dim=0),
            weights=weights[mine].repeat_interleave(steps),
        )
        kept = keep.nonzero().squeeze(1)
        return experience.take(kept), whose[kept]

    def _preflight(self, experience: Experience, scores: Scores) -> None:
        first = experience.take(torch.arange(min(len(experience), self.config.run.micro_batch_size)))
        found = self.update.check(first, self.parts.conditioning)
        total = len(self.parts.policy.named_parameters)
        self._note(
            f"checked: ratio off 1 by {found['ratio_deviation']:.1e}; gradients reach "
            f"{found['parameters_with_gradient']:.0f} of {total} adapter tensors; reward {scores.total[scores.valid].mean():.4g} "
            f"+- {scores.total[scores.valid].std():.2g}"
        )

    def _evaluate(self, name: str) -> None:
        if not self.world.is_main or self.directory is None:
            return
        evaluation = self.parts.evaluator(self.parts.policy)
        self.directory.add_samples(self.round_number, evaluation, self.config.evaluation.grid)
        described = {"round": self.round_number, "name": name, "seconds": self.counters["seconds"]}
        self.evaluations.append(described | {"steps": len(self.parts.evaluator.table)} | evaluation.summary())
        self.directory.write_json("eval.json", {"primary_metric": self._primary_metric(), "evaluations": self.evaluations})

    def _primary_metric(self) -> dict[str, str] | None:
        """Return how the first reward is shown to people, where it says so by a `display` attribute."""
        first, *others = self.parts.rewards.parts
        return None if others or first.weight < 0 else getattr(first.reward, "display", None)

    def _network_calls(self, count: int, branch_steps: Tensor | None) -> int:
        calls = len(self.parts.policy.table)
        if branch_steps is None:
            return count * calls
        shared = branch_steps + 1
        return int((shared + (calls - shared) * self.config.rollout.branches).sum())

    def _lr(self) -> float:
        settings = self.config.optimizer
        return settings.lr * (1 - self.round_number / self.config.run.rounds) if settings.schedule == "linear" else settings.lr

    def _out_of_time(self) -> bool:
        limit = self.config.run.time_limit_minutes
        return limit is not None and self.counters["seconds"] >= limit * 60

    def _note(self, text: str) -> None:
        if self.watcher and self.world.is_main:
            self.watcher.note(text)

    def _checkpoint(self) -> None:
        if self.world.is_main and self.directory is not None:
            save_checkpoint(self.directory.path, self.round_number, self._state(), self.config.run.keep_last)
        self.world.barrier()

    def _state(self) -> dict[str, Any]:
        policy = self.parts.policy
        return {
            "round": self.round_number,
            "counters": self.counters,
            "evaluations": self.evaluations,
            "adapter": dict(policy.named_parameters),
            "average": policy.average,
            "optimizer": self.update.optimizer.state_dict(),
            "skipped_in_a_row": self.update.skipped_in_a_row,
            "kl_coefficient": self.update.kl_coefficient,
            "statistics": self.statistics.state_dict(),
            "rewards": self.parts.rewards.state_dict(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        policy = self.parts.policy
        try:
            self.round_number, self.counters, self.evaluations = state["round"], state["counters"], state["evaluations"]
            policy.load(state["adapter"])
            if policy.average is not None:
                for name, tensor in policy.average.items():
                    tensor.copy_(state["average"][name])
            self.update.optimizer.load_state_dict(state["optimizer"])
            self.update.skipped_in_a_row = state["skipped_in_a_row"]
            self.update.kl_coefficient = state["kl_coefficient"]
            self.statistics.load_state_dict(state["statistics"])
            self.parts.rewards.load_state_dict(state["rewards"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the run's configuration ({error}); resume with the config.yaml, the model and the "
                "rewards of the first run."
            ) from error


def _resolved(
    config: TrainConfig,
    parts: Parts,
    pipeline: Any,
    rewards: Sequence[Callable[..., Any]] | None,
    prompts: Sequence[str] | None,
) -> TrainConfig:
    """Return the configuration with its name, and with what was passed as an object in place of what it replaced.

    What cannot be loaded again is named so that a resumed run which lacks the object says so, and takes no other.
    """
    changes: dict[str, Any] = {}
    if not config.name:
        changes["name"] = default_name(parts.rewards.parts[0].label)
    if pipeline is not None:
        path = getattr(pipeline, "name_or_path", None) or type(pipeline).__name__
        changes["model"] = config.model.model_copy(update={"path": str(path)})
    if prompts is not None:
        changes["prompts"] = parts.prompts.prompts
    if rewards is not None:
        changes["rewards"] = [RewardSettings(name=_place_of(part.reward), label=part.label) for part in parts.rewards.parts]
    return config.model_copy(update=changes)


def _place_of(reward: Callable[..., Any]) -> str:
    function = getattr(reward, "__qualname__", None)
    return f"{reward.__module__}:{function or type(reward).__qualname__ + '()'}"
