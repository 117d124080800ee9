"""Speed of a round, as ratios measured in one process: against the bare network calls, and against a loop in the published style.

    python benchmarks/speed.py [--repeats 5] [--out benchmarks/results/speed.json]

bare       the same denoiser and decoder calls, same shapes and batch sizes, and nothing else: how much does the product add?
published  one step at a time, micro-batches of two, a log-probability a sample, as the published code does it; in the
           product's own network and table, with the same maths (no KL leash, which that code lacks).
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS
from benchmarks.shared.plain import plain
from rlcm import TrainConfig, Trainer
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import decode_images
from rlcm.policy.transitions import transition
from rlcm.processes.machine import describe_machine


def config(kl: float, batch: int = 64, micro_batch: int = 64) -> TrainConfig:
    """Return plain RLCM on the built-in model with the given leash and batch sizes."""
    return plain(
        {
            "sampler": {"steps": 4, "guidance": 3.0},
            "rollout": {"batch_size": batch, "sample_batch_size": 64},
            "algorithm": {"kl_coefficient": kl},
            "optimizer": {"lr": 1e-4},
            "run": {"micro_batch_size": micro_batch, "tracker": "none"},
            "output": tempfile.mkdtemp(),
        },
    )


def bare_round(trainer: Trainer) -> None:
    """Make the network and decoder calls of a round on ready-made inputs."""
    policy, rollouts = trainer.parts.policy, trainer.config.rollout
    denoiser, calls, batch = policy.denoiser, len(policy.table), rollouts.batch_size
    conditions = trainer.parts.conditioning.take(torch.arange(batch) % len(trainer.parts.prompts))
    x = torch.randn(batch, *denoiser.latent_shape)
    with torch.no_grad():
        for step in range(calls):
            denoiser.denoise(x, torch.full((batch,), step), conditions)
        decode_images(denoiser, x)
    steps = torch.arange(calls - 1).repeat(batch)
    rows = torch.arange(batch).repeat_interleave(calls - 1)
    for part in torch.arange(len(steps)).split(trainer.config.run.micro_batch_size):
        chosen = trainer.parts.conditioning.take(rows[part] % len(trainer.parts.prompts))
        inputs = torch.randn(len(part), *denoiser.latent_shape)
        if trainer.config.algorithm.kl_coefficient:
            with torch.no_grad(), policy.reference():
                denoiser.denoise(inputs, steps[part], chosen)
        denoiser.denoise(inputs, steps[part], chosen).mean().backward()
    trainer.learner.optimisation.optimizer.zero_grad(set_to_none=True)


def published_round(trainer: Trainer, number: int, micro_batch: int = 2) -> None:
    """Sample in batches of four and learn one step and two samples at a time, scoring each sample by itself."""
    policy, table = trainer.parts.policy, trainer.parts.policy.table
    denoiser, batch = policy.denoiser, trainer.config.rollout.batch_size
    index = torch.arange(batch) % len(trainer.parts.prompts)
    generator = torch.Generator().manual_seed(image_seed("published", number))
    kept = []
    for start in range(0, batch, 4):
        rows = index[start : start + 4]
        conditions = trainer.parts.conditioning.take(rows)
        x = denoiser.scale_noise(torch.randn(4, *denoiser.latent_shape, generator=generator))
        states, actions, log_probs = [], [], []
        with torch.no_grad():
            for step in range(len(table)):
                here = torch.full((4,), step)
                _, mean, std = transition(table, x, denoiser.denoise(x, here, conditions), here)
                action = mean + std.view(-1, 1, 1, 1) * torch.randn(mean.shape, generator=generator)
                states.append(x)
                actions.append(action)
                log_probs.append([_log_prob(action[i], mean[i], float(std[i]) or 1.0) for i in range(4)])
                x = action
            images = decode_images(denoiser, x)
        prompts = [trainer.parts.prompts.prompts[i] for i in rows.tolist()]
        kept.append((states, actions, log_probs, conditions, trainer.parts.rewards(images, prompts).total))
    rewards = torch.cat([part[-1] for part in kept])
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    optimizer = trainer.learner.optimisation.optimizer
    optimizer.zero_grad(set_to_none=True)
    for number_of_batch, (states, actions, log_probs, conditions, _) in enumerate(kept):
        for start in range(0, 4, micro_batch):
            chosen = torch.arange(start, start + micro_batch)
            for step in range(len(table) - 1):
                here = torch.full((micro_batch,), step)
                x = states[step][chosen]
                _, mean, std = transition(table, x, denoiser.denoise(x, here, conditions.take(chosen)), here)
                loss = torch.zeros(())
                for row, sample in enumerate(chosen.tolist()):
                    now = _log_prob(actions[step][sample], mean[row], float(std[row]))
                    ratio = torch.exp(now - log_probs[step][sample])
                    advantage = advantages[number_of_batch * 4 + sample]
                    clipped = ratio.clamp(1 - 1e-4, 1 + 1e-4)
                    loss = loss + torch.maximum(-advantage * ratio, -advantage * clipped)
                (loss / (batch * (len(table) - 1))).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters, 5.0)
    optimizer.step()


def _log_prob(x: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    return (-((x - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)).mean()


def seconds(work: object) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started


def main() -> None:
    """Measure and print; each pair of timings is taken side by side, so that a slow spell hits both."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    arguments = options.parse_args()
    leashed, plain = Trainer(config(kl=0.1)), Trainer(config(kl=0.0))
    for trainer in (leashed, plain):
        trainer.round()
        bare_round(trainer)
    overhead, speedup, rates = [], [], []
    for number in range(arguments.repeats):
        ours = seconds(leashed.round)
        overhead.append(ours / seconds(lambda: bare_round(leashed)))
        unleashed = seconds(plain.round)
        speedup.append(seconds(lambda n=number: published_round(plain, n)) / unleashed)
        rates.append(64 / ours)
    flat = {}
    for batch in (64, 256):
        trainer = Trainer(config(kl=0.1, batch=batch, micro_batch=64))
        trainer.round()
        flat[f"peak_mb_after_batch_{batch}"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result = {
        "machine": describe_machine(),
        "round_over_bare": {"median": statistics.median(overhead), "all": overhead},
        "published_over_round": {"median": statistics.median(speedup), "all": speedup},
        "images_per_second_of_a_plain_round": statistics.median(rates),
        **flat,
    }
    results.write(arguments.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
