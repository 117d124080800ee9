"""The study's page, docs/algorithms/study.md: all of its figures come from the summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.algorithms.measure import FINE_MOMENTS, MOMENTS, STEPS
from benchmarks.algorithms.methods import BESIDE, COMMON, DDPO, DDPO_SECOND, METHODS, PLAIN, TASKS, half
from benchmarks.algorithms.plots import ddpo_picture, draw_all
from benchmarks.algorithms.summary import always_sooner, overlaps, read_runs, summarise
from benchmarks.shared import results as files
from benchmarks.shared.pages import table
from rlcm.report.words import DIVERSITY
from rlcm.settings import merge

INTRODUCTION = """# Which algorithm

Every algorithm of `rlcm` on the built-in model, from the same weights, with the same budget on a task: {budget} CPU seconds of training
a run{longer}, {seeds}. This page is written by `python -m benchmarks.algorithms` from the results' own files.

## In a minute

{choice}
A reward can rise because the pictures break. What counts here is therefore a run's best evaluation at which the held-out judge still
finds at least {sound:.0%} as many pictures right as before training: its *best sound reward*. Many runs break their pictures later: to
get what the table says, evaluate on the way and keep the best (`evaluation.final=best`), or use a leash. "Soon" is the time to the
median of plain RLCM's best sound rewards. Of the methods of which all seeds are apart from all of plain
RLCM's, the table has the first and the best by their means; the last row goes by means alone. The judge
is a detector that no reward and no training sees; here it also says which settings and which evaluations count.

## How it was measured

- Tasks:
{tasks}- {prompts}{asks}
- Time is CPU time of the run's process (one thread) spent in sampling, scoring and learning. Evaluations are not counted.
- Reward and judge are those of {images} fixed pictures, with seeds apart from the run's and without exploration noise. Lines are means
  over the seeds; bands go from the lowest to the highest seed. A share of {images} pictures is known to about 5 points where most are
  right, so what is sound is known no better. A best evaluation is the highest of {looks}, and so a little higher than it would be found
  again, for all methods alike.
- "Speed-up" is the median time of plain RLCM's seeds to that reward over the method's: the median of its seeds (lowest to highest). A
  run is there at its first evaluation that has the reward and is sound. Plain RLCM's own row shows how far its seeds are apart. For a
  seed that did not get there within its budget only a bound is known: "below" so many times. A run whose judge fell below half twice
  in a row was ended: its lines stop there. "Fewer queries" is the same for images scored.
- "At the end" is the last evaluation: reward, and what the judge finds right.
- Every method was tuned alike: eight settings of learning rate, images a round, updates a round and leash, the same for all, each
  tried for a fifth of a result's budget on prompts and seeds that no result has (`design.py`). Here a leash is a plain penalty on the
  divergence, without the target and the pace that the default's has. The setting with the best sound reward is used for the
  method.{untuned} What is sound for a fifth of the time may break pictures later, as the plots show.
- "Detail" is the energy of what a 3x3 blur takes away, as a share of the untrained model's. Below 100 % the pictures are plainer, or
  blurred.
- "Kept at n" is the gain over the untrained model when both sample in n steps, as a share of that in {steps} steps, with which the
  training sampled.
- Each method's settings are [below](#settings). Machine: {machines}.
  Up to {beside} other processes shared its two threads.
"""


def write_study(results: Path, root: Path, budget: float) -> None:
    """Write benchmarks/results/algorithms.json, docs/images/algorithms-*.svg and docs/algorithms/study.md under `root`."""
    summary = summarise(read_runs(results, budget), budget)
    if not summary["tasks"]:
        print("no task has runs of the untrained model and of plain RLCM yet, so there is no page to write")
        return
    file = root / "benchmarks" / "results" / "algorithms.json"
    pictures = draw_all(summary, root / "docs" / "images")
    for found in summary["tasks"].values():
        for method in found["methods"].values():
            del method["curves"]  # they are in the runs' own files
        for one in _variants(found).values():
            del one["curve"]
    files.write(file, summary, indent=1)
    page = root / "docs" / "algorithms" / "study.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text_of(summary, pictures))
    print(f"written: {file}, {page}")


def text_of(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the page."""
    tasks = summary["tasks"]
    text = INTRODUCTION.format(
        budget=f"{summary['budget']:g}",
        seeds=_seeds(tasks),
        choice=_choice(summary),
        sound=summary["sound"],
        tasks="".join(f"    - `{task}`: {TASKS[task].about}\n" for task in tasks),
        longer=_longer(tasks),
        prompts=_prompts([found["untrained"]["judge"] for task, found in tasks.items() if not TASKS[task].asks]),
        asks="".join(f"\n{_asks(task, found)}" for task, found in tasks.items() if TASKS[task].asks),
        images=COMMON["evaluation"]["images"],
        looks=len(FINE_MOMENTS) + 1,
        steps=COMMON["sampler"]["steps"],
        machines="; ".join(summary["machines"]),
        beside=BESIDE,
        untuned="".join(
            f" Not tuned on `{task}`: {_listed([f'`{name}`' for name in names])}." for task, names in summary["untuned"].items()
        ),
    )
    for task, found in tasks.items():
        text += _task(task, found, pictures[task])
    text += "".join(_ddpo(task, found) for task, found in tasks.items() if DDPO in found)
    run = {m for found in tasks.values() for m in (*found["methods"], *_variants(found))}
    return text + _settings(sorted(run, key=list(METHODS).index))


def _prompts(judged: Sequence[float]) -> str:
    """Return what the prompts are of the tasks that do not ask for what the judge looks for, of whose shares the lowest is told."""
    objects = ", ".join(half("world-objects", for_search=False))
    prompts = f"Prompts: {objects}."
    if not judged:
        return prompts
    return f"""{prompts}
  Before training the judge finds {min(judged):.0%} of their pictures right. No reward on these prompts asks for that, so the judge
  shows what a method breaks. Its confidence, the mean probability of all that was asked, is the finer measure."""


def _longer(tasks: Iterable[str]) -> str:
    """Return which tasks have a larger budget than the common one."""
    return "".join(f" ({TASKS[task].times} times as many on `{task}`)" for task in tasks if TASKS[task].times > 1)


def _seeds(tasks: Mapping[str, Any]) -> str:
    """Return which seeds every method has, and which methods have more of them on a task."""
    of = {(task, name): m["seeds"] for task, found in tasks.items() for name, m in found["methods"].items()}
    common = sorted(set.intersection(*map(set, of.values())))
    more: dict[str, dict[int, list[str]]] = {}
    for (task, name), seeds in of.items():
        if len(seeds) > len(common):
            more.setdefault(task, {}).setdefault(len(seeds), []).append(f"`{name}`")
    told = [f"{number} of {_listed(names)} on `{task}`" for task, some in more.items() for number, names in some.items()]
    said = f"seeds {_listed([str(seed) for seed in common])}"
    return f"{said} ({_listed(told)})" if told else said


def _asks(task: str, found: Mapping[str, Any]) -> str:
    """Return what is special where the reward asks for what the judge looks for."""
    prompts, images = len(half(TASKS[task].prompts, for_search=False)), TASKS[task].looked_at["images"]
    share = found["untrained"]["judge"]
    known, looks = 100 * 1.96 * math.sqrt(share * (1 - share) / images), len(MOMENTS) + 1
    return f"""- `{task}` asks for just what the judge looks for, by a detector of its own. A run trains on {prompts} prompts of six
  kinds. Reward and judge are those of {images} pictures of unseen prompts. Before training the judge finds {share:.0%} right. What
  it finds afterwards is the result; the reward is what the training asked for itself. Of so many pictures a share is known to about
  {known:.0f} points (95 %), and a best evaluation is the highest of {looks}. So methods whose brackets overlap are not told apart."""


def _variants(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the runs of DDPO on a task by their settings' name; none where it was not run."""
    return found[DDPO]["variants"] if DDPO in found else {}


def _choice(summary: Mapping[str, Any]) -> str:
    steps = COMMON["sampler"]["steps"]
    rows = []
    for row in summary["choice"]:
        task, method, value = row["task"], row["method"], row["value"]
        if row["what"] == "fastest":
            wish = f"`{task}`, soon" if task else "one method for all of these tasks, soon"
            which = "in the median" if task else "by the geometric mean of the medians"
            measured = f"{_number(value, 1)} times as fast as plain RLCM, {which}"
            asked = [summary["tasks"][task]] if task else summary["tasks"].values()
            if not method or method == PLAIN or value <= 1:
                method, measured = None, "no method was sooner"
            elif not all(always_sooner(found["methods"], method) for found in asked):
                method, measured = None, f"not told apart: `{method}` is {measured}, but not in every seed"
        elif row["what"] == "highest":
            found = summary["tasks"][task]
            plain = found["methods"][PLAIN]["reward"]["mean"]
            wish = f"`{task}`, the best sound reward"
            measured = f"{_number(found['untrained']['reward'])} to {_number(value)}; plain RLCM: to {_number(plain)}"
            if overlaps(found["methods"], method):
                method, measured = None, f"not told apart: `{method}` {measured}; their seeds overlap"
        else:
            wish = "one method for all of these tasks, and 2 steps afterwards"
            measured = f"in 2 steps at least {_number(value, 1)} times the gain that plain RLCM has in {steps}"
            measured = measured if method else "no method qualifies"
        rows.append([wish, f"`{method}`" if method else "none", measured])
    return table(["you want", "choose", "measured"], rows)


def _diversity(guard: Mapping[str, Any]) -> float | None:
    return next((guard[key] for key in DIVERSITY if key in guard), None)


def _task(task: str, found: Mapping[str, Any], picture: str) -> str:
    start, methods, asks = found["untrained"], found["methods"], TASKS[task].asks
    others = [str(n) for n in STEPS if n != COMMON["sampler"]["steps"]]
    order = sorted(methods, key=lambda name: methods[name]["reward"]["mean"], reverse=True)
    learnt, sampled = [], []
    guard = start["guard"]
    judged = [f"{start['judge']:.1%}", f"{start['judge_confidence']:.3f}", ""]
    learnt.append(["untrained", _number(start["reward"]), "", "", *judged, _number(_diversity(guard)), "100%", "", "", ""])
    sampled.append(["untrained", *(_number(start["steps"][str(n)]["reward"]) for n in STEPS), *[""] * len(others)])
    for name in order:
        m = methods[name]
        reach = m["to_plain"]
        learnt.append(
            [
                f"`{name}`",
                f"{_number(m['reward']['mean'])} ({_number(m['reward']['low'])} to {_number(m['reward']['high'])})",
                "" if reach is None else times_of(reach["speed_up"]),
                "" if reach is None else times_of(reach["fewer_queries"]),
                shares_of(m["judge"]) if asks else f"{m['judge']['mean']:.1%}",
                f"{m['judge_confidence']:.3f}",
                "" if reach is None or reach["judge"] is None else f"{reach['judge']:.1%}",
                _number(_diversity(m["guard"])),
                f"{m['guard']['high_frequency'] / guard['high_frequency']:.0%}",
                f"{m['images_per_cpu_second']:.1f}",
                f"{m['best_after']['median']:.0f} s",
                f"{_number(m['end']['reward']['mean'])}, {m['end']['judge']['mean']:.0%}",
            ]
        )
        kept = ["" if m["kept"][n] is None else f"{m['kept'][n]:.0%}" for n in others]
        sampled.append([f"`{name}`", *(_number(m["steps"][str(n)]["reward"]) for n in STEPS), *kept])
    about, unit = TASKS[task].about, TASKS[task].unit
    columns = ["method", "best sound reward", "speed-up", "fewer queries", "judge", "its confidence", "judge at plain's reward"]
    return f"""
## {task}

{about[0].upper()}{about[1:]} ({unit}; higher is better). The dashed line is the median of plain RLCM's best sound rewards.

![Reward over time and over reward queries, and the judge over time](../images/{picture})

{table([*columns, "diversity", "detail", "images a CPU second", "best after", "at the end"], learnt)}
{_on_the_way(found, order, unit)}
What the search chose:

{table(["method", *(f"`{name}`" for name in _TUNED)], [[f"`{n}`", *_tuned(methods[n]["tuned"])] for n in order])}
The same weights, sampled in other numbers of steps:

{table(["method", *(f"reward, {n} step{'s' if n > 1 else ''}" for n in STEPS), *(f"kept at {n}" for n in others)], sampled)}"""


def _on_the_way(found: Mapping[str, Any], order: Sequence[str], unit: str) -> str:
    """Return when every method had a quarter, a half and three quarters of the largest gain."""
    rows = []
    for name in order:
        way = found["methods"][name]["on_the_way"]
        half = way["0.5"]
        times = [_until(one["cpu"], 1) for one in way.values()]
        rows.append([f"`{name}`", *times, _until(half["reward_queries"], 0), _until(half["network_calls"], 0)])
    shares = [f"{float(share):.0%}, s" for share in next(iter(found["methods"].values()))["on_the_way"]]
    best = f"{_number(found['best'])} {unit}"
    return f"""CPU seconds to shares of the way to {best}, the best sound reward of any run, and the images and network calls to
half of it. Medians of the seeds (lowest to highest); ">": at least one seed was not there at the end of its run.

{table(["method", *shares, "50%, images", "50%, network calls"], rows)}"""


def _until(spread: Mapping[str, float | None], digits: int) -> str:
    """Return what it took and its range over the seeds; of a seed that did not get there only a bound is known."""
    bound = "" if spread["more_than"] is None else f"> {spread['more_than']:,.{digits}f}"
    if spread["more_than"] is not None and spread["low"] is not None:  # no other is below the lowest
        bound = f"> {max(spread['more_than'], spread['low']):,.{digits}f}"
    median, low, high = (bound if (v := spread[key]) is None else f"{v:,.{digits}f}" for key in ("median", "low", "high"))
    return bound if spread["low"] is None else f"{median} ({low} to {high})"


def _ddpo(task: str, found: Mapping[str, Any]) -> str:
    """Return the comparison with DDPO on one task."""
    own, start = found[DDPO], found["untrained"]
    variants, furthest = own["variants"], own["variants"][own["furthest"]]
    missing = "before training" if furthest["reward"]["mean"] > furthest["before"]["reward"] else "DDPO gained nothing"
    rows = []
    for name in sorted(found["methods"], key=lambda n: found["methods"][n]["reward"]["mean"], reverse=True):
        cells = [
            missing if one is None else times_of(one[axis])
            for one in own["methods"][name].values()
            for axis in ("speed_up", "fewer_queries")
        ]
        rows.append([f"`{name}`", _number(found["methods"][name]["reward"]["mean"]), *cells])
    columns = ["method", "best sound reward", "sooner at DDPO's best", "fewer images", "sooner at DDPO's gain", "fewer images "]
    reached = [
        [
            f"`{name}`",
            *_tuned(one["settings"]),
            f"{one['budget']:,.0f} s",
            f"{_number(one['reward']['mean'])} ({_number(one['reward']['low'])} to {_number(one['reward']['high'])})",
            f"{one['spent']['cpu']:,.0f}",
            f"{one['spent']['reward_queries']:,.0f}",
            f"{one['judge']['mean']:.1%}",
            f"{one['broken']} of {len(one['seeds'])}",
            f"{one['rising']} of {len(one['seeds'])}",
        ]
        for name, one in variants.items()
    ]
    head = [
        "",
        *(f"`{name}`" for name in _TUNED),
        "budget",
        "best sound reward",
        "after CPU s",
        "after images",
        "judge",
        "broken",
        "rising",
    ]
    second = (
        f" As that rate is too high for so long a run, `{DDPO_SECOND}` has the second-best try's."
        if DDPO_SECOND in variants
        else ""
    )
    begins = f"DDPO begins at {_number(furthest['before']['reward'])}, with {furthest['before']['judge']:.1%} right."
    return f"""
## DDPO on {task}

DDPO trains the diffusion model that the built-in one was distilled from, in its 50 steps. One of its rounds takes longer than a
try of another method. So it got {METHODS[DDPO].times} times the others' budget in its eight tries, and the times in the table for its
results. `{DDPO}` has what the search chose.{second}

{table(head, reached)}
{begins} *Broken*: runs that ended early, because the judge fell below half twice in a row.
*Rising*: runs whose best evaluation is the last one, so that more time would give more. DDPO's runs shared the machine with three to
five other processes in place of one, so its CPU seconds may be worth somewhat less than the others'.

The few-step model begins at {_number(start["reward"])}. So there are two questions: when a method is where the better DDPO
(`{own["furthest"]}`) ended, and when it has gained as much.

![Reward over time, DDPO and others](../images/{ddpo_picture(task)})

{table(columns, rows)}"""


def _settings(methods: Sequence[str]) -> str:
    said = ("run.", "evaluation.", "prompts", *_TUNED)
    common = ", ".join(f"`{setting}`" for setting in _flat(COMMON) if not setting.startswith(said))
    rows = []
    for name in methods:
        method = METHODS[name]
        own = [f"`{setting}`" for setting in _flat(method.changes)]
        own += [f"`{setting}` on {task}" for task, changes in method.for_task.items() for setting in _flat(changes)]
        rows.append([f"`{name}`", method.about, ", ".join(own)])
    return f"""
## Settings

All: {common}, and what the search chose. What a method changes:

{table(["method", "what it is", "settings"], rows)}
The runs, one file each with its whole configuration, are in `benchmarks/results/algorithms/`.
"""


def _flat(changes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return nested changes as key.subkey=value."""
    flat = []
    for key, value in merge(changes).items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}={value}"]
    return flat


_TUNED = ("optimizer.lr", "rollout.batch_size", "algorithm.minibatches", "algorithm.kl_coefficient")


def _tuned(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return ["as below", *[""] * (len(_TUNED) - 1)]
    return [f"{found[group][name]:g}" for group, name in (key.split(".") for key in _TUNED)]


def times_of(spread: Mapping[str, float | None]) -> str:
    """Return a speed-up and its range over the seeds, with bounds where a seed did not get there."""
    median, low, high = spread["median"], spread["low"], spread["high"]
    bound = spread["below"]
    if bound is not None and median is not None:  # the lowest is no higher
        bound = min(bound, median)
    under = "" if bound is None else f"below {bound:.1f}"
    if high is None:
        return f"not reached ({under})"
    return f"{under if median is None else f'{median:.1f}'} ({under if low is None else f'{low:.1f}'} to {high:.1f})"


def shares_of(spread: Mapping[str, float]) -> str:
    """Return a mean share and its range over the seeds."""
    return f"{spread['mean']:.1%} ({spread['low']:.1%} to {spread['high']:.1%})"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def seeds_of(methods: Iterable[Mapping[str, Any]]) -> str:
    """Return how many seeds methods have: a number, or the lowest and the highest."""
    counts = sorted({len(method["seeds"]) for method in methods})
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
