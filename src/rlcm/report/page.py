"""The page of a run: all that the template prints, in one file."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from rlcm.paths import command, local
from rlcm.report.drawing import ACCENT, INK, LINE, MUTED, curves, guards, round_charts
from rlcm.report.encoding import data_uris
from rlcm.report.reading import read_run, read_text
from rlcm.report.run import STUDY, WEIGHTS, Run
from rlcm.report.samples import Shot
from rlcm.report.steps import study_section
from rlcm.report.templating import render
from rlcm.report.values import finite
from rlcm.report.words import byte_size, comparison, decimals, duration, headline, summary, with_unit
from rlcm.runs.files import below, printable, stamp, why_no_file
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_bytes

logger = logging.getLogger(__name__)

PAIRS_IN_SIGHT, PAIRS, FILM = 6, 16, 8
PROMPTS_IN_SIGHT = 9
PHASES = {
    "sample": "sampling",
    "reward_wait": "waiting for rewards",
    "reward": "rewards",
    "update": "learning",
    "other": "other",
}
INTERNALS = ("reward_std", "clip_fraction", "ratio_deviation", "grad_norm", "loss", "lr", "images_per_second")


def write_report(run_dir: Path) -> Path:
    """Write `report.html` of a run and return its path: one page that needs no other file and no network.

    What a run that was stopped early has not written is left out, and the page says so.

    Raises:
        RunDirectoryError: if there is nothing of a run in `run_dir`, or the page cannot be written.
    """
    run = read_run(local(run_dir, "run_dir"))
    path = run.path / "report.html"
    if run.config_damaged:
        logger.warning("%s: %s; what the page says of settings may be wrong.", run.path / "config.yaml", run.config_damaged)
    page = render_page("report/templates/report.html.jinja", _page(run))
    with disk_errors(path, "move the run's folder to another disk", f", then run `{command('rlcm', 'report', run.path)}`"):
        write_bytes(path, page.encode())
    return path


def render_page(template: str, values: dict[str, Any]) -> str:
    """Return a page in the product's colours."""
    return render(template, colours={"accent": ACCENT, "ink": INK, "muted": MUTED, "line": LINE}, **values)


def _page(run: Run) -> dict[str, Any]:
    """Return all that the template prints."""
    pairs, (film_prompt, film) = run.pairs(PAIRS), _film(run)
    prompts = run.samples[0].prompts[:PAIRS] if run.samples and not pairs else []
    alone = run.shots(run.samples[0], range(len(prompts))) if prompts else []
    shots = [shot for pair in pairs for shot in (pair.before, pair.after)] + film + alone
    pictures = iter(data_uris([shot.picture for shot in shots], 2_000_000))
    digits = decimals(*(shot.value for shot in shots if shot.value is not None))

    def shown(shot: Shot) -> dict[str, Any]:
        value = with_unit(shot.value, run.metric.unit, digits)
        return {"uri": next(pictures), "value": value, "verdicts": shot.verdicts, "round": shot.round}

    first, last = (run.evaluations or [{}])[0], run.outcome
    return {
        "name": str(run.config.get("name") or printable(os.path.basename(os.path.realpath(run.path)))),
        "headline": headline(run),
        "summary": summary(run),
        "metric": run.metric,
        "pairs": [{"prompt": p.prompt, "before": shown(p.before), "after": shown(p.after)} for p in pairs],
        "in_sight": PAIRS_IN_SIGHT,
        "film": [shown(shot) for shot in film],
        "film_prompt": film_prompt,
        "alone": [shown(shot) | {"prompt": prompt} for shot, prompt in zip(alone, prompts, strict=True)],
        "rounds_shown": (pairs[0].before.round, pairs[0].after.round) if pairs else (run.samples[0].round,) if alone else (),
        "comparison": comparison(run),
        "evaluated": {"images": last.get("images"), "first": first.get("round"), "last": last.get("round")},
        "curves": curves(run),
        "guards": guards(run),
        "internals": round_charts(run, INTERNALS),
        "timings": _timings(run),
        "total_time": duration(run.seconds) if run.seconds else "",
        "reward_work": _reward_work(run),
        "usage": _usage(run),
        "config": run.config_text,
        "prompts": prompt_rows(run),
        "order": run.order,
        "prompts_in_sight": PROMPTS_IN_SIGHT,
        "study": study_section(run.study, (run.path / STUDY).parent),
        "files": _files(run.path),
        "present": {name for name in ("metrics.jsonl", "eval.json", "config.yaml", STUDY) if os.path.isfile(run.path / name)},
        "altered": run.altered,
        "missing": run.missing,
    }


def prompt_rows(run: Run) -> list[dict[str, Any]]:
    """Return every prompt with its best, median and worst picture."""
    samples = run.extremes
    if samples is None:
        return []
    order = run.order
    shots = run.shots(samples, range(len(samples.prompts) // 3 * 3), order)
    uris = data_uris([shot.picture for shot in shots], 1_200_000)
    digits = decimals(*(shot.value for shot in shots if shot.value is not None))
    rows = []
    for start in range(0, len(shots), 3):
        described = [
            {
                "uri": uri,
                "when": when,
                "value": with_unit(shot.value, order.unit, digits),
                "verdicts": shot.verdicts,
                "seed": samples.seeds[place],
            }
            for place, (when, shot, uri) in enumerate(
                zip(("best", "median", "worst"), shots[start : start + 3], uris[start : start + 3], strict=True), start
            )
        ]
        rows.append({"prompt": samples.prompts[start], "shots": described})
    return rows


def _reward_work(run: Run) -> str:
    """Return the seconds that rewards took beside sampling, where that is known."""
    beside = sum(finite(row.get("time/reward")) or 0.0 for row in run.rounds if "time/reward_wait" in row)
    return duration(beside) if beside else ""


def _usage(run: Run) -> str:
    """Return the first piece of Python in the model card."""
    found = re.search(r"```python\n(.*?)```", read_text(run, run.path / "final" / "README.md"), flags=re.DOTALL)
    return found[1].strip() if found else ""


def _files(path: Path) -> list[dict[str, str]]:
    """Return the files of the run, folders of many as one line, with links relative to the page."""
    rows = []
    about = {
        "config.yaml": "the resolved configuration",
        "metrics.jsonl": "one line for each round",
        "eval.json": "the evaluations on fixed prompts and seeds",
        "samples/": "the pictures of the fixed prompts, lossless",
        WEIGHTS: "the tuned LoRA",
        "final/README.md": "its model card",
        STUDY: "the evaluation by steps and prompts",
    }
    for entry in sorted(_entries(path), key=lambda one: (os.path.isdir(one), one.name)):
        if entry.name.startswith(".") or entry.name == "report.html":
            continue
        folder = os.path.isdir(entry)
        if folder and entry.name not in ("final", "evaluation", "best"):
            sizes = [_bytes(Path(one.path)) for one in below(entry)]
            inside = [size for size in sizes if size is not None]
            name = f"{printable(entry.name)}/"
            text = about.get(name, "a state to resume from" if name.startswith("checkpoint-") else "")
            note = f"{len(inside)} files" + (f": {text}" if text else "")
            rows.append({"name": name, "href": _address(entry, path), "size": byte_size(sum(inside)), "about": note})
            continue
        for file in _entries(entry) if folder else [entry]:
            name = printable(file.relative_to(path).as_posix()) + "/" * os.path.isdir(file)
            text = about.get(name, "metrics for TensorBoard" if name.startswith("events.out.tfevents") else "")
            size = _bytes(file)
            shown = "" if size is None else byte_size(size)
            rows.append({"name": name, "href": _address(file, path), "size": shown, "about": text})
    return rows


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _address(file: Path, folder: Path) -> str:
    return quote(os.fsencode(file.relative_to(folder).as_posix())) + "/" * os.path.isdir(file)


def _bytes(file: Path) -> int | None:
    """Return the size of a regular file; None for anything else."""
    found = stamp(file)
    return None if found is None or why_no_file(file) else found[1]


def _timings(run: Run) -> list[dict[str, Any]]:
    """Return the phases of a round with their seconds over the run and their share."""
    timed = dict.fromkeys(key.removeprefix("time/") for row in run.rounds for key in row if key.startswith("time/"))
    if "reward_wait" in timed:
        # Scoring runs beside sampling: only the wait for it takes time of its own.
        timed.pop("reward", None)
    phases = dict.fromkeys(phase for phase in [*PHASES, *timed] if phase in timed)
    sums = [(phase, sum(finite(row.get(f"time/{phase}")) or 0.0 for row in run.rounds)) for phase in phases]
    sums = [(phase, seconds) for phase, seconds in sums if seconds > 0]
    total = sum(seconds for _, seconds in sums)
    return [
        {
            "name": PHASES.get(phase, phase.replace("_", " ")),
            "seconds": duration(seconds),
            "share": 100 * seconds / total,
            "shade": max(0.22, 1 - 0.26 * place),
        }
        for place, (phase, seconds) in enumerate(sums)
    ]


def _film(run: Run) -> tuple[str, list[Shot]]:
    """Return the prompt and the pictures, through the rounds, of the cell whose reward changed by the median."""
    if len(run.samples) < 2:
        return "", []
    first, last = run.samples[0], run.samples[-1]
    same = [i for i, (a, b) in enumerate(zip(first.prompts, last.prompts, strict=False)) if a == b]
    if not same:
        return "", []
    changes = [
        (after - before, i)
        for i in same
        if (before := run.metric.of_cell(first, i)) is not None and (after := run.metric.of_cell(last, i)) is not None
    ]
    index = sorted(changes)[len(changes) // 2][1] if changes else same[0]
    usable = [s for s in run.samples if index < len(s.prompts) and s.prompts[index] == last.prompts[index]]
    chosen = sorted({round(i) for i in np.linspace(0, len(usable) - 1, FILM).tolist()})
    return last.prompts[index], [shot for i in chosen for shot in run.shots(usable[i], [index])]
