"""The study of algorithms: its configurations are valid, its arithmetic is right, and a tiny run leaves a whole result."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.algorithms import design, measure, methods, run, summary
from benchmarks.algorithms.measure import RunKey
from benchmarks.algorithms.page import seeds_of, text_of, write_study
from benchmarks.shared import training
from rlcm.settings import merge
from rlcm.training.config import TrainConfig, parse_settings

TASK = "jpeg_compressibility"
BUDGET = 100.0


def result(task: str, method: str, seed: int, rewards: list[float], judges: list[float]) -> dict[str, Any]:
    """Return a run's file with looks at 0, 50 and 100 seconds; at n steps it has n / 4 of its gain, at 8 as much as at 4."""
    budget = RunKey(task, method, seed).budget(BUDGET)
    clock = [(share * budget, int(1000 * share)) for share in (0, 0.5, 1)][: len(rewards)]
    evaluations = [
        {
            "cpu": cpu,
            "reward_queries": queries,
            "network_calls": 4 * queries,
            "reward": r,
            "judge": j,
            "judge_confidence": j,
            "guard": {"diversity": 0.25, "high_frequency": 0.01},
        }
        for (cpu, queries), r, j in zip(clock, rewards, judges, strict=True)
    ]
    sound = [e for e in evaluations if e["judge"] >= measure.SOUND]
    best = max(sound, key=lambda e: e["reward"])
    gain = rewards[-1] - rewards[0]
    at = {n: {**evaluations[-1], "reward": rewards[0] + gain * min(n, 4) / 4} for n in measure.STEPS}
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "budget": budget,
        "tuned": {
            "optimizer": {"lr": 1e-3},
            "rollout": {"batch_size": 32},
            "algorithm": {"minibatches": 1, "kl_coefficient": 0.1},
        },
        "hash": RunKey(task, method, seed).hash(BUDGET, Path()),
        "machine": "a test",
        "totals": {"cpu": clock[-1][0] or 1.0, "reward_queries": clock[-1][1], "network_calls": 4 * clock[-1][1]},
        "best": best,
        "evaluations": evaluations,
        "steps": {str(n): look for n, look in at.items()},
        "config": {
            "sampler": {"steps": 4},
            "optimizer": {"lr": 1e-3},
            "rollout": {"batch_size": 32},
            "algorithm": {"minibatches": 1, "kl_coefficient": 0.1},
        },
    }


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Return the folder of a study of two seeds: `group` is twice as fast, `branched-last` as well, but blinds the judge."""
    folder = tmp_path / "benchmarks" / "results" / "algorithms"
    curves: dict[str, Any] = {
        methods.UNTRAINED: ([0.0], [1.0]),
        methods.PLAIN: ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]),
        "group": ([0.0, 2.0, 3.0], [1.0, 1.0, 1.0]),
        "branched-last": ([0.0, 4.0, 8.0], [1.0, 0.8, 0.6]),
        "branched-uniform": ([0.0, 2.5, 2.6], [1.0, 0.95, 0.9]),
    }
    for method, (rewards, judges) in curves.items():
        for seed in (0,) if method == methods.UNTRAINED else (0, 1):
            measure.write(RunKey(TASK, method, seed).file(folder), result(TASK, method, seed, rewards, judges))
    return folder


@pytest.mark.parametrize("task", methods.TASKS)
def test_every_method_is_a_valid_configuration(task: str) -> None:
    for method in [methods.UNTRAINED, *methods.methods_of(task)]:
        config = parse_settings(TrainConfig, methods.values_of(task, method, 3))
        assert config.seed == 3
        assert [reward.name for reward in config.rewards] == [task]


def test_gradient_methods_are_for_differentiable_rewards_only() -> None:
    assert "reward_backprop" in methods.methods_of("alignment")
    assert "reward_backprop" not in methods.methods_of(TASK)


def test_merge_goes_into_depth_and_leaves_its_parts_alone() -> None:
    first = {"a": {"x": 1, "y": 2}, "b": [1]}
    merged = merge(first, {"a": {"y": 3}, "c": 4})
    assert merged == {"a": {"x": 1, "y": 3}, "b": [1], "c": 4}
    merged["b"].append(2)
    assert first == {"a": {"x": 1, "y": 2}, "b": [1]}


def test_a_changed_method_is_measured_anew_and_an_equal_one_is_not(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = RunKey(TASK, "group", 1)
    assert key.done(study, BUDGET)
    assert not key.done(study, BUDGET + 1)
    monkeypatch.setattr(methods, "COMMON", merge(methods.COMMON, {"optimizer": {"lr": 0.5}}))
    assert not key.done(study, BUDGET)
    key.file(study).write_text("{")
    assert not key.done(study, BUDGET)


def test_the_study_runs_what_is_missing_and_reports_what_fails(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(key: RunKey, budget: float, results: Path) -> str:
        asked.append(key)
        return "ConfigError: no" if key.method == "rebel" else ""

    monkeypatch.setattr(run, "in_a_process", fake)
    root = str(study.parent.parent.parent)
    arguments = ["--tasks", TASK, "--methods", "rlcm", "group", "rebel", "--seeds", "0", "2", "--budget", str(BUDGET)]
    with pytest.raises(SystemExit, match=r"2 runs failed: jpeg_compressibility-rebel-0, jpeg_compressibility-rebel-2"):
        run.main([*arguments, "--jobs", "1", "--root", root])
    assert asked == [RunKey(TASK, m, s) for m, s in (("rebel", 0), ("rlcm", 2), ("group", 2), ("rebel", 2))]


def test_speed_up_kept_gain_and_choice_of_a_study_by_hand(study: Path) -> None:
    found = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)
    methods_found = found["tasks"][TASK]["methods"]
    assert found["tasks"][TASK]["target"] == 2.0
    # Plain RLCM has 2.0 at its look after 100 seconds, group at that after 50; branched-last has it there, too, but not soundly.
    assert methods_found[methods.PLAIN]["to_plain"]["speed_up"] == {"median": 1.0, "low": 1.0, "high": 1.0, "below": None}
    assert methods_found["group"]["to_plain"]["speed_up"]["median"] == pytest.approx(2.0)
    assert methods_found["branched-last"]["to_plain"]["reached"] == 0
    assert methods_found["branched-last"]["reward"]["mean"] == 0.0
    assert methods_found["branched-uniform"]["to_plain"]["speed_up"]["median"] == pytest.approx(2.0)
    assert methods_found["branched-uniform"]["to_plain"]["judge"] == pytest.approx(0.95)
    assert methods_found["branched-uniform"]["end"]["reward"]["mean"] == 2.6
    assert methods_found["branched-uniform"]["best_after"]["mean"] == 50.0
    assert methods_found["branched-uniform"]["reward"]["mean"] == 2.5
    assert methods_found["group"]["kept"] == pytest.approx({"1": 0.25, "2": 0.5, "4": 1.0, "8": 1.0})
    # branched-last is out: when it got there the judge had lost twenty points. Of the two that are as fast, group gets further.
    chosen = {(row["task"], row["what"]): row["method"] for row in found["choice"]}
    assert chosen == {
        (TASK, "fastest"): "group",
        (TASK, "highest"): "group",
        (None, "fastest"): "group",
        (None, "few_steps"): "group",
    }


def test_a_seed_that_never_gets_there_is_censored(study: Path) -> None:
    measure.write(RunKey(TASK, "group", 2).file(study), result(TASK, "group", 2, [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]))
    found = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)["tasks"][TASK]["methods"]["group"]["to_plain"]
    assert found["reached"] == 2
    # All it says is that 100 seconds, what plain RLCM took, were not enough.
    assert found["speed_up"]["low"] is None
    assert found["speed_up"]["below"] == pytest.approx(1.0)
    assert found["speed_up"]["median"] == pytest.approx(2.0)


def test_a_seed_that_broke_before_it_got_there_is_no_early_one(study: Path) -> None:
    for seed, rewards in enumerate(([0.0, 2.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.5])):
        run = result(TASK, methods.PLAIN, seed, rewards, [1.0] * len(rewards))
        measure.write(RunKey(TASK, methods.PLAIN, seed).file(study), run)
    found = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)["tasks"][TASK]
    assert (found["target"], found["spent"]["cpu"]) == (2.0, 100.0), "there at 50, there at 100, and over at 50 without"


def test_methods_with_more_seeds_than_others_are_named(study: Path) -> None:
    def begins() -> tuple[str, str]:
        found = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)
        methods_found = found["tasks"][TASK]["methods"]
        return text_of(found, {TASK: "x.svg"}).partition(". This page")[0], seeds_of(methods_found.values())

    said, counts = begins()
    assert said.endswith("a run, seeds 0 and 1")
    assert counts == "2"
    for method in ("group", methods.PLAIN):
        measure.write(RunKey(TASK, method, 2).file(study), result(TASK, method, 2, [0.0, 2.0, 3.0], [1.0, 1.0, 1.0]))
    said, counts = begins()
    assert said.endswith(f"a run, seeds 0 and 1 (3 of `{methods.PLAIN}` and `group` on `{TASK}`)")
    assert counts == "2 to 3"


def test_the_way_to_the_best_reward_of_any_run_is_told_in_shares(study: Path) -> None:
    measure.write(RunKey(TASK, "group", 2).file(study), result(TASK, "group", 2, [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]))
    found = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)["tasks"][TASK]
    assert found["best"] == 3.0
    # Two seeds of group are at 1.5 at their look after 50 seconds, 500 images and 2000 calls; the third never is, in its 100 seconds.
    way = found["methods"]["group"]["on_the_way"]["0.5"]
    assert way["reached"] == 2
    assert way["cpu"] == {"median": 50.0, "low": 50.0, "high": None, "more_than": 100.0}
    assert way["network_calls"]["median"] == pytest.approx(2000)
    # branched-last has it all, but is blind by then.
    blind = found["methods"]["branched-last"]["on_the_way"]
    assert blind["0.75"]["cpu"] == {"median": None, "low": None, "high": None, "more_than": 100.0}
    write_study(study, study.parent.parent.parent, BUDGET)
    page = (study.parent.parent.parent / "docs" / "algorithms" / "study.md").read_text()
    assert (
        "| `group` | 50.0 (50.0 to 100.0) | 50.0 (50.0 to > 100.0) | 100.0 (100.0 to > 100.0) | 500 (500 to > 1,000) |" in page
    )


def test_a_run_that_is_sound_again_at_its_best_is_there(study: Path) -> None:
    """The judge is down where the line crosses the target, and up again at the evaluation that is the run's best."""
    measure.write(RunKey(TASK, "dense", 0).file(study), result(TASK, "dense", 0, [0.0, 0.1, 3.0], [1.0, 0.5, 1.0]))
    found = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)["tasks"][TASK]["methods"]["dense"]
    assert found["on_the_way"]["0.25"]["cpu"]["median"] == pytest.approx(100.0)


def test_ddpo_gets_thirty_times_the_budget_and_is_compared_by_its_best_and_by_its_gain(study: Path) -> None:
    for seed, rewards in ((0, [-1.0, 0.0, 0.5]), (1, [-1.0, 0.5, 0.0])):
        measure.write(RunKey(TASK, "ddpo", seed).file(study), result(TASK, "ddpo", seed, rewards, [1.0, 1.0, 1.0]))
    measure.write(RunKey(TASK, "ddpo-second", 0).file(study), result(TASK, "ddpo-second", 0, [-1.0, 0.2], [1.0, 1.0]))
    measure.write(RunKey(TASK, "dense", 0).file(study), result(TASK, "dense", 0, [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]))
    found = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)["tasks"][TASK]
    own = found["ddpo"]
    assert own["furthest"] == "ddpo"
    assert not {"ddpo", "ddpo-second"} & set(found["methods"])
    furthest = own["variants"]["ddpo"]
    assert (furthest["budget"], furthest["before"]["reward"], furthest["reward"]["mean"]) == (3000.0, -1.0, 0.5)
    assert (furthest["rising"], furthest["broken"]) == (1, 0)
    assert own["variants"]["ddpo-second"]["broken"] == 1
    assert furthest["spent"] == {"cpu": 3000.0, "reward_queries": 1000, "network_calls": 4000}
    # The later of DDPO's two seeds is there after 3000 seconds; group has its .5, and its gain of 1.5, at the look after 50.
    group = own["methods"]["group"]
    assert group["to_best"]["speed_up"]["median"] == pytest.approx(3000 / 50)
    assert group["to_best"]["fewer_queries"]["median"] == pytest.approx(1000 / 500)
    assert group["to_gain"]["speed_up"]["median"] == pytest.approx(3000 / 50)
    # dense never gains as much in its hundred seconds: slower than 30 times, by nobody knows how much.
    assert own["methods"]["dense"]["to_gain"]["speed_up"] == pytest.approx(
        {"median": None, "low": None, "high": None, "below": 30.0}
    )

    write_study(study, study.parent.parent.parent, BUDGET)
    page = (study.parent.parent.parent / "docs" / "algorithms" / "study.md").read_text()
    assert "| 0.500 (0.500 to 0.500) | 3,000 | 1,000 | 100.0% | 0 of 2 | 1 of 2 |" in page
    assert "| `group` | 3.000 | 60.0 (60.0 to 60.0) | 2.0 (2.0 to 2.0) | 60.0 (60.0 to 60.0) | 2.0 (2.0 to 2.0) |" in page
    assert (study.parent.parent.parent / "docs" / "images" / "algorithms-jpeg-compressibility-ddpo.svg").is_file()


def test_a_reward_of_ddpo_that_is_there_before_training_takes_no_time(study: Path) -> None:
    measure.write(RunKey(TASK, "ddpo", 0).file(study), result(TASK, "ddpo", 0, [-2.0, -1.5, -1.0], [1.0, 1.0, 1.0]))
    own = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)["tasks"][TASK]["ddpo"]
    assert own["methods"]["group"]["to_best"] is None
    assert own["methods"]["group"]["to_gain"]["speed_up"]["median"] == pytest.approx(3000 / 50)


def test_page_and_pictures_come_from_the_runs(study: Path) -> None:
    root = study.parent.parent.parent
    write_study(study, root, BUDGET)
    page = (root / "docs" / "algorithms" / "study.md").read_text()
    assert f"| `{TASK}`, soon | `group` | 2.0 times as fast as plain RLCM, in the median |" in page
    assert (root / "docs" / "images" / "algorithms-jpeg-compressibility.svg").read_text().startswith("<?xml")
    assert json.loads((root / "benchmarks" / "results" / "algorithms.json").read_text())["tasks"][TASK]["target"] == 2.0


def test_a_method_is_recommended_only_if_its_seeds_are_apart_from_plain_rlcms(study: Path) -> None:
    measure.write(RunKey(TASK, methods.PLAIN, 2).file(study), result(TASK, methods.PLAIN, 2, [0.0, 2.0, 3.5], [1.0, 1.0, 1.0]))
    found = summary.summarise(summary.read_runs(study, BUDGET), BUDGET)
    assert found["tasks"][TASK]["target"] == 2.0, "the median of plain RLCM's seeds"
    assert found["tasks"][TASK]["spent"]["cpu"] == 100.0
    assert found["tasks"][TASK]["methods"][methods.PLAIN]["to_plain"]["speed_up"]["high"] == pytest.approx(2.0)
    page = text_of(found, {TASK: "x.svg"})
    slow = "not told apart: `group` is 2.0 times as fast as plain RLCM, in the median, but not in every seed"
    assert f"| `{TASK}`, soon | none | {slow} |" in page
    assert (
        f"| `{TASK}`, the best sound reward | none | not told apart: `group` 0.000 to 3.000; plain RLCM: to 2.500; their"
        in page
    )


def test_a_tiny_run_on_the_built_in_model_leaves_a_whole_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "rollout": {"batch_size": 8},
        "optimizer": {"lr": 1e-4},
        "evaluation": {"images": 4},
        "prompts": ["a cat", "a fox"],
        "lora": {"rank": 2},
    }
    monkeypatch.setattr(methods, "COMMON", merge(methods.COMMON, small))
    monkeypatch.setattr(measure, "MOMENTS", (0.5, 1.0))
    monkeypatch.setattr(measure, "STEPS", (1, 4))
    key, budget = RunKey(TASK, "final-step", 0), 0.5
    measure.main([key.task, key.method, "0", "--budget", str(budget), "--results", str(tmp_path)])
    found = json.loads(key.file(tmp_path).read_text())

    assert key.done(tmp_path, budget)
    assert found["totals"]["cpu"] >= budget
    assert found["totals"]["reward_queries"] == 8 * found["totals"]["round"]
    # One trajectory of four calls a round; its eight noises come after the last one.
    assert found["totals"]["network_calls"] == 4 * found["totals"]["round"]
    first, last = found["evaluations"][0], found["evaluations"][-1]
    assert (first["cpu"], last["cpu"]) == (0, found["totals"]["cpu"])
    assert last["reward"] != first["reward"]
    # The best look and the one at the run's own number of steps are at the same model, without final noise.
    assert found["best"] in found["evaluations"]
    assert found["steps"]["4"]["reward"] == pytest.approx(found["best"]["reward"], rel=1e-5)
    assert found["steps"]["1"]["reward"] != found["steps"]["4"]["reward"]


def test_a_task_that_asks_for_what_the_judge_looks_for_says_so_and_has_its_own_budget(study: Path, tmp_path: Path) -> None:
    for method, rewards in ((methods.UNTRAINED, [0.5]), (methods.PLAIN, [0.5, 0.6, 0.7])):
        made = result("composition", method, 0, rewards, [1.0] * len(rewards))
        measure.write(RunKey("composition", method, 0).file(study), made)
    write_study(study, tmp_path, BUDGET)
    text = (tmp_path / "docs" / "algorithms" / "study.md").read_text()
    assert "100 CPU seconds of training\na run (5 times as many on `composition`)" in text
    assert "- `composition` asks for just what the judge looks for" in text
    assert "A run trains on 94 prompts of six\n  kinds. Reward and judge are those of 270 pictures of unseen prompts." in text
    assert "| `rlcm` | 0.700 (0.700 to 0.700) | 1.0 (1.0 to 1.0) | 1.0 (1.0 to 1.0) | 100.0% (100.0% to 100.0%) |" in text
    trained, tried = (set(methods.half("world", for_search=one)) for one in (False, True))
    assert (len(trained), len(tried), trained & tried) == (94, 93, set())


def test_a_finished_training_of_other_settings_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run_alone(arguments: Any) -> None:
        asked.append(arguments)
        (tmp_path / "a-0" / "final").mkdir(parents=True)

    monkeypatch.setattr(training, "run_alone", run_alone)
    for _ in range(2):
        assert training.train_once(tmp_path / "a-0", 0, ["run.rounds=2"]) == tmp_path / "a-0"
    assert len(asked) == 1
    with pytest.raises(SystemExit, match="was made with other settings"):
        training.train_once(tmp_path / "a-0", 0, ["run.rounds=3"])


def test_every_method_is_searched_over_the_same_balanced_eight() -> None:
    columns = list(zip(*design.DESIGN, strict=True))
    for one, other in itertools.combinations(columns, 2):
        counts = Counter(zip(one, other, strict=True))
        assert len(set(counts.values())) == 1
        assert len(counts) == len(set(one)) * len(set(other))
    assert (
        len({json.dumps(design.tries_of(method)) for method in methods.METHODS if not methods.METHODS[method].one_update}) == 1
    )
    for task in methods.TASKS:
        tried = methods.values_of(task, methods.PLAIN, 0, design.values_of_try(task, methods.PLAIN, 0))
        assert set(tried["prompts"]).isdisjoint(methods.values_of(task, methods.PLAIN, 0)["prompts"])
        assert tried["evaluation"].get("prompts") is None
    for number in range(len(design.DESIGN)):
        for method in methods.METHODS:
            found = methods.values_of("alignment", method, 0, design.values_of_try("alignment", method, number))
            assert parse_settings(TrainConfig, found).evaluation.seed == design.SEED


def test_the_best_sound_try_is_chosen_and_half_a_search_chooses_nothing(tmp_path: Path) -> None:
    for number in range(len(design.DESIGN)):
        assert design.chosen(tmp_path, TASK, "group") == {}
        file = design.file_of_try(tmp_path, TASK, "group", number)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"best": {"reward": -abs(number - 5)}}))
    assert design.chosen(tmp_path, TASK, "group") == design.tries_of("group")[5]
    key = RunKey(TASK, "group", 0)
    assert key.values(tmp_path)["optimizer"]["lr"] == design.tries_of("group")[5]["optimizer"]["lr"]
    assert key.hash(BUDGET, tmp_path) != key.hash(BUDGET, tmp_path / "elsewhere")
