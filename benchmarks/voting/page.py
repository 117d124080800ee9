"""What the study says: shares of the gain with their bars, the judge, and the curve of gain against votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.shared.figures import figure
from benchmarks.shared.pages import table
from benchmarks.voting.cells import DIRECT
from benchmarks.voting.oracles import MEANINGS
from rlcm.report.drawing import PALETTE, Line, draw_chart
from rlcm.report.words import counted
from rlcm.studies.intervals import mean_over_seeds

BAR, BAR_MANY_WRONG, MANY_WRONG = 0.7, 0.6, 0.3
"""Shares of the gain that are to be reached; the lower one where so many votes are wrong."""
MOST_LOST = 3.0
"""Points that the judge may lose."""
Cells = Sequence[Mapping[str, Any]]
HEADS = ["what they like", "wrong votes", "share of the gain", "seeds, lowest to highest", "bar", "reached",
         "judge: change in points", f"at most {MOST_LOST:.0f} lost"]  # fmt: skip
NOT_YET = "Not measured yet with the present built-in model: `python benchmarks/voters.py` writes this page."


def page(found: Mapping[str, Any]) -> str:
    """Return docs/voters.md; of results without trainings one that says so and claims nothing."""
    cells, plan = found.get("cells", []), found.get("plan")
    return f"""# Teaching by votes, measured

How much of a [taste](glossary.md#taste) does the model learn from votes? People differ and tire, so the voters here are simulated.
Each prefers a property that a function of the picture measures exactly, and that no prompt mentions:

{_meanings()}
A voter answers the questions of [Teach](how-to/teach-your-taste.md) and chooses the best of four pictures. Wrong votes choose one of
the other three. The gain is compared with that of a training with as many rounds whose reward is the function itself. That training
sees every picture's value; the votes only say which of four is best.

{_measured(cells, plan, found) if cells and plan else NOT_YET}
"""


def _meanings() -> str:
    return "".join(f"- `{name}`: {meaning}.\n" for name, meaning in MEANINGS.items())


def _measured(cells: Cells, plan: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    rows = list(_rows(cells))
    without = f"{counted(found['left'], 'training')} of the study was left out for time. " if found["left"] else ""
    rounds = plan["votes"] // plan["votes_a_training"] * plan["rounds_a_training"]
    setting = ", ".join(f"`{setting}`" for setting in plan["settings"])
    return f"""After {plan["votes"]} votes, {counted(len(_seeds(cells)), "seed")}:

{table(HEADS, rows)}
{verdicts(cells)} A share is the ratio of the
means of the seeds. The judge's figure is the change in `right`, the pictures in which the held-out judge finds all that was asked
for, with the 95 % interval of the seeds' mean (Student's). {without}

The gain, on pictures of the same prompts and noise before and after, with the mean of the seeds' 95 % intervals:

{table(["what they like", "before", "asked directly: gain", "judge: change in points"], _direct_rows(cells))}
{_curve(found)}Every evaluation has {plan["images"]} fixed pictures of `{plan["tested"]}`: prompts and noise that were not
trained on. Training is on `{plan["prompts"]}`, with the package's default and its leash, but with {setting}
and {rounds} rounds, {plan["rounds_a_training"]} after every {plan["votes_a_training"]} votes. That is less training than the page
does, so that the study is quick. So compare shares, not gains.

Machine: {found["machine"]}; {sum(cell["cpu_seconds"] for cell in cells) / 60:.0f} minutes of computing. Command:
`python benchmarks/voters.py --votes {plan["votes"]} --rounds {plan["rounds_a_training"]}`; all figures are in
`benchmarks/results/voters.json`."""


def verdicts(cells: Cells) -> str:
    """Return how many bars of the gain and of the judge are missed, a sentence each."""
    rows = _rows(cells)
    missed, lost = (sum("**no**" in row[place] for row in rows) for place in (5, 7))
    return f"{_verdict(missed, len(rows), 'bars of the gain')} {_verdict(lost, len(rows), 'bars of the judge')}"


def _verdict(missed: int, of: int, what: str) -> str:
    return f"**{missed} of {of} {what} are missed.**" if missed else f"All {of} {what} are reached."


def _rows(cells: Cells) -> list[list[str]]:
    """Return a row for each oracle and share of wrong votes, of the seeds that were trained in both ways."""
    rows = []
    for oracle in MEANINGS:
        for wrong in sorted({cell["wrong"] for cell in cells if cell["source"] == "active"}):
            pairs = _pairs(cells, oracle, "active", wrong)
            if pairs:
                rows.append([f"`{oracle}`", f"{wrong:.0%}", *_shares(pairs, wrong), *_judged([one for one, _ in pairs])])
    return rows


def _shares(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], wrong: float) -> list[str]:
    share = share_of(pairs)
    each = sorted(one for pair in pairs if (one := share_of([pair])) is not None)
    bar = BAR_MANY_WRONG if wrong >= MANY_WRONG else BAR
    if share is None or not _is_clear([direct for _, direct in pairs]):
        return ["none: asked directly, nothing clear is gained either", "", f"{bar:.0%}", "**no**"]
    spread = f"{each[0]:.0%} to {each[-1]:.0%}" if each else ""
    return [f"{share:.0%}", spread, f"{bar:.0%}", "yes" if share >= bar else "**no**"]


def _is_clear(cells: Cells) -> bool:
    """Return whether trainings gained more than the interval of their gain; a share of less is a ratio of two noises."""
    gains = [cell["looks"][-1]["value"]["gain"] for cell in cells]
    return fmean(gain["mean"] for gain in gains) > fmean(gain["ci95"] for gain in gains)


def share_of(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> float | None:
    """Return what was gained by votes of what was gained directly, last looks; None where nothing was gained directly."""
    voted, direct = (fmean(_gain(pair[side]["looks"][-1]) for pair in pairs) for side in (0, 1))
    return voted / direct if direct > 0 else None


def _judged(cells: Cells) -> list[str]:
    change, half = mean_over_seeds([100 * cell["looks"][-1]["right"]["gain"]["mean"] for cell in cells])
    return [f"{change:+.1f}" + ("" if half is None else f" ± {half:.1f}"), "yes" if change >= -MOST_LOST else "**no**"]


def _direct_rows(cells: Cells) -> list[list[str]]:
    rows = []
    for oracle in MEANINGS:
        looks = [cell["looks"][-1] for cell in cells if cell["oracle"] == oracle and cell["source"] == DIRECT]
        if looks:
            values = [look["value"] for look in looks]
            gain, half = (fmean(value["gain"][key] for value in values) for key in ("mean", "ci95"))
            before, spread = (values[0]["before"][key] for key in ("mean", "ci95"))
            judged = _judged([cell for cell in cells if cell["oracle"] == oracle and cell["source"] == DIRECT])[0]
            rows.append([f"`{oracle}`", f"{before:.3f} ± {spread:.3f}", f"{gain:+.3f} ± {half:.3f}", judged])
    return rows


def _curve(found: Mapping[str, Any]) -> str:
    if not has_curve(found):
        return ""
    oracle = found["cells"][0]["oracle"]
    return f"""Gain against votes for `{oracle}`, without wrong votes: with questions that are chosen by what the answer would tell,
with any questions, and without votes, asked directly in as many rounds. Whiskers are 95 % intervals of the seeds' mean.

![Gain against votes: chosen questions, any questions, and asked directly](images/voters.png)

"""


def has_curve(found: Mapping[str, Any]) -> bool:
    """Whether chosen and any questions can be compared."""
    return any(cell["source"] == "random" for cell in found["cells"])


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Draw the gain over the votes: means of the seeds."""
    cells = found["cells"]
    oracle = cells[0]["oracle"]
    lines = []
    for (source, label), colour in zip(
        (("active", "chosen questions"), ("random", "any questions"), (DIRECT, "asked directly")), PALETTE, strict=False
    ):
        runs = [cell for cell in cells if (cell["oracle"], cell["source"], cell["wrong"]) == (oracle, source, 0.0)]
        looks = list(zip(*(cell["looks"] for cell in runs), strict=True))
        points = [mean_over_seeds([_gain(look) for look in some]) for some in looks]
        votes, gains = [0.0, *(float(some[0]["votes"]) for some in looks)], [0.0, *(mean for mean, _ in points)]
        lines.append(Line(label, votes, gains, [0.0, *(half or 0.0 for _, half in points)], measured=True, colour=colour))
    with figure(file, 6.2, 3.6) as drawn:
        draw_chart(drawn.add_subplot(), lines, "votes", f"gain in {oracle}", ticks=lines[0].x)


def _pairs(cells: Cells, oracle: str, source: str, wrong: float) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    direct = {cell["seed"]: cell for cell in cells if (cell["oracle"], cell["source"]) == (oracle, DIRECT)}
    voted = [cell for cell in cells if (cell["oracle"], cell["source"], cell["wrong"]) == (oracle, source, wrong)]
    return [(cell, direct[cell["seed"]]) for cell in voted if cell["seed"] in direct]


def _seeds(cells: Cells) -> set[int]:
    return {cell["seed"] for cell in cells}


def _gain(look: Mapping[str, Any]) -> float:
    return float(look["value"]["gain"]["mean"])
