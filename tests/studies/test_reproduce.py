"""The paper's experiments: what is planned, that it resumes, what is collected, and the variance of the gradient."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml
from tiny_runs import PROMPTS, lcm_pipeline, tiny_config

from benchmarks import results_page
from benchmarks.reproduction import reading, sources, verdicts
from rlcm.builtin.vocabulary import TAGS
from rlcm.errors import RunDirectoryError, TrainingError
from rlcm.runs.rundir import RunDirectory
from rlcm.settings import merge
from rlcm.studies import reproduce as package
from rlcm.studies.compare.methods import Curve, Method
from rlcm.studies.reproduce import EXPERIMENTS, TASKS, Plan, work
from rlcm.studies.reproduce.merging import merged, names_in, unfinished
from rlcm.studies.reproduce.plan import (
    DDPO,
    DEFAULT,
    PUBLISHED,
    RATE_FACTORS,
    SHARES,
    VARIANTS,
    values_of,
)
from rlcm.studies.reproduce.results import ablations, at_equal_gain, at_equal_queries, generalisation, inference, is_finished
from rlcm.studies.reproduce.variance import gradient_variance
from rlcm.studies.reproduce.work import claimed, train
from rlcm.training.config import TrainConfig, load_config, parse_settings
from rlcm.training.prompts import load_prompts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    lcm_pipeline().save_pretrained(folder)
    return folder


def test_every_job_of_the_whole_plan_is_a_valid_run_in_a_folder_of_its_own(tmp_path):
    plan = Plan(tmp_path, tasks=tuple(TASKS), seeds=2)
    jobs = list(plan.jobs())
    assert (
        len({job.folder(tmp_path) for job in jobs})
        == len(jobs)
        == len(TASKS) * (2 * (3 + 2 + len(VARIANTS)) + 2 * len(RATE_FACTORS))
    )
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    for job in jobs[: len(jobs) // 2]:
        config = job.config(tmp_path)
        assert config.run.time_limit_minutes <= 60
        assert [r.name for r in config.rewards] == [TASKS[job.task].reward]


def test_methods_differ_in_what_they_should():
    found = {method: parse_settings(TrainConfig, values_of("compressibility", method)) for method in SHARES}
    ddpo, published, default = found[DDPO], found[PUBLISHED], found[DEFAULT]
    assert (ddpo.model.path, ddpo.sampler.steps, ddpo.sampler.eta) == ("builtin-teacher", 50, 1.0)
    for group in ("lora", "rollout", "algorithm", "optimizer", "prompts", "rewards"):
        assert getattr(ddpo, group) == getattr(published, group), group
    own = TrainConfig()
    assert (default.algorithm, default.rollout, default.optimizer) == (own.algorithm, own.rollout, own.optimizer)
    assert default.run.rounds == own.run.rounds
    with pytest.raises(KeyError):
        values_of("compressibility", "other")


def test_a_part_of_the_plan():
    for task, share in (("compressibility", SHARES[PUBLISHED]), ("alignment", 0.6)):
        plan = Plan("x", only=("inference",), tasks=(task,), methods=(PUBLISHED,), seeds=1, budget=8.0)
        (job,) = plan.jobs()
        assert (job.experiment, job.method) == ("curves", PUBLISHED)
        assert job.values["run"]["time_limit_minutes"] == pytest.approx(8.0 * share)
    assert list(Plan("x", only=("last-step",)).jobs()) == []
    assert set(EXPERIMENTS) == set(Plan("x").only)


def test_generalisation_is_from_the_prompts_that_others_are_apart_from():
    jobs = list(Plan("x", only=("generalisation",), tasks=("compressibility",), seeds=1).jobs())
    assert {job.method for job in jobs} == {PUBLISHED, DEFAULT}
    assert {job.config(Path("x")).prompts for job in jobs} == {"world"}


def test_merging_changes_nothing_of_its_parts():
    base = {"a": {"b": 1, "c": [1]}, "d": 2}
    merged = merge(base, {"a": {"b": 3}}, {"d": {"e": 4}})
    assert merged == {"a": {"b": 3, "c": [1]}, "d": {"e": 4}}
    merged["a"]["c"].append(2)
    assert base == {"a": {"b": 1, "c": [1]}, "d": 2}


class Silent:
    def __init__(self, stop_at=None):
        self.stop_at, self.rounds = stop_at, []

    def note(self, text):
        pass

    def round(self, metrics, rounds):
        self.rounds.append(metrics["round"])
        if metrics["round"] == self.stop_at:
            import signal

            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_goes_on_and_a_finished_one_is_left_alone(model, tmp_path):
    config = tiny_config(
        tmp_path, model={"path": str(model)}, rewards=["brightness"], prompts=PROMPTS, run={"rounds": 3, "save_every": 0}
    )
    folder = tmp_path / "run"
    assert not train(config, folder, Silent(stop_at=1))
    assert not is_finished(folder)
    watcher = Silent()
    assert train(config, folder, watcher)
    assert watcher.rounds == [2, 3]
    again = Silent()
    assert train(config, folder, again)
    assert again.rounds == []
    with pytest.raises(RunDirectoryError, match="other settings"):
        train(config.model_copy(update={"seed": 1}), folder, again)


def test_a_longer_budget_goes_on_with_the_same_runs(model, tmp_path):
    def config(minutes, **run):
        limit = {"rounds": 100, "save_every": 0, "time_limit_minutes": minutes}
        own = {"path": str(model)}
        return tiny_config(tmp_path, model=own, rewards=["brightness"], prompts=PROMPTS, run=limit | run)

    folder = tmp_path / "run"
    short = Silent()
    assert train(config(1e-6), folder, short)
    assert short.rounds == [1]
    (folder / "evaluation").mkdir()
    longer = Silent(stop_at=3)
    assert not train(config(10.0), folder, longer)
    assert longer.rounds == [2, 3]
    assert not is_finished(folder)
    assert not (folder / "evaluation").exists()
    assert load_config(folder / "config.yaml") == config(10.0)
    for other in (config(1e-6), config(20.0, keep_last=1)):
        with pytest.raises(RunDirectoryError, match=r"other settings .* use another -o"):
            train(other, folder, longer)


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(model, tmp_path):
    config = tiny_config(tmp_path, model={"path": str(model)}, rewards=["brightness"], prompts=PROMPTS, run={"rounds": 1})
    RunDirectory.create(tmp_path, "run").write_text("config.yaml", config.dump())
    assert train(config, tmp_path / "run", Silent())


def test_a_whole_small_plan(model, tmp_path, monkeypatch):
    """Two methods with one seed on a tiny model: runs, pages and results; a second call does nothing again."""
    tiny = tiny_config(tmp_path, model={"path": str(model)}, rewards=["brightness"], prompts=PROMPTS, run={"rounds": 2})
    values = tiny.model_dump(mode="json")
    monkeypatch.setitem(
        TASKS, "compressibility", package.plan.Task("brightness", "animals-bare", {"algorithm": {"stat_min_count": 2}}, 3)
    )

    def small(task, method):
        return merge(values, {"sampler": {"steps": {DDPO: 5}.get(method, 3)}, "evaluation": {"every": 1}, "run": {"rounds": 2}})

    monkeypatch.setattr(package.plan, "values_of", small)
    monkeypatch.setattr(work, "values_of", small)
    monkeypatch.setattr(package.plan, "VARIANTS", {"as published": {}, "2 steps": {"sampler": {"steps": 2}}})
    monkeypatch.setattr(package.plan, "RATE_FACTORS", (1, 3))
    plan = Plan(tmp_path / "out", tasks=("compressibility",), methods=(DDPO, PUBLISHED), seeds=1, images=8)
    notes = []
    assert package.reproduce(plan, "rlcm reproduce --seeds 1", notes.append)
    assert sum(note.startswith("run ") for note in notes) == 2 + 1 + 2 + 2 * 2
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["command"] == "rlcm reproduce --seeds 1"
    curves = found["curves"]["compressibility"]
    assert [m["name"] for m in curves["methods"]] == ["ddpo", "rlcm-published"]
    assert set(curves["equal_queries"]["methods"]) == {"ddpo", "rlcm-published"}
    assert {(r["method"], r["steps"]) for r in found["inference"]["compressibility"] if r["model"] == "tuned"} == {
        *((DDPO, n) for n in (5, 10, 25, 50)),
        *((PUBLISHED, n) for n in (1, 2, 3, 4, 8, 16)),
    }
    assert [r["set"] for r in found["generalisation"]["compressibility"]] == ["train"]
    assert [r["variant"] for r in found["ablations"]["compressibility"]] == ["as published", "2 steps"]
    assert [r["steps"] for r in found["last_step"]] == [2, 4, 8]
    rates = found["learning_rates"]["compressibility"]
    assert [(r["method"], r["factor"], len(r["reward"])) for r in rates] == [
        (m, n, 3) for m in (DDPO, PUBLISHED) for n in (1, 3)
    ]
    assert [round(r["lr"] / rates[0]["lr"]) for r in rates] == [1, 3, 1, 3]
    assert all(0 <= r["clip_fraction"] <= 1 for r in rates)
    assert (tmp_path / "out" / "curves" / "compressibility" / "comparison.html").is_file()
    page = results_page.write_page(tmp_path / "page", tmp_path / "out" / "results.json").read_text()
    for words in ("## In short", "### Compressibility", "## Reward at equal reward queries", "## Unseen prompts",
                  "## Larger learning rates", "## The last step",
                  "rlcm reproduce --only curves --task compressibility --seeds 1", "## The paper's own figures"):  # fmt: skip
        assert words in page, words
    images = re.findall(r"\]\((images/[^)]+)\)", page)
    assert len(images) == 4
    assert all((tmp_path / "page" / "docs" / image).is_file() for image in images)
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)]
    assert all(len({row.count("|") for row in table}) == 1 for table in tables)
    notes.clear()
    assert package.reproduce(plan, "again", notes.append)
    assert notes == []


def test_a_learning_rate_that_diverges_is_a_result(model, tmp_path, monkeypatch):
    def small(task, method):
        values = tiny_config(tmp_path, model={"path": str(model)}, rewards=["brightness"], prompts=PROMPTS)
        return values.model_dump(mode="json") | {"name": None}

    tried = []

    def diverges(config, folder, watcher):
        tried.append(folder.name)
        if config.optimizer.lr > values["optimizer"]["lr"]:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
            raise TrainingError("the gradient was not finite")
        return train(config, folder, watcher)

    values = small("", "")
    monkeypatch.setattr(package.plan, "values_of", small)
    monkeypatch.setattr(package.plan, "RATE_FACTORS", (1, 30))
    monkeypatch.setattr(work, "train", diverges)
    plan = Plan(tmp_path / "out", only=("learning-rates",), tasks=("compressibility",), methods=(DDPO,), budget=1e-6)
    notes = []
    for _ in range(2):
        assert package.reproduce(plan, "rlcm reproduce", notes.append)
    assert tried == ["ddpo-x1-1000", "ddpo-x30-1000", "ddpo-x1-1000"], "what failed is not tried again"
    assert "the gradient was not finite" in notes[-2] + notes[-1]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["factor"], "failed" in row) for row in found["learning_rates"]["compressibility"]] == [(1, False), (30, True)]
    page = results_page.write_page(tmp_path / "page", tmp_path / "out" / "results.json").read_text()
    assert "| diverged |" in page


def test_calls_at_once_share_the_work(tmp_path):
    part = tmp_path / "curves" / "alignment" / "rlcm-0"
    with claimed(part, tmp_path) as first:
        with claimed(part, tmp_path) as second, claimed(part.with_name("rlcm-1"), tmp_path) as other:
            assert (first, second, other) == (True, False, True)
        with claimed(part, tmp_path) as third:
            assert not third, "a call that had to pass by does not let go of another's"
    with claimed(part, tmp_path) as later:
        assert later


def test_what_another_call_does_is_passed_by(model, tmp_path, monkeypatch):
    def small(task, method):
        return tiny_config(tmp_path, model={"path": str(model)}, rewards=["brightness"], prompts=PROMPTS).model_dump(
            mode="json"
        )

    monkeypatch.setattr("rlcm.studies.reproduce.plan.values_of", small)
    plan = Plan(tmp_path / "out", only=("curves",), tasks=("compressibility",), methods=(DDPO, PUBLISHED), seeds=1, budget=1e-6)
    notes = []
    plan.output.mkdir()
    taken, free = (job.folder(plan.output) for job in plan.jobs())
    with claimed(taken, plan.output):
        assert package.reproduce(plan, "rlcm reproduce", notes.append)
    assert is_finished(free)
    assert not taken.exists()
    assert notes[-1].startswith("still with other calls: 1 of the parts")
    assert package.reproduce(plan, "rlcm reproduce", notes.append)
    assert is_finished(taken)


def test_the_results_are_those_of_the_plan_alone(model, tmp_path, monkeypatch):
    def small(task, method):
        return tiny_config(tmp_path, model={"path": str(model)}, rewards=["brightness"], prompts=PROMPTS).model_dump(
            mode="json"
        )

    monkeypatch.setattr("rlcm.studies.reproduce.plan.values_of", small)
    options = {"only": ("curves",), "methods": (DDPO,), "seeds": 1}
    short = Plan(tmp_path / "out", tasks=("compressibility",), budget=1e-6, **options)
    longer = Plan(tmp_path / "out", tasks=("alignment",), budget=2e-6, **options)
    notes = []
    assert package.reproduce(short, "rlcm reproduce", notes.append)
    assert package.reproduce(longer, "rlcm reproduce", notes.append)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["curves"]) == ["alignment"]
    assert found["left_out"] == ["curves/compressibility/ddpo-0"]
    assert notes[-1].endswith("not in the results: curves/compressibility/ddpo-0")
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = dataclasses.replace(longer, output=tmp_path / "moved")
    notes.clear()
    assert package.reproduce(moved, "rlcm reproduce", notes.append)
    assert len(notes) == 1, "a folder that was moved is not trained again"


def method(name, *rewards):
    """A method with a seed for every curve; its evaluations are ten seconds and images apart."""
    curves = [
        {axis: [10.0 * i for i in range(len(reward))] for axis in ("seconds", "reward_queries", "network_calls")}
        | {"reward": list(reward), "ci95": [0.0] * len(reward)}
        for reward in rewards
    ]
    ends = {
        key: {"mean": fmean(values), "ci95": 0.0, "each": values}
        for key, values in (("before", [r[0] for r in rewards]), ("after", [r[-1] for r in rewards]), ("seconds", [1.0]),
                            ("reward_queries", [1.0]))
    }  # fmt: skip
    seeds = list(range(len(rewards)))
    return {"name": name, "seeds": seeds, "settings": {}, "curves": curves, "judge": {}, "guard": {}} | ends


def call(task, budget=60.0, methods=(), machine="two threads", rates=(), only=""):
    source = {"command": f"rlcm reproduce {only}--task {task} --seeds 2 --budget {budget:g} -o x", "machine": machine}
    last = [{"task": task, "steps": 2, "estimates": 2, "images": 8, "correct_variance": 1.0, "published_variance": 2.0,
             "variance_ratio": 2.0, "variance_ratio_interval": [1.5, 2.5]}]  # fmt: skip
    one = {"mean": 1.0, "ci95": None}
    studied = [
        {"method": m["name"], "steps": 2, "model": "tuned", "seeds": len(m["seeds"]), "reward": one, "images_per_second": one}
        for m in methods
    ]
    curves = {"methods": list(methods), "metric": {"label": "reward", "unit": "", "lower_is_better": False}}
    return source | {
        "budget_minutes": budget, "clock": "cpu", "seeds": 2, "curves": {task: curves} if methods else {},
        "inference": {task: studied} if studied else {}, "generalisation": {}, "ablations": {},
        "learning_rates": {task: list(rates)} if rates else {}, "last_step": last,
    }  # fmt: skip


SLOW, FAST = method("ddpo", [0, 1, 2], [0, 1, 2]), method("rlcm", [0, 2, 3], [0, 2, 3])


def test_committed_results_keep_what_another_call_did_not_do():
    results = merged({}, call("alignment", 20.0, [SLOW]))
    assert sources.minutes(results) == "20"
    results = merged(results, call("compressibility", 60.0, [SLOW]))
    assert list(results["curves"]) == ["compressibility", "alignment"]
    assert [row["task"] for row in results["last_step"]] == ["alignment", "compressibility"]
    assert sources.minutes(results) == "20 (alignment) and 60 (compressibility)"
    assert sources.command(results, "curves", "alignment") == (
        "rlcm reproduce --only curves --task alignment --seeds 2 --budget 20"
    )
    assert sources.command(results, "last-step").splitlines() == [
        "rlcm reproduce --only last-step --task alignment --seeds 2 --budget 20",
        "    rlcm reproduce --only last-step --task compressibility --seeds 2 --budget 60",
    ]
    longer = merged(results, call("alignment", 60.0, [FAST]))
    assert [m["name"] for m in longer["curves"]["alignment"]["methods"]] == ["rlcm"], "DDPO had other minutes"
    assert sources.minutes(longer) == "60"
    assert len(longer["last_step"]) == 2


def test_a_method_measured_later_is_compared_with_those_that_were_there():
    results = merged({}, call("alignment", methods=[FAST]))
    assert results["curves"]["alignment"]["baseline"] == "rlcm"
    results = merged(results, call("alignment", methods=[SLOW], only="--method ddpo "))
    found = results["curves"]["alignment"]
    assert (found["baseline"], [m["name"] for m in found["methods"]]) == ("ddpo", ["ddpo", "rlcm"])
    assert found["targets"][-1]["methods"]["rlcm"]["seconds"]["speedup"] == pytest.approx(2)
    assert found["equal_queries"]["methods"]["rlcm"]["mean"] == 3
    assert found["equal_gain"]["methods"]["rlcm"]["seconds"]["at"] == [10.0, 10.0]
    assert [row["method"] for row in results["inference"]["alignment"]] == ["ddpo", "rlcm"]
    better = merged(results, call("alignment", methods=[method("rlcm", [0, 4], [0, 4])]))
    assert [m["curves"][0]["reward"][-1] for m in better["curves"]["alignment"]["methods"]] == [2, 4]
    assert len(better["inference"]["alignment"]) == 2
    elsewhere = merged(better, call("alignment", methods=[FAST], machine="a faster one"))
    assert names_in(better) - names_in(elsewhere) == {("curves", "alignment", "ddpo"), ("inference", "alignment", "ddpo")}
    curves = call("alignment", 20.0, [FAST]) | {"inference": {}}
    assert merged(better, curves)["inference"] == {}, "it was of other models"


def test_unfinished_methods_are_not_taken():
    late = call("alignment", methods=[SLOW, FAST], rates=[{"method": "rlcm", "factor": 3}])
    late["inference"]["alignment"][1]["seeds"] = 1
    late["generalisation"]["alignment"] = [{"method": "rlcm", "set": "train", "seeds": 2}]
    assert unfinished(late) == {("inference", "alignment"): ["rlcm"]}
    assert names_in(merged({}, late)) == {
        *((part, "alignment", name) for part, name in (("curves", "ddpo"), ("curves", "rlcm"), ("inference", "ddpo"))),
        *((part, "alignment", "rlcm") for part in ("generalisation", "learning_rates")),
    }
    found = call("alignment", methods=[SLOW, method("rlcm", [0, 2])])
    assert unfinished(found) == {("curves", "alignment"): ["rlcm"], ("inference", "alignment"): ["rlcm"]}
    results = merged({}, found)
    assert [m["name"] for m in results["curves"]["alignment"]["methods"]] == ["ddpo"]
    assert [row["method"] for row in results["inference"]["alignment"]] == ["ddpo"]
    assert merged({}, call("alignment", methods=[method("rlcm", [0, 2])]))["curves"] == {}


def test_a_verdict_waits_for_the_tasks_that_may_still_decide_it():
    def rising(name, steps):
        return method(name, *[[1.0] * steps + [2.0]] * 2)

    def word(**tasks):
        results = merged({}, call("alignment"))
        for task, own in tasks.items():
            results = merged(results, call(task, methods=[rising("ddpo", 400), own]))
        (found,) = [v for v in verdicts.verdicts(results) if v.claim == "the default is there sooner"]
        return found.cells()[-1]

    twenty, eighty = rising("rlcm", 20), rising("rlcm", 5)
    assert word() == "not measured"
    assert word(alignment=twenty) == "open", "17 times everywhere, and 50 times may come"
    assert word(alignment=twenty, compressibility=eighty) == "so far"
    assert word(alignment=twenty, compressibility=eighty, incompressibility=twenty) == "yes"
    assert word(alignment=twenty, compressibility=twenty, incompressibility=twenty) == "**no**"
    assert word(alignment=rising("rlcm", 40)) == "**no**", "ten times sooner"
    assert word(alignment=method("rlcm", *[[1.0, 1.9]] * 2)) == "**no**", "it does not come as far"
    assert word(alignment=method("rlcm", *[[3.0, 3.9]] * 2)) == "**no**", "it began above, and gained less"


def test_without_ddpo_no_speed_up_is_told(tmp_path):
    (tmp_path / "results.json").write_text(
        json.dumps(call("alignment", methods=[FAST, method("rlcm-published", [0, 2], [0, 2])]))
    )
    page = results_page.write_page(tmp_path, tmp_path / "results.json").read_text()
    assert not re.search(r"\d times sooner", page)
    assert "Tasks whose curves are not complete yet: compressibility, incompressibility, alignment." in page


def test_results_of_the_former_model_are_told_as_such_and_joined_with_no_others(tmp_path):
    committed = tmp_path / "benchmarks" / "results" / "reproduce.json"
    committed.parent.mkdir(parents=True)
    former = merged({}, call("compressibility", methods=[SLOW])) | {"untrained_animals": ["ibex"]}
    committed.write_text(json.dumps(former))
    told_so = "Measured with the former built-in model (45 animals)"
    assert told_so in results_page.write_page(tmp_path).read_text()
    (tmp_path / "new.json").write_text(json.dumps(call("alignment", methods=[FAST])))
    assert told_so not in results_page.write_page(tmp_path, tmp_path / "new.json").read_text()
    assert list(json.loads(committed.read_text())["curves"]) == ["alignment"]


def told(seconds, interval):
    return {"seconds": {"speedup": seconds, "interval": interval, "reached": 3, "of": 3, "at": [1.0] * 3}}


@pytest.mark.parametrize(
    ("reward", "gain", "surely"),
    [
        (told(200.0, [100.0, 400.0]), told(30.0, [20.0, 45.0]), 20.0),
        (told(30.0, [20.0, 45.0]), told(200.0, [100.0, 400.0]), 20.0),
        ({"seconds": {"from_start": True, "reached": 3, "of": 3, "at": [0.0] * 3}}, told(30.0, [20.0, 45.0]), 20.0),
        (told(30.0, [20.0, 45.0]), {"seconds": {"reached": 2, "of": 3, "at": [1.0, 1.0, None]}}, 0.0),
        (told(30.0, None), told(40.0, None), 30.0),
    ],
)
def test_a_method_is_judged_by_the_smaller_of_equal_reward_and_equal_gain(reward, gain, surely):
    found = {"targets": [{"methods": {"rlcm": reward}}], "equal_gain": {"methods": {"rlcm": gain}}}
    assert reading.surely(found, "rlcm") == surely


def test_rewards_at_equal_queries():
    def method(name, queries, reward):
        return Method(name, [], [Curve(queries, queries, queries, reward, [0.0] * len(reward))], {})

    found = at_equal_queries([method("a", [0.0, 10.0], [0.0, 1.0]), method("b", [0.0, 20.0], [0.0, 1.0])])
    assert found["reward_queries"] == 10
    assert {name: value["mean"] for name, value in found["methods"].items()} == {"a": 1.0, "b": 0.5}
    assert at_equal_queries([]) == {}


def test_the_same_gain_is_told_beside_the_same_reward():
    def method(name, reward):
        return Method(name, [], [Curve([0.0, 10.0, 20.0], [0.0] * 3, [0.0] * 3, reward, [0.0] * 3)], {})

    methods = [method("slow", [-2.0, -1.5, -1.0]), method("lower", [-4.0, -3.0, -2.0])]
    found = at_equal_gain(methods)
    assert found["reward"] == 1.0
    assert found["methods"]["lower"]["seconds"]["at"] == [10.0], "though it never comes to -1.0"
    assert found["methods"]["lower"]["seconds"]["speedup"] == pytest.approx(2)
    assert methods[0].curves[0].reward[0] == -2.0
    assert at_equal_gain([method("worse", [0.0, -1.0, -2.0])]) == {}


def test_the_prompts_of_the_alignment_task_are_of_all_kinds_alike():
    prompts, known = TASKS["alignment"].prompts, load_prompts("world")
    kinds = Counter(known.metadata[known.prompts.index(prompt)]["tag"] for prompt in prompts)
    assert kinds == dict.fromkeys(TAGS, 8)
    assert len(set(prompts)) == 48
    assert len(load_prompts(TASKS["compressibility"].prompts)) == 20


def write_study(folder, changes, own=4, rewards=(1.0,)):
    (folder / "evaluation").mkdir(parents=True)
    rows = [
        {
            "model": "tuned", "set": name, "steps": own, "images_per_second": 10.0 * (1 + place), "change": {"jpeg": {"mean": change}},
            "rewards": {"jpeg": {"mean": rewards[0]}},
        }
        for place, (name, change) in enumerate(changes.items())
    ]  # fmt: skip
    found = {"own_steps": own, "rewards": [{"label": "jpeg"}], "results": rows}
    (folder / "evaluation" / "eval.json").write_text(json.dumps(found))
    return folder


def test_what_is_kept_of_a_gain(tmp_path):
    runs = [write_study(tmp_path / f"rlcm-{s}", {"train": 2.0 + s, "unseen": 1.0 + s}) for s in (0, 1)]
    found = {row["set"]: row for row in generalisation(runs, "jpeg")}
    assert found["train"]["kept"]["mean"] == 1.0
    assert found["unseen"]["kept"]["mean"] == pytest.approx((1 + 2) / (2 + 3)), "of the means, not the mean of ratios"
    assert (found["unseen"]["method"], found["unseen"]["seeds"]) == ("rlcm", 2)
    # A run that lost on its own prompts kept nothing of nothing.
    assert generalisation([write_study(tmp_path / "rlcm-2", {"train": 0.0, "unseen": 1.0})], "jpeg") == []


def test_speed_and_reward_over_seeds(tmp_path):
    runs = [write_study(tmp_path / f"ddpo-{s}", {"train": 1.0}, rewards=(2.0 * s,)) for s in (0, 1)]
    (found,) = inference(runs)
    assert (found["method"], found["model"], found["steps"], found["seeds"]) == ("ddpo", "tuned", 4, 2)
    assert found["reward"]["mean"] == 1.0
    assert found["images_per_second"]["mean"] == 10.0


def test_ablations_come_in_the_order_of_the_plan(tmp_path):
    for place, variant in enumerate(("batch-normalisation", "as-published")):
        folder = tmp_path / f"{variant}-0"
        folder.mkdir()
        looks = [{"round": n, "reward": {"mean": float(n * place)}} for n in (0, 2)]
        (folder / "eval.json").write_text(json.dumps({"evaluations": looks}))
        (folder / "metrics.jsonl").write_text('{"round": 2, "seconds": 4, "reward_queries": 8, "network_calls": 16}\n')
    found = ablations(sorted(tmp_path.iterdir(), reverse=True))
    assert [row["variant"] for row in found] == ["as published", "batch normalisation"]
    assert found[0]["gain"]["mean"] == 2.0
    assert found[0]["network_calls"]["mean"] == 16


def test_noise_that_never_reaches_the_image_is_variance_alone(model):
    config = tiny_config("runs", model={"path": str(model)}, rewards=["brightness"], prompts=PROMPTS, sampler={"steps": 2})
    found = gradient_variance(config, estimates=4, images=4)
    assert (found["steps"], found["estimates"], found["images"]) == (2, 4, 4)
    assert min(found["published_variance"], found["correct_variance"]) > 0
    low, high = found["variance_ratio_interval"]
    assert low < found["variance_ratio"] < high
    assert found["variance_ratio"] == pytest.approx(found["published_variance"] / found["correct_variance"])


def test_a_ratio_of_variances_and_its_interval():
    from rlcm.studies.reproduce.variance import _ratio

    noise = torch.randn(24, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio, (low, high) = _ratio(noise * 2**0.5, noise)
    assert (ratio, low, high) == pytest.approx((2, 2, 2)), "the same noise twice as strong has no error"
    other = torch.randn(24, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ratio, (low, high) = _ratio(other, noise)
    assert 0.7 < low < ratio < high < 1.4
    assert low < 1 < high


def test_the_last_steps_term_has_mean_zero(model):
    # Over many noises of one trajectory, the mean of the term is small beside its spread: |mean| ~ spread / sqrt(n).
    from rlcm.policy.rollout import rollout
    from rlcm.studies.reproduce.variance import _last_step_gradient
    from rlcm.training.build import build

    config = tiny_config("runs", model={"path": str(model)}, rewards=["brightness"], prompts=PROMPTS)
    parts = build(config)
    trajectory = rollout(parts.policy, parts.conditioning, torch.tensor([0, 1]), [1, 2])
    terms = torch.stack(
        [_last_step_gradient(parts, trajectory, torch.tensor([1.0, -0.5]), config, number) for number in range(60)]
    )
    mean, spread = terms.mean(0).norm(), terms.var(0).sum().sqrt()
    assert spread > 0
    assert mean < 2 * spread / 60**0.5
