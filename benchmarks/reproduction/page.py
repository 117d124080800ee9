"""The page as a whole: what it is, what came out in short, the experiments, and what none of it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.reproduction import sections
from benchmarks.reproduction.methods import ORDER
from benchmarks.reproduction.reading import has, metric_of, of_former_model
from benchmarks.reproduction.sources import clock, minutes, sources
from benchmarks.reproduction.verdicts import verdicts
from benchmarks.reproduction.words import size, with_interval
from benchmarks.shared.pages import table
from rlcm.report.words import counted
from rlcm.studies.reproduce.plan import DEFAULT_TASKS, TASKS, values_of
from rlcm.training.config import TrainConfig, parse_settings

BAR_MINUTES = 60
PAPER = """| task | start -> end (RLCM) | GPU-hours of RLCM | DDPO: GPU-hours and where it gets |
|---|---|---|---|
| compressibility (minus kB) | -182 -> -10 | about 28 | about 125, about -15 (start -83) |
| incompressibility (kB) | 175 -> 640 | about 28 | about 125, about 195 |
| aesthetic | 5.95 -> 8.1 | about 2 | about 125, about 7.2 |
| alignment (BERTScore) | .760 -> .7735 | about 120 | about 320, about .7775 |
"""


FORMER = """
**Measured with the former built-in model (45 animals), and with the default of that time (2 steps).** The package now has
[another one](decisions/012-a-world-that-needs-mending.md), so none of this can be repeated with it. DDPO's settings were not searched,
so a comparison with it says little: claims against it, and how many times sooner others are, are left out. What holds for the
present model, with equal search, is on [the page of results](results.md).
"""


def page(results: Mapping[str, Any]) -> str:
    """Return docs/reproduction.md."""
    parts = [
        f"""# The paper's experiments in miniature
{FORMER if of_former_model(results) else ""}
Oertell et al. 2024 (arXiv:2404.03673) tune LCM Dreamshaper v7 on four A6000 GPUs. Below, the same experiments on the built-in
pair of models, 64 x 64 pixels: the consistency model by RLCM, the diffusion model that it was distilled from by DDPO.
The numbers say how the methods compare HERE; they are not the paper's, which stand by themselves in
[the last section](#the-papers-own-figures).

Every figure below, where it says nothing else: {" or ".join(counted(seeds, "seed") for seeds in sources(results, "seeds"))}; machine:
{"; ".join(sources(results, "machine"))}; the command under each figure makes it.

± and brackets are 95 % intervals over seeds (Student's; of ratios Welch's on logarithms). The data is
`benchmarks/results/reproduce.json`, and `benchmarks/results_page.py` makes this page of it. Times are {clock(results)} of
sampling and learning, of which a run of DDPO has {minutes(results)} minutes. Settings of every method:
`src/rlcm/studies/reproduce/plan.py`; those of each run: `config.yaml` in its folder.
""",
        _in_short(results),
        sections.curves(results),
        sections.queries(results),
        sections.inference(results),
        sections.generalisation(results),
        sections.ablations(results),
        sections.learning_rates(results),
        sections.last_step(results),
        _limits(results),
        f"""## The paper's own figures

Copied from the paper, for LCM Dreamshaper v7 at 512 x 512 pixels on A6000 GPUs; none of this was measured here.

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


def _in_short(results: Mapping[str, Any]) -> str:
    """Return the claims with their bars, and which tasks they still wait for."""
    missing = [task for task in DEFAULT_TASKS if not all(has(results["curves"].get(task, {}), method) for method in ORDER)]
    notes = [f"Tasks whose curves are not complete yet: {', '.join(missing)}."] if missing else []
    if not of_former_model(results) and any(
        source["budget_minutes"] < BAR_MINUTES for source in results["sources"]["curves"].values()
    ):
        notes.append(f"The first two bars were set for {BAR_MINUTES} minutes of DDPO; it had {minutes(results)}.")
    former = of_former_model(results)
    shown = [verdict for verdict in verdicts(results) if not (former and "DDPO" in verdict.claim + verdict.found)]
    found = table(["claim", "bar", "found", "reached"], [verdict.cells() for verdict in shown])
    return f"## In short\n\n{found}" + "".join(f"\n{note}" for note in notes) + "\n"


def _limits(results: Mapping[str, Any]) -> str:
    """Return what a reader must not take from the page."""
    halves = [
        f"{size(curve['ci95'][0], found['metric'])} on {task}"
        for task, found in results["curves"].items()
        for method in found["methods"][:1]
        for curve in method["curves"][:1]
    ]
    searched = "which were not searched for on these small models; a larger learning rate may well suit DDPO here"
    if results.get("learning_rates"):
        searched = "and [what larger learning rates give it](#larger-learning-rates) is no more than a search"
    start = f" (± {', '.join(halves)})" if halves else ""
    entries = "512" if of_former_model(results) else "1,024"
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
{_best_steps(results)}- The clip range, 1e-4 on a mean over latent entries, is stricter for these latents of {entries} entries than for
  the paper's of 16,384.
"""


def _best_steps(results: Mapping[str, Any]) -> str:
    """Return a line for every task on which the untuned student is best in other than the most steps: what that means."""
    lines = ""
    for task, rows in results["inference"].items():
        base = sorted((row for row in rows if (row["method"], row["model"]) == ("rlcm", "base")), key=lambda row: row["steps"])
        best = max(base, key=lambda row: row["reward"]["mean"], default=None)
        if best is not None and best is not base[-1]:
            both = [f"{with_interval(row['reward'], metric_of(results, task))} in {row['steps']}" for row in (best, base[-1])]
            # The results of the former model are of the default of then.
            own = 2 if of_former_model(results) else parse_settings(TrainConfig, values_of(task, "rlcm")).sampler.steps
            lines += f"""- That RLCM as published could not do better on {task} with fewer steps. Untuned, the student has
  {" and ".join(both)};
  `rlcm-published` trains it in {TASKS[task].steps}, as the paper has it, `rlcm` in {own}.
"""
    return lines
