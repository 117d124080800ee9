"""Comparisons of runs: methods from seeds, times to a reward, speed-ups, and a page that needs nothing but itself."""

import json
import re

import pytest
import yaml
from compared_runs import DISPLAY, write_run

from rlcm.cli.work.studies import compare_runs
from rlcm.errors import ConfigError, RunDirectoryError, UsageError
from rlcm.report.metric import Metric
from rlcm.studies.compare import Method, compare, read_methods, write_comparison
from rlcm.studies.compare.methods import Curve
from rlcm.studies.compare.page import final_table, headline, speedup_tables, strips
from rlcm.studies.compare.speedup import mean_curve, time_to


@pytest.fixture
def runs(tmp_path):
    """Two slow runs and two fast ones; the fast are there ten times sooner."""
    slow = [write_run(tmp_path, f"slow-{s}", [(0, 0, -3.0), (10, 1000, -2.0 - 0.1 * s)], seed=s, steps=50) for s in (0, 1)]
    fast = [write_run(tmp_path, f"fast-{s}", [(0, 0, -3.0), (10, 100, -2.0), (20, 200, -1.0)], seed=s) for s in (0, 1)]
    return [*slow, *fast]


def curve(x, reward):
    return Curve(list(x), [10 * v for v in x], [40 * v for v in x], list(reward), [0.0] * len(x))


def test_time_to_a_reward():
    one = curve([0.0, 10.0, 20.0], [1.0, 3.0, 2.0])
    assert time_to(one, "seconds", 2.0, between=True) == 5.0
    assert time_to(one, "seconds", 2.0, between=False) == 10.0
    for between in (True, False):
        assert time_to(one, "network_calls", 3.0, between=between) == 400.0
        assert time_to(one, "seconds", 3.5, between=between) is None
        assert time_to(one, "seconds", 0.5, between=between) == 0.0


def test_the_mean_of_curves_is_over_what_all_know():
    x, y = mean_curve([curve([0.0, 10.0], [0.0, 1.0]), curve([0.0, 4.0, 20.0], [2.0, 2.0, 2.0])], "seconds")
    assert x == [0.0, 4.0, 10.0]
    assert y == pytest.approx([1.0, 1.2, 1.5])
    assert mean_curve([], "seconds") == ([], [])


def test_runs_that_differ_in_their_seed_are_one_method(runs):
    methods, metric, warnings = read_methods(runs)
    assert [(m.name, m.seeds) for m in methods] == [("slow", [0, 1]), ("fast", [0, 1])]
    assert methods[0].settings == {"sampler.steps": 50}
    assert (metric.label, metric.lower_is_better, warnings) == ("JPEG size", True, [])
    assert methods[0].curves[0].network_calls == [0, 5000]


def test_speed_ups(runs):
    methods, _, _ = read_methods(runs)
    found = compare(methods)
    # Slow seed 1 ends at -2.1: the highest that both slow seeds reach.
    last = found["targets"][-1]
    assert (last["share"], last["reward"]) == (1.0, pytest.approx(-2.1))
    fast = last["methods"]["fast"]["seconds"]
    # Slow: 900 and 1000 s, on its line; fast: 100 s each, its first evaluation.
    assert last["methods"]["slow"]["seconds"]["at"] == [pytest.approx(900), pytest.approx(1000)]
    assert fast["at"] == [100, 100]
    assert fast["speedup"] == pytest.approx((900 * 1000) ** 0.5 / 100)
    assert fast["interval"][0] < fast["speedup"] < fast["interval"][1]
    assert last["methods"]["slow"]["seconds"]["speedup"] == pytest.approx(1)
    # A slow call of 50 and a fast one of 4: as many images, a hundredth of the calls or so.
    ratio = last["methods"]["fast"]["network_calls"]["speedup"] / last["methods"]["fast"]["reward_queries"]["speedup"]
    assert ratio == pytest.approx(50 / 4)
    assert found["methods"][1]["after"]["mean"] == -1.0
    assert found["methods"][0]["judge"]["right"]["mean"] == pytest.approx(0.89)


def test_a_reward_that_is_not_reached_has_no_speed_up(runs, tmp_path):
    weak = write_run(tmp_path, "weak", [(0, 0, -3.0), (10, 10, -2.9)], steps=2)
    methods, metric, _ = read_methods([*runs[:2], weak, runs[2]])
    found = compare(methods)
    entry = found["targets"][-1]["methods"]["weak"]["seconds"]
    assert (entry["reached"], entry["of"], "speedup" in entry) == (0, 1, False)
    assert "fast reaches slow's JPEG size of 2.10\xa0kB 9.49 times sooner" in "".join(headline(found, metric))
    only_weak = compare(methods[:2])
    assert "Not every seed of weak reaches slow's JPEG size" in "".join(headline(only_weak, metric))


def test_a_method_that_begins_above_is_not_called_late(runs, tmp_path):
    ahead = write_run(tmp_path, "ahead", [(0, 0, -2.0), (10, 10, -1.9)], steps=2)
    methods, metric, _ = read_methods([*runs[:2], ahead])
    found = compare(methods)
    entry = found["targets"][-1]["methods"]["ahead"]["seconds"]
    assert entry["from_start"]
    assert "speedup" not in entry
    assert "ahead had more than slow's JPEG size of 2.10\xa0kB before training." in "".join(headline(found, metric))
    assert "before training" in str(speedup_tables(found, metric))


def test_different_clocks_are_told(runs, tmp_path):
    file = runs[0] / "config.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(config | {"run": config["run"] | {"clock": "cpu"}}))
    methods, metric, warnings = read_methods(runs)
    assert any("different clocks" in text for text in warnings)
    assert "nobody can be said to be ahead" in headline(compare(methods), metric, warnings)


def test_one_label_of_two_rewards_is_told(runs):
    assert not any("is not the same in all runs" in text for text in read_methods(runs)[2])
    file = runs[0] / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["rewards"][0]["args"] = {"quality": 50}
    file.write_text(yaml.safe_dump(config))
    label = config["rewards"][0]["label"]
    methods, metric, warnings = read_methods(runs)
    assert any("is not the same in all runs" in text and label in text for text in warnings)
    assert "nobody can be said to be ahead" in headline(compare(methods), metric, warnings)


def test_later_is_not_called_sooner(runs):
    methods, metric, _ = read_methods([*runs[:2], *runs[2:]])
    for fast in methods[1].curves:
        fast.seconds = [100 * value for value in fast.seconds]
    assert "10.5 times later" in "".join(headline(compare(methods), metric))


def test_a_baseline_that_learned_nothing_has_no_targets(tmp_path):
    runs = [write_run(tmp_path, name, [(0, 0, 1.0), (5, 10, end)], steps=n) for name, end, n in (("a", 0.5, 4), ("b", 2.0, 8))]
    methods, _, _ = read_methods(runs)
    found = compare(methods)
    assert found["targets"] == []
    assert "".join(headline(found, Metric())).startswith("Not every seed of a improves on its mean reward before training")
    assert compare(methods, "b")["targets"][-1]["methods"]["a"]["seconds"]["reached"] == 0
    with pytest.raises(ValueError, match="none of a, b"):
        compare(methods, "c")


def test_the_reward_to_compare_by(tmp_path):
    one = write_run(tmp_path, "one", [(0, 0, 1.0), (5, 10, 2.0)], rewards=["a"], held_out="b", display=None)
    two = write_run(tmp_path, "two", [(0, 0, 1.0), (5, 10, 4.0)], rewards=["b"], held_out="c", display=None)
    methods, metric, _ = read_methods([one, two])
    assert metric.reward == "b"
    assert [m.curves[0].reward for m in methods] == [[0.5, 1.0], [1.0, 4.0]]
    with pytest.raises(UsageError, match=r"'c' was not measured by all of these runs; they have b in common"):
        read_methods([one, two], "c")
    three = write_run(tmp_path, "three", [(0, 0, 1.0)], rewards=["z"], display=None)
    with pytest.raises(UsageError, match=r"no reward in common; they measured a, b, z"):
        read_methods([one, three])


def test_what_cannot_be_compared_is_left_out_and_named(runs, tmp_path):
    whole, _, _ = read_methods(runs[1:])
    (runs[0] / "eval.json").unlink()
    (tmp_path / "page.html").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    others = [tmp_path / name for name in ("page.html", "empty", "loop")]
    methods, _, warnings = read_methods([*others, *runs])
    assert [method.name for method in methods] == [method.name for method in whole]
    assert warnings[-4:] == [
        f"{others[0]} is a file, and is left out.",
        f"{others[1]} holds no run that can be read, and is left out.",
        f"{others[2]} is a link that leads back to itself, and is left out.",
        f"{runs[0]} has no evaluations (eval.json), and is left out.",
    ]
    folder = re.escape(f"{tmp_path} is a folder of runs, and wants them named ({tmp_path}/*)")
    with pytest.raises(UsageError, match=f"nothing to compare: {folder}"):
        read_methods([runs[1].parent])
    with pytest.raises(UsageError, match=r"nothing to compare: .*page\.html is a file; .*no evaluations"):
        read_methods([others[0], runs[0]])
    with pytest.raises(RunDirectoryError, match="mistyped does not exist"):
        read_methods([*runs, tmp_path / "mistyped"])


@pytest.mark.parametrize("side", [0, 1])
def test_a_run_with_one_evaluation_is_left_out(runs, tmp_path, side):
    """It knows the base model alone, which is no end and no time."""
    whole, _, _ = read_methods(runs)
    name, steps = (("slow-2", 50), ("fast-2", 4))[side]
    interrupted = write_run(tmp_path, name, [(0, 0, -3.0)], seed=2, steps=steps, final=None)
    methods, metric, warnings = read_methods([*runs, interrupted])
    assert warnings == [f"{interrupted} has one evaluation only, and is left out."]
    assert methods[side].seeds == [0, 1]
    assert compare(methods) == compare(whole)
    assert mean_curve(methods[side].curves, "seconds") == mean_curve(whole[side].curves, "seconds")
    assert "9.49 times sooner" in "".join(headline(compare(methods), metric))
    with pytest.raises(UsageError, match=rf"nothing to compare: .*{name} has one evaluation only\. .*--resume"):
        read_methods([interrupted])


def test_a_run_without_counts_is_left_out(runs):
    (runs[3] / "metrics.jsonl").unlink()
    methods, _, warnings = read_methods(runs)
    assert [m.seeds for m in methods] == [[0, 1], [0]]
    assert len(warnings) == 1
    assert "fast-1 has a reward, a time and counts (eval.json, metrics.jsonl) for fewer than two" in warnings[0]


def test_a_run_that_has_not_ended_is_told(runs, tmp_path):
    going = write_run(tmp_path, "fast-2", [(0, 0, -3.0), (10, 90, -2.0)], seed=2, final=None)
    methods, _, warnings = read_methods([*runs, going])
    assert warnings == [f"{going} has not ended: its figures are of round 10."]
    looks = json.loads((going / "eval.json").read_text())
    (going / "eval.json").write_text(json.dumps(looks | {"final_round": 5}))
    warnings = read_methods([*runs, going])[2]
    assert warnings == [
        f"{going} was made longer and has not ended: its figures are of round 5, its curve goes on to round 10."
    ]
    assert methods[1].seeds == [0, 1, 2]


def test_the_headline_names_the_side_that_fails(tmp_path):
    def said(slow, fast):
        """Return the headline of the seeds' first and last rewards."""
        runs = [
            write_run(
                tmp_path / str(len(list(tmp_path.iterdir()))), f"{name}-{seed}", [(0, 0, a), (10, 10, b)], seed=seed, steps=n
            )
            for name, n, ends in (("slow", 50, slow), ("fast", 4, fast))
            for seed, (a, b) in enumerate(ends)
        ]
        methods, metric, _ = read_methods(runs)
        return "".join(headline(compare(methods), metric)).replace("\N{NO-BREAK SPACE}", " ")

    gained = [(-3, -2), (-3, -2)]
    assert said(gained, [(-3, -2), (-3, -2.5)]) == "Not every seed of fast reaches slow's JPEG size of 2.00 kB."
    assert said(gained, [(-3, -2), (-1, -2)]).startswith("A seed of fast had more than slow's JPEG size of 2.00 kB before")
    # Of the second seed's 2 kB the first had more from the start: it is the baseline that has no time.
    ahead = "A seed of slow had slow's JPEG size of 2.00 kB before training, so no time to it can be compared."
    assert said([(-1.9, -1), (-4, -2)], gained) == ahead


def test_rounding_does_not_put_the_whole_gain_out_of_reach():
    first, last = -4.58, 1.573
    assert first + (last - first) > last
    found = compare([Method("a", [], [curve([0.0, 10.0], [first, last])], {})])
    assert found["targets"][-1]["methods"]["a"]["seconds"]["at"] == [10.0]


@pytest.mark.parametrize("weight", [10.0, 0.5])
def test_a_single_reward_is_told_without_its_weight(tmp_path, weight):
    run = write_run(tmp_path, "heavy", [(0, 0, -3.0), (10, 10, -2.0)], weight=weight)
    methods, metric, _ = read_methods([run])
    assert methods[0].curves[0].reward == [-3.0, -2.0]
    assert final_table(compare(methods), metric)["rows"][0][2:4] == ["3.00 kB", "2.00 kB"]
    assert [shot["value"] for shot in strips(methods, metric)[0]["shots"]] == [
        "2.00\N{NO-BREAK SPACE}kB",
        "1.00\N{NO-BREAK SPACE}kB",
    ]


@pytest.mark.parametrize(
    ("display", "before", "after", "lower"),
    [
        (None, "−2.00", "−3.00", True),
        ({"label": "score", "unit": "pt", "better": "lower"}, "−2.00 pt", "−3.00 pt", True),
        # A penalty on small files: the reward is minus their size.
        (DISPLAY | {"better": "higher"}, "2.00 kB", "3.00 kB", False),
    ],
)
def test_of_a_penalty_less_is_better(tmp_path, display, before, after, lower):
    points = [(0, 0, -2.0), (10, 10, -3.0)]
    run = write_run(tmp_path, "penalty", points, weight=-2.0, display=display)
    methods, metric, _ = read_methods([run])
    assert methods[0].curves[0].reward == [2.0, 3.0]
    assert metric.lower_is_better == lower
    assert final_table(compare(methods), metric)["rows"][0][2:4] == [before, after]
    shots = strips(methods, metric)[0]["shots"]
    assert [float(re.sub("[^0-9.−]", "", shot["value"]).replace("−", "-")) for shot in shots] == ([-2, -1] if lower else [2, 1])
    # Another run that held the reward out does not change what is better.
    judge = write_run(tmp_path, "other", [(0, 0, -4.0), (10, 10, -6.0)], rewards=["b"], held_out="jpeg", display=None)
    methods, metric, _ = read_methods([judge, run], "jpeg")
    assert [m.curves[0].reward for m in methods] == [[2.0, 3.0], [2.0, 3.0]]
    assert metric.lower_is_better == lower


def test_the_outcome_is_that_of_the_weights_in_final(tmp_path):
    run = write_run(tmp_path, "best", [(0, 0, -3.0), (10, 100, -1.0), (20, 200, -2.0)], final=1)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluation"]["final"] = "best"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    methods, metric, warnings = read_methods([run])
    found = compare(methods)
    method = found["methods"][0]
    assert method["after"]["mean"] == -1.0
    assert method["judge"]["right"]["mean"] == pytest.approx(0.89)
    assert method["guard"]["diversity"]["mean"] == pytest.approx(0.29)
    # What it cost is the whole run, and so are the curves.
    assert method["seconds"]["mean"] == 200
    assert method["curves"][0]["reward"] == [-3.0, -1.0, -2.0]
    assert [row["name"] for row in strips(methods, metric)] == ["builtin, untuned", "best, round 10"]
    assert warnings == []


@pytest.mark.parametrize(
    ("name", "seed", "shown"),
    [
        ("rounds-100", 0, "rounds-100"), ("batch-160", 0, "batch-160"), ("x-20261125-220850", 0, "x-20261125-220850"),
        ("fast-0", 0, "fast"), ("fast_s0", 0, "fast"), ("fast-seed-12", 12, "fast"), ("fast.seed12", 12, "fast"),
        ("fast-112", 12, "fast-112"), ("v0", 0, "v0"), ("-0", 0, "-0"),
    ],
)  # fmt: skip
def test_only_a_whole_seed_is_taken_off_a_name(tmp_path, name, seed, shown):
    run = write_run(tmp_path, name, [(0, 0, -3.0), (10, 10, -2.0)], seed=seed)
    methods, _, _ = read_methods([run])
    assert [method.name for method in methods] == [shown]


def test_a_folder_given_twice_is_one_run(runs):
    methods, _, warnings = read_methods([*runs, runs[0], runs[0].parent / "." / "x" / ".." / runs[0].name])
    assert [m.seeds for m in methods] == [[0, 1], [0, 1]]
    assert warnings == []


def test_one_seed_run_twice_is_told(runs, tmp_path):
    again = write_run(tmp_path, "fast-again", [(0, 0, -3.0), (10, 100, -2.0)], seed=1)
    _, _, warnings = read_methods([*runs, again])
    assert len(warnings) == 1
    assert warnings[0].startswith("Several runs of fast have the same seed (1), so they are no independent seeds")


def test_the_page_names_the_baseline(runs, tmp_path):
    methods, metric, warnings = read_methods([*runs[2:], *runs[:2]])
    page = write_comparison(methods, metric, warnings, compare(methods, "slow"), tmp_path / "comparison.html").read_text()
    assert "the highest that every seed of slow reached" in page


def test_the_page_needs_nothing_but_itself(runs, tmp_path):
    methods, metric, warnings = read_methods(runs)
    page = write_comparison(methods, metric, warnings, compare(methods), tmp_path / "out" / "comparison.html")
    text = page.read_text()
    assert page.stat().st_size < 5_000_000
    assert not re.search(r"@import|url\((?!#)|<script|https?://(?!www\.w3\.org)", text)
    assert "default-src 'none'" in text
    for words in ("Against time", "Against reward queries", "Against network calls", "mean of 2 seeds", "builtin, untuned",
                  "fast, round 20", "sampler.steps", "10.5"):  # fmt: skip
        assert words in text, words
    links = re.findall(r'<a href="([^"]+)"', text)
    assert len(links) == 4
    assert all((page.parent / link).resolve().exists() for link in links)
    assert len(re.findall(r'<img src="data:image/png', text)) == 3 * 2
    beside = json.loads(page.with_suffix(".json").read_text())
    assert beside["baseline"] == "slow"
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_texts_of_others_are_escaped(tmp_path):
    hostile = "<script>alert(1)</script>"
    runs = [write_run(tmp_path, n, [(0, 0, 1.0), (5, 10, 2.0)], steps=s, model=hostile) for n, s in (("a", 4), ("b", 8))]
    methods, metric, warnings = read_methods(runs)
    page = write_comparison(methods, metric, warnings, compare(methods), tmp_path / "comparison.html")
    assert "<script" not in page.read_text()


def test_the_command(runs, tmp_path, capsys):
    compare_runs(runs, "slow", None, tmp_path / "c.html")
    assert "fast reaches slow's JPEG size of 2.10 kB 9.49 times sooner" in capsys.readouterr().out
    compare_runs(runs, "fast", None, tmp_path / "c.html")
    assert "Not every seed of slow reaches fast's JPEG size of 1.00 kB" in capsys.readouterr().out
    assert (tmp_path / "c.html").is_file()
    with pytest.raises(ConfigError, match=r"end it in \.html"):
        compare_runs(runs, None, None, tmp_path / "c.txt")
    with pytest.raises(ConfigError, match="none of the methods; they are slow, fast"):
        compare_runs(runs, "quick", None, tmp_path / "c.html")


@pytest.mark.parametrize("name", ["c.json", "c.html"])
def test_a_comparison_replaces_nothing_but_a_comparison(runs, tmp_path, name):
    (tmp_path / name).write_text('{"evaluations": []}')
    with pytest.raises(UsageError, match=f"would replace .*{name}, which `rlcm compare` did not write; choose another name"):
        compare_runs(runs, None, None, tmp_path / "c.html")
    assert (tmp_path / name).read_text() == '{"evaluations": []}'
