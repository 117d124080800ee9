"""The way into the code: CONTRIBUTING.md links files that are there, names what is in them, and is near the README."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
TEXT = CONTRIBUTING.read_text(encoding="utf-8")
WAY_IN = TEXT.partition("## Where things are")[2].partition("## Rules")[0]
WALKS = {title.strip(): body for title, _, body in (part.partition("\n") for part in WAY_IN.split("\n### ")[1:])}
LINK = re.compile(r"\]\(([^)\s:]+)\)")
STOP = re.compile(r"\]\((src/[\w/]+\.py)\): (`[\w.]+`(?:, `[\w.]+`)*)")
STOPS = [(file, name) for file, names in STOP.findall(WAY_IN) for name in re.findall(r"[\w.]+", names)]
LOOKED_FOR = {
    "the log-probability": ("policy/gaussian.py", "log_prob"),
    "the branched rollout": ("policy/rollout.py", "rollout"),
    "what a round does": ("training/learner.py", "Learner.round"),
    "where a reward is called": ("rewards/user.py", "call_reward"),
    "where a checkpoint is written": ("runs/checkpoint.py", "save_checkpoint"),
}


def linked(page: Path) -> set[Path]:
    """Return the files of the repository that a page links to."""
    targets = [target.partition("#")[0] for target in LINK.findall(page.read_text(encoding="utf-8"))]
    return {(page.parent / target).resolve() for target in targets if target}


def defined(file: Path) -> set[str]:
    """Return the functions, classes and constants of a module, and what is in its classes as CLASS.NAME."""
    names: set[str] = set()

    def add(body: list[ast.stmt], before: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(before + node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(before + node.target.id)
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{node.name}.")

    add(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return names


def test_every_link_leads_to_a_file_and_its_heading() -> None:
    for path, _, anchor in (target.partition("#") for target in LINK.findall(TEXT)):
        page = ROOT / path if path else CONTRIBUTING
        assert page.exists(), path
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
            assert anchor in [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize(("file", "name"), sorted(set(STOPS)))
def test_what_a_walk_names_is_in_its_file(file: str, name: str) -> None:
    assert name in defined(ROOT / file)


def test_the_walks_are_three_with_a_dozen_stops_each() -> None:
    assert len(WALKS) == 3
    for title, walk in WALKS.items():
        stops = re.findall(r"(?m)^\d+\. ", walk)
        assert 10 <= len(stops) <= 14, title
        assert len(STOP.findall(walk)) >= len(stops), title


def test_classes_that_are_named_beside_the_stops_exist() -> None:
    everything = set().union(*map(defined, (ROOT / "src" / "rlcm").rglob("*.py")))
    named = {name for name in re.findall(r"`([A-Z]\w+(?:\.\w+)?)`", WAY_IN) if name != "K"}
    assert {"Parts", "RewardMix.mix"} <= named
    assert named <= everything


@pytest.mark.parametrize("what", LOOKED_FOR)
def test_a_stranger_finds_it_in_under_three_hops_from_the_readme(what: str) -> None:
    place, name = LOOKED_FOR[what]
    file = ROOT / "src" / "rlcm" / place
    near = linked(ROOT / "README.md")
    pages = {page for page in near if page.suffix == ".md" and page.is_file()}
    assert file in near.union(*map(linked, pages))
    row = next(line for line in WAY_IN.splitlines() if what in line)
    assert f"](src/rlcm/{place}): `{name}`" in row
    assert name in defined(file)
