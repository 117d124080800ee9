"""The loop: prompts, rollout, reward, advantage, update, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlcm import advantages
from rlcm.algorithm import Leash
from rlcm.backprop import RewardBackprop
from rlcm.build import Parts, build
from rlcm.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from rlcm.config import TrainConfig, load_config
from rlcm.credit import Credit
from rlcm.distributed import World
from rlcm.errors import CheckpointError, ConfigError, MissingFileError, PreflightError, RewardError, RunDirectoryError
from rlcm.evaluate import gather_scores
from rlcm.export import save_best, save_final
from rlcm.interrupts import Interrupts
from rlcm.noise import image_seed
from rlcm.optimisation import Optimisation
from rlcm.prompts import deal
from rlcm.report import write_report
from rlcm.rewards import RawScores, RewardSettings, Scores
from rlcm.rollout import decode_images, rollout
from rlcm.rundir import RunDirectory, default_name
from rlcm.sharding import shard
from rlcm.trackers import TrackedRun, make_tracker, require_tracker
from rlcm.types import Experience, Trajectory
from rlcm.updates import PolicyGradient
from rlcm.watch import Watch, flat_summary


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
        require_tracker(config.run.tracker)
        self.watcher = watcher
        self.world = World.join(config.run.timeout_seconds, config.model.device)
        with self.world.guarded():
            self._assemble(config, model, rewards, prompts)

    def _assemble(
        self, config: TrainConfig, model: Any, rewards: Sequence[Callable[..., Any]] | None, prompts: Sequence[str] | None
    ) -> None:
        if self.world.from_main(config.model_dump(mode="json")) != config.model_dump(mode="json"):
            raise ConfigError(
                f"process {self.world.rank} has another configuration than process 0; start all of them with the same CONFIG and "
                "KEY=VALUE, and the same files on every machine."
            )
        self.parts: Parts = build(config, pipeline=model, rewards=rewards, prompts=prompts)
        config = _resolved(config, self.parts, model, rewards, prompts)
        self.config = config = config.model_copy(update={"name": self.world.from_main(config.name)})
        if config.run.sharding == "fsdp2":
            shard(self.parts.policy, self.world)
        if config.run.clock == "cpu" and (self.world.size > 1 or self.parts.policy.denoiser.device.type != "cpu"):
            raise ConfigError(
                "run.clock=cpu counts the computing time of one process on the CPU: it cannot see a GPU or other processes; leave "
                "run.clock at wall, or use model.device=cpu and one process."
            )
        self._clock = time.process_time if config.run.clock == "cpu" else time.perf_counter
        self.sampling = self.parts.evaluator.sampling
        self.sampling.is_fixed = self.world.is_lockstep
        self.optimisation = Optimisation(self.parts.policy, config.optimizer, self.world)
        self.leash = Leash(config.algorithm)
        micro = config.run.micro_batch_size
        self.update = PolicyGradient(self.optimisation, config.algorithm, self.leash, micro)
        self.backprop = RewardBackprop(self.optimisation, config.algorithm, self.leash, self.parts.rewards, micro)
        backprop = config.algorithm.loss == "reward_backprop"
        uneven = self.world.is_lockstep and config.rollout.batch_size % self.world.size
        if backprop and (uneven or config.rollout.batch_size < self.world.size):
            raise ConfigError(
                f"rollout.batch_size={config.rollout.batch_size} for {self.world.size} processes: algorithm.loss=reward_backprop needs "
                f"an image for each of them, and with run.sharding=fsdp2 equally many; use a multiple of {self.world.size}."
            )
        learner = self.backprop if backprop else self.update
        self._batch_sizes = (self.sampling, learner.micro_batch)
        for size in self._batch_sizes:
            size.told = self._note
        # The comparable images: a trajectory's branches, or the trajectories of one prompt, dealt side by side.
        branches, same_prompt = config.rollout.branches, config.rollout.images_per_prompt
        self.credit = Credit(config.algorithm, branches if branches > 1 else same_prompt)
        self.round_number = 0
        self.counters = {"seconds": 0.0, "reward_queries": 0, "network_calls": 0}
        self.evaluations: list[dict[str, Any]] = []
        look = config.evaluation
        self.watch = Watch(look.best, look.patience, look.least)
        self.stop_reason: str | None = None
        self.directory: RunDirectory | None = None
        self._whole: dict[str, Any] | None = None  # the state before the present round

    @classmethod
    def resume(cls, run: Path | str, **objects: Any) -> Trainer:
        """Return the trainer of an interrupted run, as it was at its newest whole checkpoint.

        Args:
            run: the run's folder.
            objects: model, rewards and prompts that were passed as objects to the first trainer, and the watcher.

        Raises:
            MissingFileError: if the folder holds no run.
            CheckpointError: if there is no whole checkpoint.
        """
        run = Path(run)
        if not (run / "config.yaml").is_file():
            raise MissingFileError(f"{run} holds no run to go on with; give the folder that `rlcm train` printed, such as runs/NAME.")
        config = load_config(run / "config.yaml")
        checkpoint, damaged = newest_checkpoint(run)
        trainer = cls(config, **objects)
        with trainer.world.guarded():
            trainer._go_on(run, checkpoint, damaged)
        return trainer

    def _go_on(self, run: Path, checkpoint: Checkpoint | None, damaged: Sequence[str]) -> None:
        """Take up a run where its newest whole checkpoint left it, or at its beginning."""
        number = checkpoint.round if checkpoint else 0
        if self.world.from_main(number) != number:
            raise CheckpointError(
                f"process {self.world.rank} finds round {number} in {run} and process 0 another one; let all machines see the same "
                "folder."
            )
        if checkpoint is not None:
            self._load_state(checkpoint.state)
        directory = self.directory = RunDirectory(run)
        with self.world.together():
            if self.world.is_main:
                directory.make_folders()
                directory.keep_rounds(self.round_number)
                if self.evaluations:
                    self._write_evaluations(directory)
                else:
                    directory.remove("eval.json")
        for text in damaged:
            self._note(f"{text}; going on from checkpoint-{number:06d} instead")
        after = f"after round {number} of {self.config.run.rounds}" if checkpoint else "from the beginning: no checkpoint yet"
        self._note(f"going on {after}")

    def train(self) -> Path:
        """Run all rounds that are left and return the run's folder, with the tuned LoRA in `final/`.

        An interrupt (Ctrl-C, SIGTERM) ends it after the present round with a checkpoint; a second one at once.

        Raises:
            RLCMError: and its children; what was written before stays, and the last whole round is kept.
        """
        with Interrupts() as interrupts, self.world.guarded():
            directory = self.directory = self.directory or self._new_directory()
            try:
                if not self.evaluations:
                    self._evaluate("base")
                elif self._is_due() and self.evaluations[-1]["round"] < self.round_number:  # it failed, which ended the run
                    self._evaluate("tuned")
                finished = self._rounds(directory, interrupts)
                if finished and self.evaluations[-1]["round"] < self.round_number:
                    self._evaluate("tuned")
            except Exception as error:
                self._keep_whole_rounds(directory, error)
                raise
            if finished:
                self._checkpoint()
                with self.world.together():
                    if self.world.is_main:
                        shown = self.final_round
                        seen = [found for found in self.evaluations if found["round"] <= shown]
                        save_final(self.parts.policy, self.config, seen, directory)
                        self._write_evaluations(directory, final_round=shown)
                        write_report(directory.path)
        return directory.path

    def _new_directory(self) -> RunDirectory:
        with self.world.together():
            if self.world.is_main:
                RunDirectory.create(Path(self.config.output), self.config.name).write_text("config.yaml", self.config.dump())
        folder = Path(self.config.output) / self.config.name
        for text in (f"in {folder}; after an interruption, go on with: rlcm train --resume {folder}", *self.parts.notes):
            self._note(text)
        return RunDirectory(folder)

    def _rounds(self, directory: RunDirectory, interrupts: Interrupts) -> bool:
        """Run the rounds that are left and return True, or False after an interrupt, with a checkpoint."""
        settings = self.config.run
        tracked = TrackedRun(
            directory.path,
            self.config.name,
            settings.tracker_project,
            self.config.model_dump(mode="json"),
            first_round=self.round_number + 1,
        )
        with closing(make_tracker(settings.tracker if self.world.is_main else "none", tracked)) as tracker:
            while not self._is_over():
                if self.world.any(interrupts.wanted):
                    self._checkpoint()
                    self._note(f"stopped after round {self.round_number}; go on with: rlcm train --resume {directory.path}")
                    return False
                self._whole = deepcopy(self._state()) if self.world.is_main else None
                metrics = self.round()
                self._whole = None
                self.counters["seconds"] = self.world.from_main(self.counters["seconds"])
                try:
                    if self._is_over() or self._is_due():
                        metrics |= self._evaluate("tuned")
                finally:
                    with self.world.together():
                        if self.world.is_main:
                            directory.add_metrics(metrics)
                            tracker.log(metrics, self.round_number)
                if self.watcher and self.world.is_main:
                    self.watcher.round(metrics, settings.rounds)
                if settings.save_every and self.round_number % settings.save_every == 0 and not self._is_over():
                    self._checkpoint()
        return True

    def _is_due(self) -> bool:
        """Whether an evaluation follows the present round."""
        every = self.config.evaluation.every
        return every > 0 and self.round_number % every == 0

    def _is_over(self) -> bool:
        limit = self.config.run.time_limit_minutes
        out_of_time = limit is not None and self.counters["seconds"] >= limit * 60
        return self.round_number >= self.config.run.rounds or out_of_time or self.stop_reason is not None

    def round(self) -> dict[str, float]:
        """Sample, score and learn once; return the round's metrics."""
        config, rollouts = self.config, self.config.rollout
        started = self._clock()
        number = self.round_number + 1
        count = rollouts.batch_size // rollouts.branches
        groups = count // rollouts.images_per_prompt
        dealt = deal(groups, len(self.parts.prompts), config.seed, (number - 1) * groups)
        prompt_index = dealt.repeat_interleave(rollouts.images_per_prompt)
        learn = self._backprop if config.algorithm.loss == "reward_backprop" else self._learn_from_actions
        scores, queries, calls, learned = learn(number, prompt_index)
        if "kl" in learned:
            learned["kl_coefficient"] = self.leash.coefficient
            self.leash.follow(learned["kl"])
        seconds = self._clock() - started

        self.round_number = number
        self.counters["seconds"] += seconds
        self.counters["reward_queries"] += queries
        self.counters["network_calls"] += calls
        found = scores.total[scores.valid]
        return {
            "round": number,
            **self.counters,
            "reward": found.mean().item(),
            "reward_std": found.std().item(),
            **{f"rewards/{label}": values[scores.valid].mean().item() for label, values in scores.parts.items()},
            "dropped_images": float((~scores.valid).sum()),
            **learned,
            "images_per_second": len(scores.total) / seconds,
        }

    def _learn_from_actions(self, number: int, prompt_index: Tensor) -> tuple[Scores, int, int, dict[str, float]]:
        """Sample, score and take policy-gradient steps; return scores, reward queries, network calls and metrics."""
        config, rollouts, count = self.config, self.config.rollout, len(prompt_index)
        started = time.perf_counter()
        seeds = [image_seed(config.seed, number, i) for i in range(count)]
        rng = torch.Generator().manual_seed(image_seed(config.seed, number, "learning"))
        branch_steps, weights = self._branch_steps(count, rng)
        noisy = self.parts.policy.table.noisy_steps().cpu()
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
                keep_targets=config.algorithm.consistency_target if config.algorithm.consistency_coefficient else None,
            )
            return part, self._predicted_images(part, noisy[scored]) if scored else None

        # One worker: the scoring of a batch runs beside the sampling of the next.
        with self.world.together(), ThreadPoolExecutor(1) as scoring:
            for part, predicted in self.sampling.over(played, sample, each=rollouts.branches):
                answer = scoring.submit(self._score, part.images, part.prompt_index)
                also = None if predicted is None else scoring.submit(self._score, predicted, part.prompt_index)
                answers.append((answer, also))
                trajectories.append(part)
            sampled = time.perf_counter()
            images = [answer.result() for answer, _ in answers]
            states = [answer.result() for _, answer in answers if answer]
        raw = gather_scores(self.world, images, len(mine) * rollouts.branches)
        of_states = gather_scores(self.world, states, len(mine) * len(scored)) if scored else None
        scores = self.parts.rewards.mix(raw)
        potentials, known = None, scores.valid.view(count, -1)
        if of_states is not None:
            found = self.parts.rewards.mix(of_states, update=False)
            potentials = found.total.view(count, -1)
            known = known & found.valid.view(count, -1).all(1, keepdim=True)
        scored_at = time.perf_counter()
        self._require_something_to_learn(number, scores, raw)

        trajectory = Trajectory.cat(trajectories)
        actions = trajectory.actions.shape[1]
        experience, whose = self._experience(trajectory, mine, weights, known.any(1))
        learned: dict[str, float] = {}
        charges = None
        if self.leash.coefficient and config.algorithm.kl_form == "reward":
            charges = self._charges(experience, whose, (count, actions), learned)
        returns = self.credit.returns(scores.total.view(count, -1), actions, potentials, charges)
        prompts = [self.parts.prompts.prompts[i] for i in prompt_index.tolist()]
        worth = self.credit.advantages(returns, prompts, known)
        experience.advantages = worth[whose, _action_number(whose) if worth.shape[1] > 1 else 0]
        if number == 1:
            self._preflight(experience, scores)
        lr, progress = self._lr(), self.round_number / config.run.rounds
        learned |= self.update.update(experience, whose, count, self.parts.conditioning, rng, lr, progress)
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
        return scores, len(scores.total) + count * len(scored), self._network_calls(count, branch_steps), metrics

    def _backprop(self, number: int, prompt_index: Tensor) -> tuple[Scores, int, int, dict[str, float]]:
        """Take a step along the reward's own gradient; returns as `_learn_from_actions`."""
        started = time.perf_counter()
        mine = list(self.world.share(len(prompt_index)))
        index = prompt_index[mine]
        lr = self._lr()
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
        return scores, len(prompt_index), len(prompt_index) * len(self.parts.policy.table), learned

    def _require_something_to_learn(self, number: int, scores: Scores, raw: RawScores) -> None:
        if not scores.valid.any():
            reason = raw.failures[0] if raw.failures else "no reason given"
            raise RewardError(f"no image of round {number} could be scored, so there is nothing to learn from ({reason})")
        if number == 1 and not (scores.total[scores.valid].std() > 0):
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
        noisy = self.parts.policy.table.noisy_steps().cpu()
        steps, weights = advantages.choose_branch_steps(count, noisy, self.config.rollout.branch_schedule, rng)
        # Plain trajectories average over their steps, so branched ones estimate the average too.
        return steps, weights / len(noisy)

    def _charges(self, experience: Experience, whose: Tensor, shape: tuple[int, int], metrics: dict[str, float]) -> Tensor:
        """Return what the leash takes off the reward of every action [B, A, K] of all processes; note the divergence.

        Args:
            shape: B trajectories in the round, A actions of each.
        """
        ratios, divergences = self.update.reference_log_ratios(experience, self.parts.conditioning)
        ratios, owners = self.world.gather_rows(ratios), self.world.gather_rows(whose)
        metrics["kl"] = self.world.gather_rows(divergences).mean().item()
        charges = torch.zeros(*shape, ratios.shape[1])
        charges[owners, _action_number(owners)] = self.leash.coefficient * ratios
        return charges

    def _experience(self, trajectory: Trajectory, mine: Tensor, weights: Tensor, known: Tensor) -> tuple[Experience, Tensor]:
        """Return this process's states, flat over images and steps, not yet judged, and which trajectory each belongs to.

        Args:
            known: [B] bool: trajectories of the round that have a score; the others drop out.
        """
        steps, branches = trajectory.actions.shape[1:3]
        whose = mine.repeat_interleave(steps)
        experience = Experience(
            states=trajectory.states.flatten(0, 1),
            steps=trajectory.steps.flatten(),
            prompt_index=trajectory.prompt_index.repeat_interleave(steps),
            old_means=trajectory.means.flatten(0, 1),
            actions=trajectory.actions.flatten(0, 1),
            advantages=torch.zeros(len(whose), branches),
            weights=weights[whose],
            targets=None if trajectory.targets is None else trajectory.targets.flatten(0, 1),
        )
        kept = known[whose].nonzero().squeeze(1)
        return experience.take(kept), whose[kept]

    def _preflight(self, experience: Experience, scores: Scores) -> None:
        def check() -> dict[str, float]:
            first = experience.take(torch.arange(min(len(experience), self.update.micro_batch.size)))
            return self.update.check(first, self.parts.conditioning)

        with self.world.together():
            found = self.update.micro_batch.fit(check)
        if not found:
            return
        total = len(self.parts.policy.named_parameters)
        self._note(
            f"checked: ratio off 1 by {found['ratio_deviation']:.1e}; gradients reach "
            f"{found['parameters_with_gradient']:.0f} of {total} adapter tensors; reward {scores.total[scores.valid].mean():.4g} "
            f"+- {scores.total[scores.valid].std():.2g}"
        )

    def _evaluate(self, name: str) -> dict[str, float]:
        """Look at the policy, keep what is best, and return the figures for the metrics."""
        evaluation = self.parts.evaluator(self.parts.policy, self.world)
        summary = evaluation.summary()
        verdict = self.watch.look(summary, self.round_number)
        described = {"round": self.round_number, "name": name, "seconds": self.counters["seconds"]}
        self.evaluations.append(described | {"steps": len(self.parts.evaluator.table)} | summary)
        with self.world.together():
            if self.world.is_main and self.directory is not None:
                self.directory.add_samples(self.round_number, evaluation, self.config.evaluation.grid)
                self._write_evaluations(self.directory)
                if verdict.is_best:
                    save_best(self.parts.policy, self.directory)
        if verdict.stop:
            self.stop_reason = verdict.stop
            self._note(f"stopped after round {self.round_number}: {verdict.stop}")
        return {f"eval/{key}": value for key, value in flat_summary(summary).items()}

    @property
    def final_round(self) -> int:
        """The round after which the policy was as `final/` has it."""
        best = int(self.watch.best["round"]) if self.config.evaluation.final == "best" else 0
        return best or self.round_number

    def _write_evaluations(self, directory: RunDirectory, **more: int) -> None:
        found = {"primary_metric": self._primary_metric(), "evaluations": self.evaluations}
        directory.write_json("eval.json", found | more)

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

    def _note(self, text: str) -> None:
        if self.watcher and self.world.is_main:
            self.watcher.note(text)

    def _checkpoint(self) -> None:
        with self.world.together():
            if self.world.is_main and self.directory is not None:
                save_checkpoint(self.directory.path, self.round_number, self._state(), self.config.run.keep_last)

    def _keep_whole_rounds(self, directory: RunDirectory, error: Exception) -> None:
        """Write a checkpoint of the last whole round, before an error ends the run."""
        if isinstance(error, (PreflightError, RunDirectoryError)):  # nothing was learnt yet, or nothing can be written
            return
        if self.world.is_main:
            state = self._whole or self._state()
            try:
                save_checkpoint(directory.path, state["round"], state, self.config.run.keep_last)
                self._note(f"kept everything up to round {state['round']}; go on with: rlcm train --resume {directory.path}")
            except RunDirectoryError as refused:
                self._note(str(refused))
        if self.world.is_shared(error):
            self.world.barrier()  # the first process to end takes the others with it

    def _state(self) -> dict[str, Any]:
        policy = self.parts.policy
        return {
            "round": self.round_number,
            "counters": self.counters,
            "evaluations": self.evaluations,
            "adapter": dict(policy.named_parameters),
            "average": policy.average,
            "optimizer": self.optimisation.optimizer.state_dict(),
            "skipped_in_a_row": self.optimisation.skipped_in_a_row,
            "kl_coefficient": self.leash.coefficient,
            "batch_sizes": {size.setting: size.size for size in self._batch_sizes},
            "statistics": self.credit.statistics.state_dict(),
            "rewards": self.parts.rewards.state_dict(),
            "watch": self.watch.state_dict(),
            "stop_reason": self.stop_reason,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        policy = self.parts.policy
        try:
            self.round_number, self.counters, self.evaluations = state["round"], state["counters"], state["evaluations"]
            policy.load(state["adapter"])
            if policy.average is not None:
                for name, tensor in policy.average.items():
                    tensor.copy_(state["average"][name])
            self.optimisation.optimizer.load_state_dict(state["optimizer"])
            self.optimisation.skipped_in_a_row = state["skipped_in_a_row"]
            self.leash.coefficient = state["kl_coefficient"]
            for size in self._batch_sizes:
                size.size = min(size.size, state["batch_sizes"][size.setting])
            self.credit.statistics.load_state_dict(state["statistics"])
            self.parts.rewards.load_state_dict(state["rewards"])
            self.watch.load_state_dict(state["watch"])
            self.stop_reason = state["stop_reason"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the run's configuration ({error}); resume with the config.yaml, the model and the "
                "rewards of the first run."
            ) from error


def _action_number(whose: Tensor) -> Tensor:
    """Return, for states in the order of their trajectories, how many earlier ones belong to the same trajectory."""
    _, inverse, counts = torch.unique_consecutive(whose, return_inverse=True, return_counts=True)
    return torch.arange(len(whose)) - (counts.cumsum(0) - counts)[inverse]


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
