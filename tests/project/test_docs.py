"""The documentation: the site builds, every public name is documented, and every command, setting and import on the pages is real."""

import functools
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
import yaml
from click.testing import CliRunner
from pydantic import TypeAdapter

from rlcm._moved import present_name
from rlcm.builtin import configuration
from rlcm.cli import main
from rlcm.distillation.distill import DistillConfig
from rlcm.settings import Settings
from rlcm.training.config import TrainConfig, parse_settings, read_values
from rlcm.yaml_text import meant, read_yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# All commands and settings on docs/mistakes.md are wrong on purpose; its own test runs them.
RIGHT = [page for page in PAGES if page.name != "mistakes.md"]
GROUPS = [name for name, field in TrainConfig.model_fields.items() if isinstance(field.default, Settings)]


@pytest.fixture(scope="module")
def hooks() -> Any:
    """Return what the site adds to MkDocs."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("rlcm_site_hooks", DOCS / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_site(folder: Path, site: Path) -> None:
    """Build the site of a folder's mkdocs.yml; warnings are errors, as with --strict."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config as load_site_config

    config = load_site_config(str(folder / "mkdocs.yml"), site_dir=str(site), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)


# The site


def test_the_site_builds_and_needs_no_network(hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    build_site(ROOT, tmp_path)
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES) - 5
    for page in pages:
        html = page.read_text(encoding="utf-8")
        fetched = re.findall(r"""<(?:script|img|iframe)\b[^>]*\bsrc="(https?:[^"]+)|<link\b[^>]*\bhref="(https?:[^"]+)""", html)
        assert not fetched, page
    # A file of the repository that a page links to is there as it is.
    assert (tmp_path / "files/configs/three-rewards.yaml").read_text() == (ROOT / "configs/three-rewards.yaml").read_text()
    assert 'href="files/configs' not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_pages_are_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"\S+\.md$", text, re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES[1:])


# Every public name


def test_every_public_name_is_documented(hooks: Any) -> None:
    assert hooks.undocumented(hooks.load_package(ROOT / "src" / "rlcm"), hooks.published()) == []


@pytest.fixture(scope="module")
def public(hooks: Any) -> tuple[Any, set[str]]:
    """Return what the package's source says, and the full names of everything that is on the API pages."""
    package = hooks.load_package(ROOT / "src" / "rlcm")
    return package, {object_.path for object_ in hooks.published_objects(package, hooks.published())}


def test_every_settings_class_is_on_the_pages(public: tuple[Any, set[str]]) -> None:
    def classes(kind: type[Settings]) -> Iterator[type[Settings]]:
        yield kind
        for field in kind.model_fields.values():
            for inner in re.findall(r"rlcm(?:\.\w+)+", repr(field.annotation)):
                module, _, name = inner.rpartition(".")
                found = getattr(importlib.import_module(module), name)
                if isinstance(found, type) and issubclass(found, Settings):
                    yield from classes(found)

    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in classes(TrainConfig)}
    assert len(names) > 10
    assert names <= public[1]


@pytest.mark.parametrize("module", ["rlcm", "rlcm.rewards", "rlcm.pipelines"])
def test_what_a_package_exports_is_on_the_pages(public: tuple[Any, set[str]], module: str) -> None:
    package, there = public
    home = package if module == "rlcm" else package[module.removeprefix("rlcm.")]
    for name in importlib.import_module(module).__all__:
        member = home.members[name]
        assert (member.final_target.path if member.is_alias else member.path) in there, name


SAMPLE = '''"""A package."""

class Settings:
    """A base."""

class Own(Settings):
    """Settings."""

    told: int = 1
    """A field."""
    kept_quiet: int = 2

class Base:
    """A base."""

    def run(self) -> None:
        """Run."""

class Child(Base):
    """A child, whose `run` has its base's docstring."""

    def run(self) -> None: ...
    def lost(self) -> None: ...
    def _private(self) -> None: ...

def forgotten() -> None: ...

LIMIT = 3
'''


def test_an_undocumented_name_is_found(hooks: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "__init__.py").write_text(SAMPLE)
    found = hooks.undocumented(hooks.load_package(folder), [])
    assert found == ["sample.Child.lost", "sample.Own.kept_quiet", "sample.forgotten"]
    # A constant must be documented where it is part of the public API.
    assert hooks.undocumented(hooks.load_package(folder), ["sample"]) == [*found[:1], "sample.LIMIT", *found[1:]]


@pytest.mark.parametrize("documented", [True, False])
def test_an_undocumented_name_stops_the_build(hooks: Any, tmp_path: Path, documented: bool) -> None:
    from mkdocs.exceptions import Abort

    for folder in ("src/rlcm", "docs/api", "docs/site"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "docs/site/hooks.py").write_text((DOCS / "site/hooks.py").read_text())
    (tmp_path / "README.md").write_text("# Sample\n")
    (tmp_path / "docs/index.md").write_text(f"{hooks.README_GOES_HERE}\n")
    (tmp_path / "docs/api/index.md").write_text("# API\n\n::: rlcm\n")
    docstring = '    """Return 1."""\n' if documented else ""
    (tmp_path / "src/rlcm/__init__.py").write_text(f'"""A package."""\n\ndef one() -> int:\n{docstring}    return 1\n')
    config = {
        "site_name": "sample",
        "theme": "mkdocs",
        "hooks": [str(tmp_path / "docs/site/hooks.py")],
        "exclude_docs": "/site/hooks.py",
        "plugins": [{"mkdocstrings": {"handlers": {"python": {"paths": [str(tmp_path / "src")]}}}}],
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    if documented:
        build_site(tmp_path, tmp_path / "site")
        assert "Return 1." in (tmp_path / "site/api/index.html").read_text()
    else:
        with pytest.raises(Abort):
            build_site(tmp_path, tmp_path / "site")
        assert not (tmp_path / "site/api").exists()


# Types


USER = """
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlcm import TrainConfig, Trainer, load_config
from rlcm.training.run_settings import RunSettings
from rlcm.doctor import Diagnosis, diagnose
from rlcm.errors import RLCMError
from rlcm.learning.losses import ppo_clip
from rlcm.pipelines import ModelSettings, PipelineDenoiser, SamplerSettings, load_pipeline, make_denoiser
from rlcm.rewards import RewardMix, RewardPart, RewardSettings, Scores, build_reward
from rlcm.policy.samplers import build_table
from rlcm.policy.transitions import transition
from rlcm.types import TransitionTable
from rlcm.types import Denoiser, Reward


def darkness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return -images.mean(dim=(1, 2, 3))


def main() -> Path:
    reward: Reward = darkness
    config: TrainConfig = load_config("configs/builtin.yaml", ["run.rounds=2"])
    rounds: int = config.run.rounds
    config = TrainConfig(name="x", run=RunSettings(rounds=rounds))
    diagnosis: Diagnosis = diagnose(config)
    print(diagnosis.verdict())
    mix = RewardMix([RewardPart("dark", reward), RewardPart("sharp", build_reward(RewardSettings(name="sharpness")), 0.1)])
    scores: Scores = mix(torch.rand(2, 3, 8, 8), ["a", "b"])
    denoiser: PipelineDenoiser = make_denoiser(load_pipeline(ModelSettings()), SamplerSettings(steps=4))
    as_protocol: Denoiser = denoiser
    table: TransitionTable = as_protocol.table
    x0, mean, std = transition(table, torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    loss: Tensor = ppo_clip(torch.zeros(2), scores.total, clip_range=1e-4)
    print(loss, x0, mean, std, build_table)
    try:
        trainer = Trainer(config, rewards=[darkness], prompts=["a fox"])
        metrics: dict[str, float] = trainer.round()
        print(metrics["reward"])
        return trainer.train()
    except RLCMError as error:
        raise SystemExit(error.exit_code) from error
"""
WRONG = USER.replace("rounds: int = config.run.rounds", "rounds: str = config.name").replace('["a fox"]', "[1]")


def check_types(folder: Path, **files: str) -> str:
    """Return what `mypy --strict` says of users' files, the package being installed or beside them."""
    import tomllib

    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    # The package is checked with its own settings, so that what mypy knows of it and of torch from `make lint` holds here too.
    lines = ["[mypy]", *(f"{key} = {value}" for key, value in own.items() if key not in ("overrides", "packages", "mypy_path"))]
    lines += [f"mypy_path = {ROOT / 'src'}"]
    for entry in own["overrides"]:
        lines += [
            f"[mypy-{','.join(entry['module'])}]",
            *(f"{key} = {value}" for key, value in entry.items() if key != "module"),
        ]
    loosened = {
        "warn_return_any": True,
        "disallow_untyped_calls": True,
        "disallow_subclassing_any": True,
        "implicit_reexport": False,
    }
    lines += [f"[mypy-{','.join(files)}]", *(f"{key} = {value}" for key, value in loosened.items())]
    (folder / "mypy.ini").write_text("\n".join(lines))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(ROOT / ".mypy_cache")]
    answer = subprocess.run([*command, *(f"{name}.py" for name in files)], cwd=folder, capture_output=True, text=True)
    return answer.stdout + answer.stderr


FACE = """import rlcm
from torch import Tensor


def dark(images: Tensor, prompts: list[str]) -> Tensor:
    return -images.mean(dim=(1, 2, 3))


config = rlcm.TrainConfig(run={"rounds": 20}, lora={"rank": 8}, lr=1e-3, rewards=["alignment"], prompts=["a fox"])
paper = rlcm.TrainConfig.published(rounds=3)
result = rlcm.train(config, rewards={dark: 1.0, "alignment": 0.5}, prompts=["a fox"], rounds=3, callback=print)
one: float = result.before["reward"]
result.draw("a fox", n=2)[0].save("a.png")
rlcm.train(rewards=dark, branches=4)
rlcm.train(rewards=[dark, "alignment"])
rlcm.Trainer(config, rewards=[dark])
rlcm.TrainConfig(roundz=3)
rlcm.train(rounds="many")
"""


@pytest.fixture(scope="module")
def types_of_users_files(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what mypy says of all files at once: most of its time goes into reading torch."""
    pytest.importorskip("mypy")
    if sys.version_info < (3, 11):
        pytest.skip("tomllib")
    return check_types(tmp_path_factory.mktemp("types"), face=FACE, user_right=USER, user_wrong=WRONG)


def test_the_face_is_typed_as_people_write_it(types_of_users_files: str) -> None:
    found = types_of_users_files
    errors = [line for line in found.splitlines() if re.match(r"face\.py:\d+: error: ", line)]
    assert len(errors) == 2, found
    assert "roundz" in errors[0]
    assert '"str"' in errors[1]


def test_a_users_file_passes_strict_type_checks_and_a_wrong_one_does_not(types_of_users_files: str) -> None:
    assert (ROOT / "src" / "rlcm" / "py.typed").is_file()
    said = types_of_users_files
    assert "user_right" not in said, said
    errors = re.findall(r"user_wrong\.py:\d+: error: .*\[([\w-]+)\]", said)
    assert errors == ["arg-type", "list-item"], said


# Commands, settings and imports on the pages


def code_lines(page: str) -> Iterator[str]:
    """Yield the lines of a page's code blocks, fenced or indented, with continued lines joined."""
    fenced = "".join(re.findall(r"(?ms)^ *```\w*[^\n]*\n(.*?)^ *```$", page))
    rest = re.sub(r"(?ms)^ *```.*?^ *```$", "", page)
    indented = "\n".join(line for line in rest.splitlines() if line.startswith("    "))
    yield from (line.strip() for line in f"{fenced}\n{indented}".replace("\\\n", " ").splitlines())


def commands(page: str) -> Iterator[tuple[list[str], bool]]:
    """Yield the arguments of every `rlcm` on a page, and whether they stand in a block, for the reader to type."""
    typed = [found[1] for line in code_lines(page) if (found := re.match(r"(?:\S.*-m )?rlcm (.*)", line))]
    inline = re.findall(r"`rlcm ([^`\n]+)`", page)
    for text in typed + inline:
        if not re.search(r"\[(config|key|--)|\\?\||\.\.\.|<", text):  # a synopsis
            yield shlex.split(text, comments=True), text in typed


@pytest.mark.parametrize("page", RIGHT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_line_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, dict[str, Any]]] = []

    def note(command: str, /, **values: Any) -> None:
        called.append((command, values))

    def replace(group: click.Group, path: str) -> None:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                replace(command, f"{path}{name} ")
            else:
                monkeypatch.setattr(command, "callback", functools.partial(note, f"{path}{name}"))

    replace(main, "")
    # The runs and pictures that pages speak of are not here.
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))
    monkeypatch.chdir(ROOT)
    for arguments, is_typed in commands(page.read_text(encoding="utf-8")):
        called.clear()
        result = CliRunner().invoke(main, arguments)
        unfinished = not is_typed and re.search("Missing (argument|option|command)|requires an argument", result.output)
        assert result.exit_code == 0 or unfinished, f"{shlex.join(arguments)}\n{result.output}"
        if not called:
            continue
        name, values = called[0]
        if name in ("train", "doctor") and not values.get("resume"):
            check_settings(TrainConfig, values["config"], values["changes"])
        elif name == "distill":
            check_settings(DistillConfig, values["config"], values["changes"])


def check_settings(kind: type[Settings], config: Path | str | None, changes: tuple[str, ...]) -> None:
    """Refuse what the trainer would refuse: an unknown key, a wrong value, settings that do not go together."""
    if config is not None and "=" in str(config):
        config, changes = None, (str(config), *changes)
    example = ROOT / "configs" / "distill" / "builtin.yaml"
    if kind is TrainConfig:
        config, example = configuration(config and str(config)), None
    values = read_values(config if config and Path(config).is_file() else example, changes, kind)
    parse_settings(kind, values)


@pytest.mark.parametrize("page", RIGHT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_setting_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"`([^`\n]+)`", text):
        for group, key, value in re.findall(rf"(?<![\w.])({'|'.join(GROUPS)})\.([a-z_]+)(?:=([^\s,;]+))?(?![\w.(:])", code):
            fields = type(getattr(TrainConfig(), group)).model_fields
            if key == "py":
                continue  # a file
            assert key in fields, f"{code}: {group} has no {key}"
            if value and value not in ("...", "N"):
                field = fields[key]
                TypeAdapter(Annotated[field.annotation, field]).validate_python(yaml_value(value))
    for block in re.findall(r"(?ms)^```yaml[^\n]*\n(.*?)^```$", text):
        values = meant(read_yaml(block))
        if isinstance(values, dict) and values.keys() <= TrainConfig.model_fields.keys():
            parse_settings(TrainConfig, values)


def yaml_value(text: str) -> Any:
    """Return a value as `key=value` reads it."""
    return meant(read_yaml(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_import_of_the_package_works(page: Path) -> None:
    for module, names in re.findall(r"(?m)^ *from (rlcm[\w.]*) import ([\w, ]+)$", page.read_text(encoding="utf-8")):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{page.name}: {module} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_name_of_the_package_is_where_a_page_says(page: Path) -> None:
    for name in set(re.findall(r"\brlcm(?:\.\w+)+", page.read_text(encoding="utf-8"))):
        assert not any(present_name(name[: end.start()]) for end in re.finditer(r"\.|$", name)), f"{name} has moved"
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("name", ["rewards", "pipelines"])
def test_the_examples_of_the_api_pages_run(name: str) -> None:
    (example,) = re.findall(r"(?ms)^```python\n(.*?)^```$", (DOCS / "api" / f"{name}.md").read_text(encoding="utf-8"))
    made: dict[str, Any] = {}
    exec(compile(example, name, "exec"), made)
    if name == "rewards":
        assert made["scores"].total.shape == (2,)
        assert made["scores"].total.isfinite().all()
    else:
        assert made["x"].shape == (2, *made["denoiser"].latent_shape)
        assert len(made["conditioning"]) == 2


# Facts on the pages


def test_the_memory_table_of_the_24_gb_page_is_that_of_the_results() -> None:
    page = (DOCS / "how-to" / "24-gb-card.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks/results/full_size.json").read_text())
    shown = re.findall(r"(?m)^\| ([\w.\- ]+), \d+x\d+ \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", page)
    names = {
        "Stable Diffusion 1.5": "sd15",
        "SDXL": "sdxl",
        "SANA-Sprint 0.6B": "sana-0.6b",
        "SANA-Sprint 1.6B": "sana-1.6b",
        "FLUX.1": "flux",
        "PixArt-alpha": "pixart",
    }
    assert [row[0] for row in shown] == list(names)
    for name, batch, micro, plain, checkpointed in shown:
        for value, checkpointing in ((plain, False), (checkpointed, True)):
            found = [r for r in results[names[name]] if r["dtype"] == "bfloat16" and r["checkpointing"] == checkpointing]
            assert [(r["batch"], r["micro_batch"]) for r in found] == [(int(batch), int(micro))]
            assert value == f"{found[0]['estimated']['total'] / 2**30:.1f}", name


def test_the_figures_of_the_curves_page_are_those_of_the_results() -> None:
    page = (DOCS / "how-to" / "reading-the-curves.md").read_text(encoding="utf-8")
    leashed, free = json.loads((ROOT / "benchmarks/results/curves.json").read_text())["runs"].values()
    judge = dict(zip(free["look"], free["judge"], strict=True))
    assert f"it ends at {free['reward'][-1]:.3f}, the other at {leashed['reward'][-1]:.3f}" in page
    said = (
        f"({judge[30]:.0%}, {judge[35]:.0%} at round 35, {judge[75]:.0%} in the end; {leashed['judge'][-1]:.0%} with the leash)"
    )
    assert said.replace("%", " %") in page
    assert min(judge[number] for number in judge if number < 30) == 1


def test_messages_of_the_trouble_page_are_the_programs() -> None:
    page = (DOCS / "how-to" / "when-it-goes-wrong.md").read_text(encoding="utf-8")
    table = page.partition("## It stops")[2].partition("##")[0]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    messages = [
        text for row in table.splitlines() if row.startswith("| `") for text in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert len(messages) > 10
    missing = [text for text in messages if text not in joined and text not in (os.strerror(28), "returned nan")]
    assert not missing
