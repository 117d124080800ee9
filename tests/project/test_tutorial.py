"""The tutorial does what it says: its own blocks are run, one after the other, with fewer rounds."""

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from benchmarks.tutorial import NOT_RUN, PAGE, blocks
from rlcm.cli import main

# What the page says, and what is run in its place: the same on fewer images. Nothing else is changed.
SHORTER = {
    "run.rounds=40": "run.rounds=2 rollout.batch_size=16 evaluation.images=4 evaluation.grid=4",
    "--prompts world-objects --n 1": '--prompt "a fox" --prompt "three frogs" --n 1',
    "--steps 1,4": "--steps 1,4 --limit 2",
}


def run_page(page: str, changes: dict[str, str]) -> list[tuple[str, str]]:
    """Run the blocks of a page in the present folder, in this process, and return each with what it printed."""
    names: dict[str, Any] = {}
    said = []
    for block in blocks(page):
        code = block.code
        for there, instead in changes.items():
            code = code.replace(there, instead)
        if block.file:
            Path(block.file).write_text(code, encoding="utf-8")
        elif block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, str(PAGE), "exec"), names)
            said.append((code, printed.getvalue()))
        else:
            said += [(line, run_command(line)) for line in code.splitlines()]
    return said


def run_command(line: str) -> str:
    """Run a line that begins with `rlcm` in this process and return what it printed."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "rlcm", f"{line}: the test knows `rlcm` only; mark other blocks with {NOT_RUN}"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"
    return result.output


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    assert all(there in page for there in SHORTER)
    said = dict(run_page(page, SHORTER))

    def answer(start: str) -> str:
        return next(text for command, text in said.items() if command.startswith(start))

    tried = dict(re.findall(r"(?m)^([\w-]+)\.png\s+(-?[\d.]+)", answer("rlcm rewards try")))
    assert tried.keys() == {"lamp", "hole", "night", "a-fox-seed-0"}
    # As printed on the page: the drawn pictures are the same everywhere.
    shown = dict(re.findall(r"(?m)^(lamp|hole|night)\.png\s+(-?[\d.]+)", page))
    assert {name: tried[name] for name in shown} == shown
    assert float(tried["hole"]) < float(tried["night"]) < float(tried["lamp"])
    assert answer("rlcm doctor").splitlines()[-1] == "ok"
    assert "on 4 fixed images" in answer("rlcm train")
    assert len((tmp_path / "runs/spotlight/metrics.jsonl").read_text().splitlines()) == 2
    assert answer("import json").startswith("round  1  reward ")
    assert "spotlight" in (tmp_path / "runs/spotlight/report.html").read_text(encoding="utf-8")
    assert {"unseen prompts", "unseen combinations"} <= set(re.findall(r"(?m)^([\w ]+): ", answer("rlcm eval")))
    assert (tmp_path / "runs/spotlight/evaluation/eval.json").is_file()
    exported = load_file(tmp_path / "spotlight.safetensors")
    assert all(key.startswith("lora_unet_") for key in exported)
    assert any(key.endswith(".alpha") for key in exported)
    sizes = {name: Image.open(tmp_path / name).size for name in ("before.png", "after.png", "fox.png")}
    assert sizes["before.png"] == sizes["after.png"]
    assert sizes["fox.png"] == (64, 64)


def test_blocks_are_found_with_their_answers() -> None:
    page = (
        "```bash\nrlcm a\n```\n\n```text\nan answer\n```\n"
        f"{NOT_RUN}: why -->\n```bash\nrm b\n```\n\n"
        '```python title="c.py"\nd\n```\n\nWords.\n\n```text\ne\n```\n'
    )
    first, second = blocks(page)
    assert (first.language, first.code, first.file) == ("bash", "rlcm a\n", None)
    assert first.answer is not None
    assert page[slice(*first.answer)] == "an answer\n"
    assert (second.code, second.file, second.answer) == ("d\n", "c.py", None)
