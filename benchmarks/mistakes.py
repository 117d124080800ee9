"""docs/mistakes.md: what users are likely to do wrong, and what is printed then. The one list of both page and test.

python benchmarks/mistakes.py --write     # runs every mistake and writes the page
python benchmarks/mistakes.py             # runs them and says where the page differs
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import click
import huggingface_hub
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared.command import parser
from benchmarks.shared.places import DOCS
from rlcm.cli import commands as cli

PAGE = DOCS / "mistakes.md"
QUICK = """run: {rounds: 1}
rollout: {batch_size: 8, branches: 1}
evaluation: {images: 4, every: 0}
"""
REWARDS = """def mean(images, prompts):
    return images.mean()


def log(images, prompts):
    return (images.mean(dim=(1, 2, 3)) - 2).log()


def broken(images, prompts):
    return [image.convert("L").getextrema()[1] for image in images]


def always(images, prompts):
    return [1.0] * len(prompts)
"""


@dataclass(frozen=True)
class Mistake:
    """One row of the page."""

    what: str
    typed: str
    exit_code: int = 2
    patches: dict[str, Any] = field(default_factory=dict)
    """What imitates another machine: the path of an object, and what stands in its place."""
    theirs: str = r"$^"
    """A pattern of the words of other libraries, which differ between their versions; the page has dots for them."""


def full_disk(*_: Any, **__: Any) -> None:
    """Write nothing, as on a disk without space."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nothing(*_: Any, **__: Any) -> None:
    """Find nothing: no token, no package, no device."""


GROUPS = {
    "Settings": [
        Mistake("a setting with a typing error", "rlcm train lora.rnk=4"),
        Mistake("a setting without its group", "rlcm train lr=1e-4"),
        Mistake("a setting as an option", "rlcm train --lr 1e-4"),
        Mistake("a setting without `=`", "rlcm train optimizer.lr 1e-4"),
        Mistake("a word for a number", "rlcm train optimizer.lr=fast"),
        Mistake("a number out of range", "rlcm train run.rounds=0"),
        Mistake("a value for a whole group", "rlcm train model=builtin"),
        Mistake("a space in the name", "rlcm train name='my run'"),
        Mistake("a batch that the branches do not divide", "rlcm train rollout.batch_size=100"),
        Mistake("one step, which draws no noise", "rlcm train sampler.steps=1"),
        Mistake(
            "more steps than the model was distilled for", "rlcm sample --steps 60", theirs=r"(?<=num_steps=60: ).*(?= In a)"
        ),
    ],
    "Files and models": [
        Mistake("a configuration's name, nearly right", "rlcm train configs/builtin.yml"),
        Mistake("a run in place of a configuration", "rlcm train runs/demo"),
        Mistake("a model that is no folder", "rlcm train model.path=dreamshaper"),
        Mistake(
            "a Hub id without network",
            "rlcm train model.path=SimianLuo/LCM_Dreamshaper_v7",
            patches={"huggingface_hub.constants.HF_HUB_OFFLINE": True},
            theirs=r"(?<=Hub \()\w+: .*?(?=\)\. For)",
        ),
        Mistake("a prompt in place of a file", "rlcm train prompts='a red fox'"),
        Mistake("a prompt that the built-in detector does not know", "rlcm train prompts='[a whale]'"),
        Mistake("an empty file of prompts", "rlcm train prompts=empty.txt"),
        Mistake("CUDA on a machine without", "rlcm train model.device=cuda", patches={"torch.cuda.is_available": nothing}),
        Mistake(
            "a tracker that is not installed", "rlcm train run.tracker=wandb", patches={"importlib.util.find_spec": nothing}
        ),
        Mistake(
            "a full disk",
            "rlcm train quick.yaml name=large",
            exit_code=1,
            patches={"rlcm.runs.rundir.write_bytes": full_disk},
        ),
    ],
    "Rewards": [
        Mistake("a reward's name, nearly right", "rlcm train rewards='[sharpnes]'"),
        Mistake("one name in place of a list", "rlcm train rewards=sharpness"),
        Mistake("a function that is not there", "rlcm train rewards='[mine.py:means]'"),
        Mistake("one number for all images", "rlcm train quick.yaml name=a rewards='[mine.py:mean]'", exit_code=1),
        Mistake("a number that is none", "rlcm train quick.yaml name=b rewards='[mine.py:log]'", exit_code=1),
        Mistake("a bug in the reward", "rlcm train quick.yaml name=c rewards='[mine.py:broken]'", exit_code=1),
        Mistake("the same for every image", "rlcm train quick.yaml name=d rewards='[mine.py:always]'", exit_code=1),
        Mistake("an argument that it lacks", "rlcm train rewards='[{name: jpeg_compressibility, args: {qualty: 50}}]'"),
        Mistake(
            "a server that is not running",
            "rlcm train quick.yaml name=e rewards='[{name: \"http://127.0.0.1:9\", args: {retries: 0}}]'",
            theirs=r"(?<=:9: ).*?(?=\. Start)",
        ),
        Mistake("a model's reward without its model", "rlcm train rewards='[vlm_rating]'"),
    ],
    "Runs": [
        Mistake("the name of a run that is there", "rlcm train quick.yaml name=demo", exit_code=1),
        Mistake("a run that is not there", "rlcm train --resume demo"),
        Mistake("other settings for a run that goes on", "rlcm train --resume runs/demo optimizer.lr=1e-4"),
        Mistake("another rank in the config.yaml of a run", "rlcm train --resume runs/changed"),
        Mistake("insisting without a run", "rlcm train quick.yaml --force"),
        Mistake("pictures of a run that has not ended", "rlcm sample runs/unfinished"),
        Mistake("a picture with another ending", "rlcm sample runs/demo -o foxes.txt"),
        Mistake("a name without a user", "rlcm push runs/demo three-foxes"),
        Mistake("no token", "rlcm push runs/demo me/three-foxes", patches={"rlcm.sharing.push.get_token": nothing}),
    ],
}
MISTAKES = [mistake for group in GROUPS.values() for mistake in group]


@contextmanager
def workplace() -> Iterator[None]:
    """Work in a temporary folder with what the mistakes name: files, a finished run, one that was cut off, one that was edited."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as back:
        os.chdir(folder)
        back.callback(os.chdir, before)
        for name, text in {"quick.yaml": QUICK, "mine.py": REWARDS, "empty.txt": "\n", "configs/builtin.yaml": ""}.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text)
        rlcm("rlcm train quick.yaml name=demo")
        settings = Path("runs/demo/config.yaml").read_text()
        for name, changed in {"unfinished": settings, "changed": settings.replace("rank: 16", "rank: 8")}.items():
            Path("runs", name).mkdir()
            Path("runs", name, "config.yaml").write_text(changed)
        Path("runs/demo/checkpoint-000001").rename("runs/changed/checkpoint-000001")
        yield


def rlcm(typed: str) -> tuple[int, str, BaseException | None]:
    """Return exit code, output and error of a command line."""
    found = CliRunner().invoke(cli.main, shlex.split(typed)[1:], prog_name="rlcm")
    error = None if isinstance(found.exception, SystemExit) else found.exception
    return found.exit_code, found.output, error


def printed(mistake: Mistake) -> str:
    """Make a mistake and return the error's text.

    Raises:
        AssertionError: if it ends in another way than by a message and the exit code it should have.
    """
    with ExitStack() as imitated:
        for target, value in mistake.patches.items():
            imitated.enter_context(mock.patch(target, value))
        code, output, error = rlcm(mistake.typed)
    # The Hub's client keeps its connection, which remembers that there was no network.
    getattr(huggingface_hub.utils, "reset_sessions", getattr(huggingface_hub, "close_session", nothing))()
    assert error is None, (mistake.typed, repr(error))
    assert code == mistake.exit_code, (mistake.typed, code, output)
    texts = re.split(r"^[Ee]rror: ", click.unstyle(output), flags=re.MULTILINE)
    assert len(texts) == 2, (mistake.typed, output)
    assert "Traceback" not in output, output
    here = f"{Path.cwd()}/"  # a temporary folder, of another name each time
    return re.sub(mistake.theirs, "…", texts[1].strip().replace(here, ""), flags=re.DOTALL)


def page(found: dict[str, str]) -> str:
    """Return docs/mistakes.md.

    Args:
        found: what is printed, by what was typed.
    """
    tables = "\n".join(
        f"## {group}\n\n| mistake | typed | printed after `error:` |\n|---|---|---|\n"
        + "".join(f"{row(mistake, found[mistake.typed])}\n" for mistake in mistakes)
        for group, mistakes in GROUPS.items()
    )
    return f"""# Mistakes, and what is printed

{len(MISTAKES)} common mistakes. Each ends with one paragraph after `error:`. It names the setting, its value, what is accepted and
what to do. There is no traceback, except for a bug of rlcm or with `rlcm --debug`. If the command line or the configuration is wrong,
the exit code is 2 and nothing was started. Exit code 1 means that something failed later.

`benchmarks/mistakes.py --write` makes each of the mistakes and writes these tables. A test makes them again and compares. Dots stand
for words of other libraries. Absolute paths are shown relative to the working directory. The missing network, the full disk, the
machine without CUDA, and the missing package and token are simulated.

The folder holds an empty text file `empty.txt`, a finished run `runs/demo`, and these two files.

`quick.yaml`, so that a run takes seconds:

```yaml
{QUICK}```

`mine.py`, with faulty rewards:

```python
{REWARDS}```

{tables}"""


def row(mistake: Mistake, found: str) -> str:
    """Return a mistake's row of the table."""
    return f"| {mistake.what} | `{_cell(mistake.typed)}` | {_cell(found, escape=True)} |"


def _cell(text: str, escape: bool = False) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"(?<!`)([<>*])", r"\\\1", text) if escape else text


def main() -> int:
    """Make all mistakes; write the page or compare it."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the page")
    write = options.parse_args().write
    with workplace():
        text = page({mistake.typed: printed(mistake) for mistake in MISTAKES})
    if write:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    old = PAGE.read_text(encoding="utf-8")
    for line in set(text.splitlines()) ^ set(old.splitlines()):
        print(line)
    return int(text != old)


if __name__ == "__main__":
    sys.exit(main())
