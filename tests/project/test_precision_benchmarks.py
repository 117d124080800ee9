"""The benchmarks of half precision and of GPUs: their figures are on the pages, and they run here, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, precision
from benchmarks.gpu_cases.cases import CASES, Case, chosen
from benchmarks.gpu_cases.models import shape_for
from benchmarks.gpu_cases.page import NOT_MEASURED, text
from benchmarks.rounding import demo, ratios
from benchmarks.shared import results
from benchmarks.shared.pages import replaced
from benchmarks.sizes.tiny import TINY

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def is_on(page, name, said):
    """Whether a page has this text in its place of that name."""
    written = (DOCS / page).read_text(encoding="utf-8")
    return replaced(written, f"<!-- {name} -->", f"<!-- /{name} -->", said.rstrip()) == written


# The ratio before any update


@pytest.mark.parametrize("kind", ratios.PRECISIONS)
def test_old_means_of_sampling_are_off_and_those_of_learning_are_not(kind):
    row = ratios.measure(steps=4, precision=kind, size=8, trajectories=32)
    assert len(row["ratio_off_1_sampling"]) == 3, "a number for every noisy step"
    assert min(row["ratio_off_1_sampling"]) > 1e-5
    assert row["ratio_off_1_learning"] == [0, 0, 0]
    assert row["mismatch_ratio_max"] == pytest.approx(row["ratio_off_1_sampling"]), "what is left is measured"
    assert min(row["mismatch_kl"]) > 0
    assert max(row["mismatch_stds"]) < 0.1


def test_without_rounding_both_are_the_same():
    row = ratios.measure(steps=2, precision="fp32", size=8, trajectories=20)
    assert max(row["ratio_off_1_sampling"]) < 1e-6
    assert max(row["ratio_off_1_learning"]) < 1e-6


def test_the_committed_figures_are_those_that_were_calculated():
    rows = results.read(precision.RESULT)["ratios"]
    assert [(row["precision"], row["steps"]) for row in rows] == [(p, s) for p in ratios.PRECISIONS for s in ratios.STEPS]
    for row in rows:
        assert set(row["ratio_off_1_learning"]) == {0}
        if row["calculated"]:
            least, most = row["calculated"]
            assert least / 2 < min(row["ratio_off_1_sampling"]) < least * 2
            assert most / 2 < max(row["ratio_off_1_sampling"]) < most * 2


def test_they_are_on_the_page():
    found = results.read(precision.RESULT)
    assert demo.complete(found["demo"])
    for name, said in precision.texts(found).items():
        assert is_on("precision.md", name, said)


def test_the_demo_in_half_precision_ends_among_the_seeds_of_fp32():
    runs = results.read(precision.RESULT)["demo"]
    assert all(run["ratio_deviation_max"] == 0 for run in runs["bf16"].values())
    assert all(run["mismatch_ratio_max"] > 1e-4 for run in runs["bf16"].values())
    assert demo.verdict(runs)["within"]


def test_runs_that_are_there_are_not_run_again(tmp_path, monkeypatch):
    run = {"after_kb": 1.0}
    trained = []
    monkeypatch.setattr(demo, "train", lambda *which: trained.append(which) or run)
    out = tmp_path / "precision.json"
    results.write(out, {"demo": {"fp32": {"1": run}}})
    precision.train_demo(out)
    assert sorted(trained) == [("bf16", 0), ("bf16", 1), ("bf16", 2), ("fp32", 0), ("fp32", 2)]
    assert demo.complete(results.read(out)["demo"])


# Everything on a GPU


SHIPPED = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_every_configuration_and_precision_has_its_case():
    names = [case.name for case in CASES]
    configurations = {f"doctor-{name}" for name in SHIPPED}
    assert configurations == {name for name in names if name.startswith("doctor-")}
    assert {shape_for(name) for name in SHIPPED} - {None} <= set(TINY)
    assert len(names) == len(set(names))
    assert {f"{shape}-{kind}" for shape in ("sd15", "sdxl") for kind in ("bf16", "fp16", "fp32+tf32")} < set(names)
    taken, left = chosen(None, True)
    assert {case.name for case in taken} | set(left) == set(names)
    assert all(name.endswith("-compiled") for name in left)


def fails(is_tiny):
    raise ValueError("no\nluck")


def test_a_failure_is_a_row_and_what_has_no_time_is_named(tmp_path):
    out = tmp_path / "gpu.json"
    called = []

    def works(is_tiny):
        called.append(is_tiny)
        return {"kind": "demo"}

    found = {"seconds": 0.0, "left_out": {}, "cases": {}}
    gpu.run([Case("bad", 0, fails), Case("good", 0, works), Case("long", 61, works)], found, out, minutes=1, is_tiny=False)
    written = results.read(out)
    assert written["cases"]["bad"]["error"] == "ValueError: no luck"
    assert written["cases"]["good"]["kind"] == "demo"
    assert list(written["left_out"]) == ["long"]
    gpu.run([Case("bad", 0, works), Case("good", 0, works)], written, out, minutes=1, is_tiny=False)
    assert results.read(out)["cases"]["bad"]["kind"] == "demo", "what failed is tried again"
    assert called == [False, False], "what is there is not"


def test_the_page_says_what_was_measured_on_a_gpu():
    found = results.read_if_there(gpu.RESULT)
    assert is_on("performance.md", "on a gpu", text(found))
    assert text({}) == text({"device": "cpu", "cases": {}}) == NOT_MEASURED


@pytest.mark.slow
def test_all_of_it_runs_on_tiny_models(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [name for name, row in found["cases"].items() if "error" in row] == []
    assert set(found["cases"]) == {case.name for case in chosen(None, True)[0]}
    for name, row in found["cases"].items():
        if row["kind"] == "rounds":
            assert row["check"].startswith("checked: ratio off 1 by")
            assert row["first_ratio_off_1"] < 1e-5
            assert row["mismatch"]["stds"] < 0.1
        elif row["kind"] == "doctor":
            assert row["ok"], (name, row["verdict"])
            assert row["numbers"]["ratio"]["deviation"] <= 1e-5
    page = text(found | {"device": "cuda"})
    assert all(f"| `{name}` |" in page for name in SHIPPED)
    assert "| sdxl, 16 px | fp16 |" in page
    assert "Failed" not in page
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*command[1:], "--only", "demo"])
    gpu.main()
    assert "demo: there already" in capsys.readouterr().out
