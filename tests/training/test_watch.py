"""The watch: the best evaluation, patience, floors, and clear words about metrics that are not there."""

import pytest
from short_runs import metrics_of, resume, trainer

from rlcm.errors import ConfigError
from rlcm.rewards import RewardMix
from rlcm.training.build import checked
from rlcm.training.config import load_config
from rlcm.training.diversity import FIGURES
from rlcm.training.evaluate import EvaluationSettings
from rlcm.training.watch import Verdict, Watch, flat_summary, metric_value, require_figures


def summary(reward, right=1.0, saturated=0.0):
    return {
        "images": 4,
        "reward": {"mean": reward, "ci95": 0.1},
        "rewards": {"size": {"mean": -reward, "ci95": 0.1}},
        "held_out": {"clip": {"mean": 0.3, "ci95": 0.1}},
        "judge": {"right": {"mean": right, "ci95": 0.1}},
        "guard": {"saturated": saturated},
    }


def test_names_of_figures():
    known = flat_summary(summary(2.0, saturated=0.25))
    assert known == {
        "reward": 2.0,
        "rewards.size": -2.0,
        "held_out.clip": 0.3,
        "judge.right": 1.0,
        "guard.saturated": 0.25,
    }
    assert metric_value(summary(2.0, saturated=0.25), "-guard.saturated") == -0.25
    with pytest.raises(ConfigError, match=r"no metric 'judge\.cat'; this run has reward, rewards\.size"):
        metric_value(summary(1.0), "judge.cat")


def test_the_best_must_beat_the_untrained_model():
    watch = Watch("reward", None, {})
    verdicts = [watch.look(summary(value), number) for number, value in enumerate([1.0, 0.5, 1.0, 1.5, 1.2, 1.6])]
    assert [verdict.is_best for verdict in verdicts] == [False, False, False, True, False, True]
    assert all(verdict.stop is None for verdict in verdicts)
    assert watch.best == {"round": 5, "value": 1.6}


def test_more_patience_makes_a_run_go_on(tmp_path):
    def brighter(images, prompts):  # the first evaluation is the best
        brighter.calls += 1
        return images.mean((1, 2, 3)) - brighter.calls

    brighter.calls = 0
    looks = {"images": 2, "grid": 2, "every": 1, "patience": 2, "final": "last"}
    run = trainer(tmp_path, functions=[brighter], evaluation=looks, run={"rounds": 6, "save_every": 1}).train()
    assert len(metrics_of(run)) == 2
    resume(run, functions=[brighter]).train()
    assert len(metrics_of(run)) == 2, "with the same patience nothing is left to do"
    resume(run, changes=["evaluation.patience=3"], functions=[brighter]).train()
    assert len(metrics_of(run)) == 3
    resume(run, changes=["evaluation.patience=50"], functions=[brighter]).train()
    assert len(metrics_of(run)) == 6


def test_patience_counts_from_the_last_best_and_survives_a_checkpoint():
    watch = Watch("reward", 2, {})
    for number, value in enumerate([1.0, 0.5, 2.0, 1.9]):
        assert watch.look(summary(value), number).stop is None
    resumed = Watch("reward", 2, {})
    resumed.load_state_dict(watch.state_dict())
    assert resumed.look(summary(1.0), 4).stop == "2 evaluations brought no better reward than 2 of round 2"


def test_a_metric_that_falls_below_its_floor_stops_and_is_no_best():
    watch = Watch("reward", None, {"judge.right": 0.9})
    watch.look(summary(1.0, right=0.8), 0)
    assert watch.look(summary(2.0, right=0.73), 1) == Verdict(True, None)
    found = watch.look(summary(3.0, right=0.71), 2)
    assert found == Verdict(False, "judge.right is 0.71, below 0.9 of its 0.8 before training")


def test_a_floor_under_a_negative_figure_is_refused():
    with pytest.raises(ConfigError, match=r"rewards\.size is -1 before training"):
        Watch("reward", None, {"rewards.size": 0.9}).look(summary(1.0), 0)


LABELS = RewardMix([("size", lambda images, prompts: images.mean((1, 2, 3)))])


@pytest.mark.parametrize(
    "name",
    ["reward", "-reward", "kl", "rewards.size", "rewards.size/part", "-held_out.size", "judge.right", "guard.vendi_clip"],
)
def test_what_an_evaluation_can_have_may_be_named(name):
    for settings in (EvaluationSettings(best=name), EvaluationSettings(least={name: 0.9})):
        require_figures(settings, LABELS, LABELS, ["right"], FIGURES)


@pytest.mark.parametrize(
    "name",
    ["nope", "--reward", "", "reward.size", "rewards", "rewards.siz", "held_out.size", "judge.right", "guard.sharp", "Reward"],
)
def test_what_no_evaluation_can_have_is_refused_before_the_first(name):
    for setting, settings in (("best", EvaluationSettings(best=name)), ("least", EvaluationSettings(least={name: 0.9}))):
        with pytest.raises(
            ConfigError, match=rf"evaluation\.{setting} names .*it may be reward, kl, rewards\.size, guard\.sat"
        ):
            require_figures(settings, LABELS, None, [], FIGURES)


def test_the_divergence_needs_a_step_with_noise(tmp_path):
    def check(*changes):
        changes = ["rollout.branches=1", "evaluation.best=-kl", f"output={tmp_path}", *changes]
        checked(load_config(None, ["rewards=[jpeg_compressibility]", "prompts=[a fox]", *changes]))

    with pytest.raises(ConfigError, match=r"evaluation\.best names '-kl', and no step of this sampler draws noise"):
        check("sampler.steps=1", "sampler.final_std=0.1")
    check("sampler.steps=2")


def test_a_figure_that_turns_out_to_be_missing_is_no_reason_to_go_on(tmp_path):
    class Noting:
        notes = []

        def note(self, text):
            self.notes.append(text)

        def round(self, metrics, rounds):
            pass

    with pytest.raises(ConfigError, match=r"no metric 'rewards\.brightness/part'"):
        trainer(tmp_path, watcher=Noting(), evaluation={"best": "rewards.brightness/part"}).train()
    assert not any("go on with" in note and "kept" in note for note in Noting.notes)
