"""The sections of the page that show what was measured: an experiment each, as tables under a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from benchmarks.reproduction.methods import ABOUT
from benchmarks.reproduction.reading import learned, metric_of, of_former_model
from benchmarks.reproduction.sources import command
from benchmarks.reproduction.words import plain, reached, shown, size, with_interval
from benchmarks.shared.pages import table
from rlcm.report.words import DIVERSITY, duration, written


def curves(results: Mapping[str, Any]) -> str:
    """Return what each method ended with, and when it reached which reward, a part a task."""
    text, former = "", of_former_model(results)
    question, column = ("animal", "animals recognised") if former else ("right", "right pictures")
    for task, found in results["curves"].items():
        ends, times = [], []
        columns = [*found["targets"], *([found["equal_gain"]] if found["equal_gain"] else [])]
        for method in found["methods"]:
            judged = method["judge"].get(question)
            diversity = next((method["guard"][key] for key in DIVERSITY if key in method["guard"]), None)
            cells = [method["name"], str(len(method["seeds"])), with_interval(method["before"], found["metric"])]
            cells += [with_interval(method["after"], found["metric"]), duration(method["seconds"]["mean"])]
            cells += [f"{method['reward_queries']['mean']:,.0f}", f"{judged['mean']:.1%}" if judged else ""]
            ends.append([*cells, plain(diversity, 3) if diversity else ""])
            there = [reached(target, method["name"], found["baseline"], with_factor=not former) for target in columns]
            times.append([method["name"], *there])
        label = found["metric"]["label"]
        heads = [
            "method",
            "seeds",
            f"{label} before",
            "after",
            "trained for",
            "images scored",
            column,
            "diversity",
        ]
        at = ["method", *(f"at {shown(target['reward'], found['metric'])}" for target in found["targets"])]
        if found["equal_gain"]:
            at.append(f"a gain of {size(found['equal_gain']['reward'], found['metric'])}")
        text += f"""
### {task.capitalize()}

![{task}: reward over time and over reward queries](images/results-curves-{task}.png)

{table(heads, ends)}
{table(at, times) if columns and found["baseline"] == "ddpo" else ""}
    {command(results, "curves", task)}
"""
    if not text:
        return ""
    about = "\n".join(f"- `{name}`: {meaning}" for name, meaning in ABOUT.items())
    sees = "recognises the animal" if former else "finds all that was asked for"
    return f"""## Reward over time

{about}

First, what each method ended with: beside the reward the share of pictures in which a judge that is no part of any reward
{sees}, and how far apart pictures of the same prompt are (`diversity`; at 0 they are all alike), both of the
tuned model.

Then, when a reward was reached{"" if former else ", and how many times sooner than by `ddpo`"}. The rewards are half and nine tenths
of the way to the highest that every seed of `ddpo` reached, and that one; last, as the two models do not begin at the same reward, a
gain as large as every seed of `ddpo` had. `ddpo` is there where the straight line between two of its evaluations is, the others at
the first evaluation that shows it, which makes {"them rather too late" if former else "their speed-ups rather too small"}.
{text}"""


def queries(results: Mapping[str, Any]) -> str:
    """Return the rewards after as many images scored."""
    rows = ""
    for task, found in results["curves"].items():
        equal = found["equal_queries"]
        for method, value in equal.get("methods", {}).items():
            rows += f"| {task} | {equal['reward_queries']:,.0f} | {method} | {with_interval(value, found['metric'])} |\n"
    return (
        rows
        and f"""## Reward at equal reward queries

| task | images scored | method | reward |
|---|---|---|---|
{rows}
    {command(results, "curves")}
"""
    )


def inference(results: Mapping[str, Any]) -> str:
    """Return reward and speed at every number of steps."""
    text = ""
    for task, found in results["inference"].items():
        metric = metric_of(results, task)
        rows = "".join(
            f"| {row['method']} | {row['model']} | {row['steps']} | {with_interval(row['reward'], metric)} | "
            f"{written(row['images_per_second']['mean'])} |\n"
            for row in found
            if row["model"] == "tuned" or row["method"] != "rlcm-published"  # the same base model as the default's
        )
        text += f"""
![{task}: reward against images per second](images/results-speed-{task}.png)

| {task}: model of | weights | steps | {metric["label"]} | images/s |
|---|---|---|---|---|
{rows}
    {command(results, "inference", task)}
"""
    return (
        text
        and f"""## Reward against time at inference

The models of the curves above, with other numbers of steps; a point each.
{text}"""
    )


def _asked(results: Mapping[str, Any]) -> str:
    if not of_former_model(results):
        return """Tuned on the prompts of `world`. Asked: other prompts of the same kinds (`world-unseen`), and pairs, numbers and
colours that no training of the built-in model has seen (`world-held-out`)."""
    return f"""Tuned on "a fox on a blue striped background" and the like, for 36 animals and nine of ten backgrounds of each. Asked:
the combinations left out, the same prompts in other words ("a picture of a fox ..."), and the nine animals left out
({", ".join(results["untrained_animals"])})."""


def generalisation(results: Mapping[str, Any]) -> str:
    """Return what of the gain is left on prompts that were not trained on."""
    rows = ""
    for task, found in results["generalisation"].items():
        for row in found:
            kept, half = row["kept"]["mean"], row["kept"]["ci95"]
            share = f"{kept:.0%}" + (f" ± {half:.0%}" if half else "")
            if not learned(found, row["method"]):
                share = "no sure gain to keep"
            rows += f"| {task} | {row['method']} | {row['set']} | {row['seeds']} | {written(row['gain']['mean'])} | {share} |\n"
    return (
        rows
        and f"""## Unseen prompts

{_asked(results)} Gain: tuned minus base on the same seeds.

| task | method | prompts | seeds | gain in reward | share of the gain on trained prompts |
|---|---|---|---|---|---|
{rows}
    {command(results, "generalisation")}
"""
    )


def ablations(results: Mapping[str, Any]) -> str:
    """Return the gains with one setting changed."""
    text = ""
    for task, found in results["ablations"].items():
        rows = "".join(
            f"| {row['variant']} | {row['seeds']} | {plain(row['gain'])} | {row['reward_queries']['mean']:,.0f} | "
            f"{row['network_calls']['mean']:,.0f} |\n"
            for row in found
        )
        text += f"""
![{task}: gain of each variant](images/results-ablations-{task}.png)

| {task} | seeds | gain in reward | images scored | network calls |
|---|---|---|---|---|
{rows}
    {command(results, "ablations", task)}
"""
    return (
        text
        and f"""## One setting changed

RLCM as published with one setting changed, in equal time; the gain is that of the reward on the fixed set.
{text}"""
    )


def learning_rates(results: Mapping[str, Any]) -> str:
    """Return what larger learning rates gave."""
    text = ""
    for task, found in results.get("learning_rates", {}).items():
        curves = results["curves"].get(task, {})
        # Other minutes, or another clock, are not to be compared.
        is_one_call = command(results, "learning-rates", task).split()[4:] == command(results, "curves", task).split()[4:]
        own = [method for method in curves.get("methods", ()) if method["name"] == "rlcm" and is_one_call]
        metric, rows = metric_of(results, task), []
        for row in sorted(found, key=lambda each: (each["method"], each["factor"])):
            if "failed" in row:
                rows.append([row["method"], f"{row['lr']:g}", "diverged", *[""] * 5])
                continue
            seconds, reward = row["seconds"][-1], row["reward"][-1]
            gain = reward - row["reward"][0]
            cells = [row["method"], f"{row['lr']:g}", duration(seconds), shown(reward, metric)]
            cells += [
                ("" if gain > 0 else "\N{MINUS SIGN}") + size(gain, metric),
                "" if row["clip_fraction"] is None else f"{row['clip_fraction']:.1%}",
            ]
            cells += [_default_sooner(own, seconds, reward, is_gain=False), _default_sooner(own, seconds, gain, is_gain=True)]
            rows.append(cells)
        heads = ["method", "learning rate", "trained for", "reward after", "gain", "clipped"]
        heads += ["the default is at this reward", "at this gain"]
        text += f"""
### Learning rates: {task}

{table(heads, rows)}
    {command(results, "learning-rates", task)}
"""
    return (
        text
        and f"""## Larger learning rates

The published learning rate was found for larger models. Below, it and larger ones: one run each, with a seed that no curve above has.
Clipped: the share of actions whose ratio left PPO's clip range, mean over rounds. The default's times are those of the curves above.
{text}"""
    )


def _default_sooner(methods: Sequence[Mapping[str, Any]], seconds: float, goal: float, *, is_gain: bool) -> str:
    """Return how much sooner than after `seconds` the default has a reward, or a gain; its curves are of several seeds."""
    if not methods or (is_gain and goal <= 0):
        return ""
    times = []
    for curve in methods[0]["curves"]:
        start = curve["reward"][0] if is_gain else 0.0
        times.append(
            next((at for at, reward in zip(curve["seconds"], curve["reward"], strict=True) if reward - start >= goal), None)
        )
    if None in times:
        return "not reached"
    return f"{written(seconds / geometric_mean(times))} times sooner" if all(times) else "before training"


def last_step(results: Mapping[str, Any]) -> str:
    """Return how noisy the gradient is with the last step as published, and without."""
    rows = "".join(
        f"| {row['task']} | {row['steps']} | {row['estimates']} x {row['images']} | {row['correct_variance']:.3g} | "
        f"{row['published_variance']:.3g} | {written(row['variance_ratio'])} "
        f"({' to '.join(map(written, row['variance_ratio_interval']))}) |\n"
        for row in results["last_step"]
    )
    return (
        rows
        and f"""## The last step

The published code draws noise at the last step and scores it, though it never reaches the image. At equal samples this adds
variance to the gradient and nothing else (`src/rlcm/studies/reproduce/variance.py`). Incompressibility is compressibility with the
other sign: its gradients are the same but for theirs, and so are its variances, which are no third measurement.

![variance of the gradient, published over correct](images/results-last-step.png)

| task | steps | estimates x images | variance, correct | as published | ratio |
|---|---|---|---|---|---|
{rows}
    {command(results, "last-step")}
"""
    )
