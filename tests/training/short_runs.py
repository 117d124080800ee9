"""Runs of a tiny model, two rounds long where a test does not say otherwise."""

import json

import torch
from tiny_runs import PROMPTS, brightness, lcm_pipeline, tiny_config

from rlcm.training.trainer import Trainer

TIMES = ("seconds", "images_per_second", "time/", "reward_wait_share")


def trainer(output, *, functions=(brightness,), watcher=None, **changes):
    """Return the trainer of a short run; without functions, its rewards are those of the configuration."""
    config = tiny_config(output, **changes)
    return Trainer(config, model=lcm_pipeline(), rewards=functions, prompts=PROMPTS, watcher=watcher)


def resume(run, *, changes=(), functions=(brightness,), watcher=None, **objects):
    objects = {"model": lcm_pipeline(), "rewards": functions, "prompts": PROMPTS, "watcher": watcher} | objects
    return Trainer.resume(run, changes, **objects)


def without_times(metrics):
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in metrics]


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Failing:
    """A reward that is fine until a given call."""

    def __init__(self, call, how):
        self.calls, self.call, self.how = 0, call, how

    def __call__(self, images, prompts):
        self.calls += 1
        values = brightness(images, prompts)
        if self.calls != self.call:
            return values
        if self.how == "raises":
            raise ZeroDivisionError("a bug of the user's")
        return values[:-1] if self.how == "shape" else torch.where(torch.arange(len(values)) == 1, float("nan"), values)
