"""The faults, each with what is put into a process, and which exit codes of it are right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlcm.learning import optimisation, updates
from rlcm.runs import checkpoint as checkpoints
from rlcm.training import build as building
from rlcm.training import evaluate, keeping, trainer

Fault = Callable[[], None]


@dataclass
class Case:
    """A fault."""

    name: str
    fault: Fault
    expected: tuple[int, ...]
    """Exit codes of the first process that are right."""
    settings: tuple[str, ...] = ()
    processes: int = 1
    disk: str = ""
    """`size=...` of the tmpfs that holds the run, or `read-only`, or nothing for the ordinary disk."""
    before: Callable[[Path], None] | None = None
    """Done to a run of one round less that ended well, in place of a fault: the command is then a resumption."""
    same: bool = True
    """Whether the LoRA must be that of the undisturbed run byte for byte, or only to 1e-4."""


def in_reward(call: int, act: Callable[[Any], Any], rank: int = 0) -> Fault:
    """Let `act` see, and change, what the reward answers at its n-th call: 1 is the first evaluation, n + 1 round n."""

    def inject() -> None:
        real, calls = building.build, [0]

        def build(*arguments: Any, **options: Any) -> Any:
            parts = real(*arguments, **options)
            first = parts.rewards.parts[0]
            act_here = on_rank(rank, act) if "RANK" in os.environ else act

            def reward(images: Any, prompts: Any) -> Any:
                calls[0] += 1
                answer = first.reward(images, prompts)
                return act_here(answer) if calls[0] == call else answer

            parts.rewards.parts[0] = first._replace(reward=reward)
            return parts

        trainer.build = build  # type: ignore[assignment]

    return inject


def raises(answer: Any) -> Any:
    """Fail as a user's code does."""
    raise ZeroDivisionError("a bug of the user's")


def on_rank(rank: int, act: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what acts on one process only."""
    return lambda seen: act(seen) if os.environ.get("RANK") == str(rank) else seen


def nan(answer: Any) -> Any:
    """Answer with one number that is none."""
    answer = torch.as_tensor(answer).clone().float()
    answer[1] = float("nan")
    return answer


def hangs(answer: Any) -> Any:
    """Never answer."""
    time.sleep(1000)
    return answer


def own_signal(number: int, times: int = 1) -> Callable[[Any], Any]:
    """Return what sends this process a signal."""

    def send(answer: Any) -> Any:
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        return answer

    return send


def around(owner: Any, name: str, call: int, act: Callable[[Any], Any], last: int | None = None) -> Fault:
    """Let `act` happen before the n-th call of a function, and all calls up to the `last`."""

    def inject() -> None:
        real, calls = getattr(owner, name), [0]

        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if call <= calls[0] <= (call if last is None else last):
                act(arguments)
            return real(*arguments, **options)

        setattr(owner, name, wrapped)

    return inject


def spoil_gradients(arguments: Any) -> None:
    """Put a NaN into a gradient."""
    parameter = arguments[0].policy.parameters[0]
    parameter.grad = torch.full_like(parameter, float("nan"))


def too_large(limit: int, argument: int) -> Callable[[Any], None]:
    """Return what runs out of memory for an argument of more than `limit` rows."""

    def act(arguments: Any) -> None:
        if len(arguments[argument]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB (simulated)")

    return act


def nothing() -> None:
    """Inject nothing."""


def truncated(run: Path) -> None:
    """Cut the newest checkpoint short."""
    file = sorted(run.glob("checkpoint-*"))[-1] / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def flipped(run: Path) -> None:
    """Turn one bit of the newest checkpoint."""
    file = sorted(run.glob("checkpoint-*"))[-1] / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def all_flipped(run: Path) -> None:
    """Damage every checkpoint."""
    for folder in run.glob("checkpoint-*"):
        (folder / "checksums.json").write_text("{}")


def torn(run: Path) -> None:
    """Leave what a crash leaves: half a line of metrics, half a checkpoint."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"round": 3, "rew')
    (run / ".checkpoint-000003.partial").mkdir()


DISK_SIZES = ("4k", "12k", "24k", "48k", "100k", "1500k", "2300k", "3500k", "5000k", "5600k", "6100k")
CASES = [
    Case("a reward raises in round 2", in_reward(3, raises), (1,)),
    Case("a reward answers NaN in round 2", in_reward(3, nan), (1,)),
    Case("a reward raises in the first evaluation", in_reward(1, raises), (1,)),
    Case("a reward raises in the last evaluation", in_reward(5, raises), (1,)),
    Case("one gradient is NaN", around(optimisation.Optimisation, "gather_gradients", 2, spoil_gradients), (0,), same=False),
    Case("all gradients are NaN from round 2 on", around(optimisation.Optimisation, "gather_gradients", 2, spoil_gradients, 999),
         (1,), ("run.rounds=6",), same=False),
    Case("out of memory learning from more than one state", around(updates.PolicyGradient, "loss", 1, too_large(1, 1), 999), (0,),
         same=False),
    Case("out of memory learning from one state", around(updates.PolicyGradient, "loss", 1, too_large(0, 1), 999), (1,)),
    Case("out of memory sampling more than 2 images", around(evaluate.Evaluator, "_draw", 1, too_large(2, 2), 999), (0,), same=False),
    *[
        Case(f"{signal.Signals(number).name} in {phase}", in_reward(call, own_signal(number)), (0,))
        for phase, call, number in (
            ("the first evaluation", 1, signal.SIGTERM),
            ("sampling", 2, signal.SIGTERM),
            ("sampling", 2, signal.SIGINT),
            ("the last evaluation", 5, signal.SIGTERM),
        )
    ],
    Case("SIGTERM while the model is loaded", around(building, "load_pipeline", 1, own_signal(signal.SIGTERM)), (143,)),
    Case("SIGTERM in an update", around(optimisation.Optimisation, "step", 1, own_signal(signal.SIGTERM)), (0,)),
    Case("SIGTERM while a checkpoint is written", around(checkpoints, "save_state", 1, own_signal(signal.SIGTERM)), (0,)),
    Case("SIGTERM while the tuned LoRA is written", around(keeping, "save_final", 1, own_signal(signal.SIGTERM)), (0,)),
    Case("SIGTERM twice in round 1", in_reward(2, own_signal(signal.SIGTERM, 2)), (143,)),
    Case("kill -9 while a checkpoint is written", around(checkpoints, "save_state", 2, own_signal(signal.SIGKILL)), (-9,)),
    Case("the newest checkpoint is cut short", nothing, (0,), before=truncated),
    Case("a bit of the newest checkpoint is flipped", nothing, (0,), before=flipped),
    Case("all checkpoints are damaged", nothing, (1,), before=all_flipped),
    Case("half a line of metrics, half a checkpoint", nothing, (0,), before=torn),
    Case("the output folder is read-only", nothing, (2,), disk="read-only"),  # refused with the settings
    *[Case(f"disk full at {size}B", nothing, (0, 1), disk=f"size={size}") for size in DISK_SIZES],
    Case("of 2 processes, one's reward raises in round 2", in_reward(3, raises, 1), (1,), processes=2, same=False),
    Case("of 2 processes, one hits a bug in round 2", around(optimisation.Optimisation, "step", 2, on_rank(1, raises)), (1,),
         processes=2, same=False),
    Case("of 2 processes, one is killed in round 2", in_reward(3, own_signal(signal.SIGKILL), 1), (1,), processes=2, same=False),
    Case("of 2 processes, one hangs in round 2", in_reward(3, hangs, 1), (1,), ("run.timeout_seconds=15",), processes=2, same=False),
    Case("of 2 processes, one gets SIGTERM in round 2", in_reward(3, own_signal(signal.SIGTERM), 1), (0,), processes=2, same=False),
]  # fmt: skip
