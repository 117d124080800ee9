"""A training in one call."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm.builtin import configuration
from rlcm.errors import ConfigError, RLCMError
from rlcm.processes.distributed import is_main_process
from rlcm.rewards.boundary import UserCode
from rlcm.rewards.given import Rewards
from rlcm.rewards.user import signature_of
from rlcm.training.beginning import require_free_name
from rlcm.training.config import TrainConfig, checked, load_config, parse_settings
from rlcm.training.defaults import changed, without_following
from rlcm.training.trainer import Trainer, Watcher
from rlcm.tuning.progress import ConsoleProgress
from rlcm.tuning.result import Result
from rlcm.tuning.saying import quiet

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rlcm.training.config import Values


def train(
    config: TrainConfig | Path | str | None = None,
    *,
    model: Any = None,
    rewards: Rewards | None = None,
    prompts: str | Sequence[str] | None = None,
    progress: bool = True,
    callback: Callable[[dict[str, float]], Any] | Watcher | None = None,
    **settings: Unpack[Values],
) -> Result:
    """Tune a model to rewards and return what came of it.

        result = rlcm.train(rewards=darkness, prompts=["a fox", "three frogs"], rounds=20)
        result.draw("a fox")

    Args:
        config: settings; the path of a YAML file; `"demo"` or `"published"`; left out, the defaults, which tune the built-in model.
        model: a loaded diffusers pipeline, a folder, an id of the Hugging Face Hub, or a run to go on from: its folder or `Result`.
        rewards: in place of the configuration's: a function of images [B, 3, h, w] and prompts, a name, a list, or
            `{function: 1, "alignment": 0.5}`.
        prompts: in place of the configuration's: a list, a built-in set, or a file.
        progress: show how far it is, in a terminal or a notebook.
        callback: is called with the metrics of every round; or an object with the methods of `rlcm.training.trainer.Watcher`.
        settings: changes of the configuration, as `TrainConfig` takes them: `rounds=20`, `lr=1e-3`, `lora={"rank": 8}`.

    Raises:
        UsageError: if something does not fit together, before anything expensive and before anything is written.
        RLCMError: and its children, while it runs; what was written before stays, and `rlcm train --resume` goes on.
        KeyboardInterrupt: after Ctrl-C, once the present round is saved. SIGTERM and a closed terminal then end the program, too.
    """
    quiet()
    changes: dict[str, Any] = {**settings, **({"prompts": prompts} if isinstance(prompts, str) else {})}
    resolved = _changed(_read(config), changes)
    require_free_name(resolved)  # before the model is loaded
    watchers: list[Watcher] = [] if callback is None else [_watcher(callback)]
    with ExitStack() as stack:
        if progress and is_main_process():
            watchers.append(stack.enter_context(ConsoleProgress()))
        trainer = Trainer(
            resolved,
            model=model.path if isinstance(model, Result) else model,
            rewards=rewards,
            prompts=None if isinstance(prompts, str) else prompts,
            watcher=_Both(watchers),
        )
        try:
            folder = trainer.train()
        except RLCMError:
            _hand_on(trainer)
            raise
    trainer.world.leave()
    _hand_on(trainer)
    return Result(folder)


def _hand_on(trainer: Trainer) -> None:
    """Let the signal that stopped a training do what it did before: whoever called may be about to train again."""
    if trainer.interrupted_by:
        signal.raise_signal(trainer.interrupted_by)


def _read(config: TrainConfig | Path | str | None) -> TrainConfig:
    if isinstance(config, TrainConfig):
        return checked(config)
    if config is not None and not isinstance(config, (str, Path)):
        raise ConfigError(
            f"config={config!r} is a {type(config).__name__}; give a TrainConfig, the path of a YAML file, 'demo' or 'published'."
        )
    return load_config(configuration(None if config is None else str(config)))


def _changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration with changes in the form of `TrainConfig(...)`."""
    if not changes:
        return config
    return parse_settings(TrainConfig, changed(without_following(config.model_dump(exclude_unset=True)), changes))


def _watcher(callback: Any) -> Watcher:
    """Return what is told of the rounds: an object with the methods of a watcher, or a function.

    Raises:
        ConfigError: if it is neither.
    """
    if not isinstance(callback, type) and hasattr(callback, "round") and hasattr(callback, "note"):
        _refuse_postponed(callback.round)
        return _Callback(callback.round, callback.note)
    _refuse_postponed(callback)
    signature = signature_of(callback) if callable(callback) else None
    try:
        if not callable(callback):
            raise TypeError("it is no function")
        if signature is not None:
            signature.bind({})
    except TypeError as error:
        raise ConfigError(
            f"callback={callback!r} cannot be called with the metrics of a round ({error}); give a function of one argument, a dict, "
            "or an object with the methods `round` and `note`."
        ) from None
    return _Callback(lambda metrics, _: callback(metrics), lambda text: None)


def _refuse_postponed(function: Any) -> None:
    """Refuse what would be called and never run."""
    for one in (function, vars(type(function)).get("__call__")):
        if inspect.iscoroutinefunction(one) or inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one):
            raise ConfigError(
                f"callback={function!r} would be called and not run, as it is an async or a generator function; give a plain one, "
                "without async and yield."
            )


class _Callback:
    """Tells user code of every round; the state of the process is as before after every call."""

    def __init__(self, of_round: Callable[[dict[str, float], int], Any], of_note: Callable[[str], Any]) -> None:
        self._round, self._note, self._code = of_round, of_note, UserCode("the callback")

    def note(self, text: str) -> None:
        self._code.here(lambda: self._note(text))

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        self._code.here(lambda: self._round(metrics, rounds))


class _Both:
    """Tells several watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = watchers

    def note(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.note(text)

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        for watcher in self.watchers:
            watcher.round(dict(metrics), rounds)  # its own: what one of them does to it, the next does not see
