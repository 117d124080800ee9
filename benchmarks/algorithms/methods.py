"""What the study compares: tasks and methods as changes of a run's configuration. Edit here; changed runs are measured anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rlcm.builtin.prompts import prompt_set
from rlcm.settings import Changes, merge

BESIDE = 4
"""Other processes that shared the machine's two threads with a run while it was measured, at most."""
PLAIN = "rlcm"
"""The method that the others are held against."""
UNTRAINED = "untrained"
"""Not a method: the model as it is, measured once a task."""
DDPO, DDPO_SECOND = MANY_STEP = ("ddpo", "ddpo-second")
"""The baseline: the same policy gradient on the many-step model that the few-step one was distilled from. As the rate that its search
chose breaks the pictures within minutes, it was run with the settings of the second-best try as well."""

COMMON: dict[str, Any] = {
    "model": {"path": "builtin", "device": "cpu"},
    "sampler": {"steps": 4, "guidance": 3.0},
    "rollout": {"batch_size": 32, "branches": 1, "branch_schedule": "last"},
    "algorithm": {"kl_coefficient": 0.0, "minibatches": 1},
    "optimizer": {"lr": 3e-3, "schedule": "constant"},
    "evaluation": {"images": 90, "every": 0, "diversity_images": 16},
    # The budget ends a run, not its number of rounds.
    "run": {"rounds": 1_000_000, "tracker": "none"},
}


@dataclass(frozen=True, slots=True)
class Task:
    """What is learnt."""

    about: str
    changes: Changes
    unit: str = ""
    differentiable: bool = False
    prompts: str = "world-objects"
    """The set of which results have one half, and searches the other."""
    looked_at: Changes = field(default_factory=dict)
    """What else a result's evaluation has."""
    looked_at_in_tries: Changes = field(default_factory=dict)
    times: int = 1
    """How many times the budget of other tasks a run gets."""
    asks: bool = False
    """The reward asks for what the judge looks for."""
    finely_looked_at: bool = True
    """Some methods are so fast that looks must lie closer together, for all of them alike."""


@dataclass(frozen=True, slots=True)
class Method:
    """How it is learnt."""

    about: str
    changes: Changes
    for_task: Mapping[str, Changes] = field(default_factory=dict)
    """Further changes for single tasks."""
    one_update: bool = False
    """It takes one update a round and no more."""
    needs_gradient: bool = False
    """Only for tasks whose reward is differentiable."""
    times: int = 1
    """How many times the budget of the others it gets, in a search and for a result."""
    colour: str = "#6a727c"
    """In the plots. One hue a family: plain trajectories are blue to green, branched ones red to yellow."""


TASKS: dict[str, Task] = {
    "jpeg_compressibility": Task("minus the size as a JPEG file: plain pictures", {"rewards": ["jpeg_compressibility"]}, "kB"),
    "jpeg_incompressibility": Task("the size as a JPEG file: busy pictures", {"rewards": ["jpeg_incompressibility"]}, "kB"),
    "alignment": Task(
        "fit of picture and prompt by the small CLIP",
        {"rewards": ["alignment"], "optimizer": {"lr": 1e-3}},
        "cosine",
        differentiable=True,
    ),
    "composition": Task(
        "right or wrong, on prompts of six kinds: pictures that show what was asked for",
        {"rewards": ["composition"]},
        "share that is right",
        prompts="world",
        looked_at={"images": 270, "prompts": "world-unseen"},
        looked_at_in_tries={"images": 540, "prompts": None},
        times=5,
        asks=True,
        finely_looked_at=False,
    ),
}


@cache
def half(name: str, for_search: bool) -> tuple[str, ...]:
    """Return every second prompt of each kind of a set: those of results, or the others, which settings are searched on."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for entry in prompt_set(name):
        kinds[entry["tag"]].append(entry["prompt"])
    return tuple(prompt for prompts in kinds.values() for prompt in prompts[int(for_search) :: 2])


_BRANCHED: Changes = {"rollout": {"branches": 8}, "algorithm": {"advantage": "group"}}
_FOUR_A_PROMPT: Changes = {"rollout": {"images_per_prompt": 4}, "algorithm": {"advantage": "group"}}
_CONSISTENCY: Changes = {"algorithm": {"consistency_coefficient": 0.03}}
_MANY_STEPS: Changes = {"model": {"path": "builtin-teacher"}, "sampler": {"scheduler": "ddim", "eta": 1.0, "steps": 50}}
_LAST: Changes = merge(_BRANCHED, {"rollout": {"branch_schedule": "last"}})


METHODS: dict[str, Method] = {
    PLAIN: Method("as published: plain trajectories, per-prompt statistics, PPO-clip", {}, colour="#1d2126"),
    "group": Method(
        "plain trajectories, four a prompt, compared with one another",
        _FOUR_A_PROMPT,
        colour="#1f5fbf",
    ),
    "rebel": Method(
        "plain trajectories, four a prompt, REBEL's regression on pairs, two updates a round",
        merge(_FOUR_A_PROMPT, {"algorithm": {"loss": "rebel", "rebel_eta": 1e-2, "inner_epochs": 2}}),
        colour="#56b4e9",
    ),
    "dense": Method(
        "plain trajectories, every x_0 prediction scored",
        {"algorithm": {"dense_every": 1}},
        colour="#0b7a75",
    ),
    "rlcm+consistency": Method("as published, with the consistency loss", _CONSISTENCY, colour="#8a939e"),
    "branched-last": Method(
        "eight branches of one state, at the last noisy step",
        merge(_BRANCHED, {"rollout": {"branch_schedule": "last"}}),
        colour="#c1272d",
    ),
    "branched-uniform": Method(
        "eight branches of one state, at any noisy step",
        merge(_BRANCHED, {"rollout": {"branch_schedule": "uniform"}}),
        colour="#e8791e",
    ),
    "branched+consistency": Method(
        "branched-uniform with the consistency loss",
        merge(_BRANCHED, {"rollout": {"branch_schedule": "uniform"}}, _CONSISTENCY),
        colour="#8c4a1f",
    ),
    "final-step": Method(
        "eight noises on the final prediction",
        merge(_BRANCHED, {"rollout": {"branch_schedule": "last"}, "sampler": {"final_std": 0.1}}),
        colour="#8e44ad",
    ),
    "divergence-ppo": Method(
        "branched-last, two updates a round, the trust region in the divergence",
        merge(_LAST, {"algorithm": {"loss": "divergence_ppo", "inner_epochs": 2}}),
        colour="#b8860b",
    ),
    "normalised-ratio": Method(
        "branched-last, two updates a round, the clip on normalised ratios",
        merge(_LAST, {"algorithm": {"normalise_ratio": True, "inner_epochs": 2}}),
        colour="#d4a017",
    ),
    "awm": Method(
        "forward process: advantage-weighted matching, four a prompt",
        merge(_FOUR_A_PROMPT, {"algorithm": {"loss": "awm"}}),
        colour="#7b3fa0",
    ),
    "nft": Method(
        "forward process: DiffusionNFT, four a prompt",
        merge(_FOUR_A_PROMPT, {"algorithm": {"loss": "nft"}}),
        colour="#c77dff",
    ),
    "hybrid": Method(
        "branched-uniform, and the reward's gradient through the last call",
        merge(_BRANCHED, {"rollout": {"branch_schedule": "uniform"}, "algorithm": {"last_call_weight": 0.5}}),
        needs_gradient=True,
        one_update=True,
        colour="#8a9a00",
    ),
    "reward_backprop": Method(
        "the reward's gradient through the last network call",
        {"algorithm": {"loss": "reward_backprop", "backprop_calls": 1}, "optimizer": {"lr": 3e-3}},
        needs_gradient=True,
        one_update=True,
        colour="#2ca02c",
    ),
    DDPO: Method(
        "the many-step model that the others' was distilled from, 50 steps of DDIM with noise, guidance by two calls a step",
        _MANY_STEPS,
        times=30,
        colour="#1d2126",
    ),
    DDPO_SECOND: Method(
        "the same with the settings of the second-best try of its search",
        merge(
            _MANY_STEPS,
            {
                "optimizer": {"lr": 3e-3},
                "rollout": {"batch_size": 32},
                "algorithm": {"minibatches": 2, "kl_coefficient": 0.0},
            },
        ),
        times=20,
        colour="#7f7f7f",
    ),
}


def methods_of(task: str) -> list[str]:
    """Return the methods that a task can be learnt with, in the table's order."""
    return [name for name, method in METHODS.items() if TASKS[task].differentiable or not method.needs_gradient]


def values_of(task: str, method: str, seed: int, found: Changes | None = None) -> dict[str, Any]:
    """Return the configuration of a run as nested values, before defaults are filled in.

    Args:
        found: what a search chose for the method, or one of its tries; see `search.py`.

    Raises:
        KeyError: if there is no such task or method.
    """
    own = METHODS[method] if method != UNTRAINED else Method("", {})
    name = f"{task}-{method}-{seed}".replace("+", "-")
    last = {"seed": seed, "name": name}
    learnt = TASKS[task]
    asked = {"prompts": list(half(learnt.prompts, for_search=False)), "evaluation": learnt.looked_at}
    return merge(COMMON, asked, learnt.changes, own.changes, own.for_task.get(task, {}), found or {}, last)
