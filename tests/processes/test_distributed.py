"""Several processes are one: gathered rows, summed gradients, shared errors, and runs whose result is that of one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rlcm.errors import ConfigError, ProcessError, RewardError
from rlcm.processes.distributed import World
from rlcm.processes.sharding import shard
from rlcm.rewards import RewardMix, RewardPart
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.runs.serialization import load_state, save_state

multiprocessing.set_forkserver_preload(["diffusers", "transformers", __name__, "tiny_runs", "rlcm.training.trainer"])


def on_processes(work, folder: Path, count: int = 2) -> list[dict]:
    """Run `work(folder)` on several processes that can find each other, and return the states that they return."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # All of them are forked from one process that has imported what they need, which takes longer than most of their work.
    torch.multiprocessing.start_processes(_process, (work, str(folder), count, port), nprocs=count, start_method="forkserver")
    return [load_state(folder / f"{rank}.safetensors") for rank in range(count)]


def _process(rank: int, work, folder: str, count: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    save_state(Path(folder) / f"{rank}.safetensors", work(Path(folder)))


def _collectives(folder: Path) -> dict:
    world = World.join(60)
    rank = world.rank
    rows = torch.arange(6.0).view(3, 2) + 100 * rank
    shared, alone, unused = (nn.Parameter(torch.zeros(size)) for size in ((2, 2), (3,), (1,)))
    shared.grad = torch.full((2, 2), 1.0 + rank)
    if rank == 1:
        alone.grad = torch.arange(3.0)
    world.sum_gradients([shared, alone, unused])
    values = torch.tensor([1.0, 2.0]) * (rank + 1)
    total = world.sum(values)
    world.barrier()
    found: dict = {
        "any": [world.any(rank == 1), world.any(False)],
        "largest": world.largest(float(rank)),
        "gathered": world.gather({"rank": rank, "text": "\u00e9" * rank}),
        "from main": world.from_main([rank, 0.1]),
        "rows": [list(map(int, part)) for part in world.rows(1)],
        "joined": World.join(60).size,
    }
    world.is_lockstep = True
    found["rows in lockstep"] = [list(map(int, part)) for part in world.rows(3)]
    found["together"] = _raised(world, lambda: None)
    found["own error"] = _raised(world, lambda: [KeyError("a bug"), None][rank])
    found["told error"] = _raised(world, lambda: [None, RewardError("a reward")][rank])
    found |= {
        "rank": world.rank,
        "size": world.size,
        "main": world.is_main,
        "share": list(world.share(5)),
        "uneven": world.gather_rows(rows[: 1 + 2 * rank]),
        "none of one": world.gather_rows(rows[: 3 * rank]),
        "flags": world.gather_rows(torch.tensor([rank == 0])),
        "gradients": [shared.grad, alone.grad, unused.grad],
        "total": total,
        "values": values,
    }
    world.leave()
    return found | {"alone": World().size}


def _raised(world: World, error) -> str:
    """Return what `together` raises when this process raises what `error` returns, and whether all know of it."""
    try:
        with world.together():
            if error() is not None:
                raise error()
    except Exception as raised:
        return f"{type(raised).__name__}: {raised} {world.is_shared(raised)}"
    return "nothing"


def test_collectives(tmp_path):
    first, second = on_processes(_collectives, tmp_path)
    assert [(s["rank"], s["size"], s["main"]) for s in (first, second)] == [(0, 2, True), (1, 2, False)]
    assert first["share"] + second["share"] == list(range(5))
    expected = torch.tensor([[0.0, 1], [100, 101], [102, 103], [104, 105]])
    for state, factor in ((first, 1), (second, 2)):
        assert torch.equal(state["uneven"], expected)
        assert torch.equal(state["none of one"], expected[1:])
        assert state["flags"].tolist() == [True, False]
        shared, alone, unused = state["gradients"]
        assert torch.equal(shared, torch.full((2, 2), 3.0))
        assert torch.equal(alone, torch.arange(3.0))
        assert torch.equal(unused, torch.zeros(1))
        assert torch.equal(state["total"], torch.tensor([3.0, 6.0]))
        assert torch.equal(state["values"], factor * torch.tensor([1.0, 2.0]))
        assert state["any"] == [True, False]
        assert state["largest"] == 1
        assert state["gathered"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "\u00e9"}]
        assert state["from main"] == [0, 0.1]
        assert (state["joined"], state["alone"]) == (2, 1)
        assert state["together"] == "nothing"
    # A process without a share plays the first row along.
    assert [first["rows"], second["rows"]] == [[[0], [0]], [[], [0]]]
    assert [first["rows in lockstep"], second["rows in lockstep"]] == [[[0, 1], [0, 1]], [[2], [2, 0]]]
    assert first["own error"] == "KeyError: 'a bug' True"
    assert second["own error"] == "ProcessError: process 0 of 2: KeyError: 'a bug' True"
    assert first["told error"] == "RewardError: process 1 of 2: a reward True"
    assert second["told error"] == "RewardError: a reward True"


def test_one_process_is_a_world_of_its_own():
    world = World()
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert list(world.share(4)) == [0, 1, 2, 3]
    rows, parameter = torch.rand(3, 2), nn.Parameter(torch.zeros(2))
    assert torch.equal(world.gather_rows(rows), rows)
    assert torch.equal(world.sum(rows), rows)
    world.sum_gradients([parameter])
    assert parameter.grad is None
    world.barrier()


def test_shares_are_even_and_cover_everything():
    for size in (1, 2, 3, 8):
        for count in (size, 5 * size + 1, 64):
            parts = []
            for rank in range(size):
                world = World()
                world.rank, world.size = rank, size
                parts.append(world.share(count))
            assert [i for part in parts for i in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT is not set; start the processes by torchrun"),
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR"),
    ],
)
def test_an_incomplete_environment_says_what_is_missing(monkeypatch, environment, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert World.join(1).size == 1
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        World.join(1)


def test_others_that_do_not_come_are_an_error_in_time(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match=rf"process 1 of 2 could not meet the others at 127.0.0.1:{port}"):
        World.join(1)


@pytest.mark.parametrize(
    ("device", "rank", "message"), [("cuda:1", "0", "use model.device=cuda"), ("auto", "2", "start at most 2 processes")]
)
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, device, rank, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "3", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(ConfigError, match=message):
        World.join(1, device)


def _made(folder: Path, images: list | None = None, **changes):
    """Return the trainer of a short run; its reward keeps the images that it sees."""
    from tiny_runs import PROMPTS, brightness, lcm_pipeline, tiny_config

    from rlcm.training.trainer import Trainer

    def reward(pictures, prompts):
        if images is not None:
            images.append(pictures)
        return brightness(pictures, prompts)

    reward.__name__ = "brightness"
    return Trainer(tiny_config(folder, **changes), model=lcm_pipeline(), rewards=[reward], prompts=PROMPTS)


EVERYTHING = {
    "lora": {"ema_decay": 0.9},
    "algorithm": {"kl_coefficient": 0.1, "inner_epochs": 2, "minibatches": 2, "clip_range": 0.01},
    # eps far above the gradients: Adam's first steps are the sign of a gradient, rounding included, where it is tiny.
    "optimizer": {"lr": 1e-3, "eps": 1e-4},
}


def _rounds(folder: Path) -> dict:
    """Learn for five rounds and say what was seen, and what the adapter was after the first and the last."""
    images: list = []
    made = _made(folder / "runs", images, **EVERYTHING)
    metrics, adapters = [], []
    for _ in range(5):
        metrics.append(made.round())
        adapters.append({name: p.detach().clone() for name, p in made.parts.policy.named_parameters.items()})
        images.append(torch.zeros(0))
    first = images[: next(i for i, part in enumerate(images) if not len(part))]
    return {"metrics": metrics, "first": adapters[0], "last": adapters[-1], "images": torch.cat(first)}


def largest(one: dict, other: dict) -> float:
    return max(float((value - other[name]).detach().abs().max()) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_rounds_do_not_depend_on_the_number_of_processes(tmp_path, count):
    single = _rounds(tmp_path / "single")
    states = on_processes(_rounds, tmp_path, count)
    assert (torch.cat([state["images"] for state in states]) - single["images"]).abs().max() < 1e-6
    for state in states:
        assert largest(state["first"], single["first"]) < 1e-6
        assert largest(state["last"], single["last"]) < 1e-4
        assert largest(state["last"], states[0]["last"]) == 0
        for row, expected in zip(state["metrics"], single["metrics"], strict=True):
            for key in ("reward", "reward_std", "loss", "grad_norm", "kl"):
                assert row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
            for key in ("network_calls", "reward_queries", "skipped_updates"):
                assert row[key] == expected[key]
    assert largest(single["last"], single["first"]) > 1e-4


def _round(folder: Path, old_policy: str = "auto") -> dict:
    """Learn from one round of five trajectories in five minibatches: in each, one of two processes has nothing to do."""
    from tiny_runs import PROMPTS, brightness, lcm_pipeline, tiny_config

    from rlcm.training.trainer import Trainer

    config = tiny_config(
        folder,
        rollout={"batch_size": 10, "branches": 2, "branch_schedule": "uniform"},
        algorithm={
            "minibatches": 5,
            "kl_coefficient": 0.1,
            "advantage": "batch",
            "clip_range": 0.01,
            "old_policy": old_policy,
        },
        optimizer={"lr": 1e-3, "eps": 1e-4},
    )
    made = Trainer(config, model=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS)
    if old_policy == "learning":  # the mismatch of a rounding that does not depend on how the states are shared out
        denoiser, real = made.parts.policy.denoiser, made.parts.policy.denoiser.denoise
        denoiser.denoise = lambda x, step, conditions: real(x, step, conditions) + 0.05 * (not torch.is_grad_enabled())
    metrics = made.round()
    return {"metrics": metrics, "adapter": dict(made.parts.policy.named_parameters)}


def _round_with_means_of_learning(folder: Path) -> dict:
    return _round(folder, "learning")


@pytest.mark.slow
@pytest.mark.parametrize("play", [_round, _round_with_means_of_learning])
def test_a_round_on_two_processes_is_that_of_one(tmp_path, play):
    single = play(tmp_path)
    for state in on_processes(play, tmp_path):
        for key in ("reward", "reward_std", "rewards/brightness", "loss", "grad_norm", "kl", "ratio_deviation_max"):
            assert state["metrics"][key] == pytest.approx(single["metrics"][key], rel=1e-4, abs=1e-6)
        for key in ("network_calls", "reward_queries", "skipped_updates", "clip_fraction"):
            assert state["metrics"][key] == single["metrics"][key]
        for name, value in single["adapter"].items():
            # Where a gradient is nearly 0, Adam makes much of its rounding, which differs between kinds of CPU.
            assert (state["adapter"][name] - value).abs().max() < 5e-6
    assert single["metrics"]["grad_norm"] > 0


def _sharded(folder: Path, old_policy: str = "auto") -> dict:
    """Train for two rounds with the frozen weights shared out; the batch leaves one process a trajectory less."""
    everything = EVERYTHING | {"algorithm": EVERYTHING.get("algorithm", {}) | {"old_policy": old_policy}}
    made = _made(
        folder / "runs", None, **everything, rollout={"batch_size": 3}, run={"sharding": "fsdp2", "micro_batch_size": 2}
    )
    weights = [getattr(p, "to_local", lambda p=p: p)().numel() for p in made.parts.policy.denoiser.module.parameters()]
    own = sum(p.numel() for p in made.parts.policy.parameters)
    made.train()
    final = (made.directory.path / "final/pytorch_lora_weights.safetensors").read_bytes() if made.world.is_main else b""
    return {
        "frozen": sum(weights) - own,
        "adapter": dict(made.parts.policy.named_parameters),
        "final": len(final),
        "evaluations": [look["reward"]["mean"] for look in made.evaluations],
    }


def _sharded_with_means_of_learning(folder: Path) -> dict:
    return _sharded(folder, "learning")


@pytest.mark.slow
@pytest.mark.parametrize("train", [_sharded, _sharded_with_means_of_learning])
def test_sharded_weights_give_the_same_run(tmp_path, train):
    single = train(tmp_path / "single")
    states = on_processes(train, tmp_path)
    for state in states:
        assert state["frozen"] < 0.6 * single["frozen"]
        assert largest(state["adapter"], single["adapter"]) < 1e-5
        assert state["evaluations"] == pytest.approx(single["evaluations"], abs=1e-6)
    assert [state["final"] > 0 for state in states] == [True, False]


def test_a_torch_that_cannot_shard_is_named(monkeypatch):
    from tiny_runs import tiny_policy

    world = World()
    world.size = 2
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module: module)
    with pytest.raises(ConfigError, match=r"run.sharding=fsdp2 needs torch 2.7 or newer"):
        shard(tiny_policy(), world)
    monkeypatch.undo()
    policy = tiny_policy()
    next(p for p in policy.denoiser.module.parameters() if not p.requires_grad).data = torch.zeros(2, dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"weights of one precision, and this network has float16, float32"):
        shard(policy, world)


class SignalOn:
    """A watcher that sends its own process a SIGTERM after a given round."""

    def __init__(self, at: int) -> None:
        self.at, self.notes = at, []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        if metrics["round"] == self.at:
            signal.raise_signal(signal.SIGTERM)


def _resumed(folder: Path, **objects):
    from tiny_runs import PROMPTS, brightness, lcm_pipeline

    from rlcm.training.trainer import Trainer

    objects |= {"model": lcm_pipeline(), "rewards": [brightness], "prompts": PROMPTS}
    return Trainer.resume(folder / "runs/run", force=True, **objects)  # the first reward also kept the images


def _begun_on_two(folder: Path) -> dict:
    made = _made(folder / "runs", None, **EVERYTHING, evaluation={"every": 1}, run={"rounds": 3, "save_every": 0})
    made.watcher = watcher = SignalOn(1)  # only the first process gets a signal
    made.train()
    return {"round": made.round_number, "notes": watcher.notes}


def _ended_on_three(folder: Path) -> dict:
    made = _resumed(folder.parent)
    before = made.round_number
    made.train()
    return {"from": before, "round": made.round_number}


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    straight = _made(tmp_path / "straight", None, **EVERYTHING, evaluation={"every": 1}, run={"rounds": 3}).train()
    states = on_processes(_begun_on_two, tmp_path)
    assert [state["round"] for state in states] == [1, 1]
    assert any("stopped after round 1" in note for note in states[0]["notes"])
    assert states[1]["notes"] == []
    assert not (tmp_path / "runs/run/final").exists()
    alone = _resumed(tmp_path, watcher=SignalOn(2))
    assert alone.round_number == 1
    run = alone.train()
    assert newest_checkpoint(run)[0].round == 2
    assert [(s["from"], s["round"]) for s in on_processes(_ended_on_three, tmp_path / "three", 3)] == [(2, 3)] * 3
    one, other = (load_file(folder / "final/pytorch_lora_weights.safetensors") for folder in (straight, run))
    assert largest(one, other) < 1e-5
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rounds] == [1, 2, 3]
    looks = [json.loads((folder / "eval.json").read_text())["evaluations"] for folder in (straight, run)]
    assert [look["round"] for look in looks[1]] == [look["round"] for look in looks[0]] == [0, 1, 2, 3]
    assert [look["reward"]["mean"] for look in looks[1]] == pytest.approx(
        [look["reward"]["mean"] for look in looks[0]], abs=1e-5
    )


def _one_share_is_empty(folder: Path) -> dict:
    """Three processes and two trajectories, all images of one of which drop out in the second round."""
    from tiny_runs import brightness

    made = _made(folder / "runs", None, rollout={"batch_size": 2}, algorithm={"advantage": "batch", "stat_min_count": 1})
    calls = []

    def flaky(images, prompts):
        calls.append(len(images))
        if len(calls) == 2 and made.world.rank == made.world.size - 2:
            raise OSError("no answer")
        return {"mean": brightness(images, prompts)}

    made.parts.rewards = RewardMix([RewardPart("flaky", flaky, on_failure="skip")])
    return {"metrics": [made.round(), made.round()], "adapter": dict(made.parts.policy.named_parameters)}


@pytest.mark.slow
def test_processes_without_a_share_or_without_a_score_take_part(tmp_path):
    single = _one_share_is_empty(tmp_path / "single")
    states = on_processes(_one_share_is_empty, tmp_path, 3)
    for state in states:
        assert state["metrics"][0]["rewards/flaky/mean"] == pytest.approx(single["metrics"][0]["rewards/flaky/mean"], abs=1e-6)
        assert state["metrics"][1]["dropped_images"] == 1
        assert state["metrics"][1]["reward_queries"] == 4
        assert largest(state["adapter"], states[0]["adapter"]) == 0


FAILURES = {  # in this order: after the last one the processes have lost each other
    "reward": ("RewardError", "reward brightness raised ZeroDivisionError: on one process only"),
    "exit": ("RewardError", "reward brightness raised SystemExit: on one process only"),
    "memory": ("TrainingError", "run.micro_batch_size=1 does not fit either"),
    "bug": ("ProcessError", "KeyError: 'on one process only'"),
}


def _fails_in_round_two(made, error: BaseException, real):
    """Return `real`, but that it raises the error in round 2 on the second process."""

    def call(*arguments, **named):
        if made.round_number == 1 and made.world.rank == 1:
            raise error
        return real(*arguments, **named)

    return call


def _failing(folder: Path) -> dict:
    """Let one process of two fail in round 2, in several ways, and say what either raises."""
    from tiny_runs import brightness

    found = {}
    for kind in FAILURES:
        made = _made(folder / kind, None, run={"rounds": 3, "save_every": 0, "timeout_seconds": 60})
        text = "on one process only"
        if kind in ("reward", "exit"):
            error = ZeroDivisionError(text) if kind == "reward" else SystemExit(text)
            failing = _fails_in_round_two(made, error, brightness)
            made.parts.rewards = RewardMix(
                [RewardPart("brightness", lambda images, prompts, call=failing: call(images, prompts))]
            )
        elif kind == "memory":
            made.learner.update.loss = _fails_in_round_two(made, torch.OutOfMemoryError(text), made.learner.update.loss)
        else:
            made.learner.optimisation.step = _fails_in_round_two(made, KeyError(text), made.learner.optimisation.step)
        started = time.monotonic()
        try:
            made.train()
        except Exception as error:
            found[kind] = [type(error).__name__, str(error), time.monotonic() - started]
    return found


@pytest.mark.slow
def test_a_process_that_fails_takes_the_others_with_it(tmp_path):
    first, second = on_processes(_failing, tmp_path)
    for kind, (name, text) in FAILURES.items():
        assert first[kind][0] == name
        assert first[kind][1].startswith("process 1 of 2: ")
        assert text in first[kind][1]
        assert second[kind][0] == ("KeyError" if kind == "bug" else name)
        assert max(first[kind][2], second[kind][2]) < 60
        # The first process may have ended round 2 before it hears of the bug; it is whole then.
        assert newest_checkpoint(tmp_path / kind / "run")[0].round in ((1, 2) if kind == "bug" else (1,))


DIFFERENCES = {
    "prompts": "process 1 differs from process 0 in prompts; give all machines the same files",
    "reward": "in rewards.brightness: its code",
    "weights": "in model.path;",
    "version": "in torch;",
    "settings": "in seed; start all of them with the same CONFIG and KEY=VALUE.",
    "nothing": "",
}


def _differing(folder: Path) -> dict:
    """Let the second process differ from the first in one thing after the other, and say what either raises."""
    import itertools

    from tiny_runs import PROMPTS, brightness, lcm_pipeline, tiny_config

    from rlcm.training import pins
    from rlcm.training.trainer import Trainer

    second = os.environ["RANK"] == "1"
    version = pins._version

    def other(images, prompts):
        return 2 * brightness(images, prompts)

    other.__name__ = "brightness"
    found: dict = {}
    for what in DIFFERENCES:
        differs = {name: second and name == what for name in DIFFERENCES}
        pipeline = lcm_pipeline()
        if differs["weights"]:
            next(pipeline.text_encoder.parameters()).data.view(-1)[0] += 1
        pins._version = (
            (lambda name: f"{version(name)}.9" if name == "torch" else version(name)) if differs["version"] else version
        )
        limited = {"rounds": 100_000, "time_limit_minutes": 4 / 60}
        config = tiny_config(folder / what, run=limited, optimizer={"schedule": "linear"}, seed=int(differs["settings"]))
        rewards, prompts = [other if differs["reward"] else brightness], PROMPTS[:2] if differs["prompts"] else PROMPTS
        try:
            made = Trainer(config, model=pipeline, rewards=rewards, prompts=prompts)
            # A clock of its own on every process: what follows it must be the same all the same.
            made._clock = itertools.count(0, 3 if second else 1).__next__
            rows = [made.round() for _ in range(3)]
            found[what] = [[row[key] for row in rows] for key in ("lr", "progress", "seconds")]
        except ConfigError as error:
            found[what] = str(error)
    return found


@pytest.mark.slow
def test_processes_that_differ_are_refused_and_those_that_do_not_have_one_clock(tmp_path):
    first, second = on_processes(_differing, tmp_path)
    for what, text in list(DIFFERENCES.items())[:-1]:
        assert text in first[what]
        assert first[what] == second[what]
        assert not (tmp_path / what).exists()
    assert first["nothing"] == second["nothing"]
    lr, progress, seconds = first["nothing"]
    assert (progress, seconds) == ([0.25, 0.5, 0.75], [1.0, 2.0, 3.0])
    assert lr == pytest.approx([1e-4, 0.75e-4, 0.5e-4])
