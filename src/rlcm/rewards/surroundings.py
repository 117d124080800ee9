"""What belongs to the whole process and not to a reward: looked at before user code and after it, and put back."""

from __future__ import annotations

import contextlib
import locale
import logging
import operator
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Trait(NamedTuple):
    """Something of the process on which a run's results or its words depend."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    is_harmed: Callable[[Any, Any], bool] = operator.ne
    """Whether the second state, where the first was before, is to be put back."""


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set in the old way and in the new one; setting it in the old way makes it one again
        return "mixed"


def _cudnn() -> tuple[bool, ...]:
    found = torch.backends.cudnn
    try:
        return found.enabled, found.benchmark, found.deterministic, found.allow_tf32
    except RuntimeError:
        return ()


def _set_cudnn(flags: tuple[bool, ...]) -> None:
    for name, flag in zip(("enabled", "benchmark", "deterministic", "allow_tf32"), flags, strict=False):
        setattr(torch.backends.cudnn, name, flag)


def _reduced() -> tuple[bool, bool]:
    found = torch.backends.cuda.matmul
    return found.allow_fp16_reduced_precision_reduction, found.allow_bf16_reduced_precision_reduction


def _set_reduced(flags: tuple[bool, bool]) -> None:
    found = torch.backends.cuda.matmul
    found.allow_fp16_reduced_precision_reduction, found.allow_bf16_reduced_precision_reduction = flags


def _attention() -> tuple[bool, bool, bool]:
    found = torch.backends.cuda
    return found.flash_sdp_enabled(), found.mem_efficient_sdp_enabled(), found.math_sdp_enabled()


def _set_attention(flags: tuple[bool, bool, bool]) -> None:
    found = torch.backends.cuda
    for switch, flag in zip(
        (found.enable_flash_sdp, found.enable_mem_efficient_sdp, found.enable_math_sdp), flags, strict=True
    ):
        switch(flag)


def _tables_of_hooks() -> list[dict[Any, Any]]:
    """Return torch's own tables of hooks that every module or optimiser of the process runs, those of models included."""
    places = ("torch.nn.modules.module", "torch.optim.optimizer")  # torch takes the second one's name away
    named = [(name, value) for place in places for name, value in vars(sys.modules[place]).items()]
    return [value for name, value in named if name.startswith("_global_") and isinstance(value, dict)]


def _hooks() -> list[dict[Any, Any]]:
    return [dict(table) for table in _tables_of_hooks()]


def _set_hooks(before: list[dict[Any, Any]]) -> None:
    for table, hooks in zip(_tables_of_hooks(), before, strict=True):
        table.clear()
        table.update(hooks)
    if not torch.nn.modules.module._global_backward_hooks:
        torch.nn.modules.module._global_is_full_backward_hook = None  # of which kind all of them must be


def _are_others(before: list[dict[Any, Any]], after: list[dict[Any, Any]]) -> bool:
    """Return whether hooks were added or taken away; they are compared as objects."""
    return [[*map(id, table.values())] for table in before] != [[*map(id, table.values())] for table in after]


_TIMERS = [
    (getattr(signal, timer), getattr(signal, sent))
    for timer, sent in (("ITIMER_REAL", "SIGALRM"), ("ITIMER_VIRTUAL", "SIGVTALRM"), ("ITIMER_PROF", "SIGPROF"))
    if hasattr(signal, timer)
]
"""The process's timers, and what each sends, which ends the process unless something handles it."""


def _alarms() -> list[bool]:
    return [signal.getitimer(timer)[0] > 0 and signal.getsignal(sent) == signal.SIG_DFL for timer, sent in _TIMERS]


def _set_alarms(before: list[bool]) -> None:
    for (timer, _), was in zip(_TIMERS, before, strict=True):
        if not was:
            signal.setitimer(timer, 0)


def _set_warnings(filters: list[Any]) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _umask() -> int:
    mask = os.umask(0o077)  # there is no other way to look at it
    os.umask(mask)
    return mask


def _makes_errors(before: list[Any], after: list[Any]) -> bool:
    """Return whether more warnings are errors than before; that fewer of them are shown does no harm."""
    return any(entry[0] == "error" and entry not in before for entry in after)


TRAITS = (
    Trait("the working folder", _folder, os.chdir),
    Trait("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Trait("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Trait(
        "torch.use_deterministic_algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1]),
    ),
    Trait("torch's precision of matrix products", _matmul_precision, torch.set_float32_matmul_precision),
    Trait("the flags of torch.backends.cudnn", _cudnn, _set_cudnn),
    Trait(
        "torch.backends.mkldnn.enabled",
        lambda: torch.backends.mkldnn.enabled,
        lambda flag: setattr(torch.backends.mkldnn, "enabled", flag),
    ),
    Trait("torch's reduced precision in matrix products", _reduced, _set_reduced),
    Trait("torch's kernels of attention", _attention, _set_attention),
    Trait("torch's anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Trait("hooks of all of torch's modules or optimisers", _hooks, _set_hooks, _are_others),
    Trait(
        "an alarm that would end the process",
        _alarms,
        _set_alarms,
        lambda before, after: any(now and not was for was, now in zip(before, after, strict=True)),
    ),
    Trait("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    Trait("the default timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
    Trait("sys.stdout", lambda: sys.stdout, lambda stream: setattr(sys, "stdout", stream), operator.is_not),
    Trait("sys.stderr", lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream), operator.is_not),
    Trait("logging.disable", lambda: logging.root.manager.disable, logging.disable),
    Trait("which warnings are errors", lambda: list(warnings.filters), _set_warnings, _makes_errors),
    Trait("sys.excepthook", lambda: sys.excepthook, lambda hook: setattr(sys, "excepthook", hook), operator.is_not),
    Trait(
        "threading.excepthook",
        lambda: threading.excepthook,
        lambda hook: setattr(threading, "excepthook", hook),
        operator.is_not,
    ),
    Trait("the umask", _umask, os.umask),
    Trait("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, operator.gt),
)
"""What is put back. What belongs to a thread, such as torch's grad mode or NumPy's errstate, ends with the thread of the call; the
run's noise comes from generators of its own, so that the global ones may be seeded; environment variables stay as they were set."""


def put_back(traits: Sequence[Trait], states: Sequence[Any]) -> list[str]:
    """Put back what is not as it was, as far as that can be done; return the names of it."""
    changed = []
    for trait, before in zip(traits, states, strict=True):
        if trait.is_harmed(before, trait.read()):
            changed.append(trait.name)
            with contextlib.suppress(Exception):  # such as a folder that was removed
                trait.write(before)
    return changed


class Surroundings:
    """The state of the process while no user code is at work, against which it is compared.

    Calls that overlap are looked at together, when the last of them ends: what one changes for a while, such as the default dtype
    while a model is loaded, is neither taken for another's beginning nor put back under its feet.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: set[object] = set()
        self._names: list[str] = []
        self._before: list[Any] = []

    def enter(self, name: str) -> object:
        """Take note of the state, where no user code is at work yet; return what `leave` wants to have."""
        visit = object()
        with self._lock:
            if not self._inside:
                self._before = [trait.read() for trait in TRAITS]
                self._names = []
            self._inside.add(visit)
            if name not in self._names:
                self._names.append(name)
        return visit

    def leave(self, visit: object) -> tuple[str, list[str]]:
        """Put back what has changed once nobody is inside; return who may have changed it, and what it was."""
        with self._lock:
            if visit not in self._inside:  # it was given up
                return "", []
            self._inside.remove(visit)
            if self._inside:
                return "", []
            return " or ".join(self._names), put_back(TRAITS, self._before)
