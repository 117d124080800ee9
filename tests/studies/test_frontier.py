"""The frontier: points of runs' evaluations, what no point beats, prices in diversity, and strengths without a training."""

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner
from compared_runs import write_run
from PIL import Image
from tiny_runs import PROMPTS, lcm_pipeline, tiny_config

from rlcm.cli import commands as cli
from rlcm.errors import ConfigError, MissingFileError, RunDirectoryError, UsageError
from rlcm.studies.frontier import check_strengths, frontier, measure_strengths, read_strengths, write_frontier
from rlcm.studies.frontier.page import described, headline, table
from rlcm.studies.frontier.points import Point, best_at, most_diverse_at, not_dominated, share_of
from rlcm.training.trainer import Trainer


def measured(folder, name, points, *, seed=0, steps=4, rewards=("jpeg",)):
    """Write a run whose evaluations are (round, reward, diversity of the judge's features, KL); None is not measured."""
    path = write_run(folder, name, [(r, 10 * r, reward) for r, reward, _, _ in points], seed=seed, steps=steps, rewards=rewards)
    change(path, lambda found: [
        entry.update({"guard": {} if d is None else {"diversity_judge": d, "vendi_judge": 1 + d}}
                     | ({} if kl is None else {"kl": {"mean": kl, "ci95": 0.1}}))
        for entry, (_, _, d, kl) in zip(found["evaluations"], points, strict=True)
    ])  # fmt: skip
    return path


def change(path, how):
    found = json.loads((path / "eval.json").read_text())
    how(found)
    (path / "eval.json").write_text(json.dumps(found))


@pytest.fixture
def runs(tmp_path):
    """A tight leash of two seeds and a loose one of one; the loose one gains more, and pays for it."""
    tight = [
        measured(tmp_path, f"tight-{s}", [(0, -3.0, 0.2, 0.0), (10, -2.5 - 0.2 * s, 0.19, 4.0), (20, -2.4 - 0.2 * s, 0.18, 6.0)],
                 seed=s)
        for s in (0, 1)
    ]  # fmt: skip
    loose = measured(tmp_path, "loose-0", [(0, -3.0, 0.2, 0.0), (10, -2.6, 0.15, 9.0), (20, -1.0, 0.06, 50.0)], steps=8)
    return [*tight, loose]


def test_what_no_other_point_beats():
    assert not_dominated([(0, 3), (1, 2), (1, 1), (2, 2), (2, 0)]) == [0, 3]
    assert not_dominated([(1, 1), (1, 1)]) == [0, 1]  # equal ones do not beat each other
    assert not_dominated([]) == []


def test_shares_are_nothing_where_all_pictures_are_alike():
    assert share_of("diversity_judge", 0.1, 0.4) == pytest.approx(0.25)
    assert share_of("vendi_clip", 1.5, 3.0) == pytest.approx(0.25)
    assert share_of("vendi_clip", 1.0, 3.0) == 0


def test_best_reward_at_a_share_and_the_other_way_round():
    points = [Point(str(r), r, None, None, {"d": share}) for r, share in ((0.0, 1.0), (2.0, 0.8), (3.0, 0.5))]
    assert [best_at(points, "d", share).reward for share in (0.95, 0.8, 0.6, 0.1)] == [0.0, 2.0, 2.0, 3.0]
    assert best_at(points, "d", 1.1) is None
    assert most_diverse_at(points, "d", 1.0).shares["d"] == 0.8
    assert most_diverse_at(points, "d", 4.0) is None


def test_seeds_are_averaged(runs):
    found = frontier(runs)
    assert (found.measure, found.others, found.kl, found.warnings) == ("diversity_judge", ["vendi_judge"], "evaluation", [])
    tight, loose = found.tracks
    assert [point.about for point in tight.points] == ["base model", "round 10", "round 20"]
    assert [point.reward for point in tight.points] == pytest.approx([-3.0, -2.6, -2.5])
    assert [point.kl for point in tight.points] == [0.0, 4.0, 6.0]
    assert [point.shares["diversity_judge"] for point in tight.points] == pytest.approx([1, 0.95, 0.9])
    assert [point.shares["vendi_judge"] for point in loose.points] == pytest.approx([1, 0.75, 0.3])
    assert tight.points[1].half == pytest.approx(12.706 * 0.1)  # over two seeds, Student's
    assert loose.points[1].half == pytest.approx(0.1)  # over images
    assert found.best == pytest.approx({"reward": -1.0, "base": -3.0, "target": -1.1})


def test_the_table_says_what_each_share_of_diversity_costs(runs):
    described_table = table(frontier(runs))
    tight, loose = described_table["rows"]
    assert described_table["heads"][-2].startswith("diversity at 95% of the largest gain (1.10")
    assert tight[:2] == ["tight", "2"]
    # At least 95 %, 80 % and 60 % of the base model's diversity.
    assert [cell.partition(" ")[0] for cell in tight[3:6]] == ["2.60", "2.50", "2.50"]
    assert tight[6] == "not reached"
    assert [cell.partition(" ")[0] for cell in loose[3:6]] == ["3.00", "3.00", "2.60"]
    assert loose[6] == "30% (round 20)"
    assert headline(frontier(runs)).replace("\N{NO-BREAK SPACE}", " ") == (
        "loose reaches the best JPEG size, 1.00 kB, with 30% of the base model's diversity."
    )


def test_the_page_its_picture_and_its_numbers(runs, tmp_path):
    found = frontier(runs)
    page = write_frontier(found, tmp_path / "out" / "frontier.html")
    text = page.read_text()
    assert text.count("<svg") == 3  # KL, distance, Vendi score
    assert "Reward against Vendi score (judge)" in text
    kept = json.loads(page.with_suffix(".json").read_text())
    assert kept == json.loads(json.dumps(described(found)))
    assert kept["tracks"][0]["best_at"] == pytest.approx({"0.95": -2.6, "0.8": -2.5, "0.6": -2.5})
    assert kept["tracks"][1]["diversity_at_target"] == pytest.approx(0.3)
    assert Image.open(page.with_suffix(".png")).width > 1000
    write_frontier(found, page)  # its own may be replaced
    (tmp_path / "mine.png").write_bytes(b"a picture of mine")
    with pytest.raises(UsageError, match=r"would replace .*mine\.png"):
        write_frontier(found, tmp_path / "mine.html")


def test_one_run_is_a_frontier_of_its_evaluations(runs):
    found = frontier(runs[2:])
    assert [len(track.points) for track in found.tracks] == [3]
    assert not found.warnings


def test_runs_of_another_set_are_left_out_and_named(runs):
    config = yaml.safe_load((runs[2] / "config.yaml").read_text())
    config["evaluation"]["seed"] = 2
    (runs[2] / "config.yaml").write_text(yaml.safe_dump(config))
    found = frontier(runs)
    assert [track.name for track in found.tracks] == ["tight"]
    (warning,) = found.warnings
    assert str(runs[2]) in warning
    assert "evaluated on another set" in warning


def test_runs_without_the_base_model_are_left_out_and_named(runs, tmp_path):
    late = measured(tmp_path, "late", [(10, -2.0, 0.1, 4.0), (20, -1.0, 0.1, 4.0)], steps=9)
    found = frontier([*runs, late])
    assert len(found.tracks) == 2
    assert found.warnings == [f"{late} has no evaluation of the base model (round 0), and is left out."]


def test_what_was_not_measured_is_named(runs, tmp_path):
    blind = measured(tmp_path, "blind", [(0, -3.0, None, None), (10, -2.0, None, None)], steps=9)
    found = frontier([*runs, blind])
    assert (found.measure, found.others, found.kl) == ("diversity_judge", [], "evaluation")
    assert [point.shares for point in found.tracks[2].points] == [{}, {}]
    assert table(found)["rows"][2][3:] == ["none", "none", "none", "not reached", ""]
    diversity, kl = found.warnings
    assert diversity.startswith(f"Diversity (judge) was not measured in all evaluations of {blind}")
    assert kl.startswith(f"The KL divergence to the base model was not measured in all evaluations of {blind}")
    with pytest.raises(UsageError, match="neither diversity nor the KL divergence"):
        frontier([blind])


def test_older_runs_have_the_divergence_of_their_training(tmp_path):
    path = write_run(tmp_path, "old", [(0, 0, -3.0), (10, 10, -2.0)])
    rows = [json.loads(line) | {"kl": 0.25} for line in (path / "metrics.jsonl").read_text().splitlines()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = frontier([path])
    assert (found.measure, found.kl) == ("diversity", "training")
    assert [point.kl for point in found.tracks[0].points] == [0.0, 0.25]
    assert found.tracks[0].points[1].shares["diversity"] == pytest.approx(0.29 / 0.3)


def test_different_rewards_and_no_evaluations(runs, tmp_path):
    other = measured(tmp_path, "other", [(0, 1.0, 0.2, 0.0), (10, 2.0, 0.1, 1.0)], rewards=("blue",))
    with pytest.raises(UsageError, match="no reward in common"):
        frontier([*runs, other])
    (other / "eval.json").unlink()
    assert str(other) in frontier([*runs, other]).warnings[0]
    with pytest.raises(UsageError, match="has no evaluations"):
        frontier([other])
    with pytest.raises(RunDirectoryError):
        frontier([tmp_path / "nowhere"])


def test_the_command(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def typed(*words):
        return CliRunner().invoke(cli.main, ["compare", *map(str, runs), *words])

    done = typed("--frontier")
    assert done.exit_code == 0, done.output
    assert "loose reaches the best JPEG size" in done.output
    assert "frontier.html" in done.output
    assert (tmp_path / "frontier.png").is_file()
    assert "--strengths belongs to --frontier" in typed("--strengths", "1").output
    assert "--baseline belongs to the comparison over time" in typed("--frontier", "--baseline", "tight").output
    assert "--strengths 0.25,0.5,0.75,1" in typed("--frontier", "--strengths", "half").output
    assert "is not a page's name" in typed("--frontier", "-o", "page.png").output
    # None of these runs can be drawn with: they are named, and the frontier is drawn without their strengths.
    done = typed("--frontier", "--strengths", "0.5")
    assert done.exit_code == 0
    assert done.output.count("could not be measured") == 3


def test_strengths_are_read_as_the_playground_reads_them():
    assert check_strengths("0.25,0.5,1") == (0.25, 0.5, 1.0)
    for text in ("", "0.5,,1", "-1", "2.5", "all"):
        with pytest.raises(ConfigError, match="write it like --strengths"):
            check_strengths(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two rounds on a tiny model, with averaged weights and a normalised reward."""
    folder = tmp_path_factory.mktemp("frontier")
    lcm_pipeline().save_pretrained(folder / "model")
    config = tiny_config(
        folder / "runs", model={"path": str(folder / "model")}, rewards=[{"name": "brightness", "normalise": True}],
        prompts=PROMPTS, optimizer={"lr": 0.05}, lora={"ema_decay": 0.2}, evaluation={"images": 9},
    )  # fmt: skip
    return Trainer(config).train()


def test_full_strength_is_the_run_and_none_its_base_model(trained, tmp_path):
    run = tmp_path / "elsewhere"
    shutil.copytree(trained, run)
    assert read_strengths(run) == []
    found = measure_strengths(run, [1.0, 0.5])
    base, *_, tuned = json.loads((run / "eval.json").read_text())["evaluations"]
    assert [entry["strength"] for entry in found] == [0.0, 0.5, 1.0]
    for own, of_run in ((found[0], base), (found[2], tuned)):
        for name in ("reward", "rewards", "guard", "kl"):
            flat = {key: value for key, value in of_run[name].items() if not isinstance(value, dict)}
            assert {key: own[name][key] for key in flat} == pytest.approx(flat, rel=1e-4, abs=1e-6), name
    assert 0 < found[1]["kl"]["mean"] < found[2]["kl"]["mean"]
    notes = []
    assert measure_strengths(run, [0.5], notes.append) == found  # nothing is measured twice
    assert notes == []
    drawn = frontier([run], strengths=True)
    own, free = drawn.tracks
    assert (free.name, free.free) == (f"{own.name}, strength", True)
    assert [point.about for point in free.points] == ["strength 0", "strength 0.5", "strength 1"]
    assert free.points[2].reward == pytest.approx(own.points[-1].reward, rel=1e-4)
    weights = run / "final" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert read_strengths(run) == []  # they are of other weights


def test_strengths_of_what_has_not_ended(tmp_path, trained):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    with pytest.raises(MissingFileError):
        measure_strengths(tmp_path / "run", [1.0])
    (tmp_path / "run" / "strengths.json").write_text("[]")
    assert read_strengths(tmp_path / "run") == []
