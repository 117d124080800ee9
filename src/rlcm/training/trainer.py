"""The loop over rounds, with its evaluations and its end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rlcm.errors import CheckpointError, ConfigError
from rlcm.paths import given_folder
from rlcm.processes.distributed import World
from rlcm.processes.sharding import shard
from rlcm.processes.usual import usual_torch
from rlcm.report.told import on_the_way
from rlcm.rewards.given import Rewards
from rlcm.runs.again import going_on
from rlcm.runs.rundir import RunDirectory
from rlcm.runs.trackers import TrackedRun, make_tracker, require_tracker
from rlcm.training.beginning import Stopped, resolved, stopped_run
from rlcm.training.build import Parts, build
from rlcm.training.config import TrainConfig
from rlcm.training.interrupts import Interrupts
from rlcm.training.keeping import Keeper, up_to
from rlcm.training.learner import Learner
from rlcm.training.locations import located
from rlcm.training.passed import passed, require_clock, require_watcher
from rlcm.training.pins import Pins, agree, flat, require_same
from rlcm.training.run_settings import CLOCKS
from rlcm.training.watch import Watch, flat_summary


class Whole(NamedTuple):
    """The last round that is whole."""

    state: dict[str, Any]
    metrics: dict[str, float]
    """Of the round; nothing where they are on disk from before."""


class Watcher(Protocol):
    """Is told what a trainer does; see `rlcm.tuning.progress`."""

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
        rewards: in place of `config.rewards`: functions, names, and mixes of both with weights; see `rlcm.types.Reward`.
        prompts: prompts in place of `config.prompts`.
        watcher: is told of every round.
        stopped: a run to go on with; `resume` passes it.

    Raises:
        UsageError: if the settings do not fit together, before anything expensive and before anything is written.
    """

    @usual_torch()
    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        model: Any = None,
        rewards: Rewards | None = None,
        prompts: Sequence[str] | None = None,
        watcher: Watcher | None = None,
        stopped: Stopped | None = None,
    ) -> None:
        require_watcher(watcher)
        config, model, rewards = passed(config, model, rewards)
        require_tracker(config.run.tracker)
        self.watcher = watcher
        self.world = World.join(config.run.timeout_seconds, config.model.device)
        with self.world.guarded():
            self._assemble(config, model, rewards, prompts, stopped)
            if stopped is not None:
                self._go_on(stopped)

    def _assemble(
        self,
        config: TrainConfig,
        pipeline: Any,
        rewards: Rewards | None,
        prompts: Sequence[str] | None,
        stopped: Stopped | None,
    ) -> None:
        require_clock(config, pipeline, self.world.size)
        require_same(self.world, flat(config), "start all of them with the same CONFIG and KEY=VALUE.")
        config = located(config)

        def check(pins: Pins) -> None:
            agree(self.world, pins)
            self._pins = pins
            with self.world.together():
                self._insisted, notes = stopped.compare(pins) if stopped else ([], [])
            for text in notes:
                self._note(text)

        self.parts: Parts = build(
            config, pipeline=pipeline, rewards=rewards, prompts=prompts, check=check, processes=self.world.size
        )
        config = resolved(config, self.parts, pipeline, rewards, prompts)
        self.config = config = config.model_copy(update={"name": self.world.from_main(config.name)})
        if config.run.sharding == "fsdp2":
            shard(self.parts.policy, self.world)
        self._clock = CLOCKS[config.run.clock]
        self.learner = Learner(self.parts, config, self.world, self._note)
        self._kept = Keeper(self.parts, config, self.world, self._note)
        self.round_number = 0
        self.counters = {"seconds": 0.0, "reward_queries": 0, "network_calls": 0}
        self.evaluations: list[dict[str, Any]] = []
        self.altered: list[dict[str, Any]] = []
        """After which rounds it went on with something that changes its meaning, and with what: see `Stopped`."""
        kept = config.evaluation
        self.watch = Watch(kept.best, kept.patience, kept.least)
        self.stop_reason: str | None = None
        self.interrupted_by = 0
        """The number of the signal that asked `train` to stop, of any process, also where the run came to its end all the same."""
        self._by_hand = False  # whether `round` was called, which tells no file
        self._whole: Whole | None = None  # kept while what is in memory may be half of a round

    @classmethod
    def resume(cls, run: Any, changes: Sequence[str] | None = None, *, force: bool = False, **objects: Any) -> Trainer:
        """Return the trainer of a run, as it was at its newest whole checkpoint.

        Args:
            run: the run's folder, or its `Result`.
            changes: other settings of `run` from here on, as KEY=VALUE; run.rounds=200 makes it longer, a finished run too, and
                evaluation.final=best gives one its best weights as the result.
            force: go on although prompts, rewards, weights or settings are others than before, and so what is learnt or measured.
            objects: model, rewards and prompts that were passed as objects to the first trainer, and the watcher.

        Raises:
            MissingFileError: if the folder holds no run.
            CheckpointError: if there is no whole checkpoint.
            ConfigError: if it would go on with something else than before, and `force` is not set; see `rlcm.training.pins`.
            RunDirectoryError: if another process is training it.
        """
        if unknown := sorted(objects.keys() - {"model", "rewards", "prompts", "watcher"}):
            raise ConfigError(f"Trainer.resume takes no {unknown[0]}; settings are changes, such as ['run.rounds=200'].")
        if not isinstance(force, bool):
            raise ConfigError(f"force={force!r} is neither True nor False.")
        changes = [changes] if isinstance(changes, str) else () if changes is None else changes
        config, stopped = stopped_run(given_folder(run).absolute(), changes, force=force)
        return cls(config, stopped=stopped, **objects)

    def _go_on(self, stopped: Stopped) -> None:
        """Take up a run where its newest whole checkpoint left it, or at its beginning."""
        run, checkpoint = stopped.run, stopped.checkpoint
        number = checkpoint.round if checkpoint else 0
        if self.world.from_main(number) != number:
            raise CheckpointError(
                f"process {self.world.rank} finds round {number} in {run} and process 0 another one; let all machines see the same "
                "folder."
            )
        if checkpoint is not None:
            self._load_state(checkpoint.state)
        if self._insisted:
            self.altered.append({"round": number, "what": self._insisted})
        self._kept.take_up(run, self.round_number, self.evaluations, changed=bool(stopped.changes))
        self._kept.depends_on(self._pins.state(), self.altered)
        for text in stopped.damaged:
            self._note(f"{text}; going on from checkpoint-{number:06d} instead")
        planned, limit = self.config.run.rounds, self.config.run.time_limit_minutes
        after = f"after round {number} of {planned}" if checkpoint else "from the beginning: no checkpoint yet"
        over = ""
        if number > planned:
            over = f"{number} rounds are done, and run.rounds={planned} asks for no more"
        elif self.stop_reason is not None:
            over = self.stop_reason
            if over == self.watch.impatience() and self.progress < 1:
                over += "; with a larger evaluation.patience, or null, it would go on"
        elif self._is_over() and number < planned:
            over = f"run.time_limit_minutes={limit:g} is used up; with a larger one, or null, it would go on"
        self._note(f"{over}: the run ends as it is after round {number}" if over else f"going on {after}")

    @usual_torch()
    def train(self) -> Path:
        """Run all rounds that are left and return the run's folder, with the tuned LoRA in `final/`.

        An interrupt (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or 2) ends it after the present round with a checkpoint, and is left in
        `interrupted_by`: a program that trains several times looks there before it goes on. A second one keeps the last whole
        round, and then does what it did before `train`: Ctrl-C raises KeyboardInterrupt, and SIGTERM ends the process.

        Raises:
            ConfigError: if rounds were made by `round` before: no file says anything of them.
            RunDirectoryError: if another trainer has gone on with the run since this one was made.
            RLCMError: and its children; what was written before stays, and the last whole round is kept.
        """
        if self._by_hand:
            raise ConfigError(
                f"Trainer.train() after Trainer.round(): the rounds up to {self.round_number} are in no file, and the base model was "
                "not measured before them. Let train() make all rounds of a run, or make all of them by round()."
            )
        with Interrupts(self._note, self._save_whole) as interrupts, self.world.guarded(), ExitStack() as stack:
            for mix in filter(None, (self.parts.rewards, self.parts.evaluator.held_out)):
                stack.callback(setattr, mix, "stop_wanted", mix.stop_wanted)
                mix.stop_wanted = lambda: interrupts.wanted
            directory = self._kept.directory or self._begin()
            with self.world.together():
                if self.world.is_main:
                    stack.callback(directory.hold().release)
                    directory.require_round(self.round_number)
            try:
                if not self.evaluations:
                    self._evaluate("base")
                elif self._is_due() and self.evaluations[-1]["round"] < self.round_number:  # it failed, which ended the run
                    self._evaluate("tuned")
                finished = self._rounds(directory, interrupts)
                if finished and self.evaluations[-1]["round"] < self.round_number:
                    self._evaluate("tuned")
            except Exception as error:
                self.interrupted_by = interrupts.by
                if self.round_number or not isinstance(error, ConfigError):  # else going on would end the same way
                    self._kept.whole_rounds(directory, error, lambda: self._whole.state if self._whole else self._state())
                raise
            except BaseException:  # such as sys.exit() in a callback
                interrupts.keep()
                raise
            if finished:
                if self.config.evaluation.final == "best" and not self.watch.best["round"]:
                    floors = " within evaluation.least" if self.watch.least else ""
                    found = f"no evaluation{floors} had a better {self.watch.metric} than the base model"
                    self._note(f"evaluation.final=best has no effect: {found}, so final/ has the last weights")
                self._kept.checkpoint(self._state)
                self._kept.result(directory, self.final_round, self.evaluations, self.altered)
            self.interrupted_by = int(self.world.largest(interrupts.by))
        return directory.path

    def _begin(self) -> RunDirectory:
        directory = self._kept.begin()
        self._kept.depends_on(self._pins.state(), self.altered)
        return directory

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
            self._keep_whole()
            while not self._is_over():
                if self.world.any(interrupts.wanted):
                    self._kept.checkpoint(self._state)
                    again = going_on(directory.path)
                    self._note(f"stopped after round {self.round_number}; go on with: {again}")
                    return False
                metrics = self._round()
                self._keep_whole(metrics)
                is_due = self._is_over() or self._is_due()
                failed: Exception | None = None
                try:
                    if is_due:
                        metrics |= self._evaluate("tuned")
                except Exception as error:  # the round was learnt all the same
                    failed = error
                with self.world.together():
                    if self.world.is_main:
                        directory.add_metrics(metrics)
                        tracker.log(metrics, self.round_number)
                if failed is not None:
                    raise failed
                if is_due:
                    self._keep_whole(metrics)
                if self.watcher and self.world.is_main:
                    self.watcher.round(dict(metrics), settings.rounds)
                if settings.save_every and self.round_number % settings.save_every == 0 and not self._is_over():
                    self._kept.checkpoint(self._state)
        return True

    def _keep_whole(self, metrics: dict[str, float] | None = None) -> None:
        """Hold on to the present state, which is that of a whole round, and to the metrics of the round."""
        if self.world.is_main:
            self._whole = Whole(deepcopy(self._state()), dict(metrics or {}))

    def _save_whole(self) -> None:
        """Write the last whole round to disk, if it is not there; called at any point, also beside a main thread that hangs."""
        if self._whole is not None and self._kept.directory is not None:
            self._kept.in_haste(self._kept.directory, self._whole.state, self._whole.metrics)

    def _is_due(self) -> bool:
        """Whether an evaluation follows the present round."""
        every = self.config.evaluation.every
        return every > 0 and self.round_number % every == 0

    @property
    def progress(self) -> float:
        """The share of the run that is over, 0 .. 1: of its rounds or of its time, whichever is the larger."""
        return self.config.run.progress(self.round_number, self.counters["seconds"])

    def _is_over(self) -> bool:
        return self.progress >= 1 or self.stop_reason is not None

    @usual_torch()
    def round(self) -> dict[str, float]:
        """Sample, score and learn once; return the round's metrics.

        For loops of your own: it measures nothing before and writes no file, and `train` does not go on from it.
        """
        self._by_hand = True
        return self._round()

    def _round(self) -> dict[str, float]:
        started = self._clock()
        learnt = self.learner.round(self.round_number + 1, self.progress)
        seconds = self._clock() - started

        self.round_number += 1
        # The clock of one process counts for all, as what follows it must be the same on all.
        self.counters["seconds"] = self.world.from_main(self.counters["seconds"] + seconds)
        self.learner.follow(learnt, self.progress)
        self.counters["reward_queries"] += learnt.reward_queries
        self.counters["network_calls"] += learnt.network_calls
        scores = learnt.scores
        found = scores.total[scores.valid]
        return {
            "round": self.round_number,
            "progress": self.progress,
            **self.counters,
            "reward": found.mean().item(),
            "reward_std": found.std().item(),
            **{f"rewards/{label}": values[scores.valid].mean().item() for label, values in scores.parts.items()},
            "dropped_images": float((~scores.valid).sum()),
            **learnt.metrics,
            "images_per_second": len(scores.total) / seconds,
        }

    def _evaluate(self, name: str) -> dict[str, float]:
        """Evaluate the policy, keep what is best, and return the figures for the metrics."""
        evaluator = self.parts.evaluator
        if at_an_end := self._is_over() or not self.evaluations:
            self._note(f"measuring the {name} model on {len(evaluator.prompts)} fixed images ...")
        evaluation = evaluator(self.parts.policy, self.world)
        summary = evaluation.summary()
        verdict = self.watch.look(summary, self.round_number)
        described = {"round": self.round_number, "name": name, "seconds": self.counters["seconds"]}
        described["steps"] = len(self.parts.evaluator.table)
        if not self.evaluations:
            described["each"] = evaluation.each()
        elif before := self.evaluations[0].get("each"):
            described["change"] = evaluation.change(before)
        self.evaluations.append(described | summary)
        if not at_an_end:
            self._note(on_the_way(self.evaluations[0], self.evaluations[-1]))
        self._kept.evaluation(evaluation, self.round_number, self.evaluations, is_best=verdict.is_best)
        if verdict.stop:
            self.stop_reason = verdict.stop
            self._note(f"stopped after round {self.round_number}: {verdict.stop}")
        return {f"eval/{key}": value for key, value in flat_summary(summary).items()}

    @property
    def directory(self) -> RunDirectory | None:
        """The run's folder, once it is there."""
        return self._kept.directory

    @property
    def final_round(self) -> int:
        """The round after which the policy was as `final/` has it."""
        best = int(self.watch.best["round"]) if self.config.evaluation.final == "best" else 0
        return best or self.round_number

    @property
    def evaluations_to_final(self) -> list[dict[str, Any]]:
        """The evaluations from the base model's to that of the weights in `final/`."""
        return up_to(self.final_round, self.evaluations)

    def _note(self, text: str) -> None:
        if self.watcher and self.world.is_main:
            self.watcher.note(text)

    def _state(self) -> dict[str, Any]:
        return {
            "round": self.round_number,
            "counters": self.counters,
            "evaluations": self.evaluations,
            "watch": self.watch.state_dict(),
            "stop_reason": self.stop_reason,
            "depends_on": self._pins.state(),
            "altered": self.altered,
        } | self.learner.state_dict()

    def _load_state(self, state: dict[str, Any]) -> None:
        try:
            self.round_number = state["round"]
            self.counters = {key: type(value)(state["counters"][key]) for key, value in self.counters.items()}
            self.evaluations = [{**found, "round": int(found["round"])} for found in state["evaluations"]]
            self.watch.load_state_dict(state["watch"])
            if state["stop_reason"]:  # unless the settings are others now
                self.stop_reason = self.watch.below(self.evaluations[-1]) or self.watch.impatience()
            self.altered = list(state.get("altered", []))  # not in those from before it was kept
            self.learner.load_state_dict(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the run's configuration ({error}); resume with the config.yaml, the model and the "
                "rewards of the first run."
            ) from error
