"""Two processes are one: gathered rows, summed gradients, and a round whose result is that of a single process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rlcm.distributed import World
from rlcm.serialization import load_state, save_state


def on_two_processes(work, folder: Path) -> list[dict]:
    """Run `work(rank, folder)` on two processes and return the states that they save."""
    torch.multiprocessing.spawn(_process, (work, str(folder)), nprocs=2)
    return [load_state(folder / f"{rank}.safetensors") for rank in range(2)]


def _process(rank: int, work, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        save_state(Path(folder) / f"{rank}.safetensors", work(rank, Path(folder)))
    finally:
        dist.destroy_process_group()


def _collectives(rank: int, folder: Path) -> dict:
    world = World()
    rows = torch.arange(6.0).view(3, 2) + 100 * rank
    shared, alone, unused = (nn.Parameter(torch.zeros(size)) for size in ((2, 2), (3,), (1,)))
    shared.grad = torch.full((2, 2), 1.0 + rank)
    if rank == 1:
        alone.grad = torch.arange(3.0)
    world.sum_gradients([shared, alone, unused])
    values = torch.tensor([1.0, 2.0]) * (rank + 1)
    total = world.sum(values)
    world.barrier()
    return {
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


def test_collectives(tmp_path):
    first, second = on_two_processes(_collectives, tmp_path)
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


def _round(rank: int, folder: Path) -> dict:
    """Learn from one round of five trajectories in five minibatches: in each, one of two processes has nothing to do."""
    from tiny_runs import PROMPTS, brightness, lcm_pipeline, tiny_config

    from rlcm.trainer import Trainer

    config = tiny_config(
        folder,
        rollout={"batch_size": 10, "branches": 2, "branch_schedule": "uniform"},
        algorithm={"minibatches": 5, "kl_coefficient": 0.1, "advantage": "batch", "clip_range": 0.01},
        optimizer={"lr": 1e-3, "eps": 1e-4},
    )
    made = Trainer(config, model=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS)
    metrics = made.round()
    return {"metrics": metrics, "adapter": dict(made.parts.policy.named_parameters)}


@pytest.mark.slow
def test_a_round_on_two_processes_is_that_of_one(tmp_path):
    single = _round(0, tmp_path)
    for state in on_two_processes(_round, tmp_path):
        for key in ("reward", "reward_std", "rewards/brightness", "loss", "grad_norm", "kl", "ratio_deviation_max"):
            assert state["metrics"][key] == pytest.approx(single["metrics"][key], rel=1e-4, abs=1e-6)
        for key in ("network_calls", "reward_queries", "skipped_updates", "clip_fraction"):
            assert state["metrics"][key] == single["metrics"][key]
        for name, value in single["adapter"].items():
            assert (state["adapter"][name] - value).abs().max() < 1e-6
    assert single["metrics"]["grad_norm"] > 0
