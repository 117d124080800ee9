"""docs/results.md and its figures, from the committed results of `rlcm reproduce`.

rlcm reproduce -o runs/reproduce
python benchmarks/results_page.py --take runs/reproduce/results.json    # into benchmarks/results/reproduce.json, then writes
python benchmarks/results_page.py                                       # writes from what is committed

What is taken replaces the same methods of the same tasks and experiments; others stay, each with the command, machine and budget that
it came from. A call with another budget, or other options, replaces whole tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from rlcm.report.drawing import PALETTE, STYLE, Line, draw_chart
from rlcm.report.words import counted, decimals, duration, written
from rlcm.studies.compare.methods import Curve
from rlcm.studies.compare.speedup import mean_curve
from rlcm.studies.intervals import mean_over_seeds
from rlcm.studies.reproduce.merging import merged, names_in, options, unfinished
from rlcm.studies.reproduce.plan import DEFAULT_TASKS, TASKS, values_of
from rlcm.training.config import TrainConfig, parse_settings

ROOT = Path(__file__).parent.parent
ORDER = ("ddpo", "rlcm-published", "rlcm")
BAR_MINUTES = 60
ABOUT = {
    "ddpo": "DDPO on the teacher: DDIM with 50 steps, guidance 3 (where this teacher is best), otherwise the settings of "
    "`rlcm-published`; DDPO's own were not tried",
    "rlcm-published": "RLCM with the published settings on the student, guidance 3; with a fifth of DDPO's minutes, "
    "on alignment, where those were not enough, three fifths",
    "rlcm": "the default of this package: 2 steps, branches, a leash and a learning rate that follows it, "
    "tuned on this model and on these tasks",
}
PAPER = """| task | start -> end (RLCM) | GPU-hours of RLCM | DDPO: GPU-hours and where it gets |
|---|---|---|---|
| compressibility (minus kB) | -182 -> -10 | about 28 | about 125, about -15 (start -83) |
| incompressibility (kB) | 175 -> 640 | about 28 | about 125, about 195 |
| aesthetic | 5.95 -> 8.1 | about 2 | about 125, about 7.2 |
| alignment (BERTScore) | .760 -> .7735 | about 120 | about 320, about .7775 |
"""


def _sources(results: Mapping[str, Any], name: str) -> list[Any]:
    """Return the values of all sources, each once."""
    return list(dict.fromkeys(source[name] for tasks in results["sources"].values() for source in tasks.values()))


def _minutes(results: Mapping[str, Any]) -> str:
    """Return how long DDPO had, with the tasks where that differs."""
    tasks: dict[str, list[str]] = {}
    for task, source in results["sources"]["curves"].items():
        tasks.setdefault(f"{source['budget_minutes']:g}", []).append(task)
    if len(tasks) < 2:
        return "".join(tasks)
    return " and ".join(f"{minutes} ({', '.join(own)})" for minutes, own in tasks.items())


def _clock(results: Mapping[str, Any]) -> str:
    words = {"cpu": "seconds of computing, one thread a run,", "wall": "wall-clock seconds"}
    return " or ".join(words[clock] for clock in _sources(results, "clock"))


def page(results: Mapping[str, Any]) -> str:
    """Return docs/results.md."""
    parts = [
        f"""# The paper's experiments in miniature

Oertell et al. 2024 (arXiv:2404.03673) tune LCM Dreamshaper v7 on four A6000 GPUs. Below, the same experiments on the built-in
pair of models, 64 x 64 pixels, 45 animals: the consistency model by RLCM, the diffusion model that it was distilled from by DDPO.
The numbers say how the methods compare HERE; they are not the paper's, which stand by themselves in
[the last section](#the-papers-own-figures).

Every figure below, where it says nothing else: {" or ".join(counted(seeds, "seed") for seeds in _sources(results, "seeds"))}; machine:
{"; ".join(_sources(results, "machine"))}; the command under each figure makes it.

± and brackets are 95 % intervals over seeds (Student's; of ratios Welch's on logarithms). The data is
`benchmarks/results/reproduce.json`, and `benchmarks/results_page.py` makes this page of it. Times are {_clock(results)} of
sampling and learning, of which a run of DDPO has {_minutes(results)} minutes. Settings of every method:
`src/rlcm/studies/reproduce/plan.py`; those of each run: `config.yaml` in its folder.
""",
        _bars(results),
        _curves(results),
        _queries(results),
        _inference(results),
        _generalisation(results),
        _ablations(results),
        _learning_rates(results),
        _last_step(results),
        _limits(results),
        f"""## The paper's own figures

Copied from the paper, for LCM Dreamshaper v7 at 512 x 512 pixels on A6000 GPUs; nothing of this was measured here.

{PAPER}
Also: 17 times faster than DDPO on the aesthetic task, good images in two steps, and an aesthetic that carries over to unseen prompts.

## What was not run

The paper's own models: this machine has no GPU for them and no copy of their weights. With both, one command a task:

    rlcm train configs/lcm-dreamshaper-v7-compressibility.yaml      # RLCM; also -incompressibility, -aesthetic, -alignment
    rlcm train configs/ddpo-dreamshaper-v7-compressibility.yaml     # its DDPO counterpart; also the other three
    rlcm compare runs/... runs/...

`rlcm reproduce --task aesthetic` is the aesthetic task on the built-in models, for machines with the predictor's weights.
""",
    ]
    return "\n".join(part for part in parts if part)


class Verdict(NamedTuple):
    """A claim with its bar, and what was found."""

    claim: str
    bar: str
    found: str
    reached: bool | None
    """None where nothing was measured that could tell."""
    tasks: frozenset[str]
    """Those that decide it."""

    def row(self) -> str:
        """Return the row of a table."""
        is_whole = self.tasks >= set(DEFAULT_TASKS)
        word = {None: "open" if self.found else "not measured", True: "yes" if is_whole else "so far", False: "**no**"}[
            self.reached
        ]
        return _row([self.claim, self.bar, self.found, word])


def verdicts(results: Mapping[str, Any]) -> list[Verdict]:
    """Return what became of each claim."""
    # Without DDPO, or without a method of its own, a task says nothing on the claims.
    curves = {task: found for task, found in results["curves"].items() if found["baseline"] == "ddpo"}
    rows = []
    for method, claim, least, bar in (
        (
            "rlcm-published",
            "RLCM as published is sooner at the highest reward that every seed of DDPO reached",
            (1.0, 1.0),
            "all tasks, and by an equal gain",
        ),
        (
            "rlcm",
            "the default is there sooner",
            (50.0, 17.0),
            "surely 50 times on one task, 17 times on all, and by an equal gain",
        ),
    ):
        own = {task: found for task, found in curves.items() if _has(found, method)}
        told = [f"{task} {_sooner(found, method)}" for task, found in own.items()]
        # A rise of DDPO that may be chance says nothing.
        ratios = {task: _surely(found, method) for task, found in own.items() if _can_tell(found, method)}
        open_tasks = not ratios.keys() >= set(DEFAULT_TASKS)
        reached: bool | None = None
        if ratios:
            reached = min(ratios.values()) >= least[1] and (max(ratios.values()) >= least[0] or (None if open_tasks else False))
        rows.append(Verdict(claim, bar, "; ".join(told), reached, frozenset(ratios)))
    for method, name in (("rlcm-published", "RLCM as published"), ("rlcm", "the default")):
        pairs = {
            task: (equal[method], equal["ddpo"])
            for task, found in curves.items()
            if {method, "ddpo"} <= (equal := found["equal_queries"].get("methods", {})).keys()
        }
        won = [own["mean"] >= other["mean"] for own, other in pairs.values()]
        told = [f"{task} {_against(*pair, curves[task]['metric'])}" for task, pair in pairs.items()]
        claim = f"reward at equal reward queries: {name} at least DDPO's"
        rows.append(Verdict(claim, "all", "; ".join(told), all(won) if won else None, frozenset(pairs)))
    steps = {task: found for task, each in results["inference"].items() if (found := _two_steps(each))}
    better, needed = sum(own["mean"] > other["mean"] and faster >= 10 for own, other, faster in steps.values()), 2
    reached = None if better < needed <= better + len(set(DEFAULT_TASKS) - set(steps)) else better >= needed
    told = [
        f"{task} {_against(own, other, _metric(results, task))}, {written(faster)} times as fast"
        for task, (own, other, faster) in steps.items()
    ]
    claim = "the default in 2 steps: a better reward than DDPO in 50, in a tenth of the time an image"
    settled = DEFAULT_TASKS if better >= needed else steps
    rows.append(Verdict(claim, f"{needed} tasks", "; ".join(told), reached, frozenset(settled)))
    kept, unsure = {}, []
    for task, found in results["generalisation"].items():
        for row in found:
            if row["set"] == "unseen combinations" and _learned(found, row["method"]):
                kept[task, row["method"]] = row["kept"]["mean"]
            elif row["set"] == "unseen combinations":
                unsure.append(f"{task} ({row['method']}) no sure gain")
    told = [f"{task} ({method}) {value:.0%}" for (task, method), value in kept.items()] + unsure
    reached = min(kept.values()) >= 0.8 if kept else None
    rows.append(
        Verdict(
            "share of the gain kept on unseen combinations", "80 %", ", ".join(told), reached, frozenset(t for t, _ in kept)
        )
    )
    last = results["last_step"]
    ratios = [row["variance_ratio"] for row in last]
    told = f"{written(min(ratios))} to {written(max(ratios))} times" if ratios else ""
    sure = all(row["variance_ratio_interval"][0] > 1 for row in last) if last else None
    claim = "gradient variance with the last step as published over the correct one"
    rows.append(Verdict(claim, "above 1, and surely", told, sure, frozenset(row["task"] for row in last)))
    return rows


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures and return their paths."""
    paths = []
    for task, found in results["curves"].items():
        paths.append(
            _figure(folder / f"results-curves-{task}.png", [_panel(found, "seconds"), _panel(found, "reward_queries")])
        )
    for task, rows in results["inference"].items():
        metric = _metric(results, task)
        sign, lines = -1.0 if metric["lower_is_better"] else 1.0, []
        for place, method in enumerate(ORDER):
            for model in ("tuned", "base"):
                own = sorted((r for r in rows if (r["method"], r["model"]) == (method, model)), key=lambda r: r["steps"])
                if own and (model == "tuned" or method != "rlcm-published"):
                    x, y = [r["images_per_second"]["mean"] for r in own], [sign * r["reward"]["mean"] for r in own]
                    error = [r["reward"]["ci95"] or 0.0 for r in own]
                    label = method if model == "tuned" else {"ddpo": "teacher, untuned", "rlcm": "student, untuned"}[method]
                    lines.append(Line(label, x, y, error, True, PALETTE[place], dashed=model == "base"))
        paths.append(_figure(folder / f"results-speed-{task}.png", [(lines, "images per second", _axis(metric), True)]))
    for task, rows in results["ablations"].items():
        paths.append(_bar_figure(folder / f"results-ablations-{task}.png", rows))
    if results["last_step"]:
        courses: dict[tuple[tuple[float, ...], ...], list[str]] = {}  # a reward and its negative have the same
        for task in dict.fromkeys(row["task"] for row in results["last_step"]):
            own = [row for row in results["last_step"] if row["task"] == task]
            course = tuple((row["steps"], row["variance_ratio"], *row["variance_ratio_interval"]) for row in own)
            courses.setdefault(course, []).append(task)
        lines = []
        for place, (course, tasks) in enumerate(courses.items()):
            x, y, low, high = zip(*course, strict=True)
            half = [(top - bottom) / 2 for bottom, top in zip(low, high, strict=True)]
            lines.append(Line("\n".join(tasks), list(x), list(y), half, True, PALETTE[place]))
        paths.append(_figure(folder / "results-last-step.png", [(lines, "steps", "variance, published over correct", False)]))
    return paths


def _bars(results: Mapping[str, Any]) -> str:
    missing = [task for task in DEFAULT_TASKS if not all(_has(results["curves"].get(task, {}), method) for method in ORDER)]
    notes = [f"Tasks whose curves are not complete yet: {', '.join(missing)}."] if missing else []
    if any(source["budget_minutes"] < BAR_MINUTES for source in results["sources"]["curves"].values()):
        notes.append(f"The first two bars were set for {BAR_MINUTES} minutes of DDPO; it had {_minutes(results)}.")
    table = _row(["claim", "bar", "found", "reached"]) + _row(["---"] * 4) + "".join(v.row() for v in verdicts(results))
    return f"## In short\n\n{table}" + "".join(f"\n{note}" for note in notes) + "\n"


def _curves(results: Mapping[str, Any]) -> str:
    text = ""
    for task, found in results["curves"].items():
        ends, times = "", ""
        columns = [*found["targets"], *([found["equal_gain"]] if found["equal_gain"] else [])]
        for method in found["methods"]:
            judged, diversity = method["judge"].get("animal"), method["guard"].get("diversity")
            cells = [method["name"], str(len(method["seeds"])), _with_interval(method["before"], found["metric"])]
            cells += [_with_interval(method["after"], found["metric"]), duration(method["seconds"]["mean"])]
            cells += [f"{method['reward_queries']['mean']:,.0f}", f"{judged['mean']:.1%}" if judged else ""]
            ends += _row([*cells, _plain(diversity, 3) if diversity else ""])
            times += _row([method["name"], *(_reached(target, method["name"], found["baseline"]) for target in columns)])
        label = found["metric"]["label"]
        heads = [
            "method",
            "seeds",
            f"{label} before",
            "after",
            "trained for",
            "images scored",
            "animals recognised",
            "diversity",
        ]
        at = ["method", *(f"at {_shown(target['reward'], found['metric'])}" for target in found["targets"])]
        if found["equal_gain"]:
            at.append(f"a gain of {_size(found['equal_gain']['reward'], found['metric'])}")
        text += f"""
### {task.capitalize()}

![{task}: reward over time and over reward queries](images/results-curves-{task}.png)

{_row(heads)}{_row(["---"] * len(heads))}{ends}
{_row(at) + _row(["---"] * len(at)) + times if columns and found["baseline"] == "ddpo" else ""}
    {_command(results, "curves", task)}
"""
    if not text:
        return ""
    about = "\n".join(f"- `{name}`: {meaning}" for name, meaning in ABOUT.items())
    return f"""## Reward over time

{about}

First, what each method ended with: beside the reward the share of pictures in which a judge that is no part of any reward recognises
the animal, and how far apart pictures of the same prompt are (`diversity`; at 0 they are all alike), both of the tuned model.

Then, when a reward was reached, and how many times sooner than by `ddpo`. The rewards are half and nine tenths of the way to the
highest that every seed of `ddpo` reached, and that one; last, as the two models do not begin at the same reward, a gain as large as
every seed of `ddpo` had. `ddpo` is there where the straight line between two of its evaluations is, the others at the first evaluation
that shows it, which makes their speed-ups rather too small.
{text}"""


def _queries(results: Mapping[str, Any]) -> str:
    rows = ""
    for task, found in results["curves"].items():
        equal = found["equal_queries"]
        for method, value in equal.get("methods", {}).items():
            rows += f"| {task} | {equal['reward_queries']:,.0f} | {method} | {_with_interval(value, found['metric'])} |\n"
    return (
        rows
        and f"""## Reward at equal reward queries

| task | images scored | method | reward |
|---|---|---|---|
{rows}
    {_command(results, "curves")}
"""
    )


def _inference(results: Mapping[str, Any]) -> str:
    text = ""
    for task, found in results["inference"].items():
        metric = _metric(results, task)
        rows = "".join(
            f"| {row['method']} | {row['model']} | {row['steps']} | {_with_interval(row['reward'], metric)} | "
            f"{written(row['images_per_second']['mean'])} |\n"
            for row in found
            if row["model"] == "tuned" or row["method"] != "rlcm-published"  # the same base model as the default's
        )
        text += f"""
![{task}: reward against images per second](images/results-speed-{task}.png)

| {task}: model of | weights | steps | {metric["label"]} | images/s |
|---|---|---|---|---|
{rows}
    {_command(results, "inference", task)}
"""
    return (
        text
        and f"""## Reward against time at inference

The models of the curves above, with other numbers of steps; a point each.
{text}"""
    )


def _generalisation(results: Mapping[str, Any]) -> str:
    rows = ""
    for task, found in results["generalisation"].items():
        for row in found:
            kept, half = row["kept"]["mean"], row["kept"]["ci95"]
            share = f"{kept:.0%}" + (f" ± {half:.0%}" if half else "")
            if not _learned(found, row["method"]):
                share = "no sure gain to keep"
            rows += f"| {task} | {row['method']} | {row['set']} | {row['seeds']} | {written(row['gain']['mean'])} | {share} |\n"
    return (
        rows
        and f"""## Unseen prompts

Tuned on "a fox on a blue striped background" and the like, for 36 animals and nine of ten backgrounds of each. Asked: the
combinations left out, the same prompts in other words ("a picture of a fox ..."), and the nine animals left out
({", ".join(results["untrained_animals"])}). Gain: tuned minus base on the same seeds.

| task | method | prompts | seeds | gain in reward | share of the gain on trained prompts |
|---|---|---|---|---|---|
{rows}
    {_command(results, "generalisation")}
"""
    )


def _ablations(results: Mapping[str, Any]) -> str:
    text = ""
    for task, found in results["ablations"].items():
        rows = "".join(
            f"| {row['variant']} | {row['seeds']} | {_plain(row['gain'])} | {row['reward_queries']['mean']:,.0f} | "
            f"{row['network_calls']['mean']:,.0f} |\n"
            for row in found
        )
        text += f"""
![{task}: gain of each variant](images/results-ablations-{task}.png)

| {task} | seeds | gain in reward | images scored | network calls |
|---|---|---|---|---|
{rows}
    {_command(results, "ablations", task)}
"""
    return (
        text
        and f"""## One setting changed

RLCM as published with one setting changed, in equal time; the gain is that of the reward on the fixed set.
{text}"""
    )


def _learning_rates(results: Mapping[str, Any]) -> str:
    text = ""
    for task, found in results.get("learning_rates", {}).items():
        curves = results["curves"].get(task, {})
        # Other minutes, or another clock, are not to be compared.
        is_one_call = _command(results, "learning-rates", task).split()[4:] == _command(results, "curves", task).split()[4:]
        own = [method for method in curves.get("methods", ()) if method["name"] == "rlcm" and is_one_call]
        metric, rows = _metric(results, task), ""
        for row in sorted(found, key=lambda each: (each["method"], each["factor"])):
            if "failed" in row:
                rows += _row([row["method"], f"{row['lr']:g}", "diverged", *[""] * 5])
                continue
            seconds, reward = row["seconds"][-1], row["reward"][-1]
            gain = reward - row["reward"][0]
            cells = [row["method"], f"{row['lr']:g}", duration(seconds), _shown(reward, metric)]
            cells += [
                ("" if gain > 0 else "\N{MINUS SIGN}") + _size(gain, metric),
                "" if row["clip_fraction"] is None else f"{row['clip_fraction']:.1%}",
            ]
            cells += [_default_sooner(own, seconds, reward, is_gain=False), _default_sooner(own, seconds, gain, is_gain=True)]
            rows += _row(cells)
        heads = ["method", "learning rate", "trained for", "reward after", "gain", "clipped"]
        heads += ["the default is at this reward", "at this gain"]
        text += f"""
### Learning rates: {task}

{_row(heads)}{_row(["---"] * len(heads))}{rows}
    {_command(results, "learning-rates", task)}
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


def _last_step(results: Mapping[str, Any]) -> str:
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
    {_command(results, "last-step")}
"""
    )


def _limits(results: Mapping[str, Any]) -> str:
    """Return what a reader must not take from the page."""
    halves = [
        f"{_size(curve['ci95'][0], found['metric'])} on {task}"
        for task, found in results["curves"].items()
        for method in found["methods"][:1]
        for curve in method["curves"][:1]
    ]
    searched = "which were not searched for on these small models; a larger learning rate may well suit DDPO here"
    if results.get("learning_rates"):
        searched = "and [what larger learning rates give it](#larger-learning-rates) is no more than a search"
    start = f" (± {', '.join(halves)})" if halves else ""
    return f"""## What this does not show

- That DDPO could not be faster. It has the settings of `rlcm-published`,
  {searched}.
  The settings of `rlcm` were chosen on this model and on these tasks, with the same evaluation set and other seeds, but for its
  target, for which seed 0 of compressibility was looked at ([decision 008](decisions/008-two-steps-and-a-pace.md)): its ratio is
  that of a tuned method to one that is not.
- What the student cost: it had to be distilled from the teacher before RLCM could begin, and that is in none of the times.
- Where DDPO's curve still rises at its end, that end is the end of its minutes, not a plateau: with more of them it would be higher,
  and the ratios others.
- The intervals are over seeds. All seeds begin with the same model and are evaluated on the same images, so what is not known of the
  beginning{start} is in none of them.
{_best_steps(results)}- The clip range, 1e-4 on a mean over latent entries, is stricter for these latents of 512 entries than for the
  paper's of 16,384.
"""


def _best_steps(results: Mapping[str, Any]) -> str:
    """Return a line for every task on which the untuned student is best in other than the most steps: what that means."""
    lines = ""
    for task, rows in results["inference"].items():
        base = sorted((row for row in rows if (row["method"], row["model"]) == ("rlcm", "base")), key=lambda row: row["steps"])
        best = max(base, key=lambda row: row["reward"]["mean"], default=None)
        if best is not None and best is not base[-1]:
            shown = [f"{_with_interval(row['reward'], _metric(results, task))} in {row['steps']}" for row in (best, base[-1])]
            own = parse_settings(TrainConfig, values_of(task, "rlcm")).sampler.steps
            lines += f"""- That RLCM as published could not do better on {task} with fewer steps. Untuned, the student has
  {" and ".join(shown)};
  `rlcm-published` trains it in {TASKS[task].steps}, as the paper has it, `rlcm` in {own}.
"""
    return lines


def _command(results: Mapping[str, Any], only: str, task: str | None = None) -> str:
    """Return what gives a figure: one line for all tasks that came from the same call."""
    calls: dict[tuple[str, ...], list[str]] = {}
    for name, source in results["sources"][only].items():
        if task in (None, name):
            calls.setdefault(options(source["command"]), []).append(name)
    lines = []
    for kept, names in calls.items():
        tasks = [] if set(names) >= set(DEFAULT_TASKS) else [word for name in names for word in ("--task", name)]
        lines.append(" ".join(["rlcm reproduce --only", only, *tasks, *kept]))
    return "\n    ".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _has(found: Mapping[str, Any], method: str) -> bool:
    return any(each["name"] == method for each in found.get("methods", ()))


def _metric(results: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    known: Mapping[str, Any] = results["curves"].get(task, {})
    return known.get("metric", {"label": "reward", "unit": "", "lower_is_better": False})


def _ratios(found: Mapping[str, Any], method: str) -> list[Mapping[str, Any]]:
    """Return how much sooner a method was at DDPO's final reward, and at as large a gain."""
    targets = [found["targets"][-1], *([found["equal_gain"]] if found["equal_gain"] else [])]
    return [target["methods"][method]["seconds"] for target in targets]


def _can_tell(found: Mapping[str, Any], method: str) -> bool:
    """Say whether DDPO surely rose, and somewhere to which the method had to rise, too."""
    return bool(found["targets"]) and _rose(found) and not all(entry.get("from_start") for entry in _ratios(found, method))


def _sooner(found: Mapping[str, Any], method: str) -> str:
    """Return how much sooner a method was at DDPO's final reward and gain, or why that cannot be said."""
    if not found["targets"]:
        return "(DDPO's reward did not rise)"
    words = [
        "before training" if entry.get("from_start") else "not reached"
        if "speedup" not in entry else f"{written(entry['speedup'])} times{_spread(entry['interval'])}"
        for entry in _ratios(found, method)
    ]  # fmt: skip
    return f"{', by gain '.join(words)}; DDPO {_ends(found)}"


def _against(own: Mapping[str, Any], other: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    return f"{_with_interval(own, metric)} against {_with_interval(other, metric)}"


def _ends(found: Mapping[str, Any]) -> str:
    """Return from where to where the baseline came, and whether that is sure."""
    (own,) = (each for each in found["methods"] if each["name"] == found["baseline"])
    start, end = own["before"]["mean"], own["after"]["mean"]
    gain = f"{_shown(start, found['metric'])} to {_shown(end, found['metric'])}" + (
        f", {abs(end / start - 1):.1%}" if start else ""
    )
    return gain if _rose(found) else f"{gain}, not a sure gain"


def _rose(found: Mapping[str, Any]) -> bool:
    """Say whether the baseline's gain is above its interval over seeds."""
    (own,) = (each for each in found["methods"] if each["name"] == found["baseline"])
    gain, half = mean_over_seeds(
        [after - before for before, after in zip(own["before"]["each"], own["after"]["each"], strict=True)]
    )
    return half is not None and gain > half


def _learned(rows: Sequence[Mapping[str, Any]], method: str) -> bool:
    """Say whether a method's gain on its own prompts is above its interval."""
    gains = [row["gain"] for row in rows if row["method"] == method and row["set"] == "train"]
    return bool(gains) and gains[0]["mean"] > (gains[0]["ci95"] or 0.0)


def _surely(found: Mapping[str, Any], method: str) -> float:
    """Return the smaller lower end of the speed-ups' intervals, at equal reward and at equal gain; 0 where not reached.

    Single seeds have no interval, and count as they are. A reward that the method began above says nothing: there the gain
    decides alone.
    """
    told = [entry for entry in _ratios(found, method) if not entry.get("from_start")]
    if not told or any("speedup" not in entry for entry in told):
        return 0.0
    return min(entry["interval"][0] if entry["interval"] else entry["speedup"] for entry in told)


def _two_steps(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any], float] | None:
    """Return the reward of the default in two steps, of DDPO in fifty, and how much faster that is; None if unmeasured."""
    tuned = {(row["method"], row["steps"]): row for row in rows if row["model"] == "tuned"}
    own, other = tuned.get(("rlcm", 2)), tuned.get(("ddpo", 50))
    if own is None or other is None:
        return None
    faster = own["images_per_second"]["mean"] / other["images_per_second"]["mean"]
    return own["reward"], other["reward"], faster


def _reached(target: Mapping[str, Any], method: str, baseline: str) -> str:
    entry = target["methods"][method]["seconds"]
    if entry.get("from_start"):
        return "before training"
    if entry["reached"] < entry["of"]:
        return f"reached by {entry['reached']} of {entry['of']}"
    at = duration(sum(entry["at"]) / entry["of"])
    if method == baseline or "speedup" not in entry:
        return at
    return f"{at}: {written(entry['speedup'])} times sooner{_spread(entry['interval'])}"


def _spread(interval: Sequence[float] | None) -> str:
    return f" ({written(interval[0])} to {written(interval[1])})" if interval else ""


def _shown(reward: float, metric: Mapping[str, Any]) -> str:
    return _with_interval({"mean": reward, "ci95": None}, metric)


def _with_interval(value: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    # Four digits: what DDPO gains is in the third and fourth.
    sign, digits = -1.0 if metric["lower_is_better"] else 1.0, decimals(value["mean"]) + 1
    mean = {"mean": sign * value["mean"], "ci95": value["ci95"]}
    return _plain(mean, digits) + (f" {metric['unit']}" if metric["unit"] else "")


def _size(change: float, metric: Mapping[str, Any]) -> str:
    return f"{written(abs(change))} {metric['unit']}".strip()


def _plain(value: Mapping[str, Any], digits: int | None = None) -> str:
    text = written(value["mean"], digits)
    places = len(text.partition(".")[2])
    return text + (f" ± {written(value['ci95'], places)}" if value["ci95"] else "")


def _axis(metric: Mapping[str, Any]) -> str:
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['label']}{unit}, {'lower' if metric['lower_is_better'] else 'higher'} is better"


def _panel(found: Mapping[str, Any], axis: str) -> tuple[list[Line], str, str, bool]:
    sign, lines = -1.0 if found["metric"]["lower_is_better"] else 1.0, []
    for method in found["methods"]:
        colour = PALETTE[ORDER.index(method["name"]) if method["name"] in ORDER else -1]
        curves = [
            Curve(c["seconds"], c["reward_queries"], c["network_calls"], c["reward"], c["ci95"])
            for c in method.get("curves", ())
        ]
        for curve in curves:
            points = [(x, sign * y) for x, y in zip(getattr(curve, axis), curve.reward, strict=True) if x > 0]
            lines.append(Line("", [x for x, _ in points], [y for _, y in points], colour=colour, faint=True))
        places, means = mean_curve(curves, axis)
        points = [(x, sign * y) for x, y in zip(places, means, strict=True) if x > 0]
        lines.append(Line(method["name"], [x for x, _ in points], [y for _, y in points], colour=colour))
    name = "seconds of sampling and learning" if axis == "seconds" else "images scored"
    return lines, name, _axis(found["metric"]), True


def _figure(path: Path, panels: Sequence[tuple[list[Line], str, str, bool]]) -> Path:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4 * len(panels), 3.8), layout="constrained")
        for axes, (lines, x_label, y_label, log) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            ticks = sorted({x for line in lines for x in line.x}) if x_label == "steps" else None
            draw_chart(axes, lines, x_label, y_label, log_x=log, ticks=ticks)
        figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _bar_figure(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.4 * len(rows) + 1), layout="constrained")
        axes = figure.add_subplot()
        names, gains = [row["variant"] for row in rows][::-1], [row["gain"] for row in rows][::-1]
        axes.barh(names, [gain["mean"] for gain in gains], xerr=[gain["ci95"] or 0.0 for gain in gains], color=PALETTE[0])
        axes.set_xlabel("gain in reward")
        figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def rounded(value: Any) -> Any:
    """Return nested values with floats of six significant digits, so that the committed file stays small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def write_page(root: Path, take: Path | None = None) -> Path:
    """Write the page and its figures under `root`; `take` is copied to the committed results first."""
    committed = root / "benchmarks" / "results" / "reproduce.json"
    images = root / "docs" / "images"
    for folder in (committed.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    if take is not None:
        found = json.loads(take.read_text())
        for (part, task), names in unfinished(found).items():
            print(f"left out, as seeds are missing: {part}, {task}: {', '.join(names)}; call again what made the results")
        known = json.loads(committed.read_text()) if committed.is_file() else {}
        results = rounded(merged(known, found))
        for part, task, name in sorted(names_in(known) - names_in(results)):
            print(f"no longer in the results, as the new ones are of another call: {part}, {task}: {name}")
        committed.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(committed.read_text())
    draw(results, images)
    (root / "docs" / "results.md").write_text(page(results))
    return root / "docs" / "results.md"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=Path, help="results.json of a reproduction, to be committed")
    print(write_page(ROOT, parser.parse_args().take))


if __name__ == "__main__":
    main()
