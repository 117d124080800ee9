"""One process, two or three: is the result the same, and how much faster are two?

    python benchmarks/world_size.py [--repeats 6] [--skip-speed]

Equality: the built-in model with two inner epochs, two minibatches and a KL leash learns for five rounds on 1, 2 and 3 gloo
processes, and on 2 that share the network (FSDP2), with the same global batch. Bars against one process: images to 1e-6, adapter
after the first round to 1e-6, after five rounds to 1e-4.

Speed: images per second of a round on one process with one thread, and on two with a thread each. They take turns, and each
repeat gives one ratio; the best is the least disturbed by what else the machine does. Bar: 1.7.

Writes benchmarks/results/world_size.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import get_context

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.network import free_port
from benchmarks.shared.pages import fill
from benchmarks.shared.places import RESULTS
from benchmarks.shared.plain import plain
from rlcm import Trainer
from rlcm.processes.machine import describe_machine
from rlcm.rewards import RawScores
from rlcm.training.config import TrainConfig
from rlcm.tuning.saying import quiet

RESULT = RESULTS / "world_size.json"
ROUNDS = 5
IMAGES_TO, FIRST_TO, LAST_TO, FASTER = 1e-6, 1e-6, 1e-4, 1.7


def equal_config(folder: str, sharding: str) -> TrainConfig:
    """Return a run that uses the most that can depend on the number of processes."""
    return plain(
        {
            "output": folder,
            "rollout": {"batch_size": 12},
            "lora": {"ema_decay": 0.9},
            "algorithm": {
                "kl_coefficient": 0.1,
                "inner_epochs": 2,
                "minibatches": 2,
                "stat_buffer_size": 8,
                "stat_min_count": 2,
            },
            # Far above the gradients: Adam's first steps are the sign of a gradient, rounding included, where it is tiny.
            "optimizer": {"lr": 1e-4, "eps": 1e-4},
            "run": {"tracker": "none", "sharding": sharding},
        },
    )


def speed_config(folder: str) -> TrainConfig:
    """Return a round of 32 images that one process samples at once."""
    values = {"output": folder, "rollout": {"batch_size": 32}, "run": {"tracker": "none"}}
    return plain(values)


def worker(rank: int, count: int, port: int, connection: Connection, config: TrainConfig) -> None:
    """Play a round whenever asked to; answer with its metrics, the images of this process and the adapter."""
    names = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    quiet()
    trainer = Trainer(config)
    images: list[Tensor] = []
    score = trainer.parts.rewards.score

    def keep(pictures: Tensor, *arguments: Any) -> RawScores:
        images.append(pictures)
        return score(pictures, *arguments)

    trainer.parts.rewards.score = keep  # type: ignore[method-assign]
    while connection.recv():
        images.clear()
        metrics = trainer.round()
        adapter = torch.cat([p.detach().flatten() for p in trainer.parts.policy.parameters])
        connection.send((metrics, torch.cat(images).numpy(), adapter.numpy()))
    trainer.world.leave()


class Group:
    """Processes that make up one run."""

    def __init__(self, count: int, config: TrainConfig) -> None:
        port = free_port()
        context = get_context("spawn")
        self.connections, self.processes = [], []
        for rank in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=worker, args=(rank, count, port, theirs, config))
            process.start()
            self.connections.append(mine)
            self.processes.append(process)

    def round(self) -> tuple[dict[str, float], Tensor, list[Tensor]]:
        """Return the metrics of the next round, the images of all processes in order, and each process's adapter."""
        for connection in self.connections:
            connection.send(True)
        metrics, images, adapters = zip(*(connection.recv() for connection in self.connections), strict=True)
        return metrics[0], torch.cat([torch.from_numpy(i) for i in images]), [torch.from_numpy(a) for a in adapters]

    def end(self) -> None:
        """Let the processes go."""
        for connection in self.connections:
            connection.send(False)
        for process in self.processes:
            process.join()


def equality(folder: str) -> dict[str, dict[str, float]]:
    """Return the largest differences from one process, by kind of run."""
    seen = {}
    for name, count, sharding in (("1", 1, "none"), ("2", 2, "none"), ("3", 3, "none"), ("2, fsdp2", 2, "fsdp2")):
        group = Group(count, equal_config(folder, sharding))
        seen[name] = [group.round() for _ in range(ROUNDS)]
        group.end()
        print(f"{name}: done", flush=True)
    one = seen.pop("1")

    def off(one: Tensor, others: list[Tensor]) -> float:
        return max(float((one - other).abs().max()) for other in others)

    return {
        name: {
            "images": off(one[0][1], [rounds[0][1]]),
            "images_bit_for_bit": float(torch.equal(one[0][1], rounds[0][1])),
            "adapter_after_1": off(one[0][2][0], rounds[0][2]),
            "adapter_after_5": off(one[-1][2][0], rounds[-1][2]),
            "between_processes": off(rounds[-1][2][0], rounds[-1][2]),
            "grad_norm_relative": abs(rounds[0][0]["grad_norm"] / one[0][0]["grad_norm"] - 1),
            "moved": float((one[-1][2][0] - one[0][2][0]).abs().max()),
        }
        for name, rounds in seen.items()
    }


def speed(folder: str, repeats: int) -> dict[str, Any]:
    """Return images per second on one and on two processes, taking turns."""
    one, two = Group(1, speed_config(folder)), Group(2, speed_config(folder))
    one.round()  # the first round of a run is longer
    two.round()
    pairs = [(one.round()[0]["images_per_second"], two.round()[0]["images_per_second"]) for _ in range(repeats)]
    one.end()
    two.end()
    ratios = [faster / slower for slower, faster in pairs]
    return {
        "one_process": [round(a, 3) for a, _ in pairs],
        "two_processes": [round(b, 3) for _, b in pairs],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "best_ratio": round(max(ratios), 3),
        "median_ratio": round(statistics.median(ratios), 3),
    }


def page(found: dict[str, Any]) -> str:
    """Return what was found as Markdown."""
    lines = [
        "| processes | images | adapter after round 1 | after round 5 | moved in between | between processes |",
        "|---|---|---|---|---|---|",
    ]
    for name, off in found["equality"].items():
        images = "same bits" if off["images_bit_for_bit"] else f"{off['images']:.0e}"
        lines.append(
            f"| {name} | {images} | {off['adapter_after_1']:.0e} | {off['adapter_after_5']:.0e} | {off['moved']:.0e} | "
            f"{off['between_processes']:.0e} |"
        )
    text = "\n".join(lines) + f"\n\nBars: {IMAGES_TO:g}, {FIRST_TO:g}, {LAST_TO:g}. Machine: {found['machine']}."
    if "speed" in found:
        speed = found["speed"]
        text += (
            f"\n\nTwo processes with a thread each draw and learn from {speed['best_ratio']:.2f} times as many images a second as one "
            f"process with one thread: the best of {len(speed['ratios'])} pairs of rounds played in turn on a shared machine (load "
            f"{speed['load_average']:.0f}); median {speed['median_ratio']:.2f}."
        )
    return text


def main() -> None:
    """Run both and write what was found."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=6)
    options.add_argument("--skip-speed", action="store_true", help="Keep the figures of speed that are there.")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    found = results.read_if_there(RESULT)
    with tempfile.TemporaryDirectory() as folder:
        found |= {"machine": describe_machine(), "equality": equality(folder)}
        if not arguments.skip_speed:
            found["speed"] = speed(folder, arguments.repeats) | {"load_average": os.getloadavg()[0]}
    equal = all(
        off["images"] <= IMAGES_TO and off["adapter_after_1"] <= FIRST_TO and off["adapter_after_5"] <= LAST_TO
        for off in found["equality"].values()
    )
    found["passed"] = {"equality": equal, "speed": found.get("speed", {}).get("best_ratio", 0.0) >= FASTER}
    results.write(RESULT, found)
    fill("distributed.md", "world size", page(found))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
