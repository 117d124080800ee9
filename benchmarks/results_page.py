"""The page and figures of the paper's experiments, from the committed results of `rlcm reproduce`.

    python benchmarks/results_page.py                                       # from what is committed
    rlcm reproduce -o runs/reproduce
    python benchmarks/results_page.py --take runs/reproduce/results.json    # into benchmarks/results/reproduce.json first

What is taken replaces the same methods of the same tasks and experiments; others stay, each with the command, machine and budget that
it came from. A call with another budget, or other options, replaces whole tasks, and results of the former built-in model go as a
whole. Writes docs/reproduction.md and docs/images/results-*.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.reproduction.figures import draw
from benchmarks.reproduction.page import page
from benchmarks.reproduction.reading import of_former_model
from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.places import ROOT
from rlcm.studies.reproduce.merging import merged, names_in, unfinished


def write_page(root: Path, take: Path | None = None) -> Path:
    """Write the page and its figures under `root`; `take` is copied to the committed results first."""
    committed = root / "benchmarks" / "results" / "reproduce.json"
    images = root / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    if take is not None:
        found = files.read(take)
        for (part, task), names in unfinished(found).items():
            print(f"left out, as seeds are missing: {part}, {task}: {', '.join(names)}; call again what made the results")
        known = files.read_if_there(committed)
        if of_former_model(known):
            print("the committed results are of the former built-in model, and are not joined with these")
            known = {}
        results = files.rounded(merged(known, found))
        for part, task, name in sorted(names_in(known) - names_in(results)):
            print(f"no longer in the results, as the new ones are of another call: {part}, {task}: {name}")
        files.write(committed, results, indent=1)
    results = files.read(committed)
    draw(results, images)
    (root / "docs" / "reproduction.md").write_text(page(results))
    return root / "docs" / "reproduction.md"


def main() -> None:
    """Write the page."""
    arguments = parser(__doc__)
    arguments.add_argument("--take", type=Path, help="results.json of a reproduction, to be committed")
    print(write_page(ROOT, arguments.parse_args().take))


if __name__ == "__main__":
    main()
