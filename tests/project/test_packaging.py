"""What a user gets: the wheel and the sdist, their description, the version, and the files that tell about the project."""

import email
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import rlcm
from rlcm.cli import main

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("versions", ROOT / "benchmarks" / "versions.py")
versions = importlib.util.module_from_spec(SPEC)


def build(target, source, folder):
    """Build a wheel or an sdist of a source tree and return its file."""
    pytest.importorskip("hatchling")
    before = set(folder.iterdir())
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (made,) = set(folder.iterdir()) - before
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return email.message_from_bytes(archive.read(name))


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist() if not entry.filename.endswith("/RECORD")}


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    source = ROOT / "src"
    files = {str(path.relative_to(source)) for path in (source / "rlcm").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    packed = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert packed == files
    assert {
        "rlcm/py.typed",
        "rlcm/cli/settings.txt",
        "rlcm/builtin/published.yaml",
        "rlcm/builtin/demo.yaml",
        "rlcm/report/templates/report.html.jinja",
    } <= packed
    assert any(name.endswith("student/unet/diffusion_pytorch_model.safetensors") for name in packed)
    assert wheel.stat().st_size < 26_000_000


def test_the_sdist_gives_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    (tree,) = tmp_path.iterdir()
    (tmp_path / "again").mkdir()
    assert contents(build("wheel", tree, tmp_path / "again")) == contents(wheel)
    wanted = [
        "tests/project/test_packaging.py",
        "examples/minimal_rlcm.py",
        "configs/builtin.yaml",
        "docs/samplers.md",
        "CHANGELOG.md",
    ]
    assert {*wanted, "LICENSE", "CITATION.cff", "CONTRIBUTING.md", "Makefile", "constraints.txt"} <= names
    assert not [name for name in names if name.startswith((".ci", "runs/")) or "__pycache__" in name]


def test_the_description_links_nothing_that_an_index_cannot_show(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert text.startswith("# rlcm\n")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert not [target for target in targets if not target.startswith(("https://", "#"))]
    assert "Rewards of your own" in text


def test_the_description_has_addresses_once_the_source_has_one():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    text = "a [page](docs/a.md#b), [one](https://c) and\n\n![picture](d.png)\n\nend [e](#f)"
    assert hook.published(text, None) == "a page, [one](https://c) and\n\nend [e](#f)"
    assert hook.published(text, "https://s/r") == (
        "a [page](https://s/r/blob/main/docs/a.md#b), [one](https://c) and\n\n![picture](https://s/r/raw/main/d.png)\n\nend [e](#f)"
    )


def test_the_metadata_says_what_the_package_is(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("rlcm", rlcm.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_the_classifiers_are_the_pythons_that_the_wheel_was_tried_on(metadata):
    tried = json.loads((ROOT / "benchmarks/results/wheels.json").read_text(encoding="utf-8"))["tried"]
    fine = [one["python"].rpartition(".")[0] for one in tried if one["ended"] == "ok"]
    said = re.findall(
        r"Programming Language :: Python :: (3\.\d+)$", "\n".join(metadata.get_all("Classifier")), flags=re.MULTILINE
    )
    assert said == fine
    assert metadata["Requires-Python"] == f">={fine[0]}"


def test_twine_is_content_with_both(sdist, wheel):
    pytest.importorskip("twine")
    found = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stdout
    assert found.stdout.count("PASSED") == 2


def test_the_version_by_command_and_by_module():
    assert CliRunner().invoke(main, ["--version"]).output == f"rlcm, version {rlcm.__version__}\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for words, start in ((["--version"], f"rlcm, version {rlcm.__version__}"), (["--help"], "Usage: rlcm [OPTIONS]")):
        found = subprocess.run(
            [sys.executable, "-m", "rlcm", *words], capture_output=True, text=True, env=environment, timeout=60
        )
        assert found.returncode == 0, found.stderr
        assert found.stdout.startswith(start)


def test_the_citation_names_the_paper_and_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (rlcm.__version__, "Apache-2.0")
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2404.03673"
    assert len(citation["preferred-citation"]["authors"]) == 5


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == rlcm.__version__


def test_the_annotated_tree_has_every_module_and_no_other():
    spec = importlib.util.spec_from_file_location("module_tree", ROOT / "benchmarks" / "module_tree.py")
    module_tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module_tree)
    section = module_tree.section()
    assert section in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "write it: python benchmarks/module_tree.py"
    package = ROOT / "src" / "rlcm"
    modules = [path.name for path in package.rglob("*.py") if not path.name.startswith("__")]
    assert sorted(re.findall(r"^ +(\w+\.py) ", section, flags=re.MULTILINE)) == sorted(modules)
    assert re.search(r"^ +losses.py +Policy and consistency losses", section, flags=re.MULTILINE)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the script reads TOML")
def test_the_floors_are_those_that_were_tested():
    SPEC.loader.exec_module(versions)
    if not versions.RESULTS.is_file():
        pytest.skip("not measured: make versions")
    floors = versions.floors(versions.read_project())
    results = json.loads(versions.RESULTS.read_text())
    assert "lowest" in results
    for kind, found in results.items():
        assert found["failed"] == [], kind
        assert found["passed"] > 500
    tested = results["lowest"]["versions"]
    for name, version in floors.items():
        own = tuple(map(int, version.split(".")))
        found = tuple(int(part) for part in tested[name].split("+")[0].split(".")[: len(own)])
        assert found == own, name


@pytest.mark.parametrize("entry", ["torch", "torch<3", "torch>=2,<3"])
@pytest.mark.skipif(sys.version_info < (3, 11), reason="the script reads TOML")
def test_a_dependency_without_a_plain_floor_is_refused(entry):
    SPEC.loader.exec_module(versions)
    with pytest.raises(ValueError, match="is not of the form name>=version"):
        versions.floors({"dependencies": [entry], "optional-dependencies": {}})


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_no_library_that_comes_along_reports_to_its_makers_unless_that_is_wanted(given, found):
    wanted = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment = wanted | ({} if given is None else {"ORT_DISABLE_TELEMETRY": given})
    code = "import os, rlcm; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found
