"""Runs: that they learn, that they repeat, what their rounds count, and what is refused before one."""

import itertools
import json
import signal
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from short_runs import Failing, metrics_of, resume, trainer, without_times
from tiny_runs import PROMPTS, STEPS, Listener, brightness, largest_difference, lcm_pipeline, tiny_config

from rlcm.errors import ConfigError, PreflightError, RunDirectoryError, SamplerError
from rlcm.rewards import RewardMix, RewardPart
from rlcm.training import trainer as module
from rlcm.training.run_settings import RunSettings
from rlcm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("_no_report")


def test_images_that_could_not_be_scored_drop_out(tmp_path):
    made = trainer(tmp_path, algorithm={"minibatches": 2})
    made.parts.rewards = RewardMix([RewardPart("flaky", Failing(1, "nan"), on_failure="skip")])
    found = made.round()
    assert found["dropped_images"] == 1
    assert found["reward"] == pytest.approx(found["rewards/flaky"])
    assert found["skipped_updates"] == 0


@pytest.mark.parametrize(
    ("loss", "reward", "expected"),
    [
        ("ppo_clip", lambda images, prompts: [float(i % 2) for i in range(len(images))], True),
        ("ppo_clip", brightness, False),
        ("nft", lambda images, prompts: [float(i % 2) for i in range(len(images))], False),
    ],
)
def test_a_run_on_right_or_wrong_says_what_learns_more_from_it(tmp_path, loss, reward, expected):
    listener = Listener()
    trainer(tmp_path, functions=[reward], watcher=listener, algorithm={"loss": loss}, run={"rounds": 2}).train()
    said = [note for note in listener.notes if "algorithm.loss=nft learns more" in note]
    assert len(said) == expected, listener.notes


def test_train_does_not_go_on_from_rounds_of_the_callers_own(tmp_path):
    """They are in no file, and the base model was not measured before them."""
    made = trainer(tmp_path)
    made.round()
    with pytest.raises(ConfigError, match=r"Trainer.train\(\) after Trainer.round\(\): the rounds up to 1 are in no file"):
        made.train()
    assert not (tmp_path / "run").exists()
    run = trainer(tmp_path).train()
    again = resume(run, changes=["run.rounds=4"])
    again.round()
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="the rounds up to 3 are in no file"):
        again.train()
    assert (run / "metrics.jsonl").read_bytes() == before
    assert [row["round"] for row in metrics_of(resume(run, changes=["run.rounds=4"]).train())] == [1, 2, 3, 4]


def test_a_trainer_that_another_one_overtook_writes_nothing(tmp_path):
    run = trainer(tmp_path).train()
    first, second = resume(run, changes=["run.rounds=3"]), resume(run, changes=["run.rounds=4"])
    first.train()
    kept = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(
        RunDirectoryError, match="another trainer has taken the run to round 3 since this one was made, after round 2"
    ):
        second.train()
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == kept
    assert [row["round"] for row in metrics_of(resume(run, changes=["run.rounds=4"]).train())] == [1, 2, 3, 4]


@pytest.mark.parametrize("force", ["no", 1, None])
def test_force_is_yes_or_no(tmp_path, force):
    with pytest.raises(ConfigError, match="neither True nor False"):
        Trainer.resume(tmp_path, force=force)


def test_a_constant_reward_is_refused_before_learning(tmp_path):
    made = trainer(tmp_path, functions=[lambda images, prompts: torch.ones(len(prompts))])
    before = [p.detach().clone() for p in made.parts.policy.parameters]
    with pytest.raises(PreflightError, match=r"all 6 images of the first round have the same reward \(1\.0\)"):
        made.train()
    assert all(torch.equal(p, b) for p, b in zip(made.parts.policy.parameters, before, strict=True))


def test_a_sampler_without_noise_is_refused(tmp_path):
    with pytest.raises(SamplerError, match="draws no noise"):
        trainer(tmp_path, sampler={"steps": 1})
    assert not (tmp_path / "run").exists()


def test_a_cap_of_importance_weights_that_has_no_effect_is_said(tmp_path):
    for policy, said in (("auto", True), ("learning", False)):
        listener = Listener()
        trainer(tmp_path, watcher=listener, algorithm={"importance_cap": 2.0, "old_policy": policy})
        assert any(note.startswith("algorithm.importance_cap=2 has no effect") for note in listener.notes) == said


def test_it_learns(tmp_path):
    made = trainer(
        tmp_path,
        lora={"target_modules": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_out"]},
        rollout={"batch_size": 32, "branches": 8},
        algorithm={"advantage": "leave_one_out", "inner_epochs": 4, "clip_range": 0.1},
        optimizer={"lr": 3e-2},
        evaluation={"images": 16},
        run={"rounds": 8, "save_every": 0},
    )
    made.train()
    before, after = made.evaluations[0]["reward"], made.evaluations[-1]["reward"]
    assert after["mean"] > before["mean"] + 3 * before["ci95"]


@pytest.mark.parametrize(
    ("rollout", "algorithm"),
    [
        ({}, {"advantage": "batch"}),
        ({"images_per_prompt": 3}, {"advantage": "group"}),
        ({"images_per_prompt": 2}, {"advantage": "leave_one_out", "normalise_std": False}),
        ({"branches": 3, "branch_schedule": "last"}, {"advantage": "leave_one_out"}),
        ({"branches": 2, "branch_schedule": "mixed", "antithetic": True}, {"advantage": "group", "minibatches": 3}),
        ({"branches": 3, "images_per_prompt": 2, "branch_schedule": "uniform"}, {}),
    ],
)
def test_network_calls_are_counted_as_they_happen(tmp_path, rollout, algorithm):
    """K branches at the last noisy step cost H + (K - 1) calls a trajectory; others what follows from their branch step."""
    made = trainer(tmp_path, rollout=rollout, algorithm=algorithm)
    denoiser, rows = made.parts.policy.denoiser, []
    real = denoiser.denoise

    def counted(x, step, conditioning):
        if not torch.is_grad_enabled():
            rows.append(len(x))
        return real(x, step, conditioning)

    denoiser.denoise = counted
    found = made.round()
    assert sum(rows) == found["network_calls"]
    assert found["reward_queries"] == 6
    branches = rollout.get("branches", 1)
    if rollout.get("branch_schedule") == "last":
        assert sum(rows) == 6 // branches * (STEPS + branches - 1)
    elif branches == 1:
        assert sum(rows) == 6 * STEPS
    assert found["grad_norm"] > 0


def test_a_branch_is_charged_once_for_its_only_action(tmp_path, monkeypatch):
    run = trainer(
        tmp_path,
        rollout={"branches": 3},
        algorithm={"kl_form": "reward", "kl_coefficient": 1.0, "advantage": "group", "inner_epochs": 2},
        optimizer={"lr": 1e-2},
    )
    seen = []
    returns = run.learner.credit.returns

    def spy(totals, actions, potentials, charges):
        seen.append((totals, charges, returns(totals, actions, potentials, charges)))
        return seen[-1][-1]

    monkeypatch.setattr(run.learner.credit, "returns", spy)
    run.train()
    totals, charges, found = seen[-1]
    assert charges.shape == (2, 1, 3)
    assert charges.abs().max() > 0
    assert torch.equal(found, (totals - charges[:, 0]).unsqueeze(1))


def test_computing_time_is_the_clock_where_it_is_asked_for(tmp_path, monkeypatch):
    run = trainer(tmp_path, run={"rounds": 2, "clock": "cpu"})
    score = run.learner._score
    monkeypatch.setattr(run.learner, "_score", lambda *args: (time.sleep(0.5), score(*args))[1])
    rows = metrics_of(run.train())
    assert 0 < rows[-1]["seconds"] < 0.9  # asleep for a second in all


FOLLOWING = {
    "algorithm": {"kl_coefficient": 0.1, "kl_target": 1.0, "consistency_coefficient": 1.0, "consistency_schedule": "linear"},
    "optimizer": {"lr": 1e-3, "schedule": "linear", "max_pace": 1.3},
}


def ticking(made):
    """Give a trainer a clock by which every round takes a second."""
    made._clock = itertools.count().__next__
    return made


def test_what_follows_a_run_follows_its_time_where_that_ends_it(tmp_path):
    """Four rounds of a second each are the same run, whether the rounds or the clock end it, and after an interruption."""
    limited = {"rounds": 100_000, "time_limit_minutes": 4 / 60}
    counted = trainer(tmp_path / "rounds", run={"rounds": 4}, **FOLLOWING).train()
    timed = ticking(trainer(tmp_path / "time", run=limited, **FOLLOWING)).train()
    stopper = Listener(2, lambda: signal.raise_signal(signal.SIGINT))
    halted = ticking(trainer(tmp_path / "halted", run=limited, watcher=stopper, **FOLLOWING)).train()
    assert len(metrics_of(halted)) == 2
    ticking(resume(halted)).train()
    rows = [metrics_of(run) for run in (counted, timed, halted)]
    assert [row["progress"] for row in rows[1]] == [0.25, 0.5, 0.75, 1.0]
    assert without_times(rows[0]) == without_times(rows[1]) == without_times(rows[2])
    assert rows[0][-1]["lr"] < rows[0][0]["lr"] / 2
    finals = [(run / "final/pytorch_lora_weights.safetensors").read_bytes() for run in (counted, timed, halted)]
    assert finals[0] == finals[1] == finals[2]


def test_the_leash_is_told_the_larger_share(tmp_path):
    made = ticking(trainer(tmp_path, run={"rounds": 4, "time_limit_minutes": 8 / 60}, **FOLLOWING))
    told = []
    made.learner.leash.follow = lambda kl, progress: told.append(progress)
    made.train()
    assert told == [0.25, 0.5, 0.75, 1.0]  # the clock alone would have said an eighth a round


@given(
    rounds=st.integers(0, 300),
    seconds=st.floats(0, 1e6),
    planned=st.integers(1, 200),
    minutes=st.none() | st.floats(1e-30, 1e4),
)
def test_progress_is_the_larger_share_and_whole_exactly_at_the_end(rounds, seconds, planned, minutes):
    settings = RunSettings(rounds=planned, time_limit_minutes=minutes)
    found = settings.progress(rounds, seconds)
    assert 0 <= found <= 1
    assert found >= min(1, rounds / planned)
    assert found == min(1, rounds / planned) or minutes is not None
    out_of_time = minutes is not None and seconds >= 60 * minutes
    assert (found == 1) == (rounds >= planned or out_of_time)
    assert settings.progress(rounds + 1, seconds + 1) >= found


def test_computing_time_is_refused_where_it_cannot_be_seen(tmp_path, monkeypatch):
    world = module.World()
    world.gather = lambda value: [value, value]
    world.size = 2
    monkeypatch.setattr(module.World, "join", lambda *args: world)
    with pytest.raises(ConfigError, match=r"run\.clock=cpu .* leave run\.clock at wall"):
        trainer(tmp_path, run={"clock": "cpu"})


DENSE = {"dense_every": 1, "dense_lambda": 0.9, "kl_coefficient": 0.1, "kl_form": "reward", "consistency_coefficient": 0.5}


@pytest.mark.parametrize(
    ("rollout", "algorithm", "queries"),
    [
        ({}, {"dense_every": 1}, 18),
        ({}, {"dense_every": 2, "sampler": {"final_std": 0.1}}, 18),
        ({"images_per_prompt": 2}, {**DENSE, "advantage": "group"}, 18),
        ({"images_per_prompt": 2}, {"loss": "rebel", "inner_epochs": 2, "minibatches": 1}, 6),
        ({"branches": 2}, {"loss": "rebel", "advantage": "group", "consistency_coefficient": 1.0}, 6),
        ({"branches": 3}, {"kl_form": "reward", "kl_coefficient": 1.0, "kl_target": 1e-9, "advantage": "group"}, 6),
        ({}, {"kl_coefficient": 0.1, "kl_target": 1.0, "optimizer": {"max_pace": 1.3, "schedule": "linear"}}, 6),
        ({}, {"loss": "reward_backprop", "backprop_calls": 2, "kl_coefficient": 0.1}, 6),
        ({}, {"loss": "reinforce", "consistency_coefficient": 1.0, "consistency_target": "next"}, 6),
        ({}, {"inner_epochs": 3, "stop_kl": 1e-12, "advantage": "batch"}, 6),
        ({}, {"loss": "awm", "kl_coefficient": 0.1}, 6),
        ({"branches": 2}, {"loss": "nft", "advantage": "group", "noise_levels": 2, "inner_epochs": 2, "minibatches": 2}, 6),
        ({}, {"loss": "divergence_ppo", "inner_epochs": 2}, 6),
        ({"branches": 2}, {"normalise_ratio": True, "inner_epochs": 2, "advantage": "group"}, 6),
        ({"branches": 2}, {"last_call_weight": 0.5, "kl_coefficient": 0.1, "advantage": "group"}, 6),
    ],
)
def test_every_algorithm_runs_and_resumes_bit_for_bit(tmp_path, rollout, algorithm, queries):
    changes = {
        "rollout": rollout,
        "sampler": algorithm.pop("sampler", {}),
        "optimizer": (optimizer := algorithm.pop("optimizer", {})),
        "algorithm": algorithm,
        "rewards": ["alignment"]
        if algorithm.get("loss") == "reward_backprop" or algorithm.get("last_call_weight")
        else ["sharpness"],
        "run": {"rounds": 4},
    }
    straight = trainer(tmp_path / "a", functions=None, **changes).train()
    stopper = Listener(2, lambda: signal.raise_signal(signal.SIGINT))
    halted = trainer(tmp_path / "b", functions=None, watcher=stopper, **changes).train()
    assert resume(halted, functions=None).train() == halted
    finals = [(run / "final/pytorch_lora_weights.safetensors").read_bytes() for run in (straight, halted)]
    assert finals[0] == finals[1]
    rows = metrics_of(straight)
    assert [row["reward_queries"] for row in rows] == [queries * (i + 1) for i in range(4)]
    assert all(row["grad_norm"] > 0 for row in rows)
    if algorithm.get("stop_kl"):
        assert all(row["updates_left_out"] == 2 for row in rows)
    if algorithm.get("kl_coefficient"):
        assert rows[-1]["kl"] != 0
    if algorithm.get("kl_target") and not optimizer:
        assert rows[-1]["kl_coefficient"] > rows[0]["kl_coefficient"]
    if optimizer:  # far below its share of the target: the pace grows to its most
        assert [row["lr"] / rows[0]["lr"] for row in rows] == pytest.approx([1, 0.75 / 0.9, 0.5 / 0.81, 0.25 * 1.3])


def test_a_state_whose_prediction_could_not_be_scored_drops_its_trajectory(tmp_path):
    seen = []

    def picky(images, prompts):
        """Answer for images, and NaN for one of the predicted images, which come in a call of their own."""
        scores = images.mean((1, 2, 3))
        if len(images) == 12:
            scores[5] = float("nan")
        seen.append(len(images))
        return scores

    made = trainer(tmp_path, functions=[picky], algorithm={"dense_every": 1, "advantage": "batch"})
    made.parts.rewards.parts[0] = made.parts.rewards.parts[0]._replace(on_failure="skip")
    sizes = []
    real = made.learner.update.update
    made.learner.update.update = lambda experience, *rest: (sizes.append(len(experience)), real(experience, *rest))[1]
    made.round()
    assert seen == [6, 12]
    assert sizes == [10]  # five trajectories of two actions


def test_the_result_does_not_depend_on_batch_sizes(tmp_path):
    found = []
    for sizes in ({"sample": 6, "micro": 64}, {"sample": 4, "micro": 5}):
        made = trainer(
            tmp_path,
            rollout={"sample_batch_size": sizes["sample"]},
            run={"micro_batch_size": sizes["micro"]},
            optimizer={"eps": 1e-4},
        )
        found.append((made.round(), [p.detach().clone() for p in made.parts.policy.parameters]))
    assert found[0][0]["reward"] == pytest.approx(found[1][0]["reward"], abs=1e-6)
    assert found[0][0]["grad_norm"] == pytest.approx(found[1][0]["grad_norm"], rel=1e-4)
    assert max(largest_difference(a, b) for a, b in zip(found[0][1], found[1][1], strict=True)) < 1e-6


def test_rounds_differ_and_runs_repeat(tmp_path):
    rewards = []
    for seed in (0, 0, 1):
        made = trainer(tmp_path, seed=seed)
        rewards.append([made.round()["reward"] for _ in range(2)])
    assert rewards[0] == rewards[1]
    assert rewards[0][0] != rewards[0][1]
    assert rewards[0] != rewards[2]


def test_the_time_limit_ends_a_run_in_order(tmp_path):
    run = trainer(tmp_path, run={"rounds": 50, "time_limit_minutes": 1e-6}).train()
    assert len(metrics_of(run)) == 1
    assert (run / "final/pytorch_lora_weights.safetensors").exists()


def test_final_noise_is_for_training_only(tmp_path):
    made = trainer(tmp_path, sampler={"final_std": 0.1})
    assert len(made.parts.policy.table.noisy_steps()) == STEPS
    assert made.parts.evaluator.table.std[-1] == 0
    assert made.round()["network_calls"] == 6 * STEPS


def test_a_model_is_given_by_its_path(tmp_path):
    lcm_pipeline().save_pretrained(tmp_path / "model")
    made = Trainer(tiny_config(tmp_path), model=tmp_path / "model", rewards=[brightness], prompts=PROMPTS)
    assert made.config.model.path == str(tmp_path / "model")
    objects = trainer(tmp_path)
    assert made.round()["reward"] == pytest.approx(objects.round()["reward"], abs=1e-6)


def test_held_out_rewards_are_looked_at_and_not_trained_on(tmp_path):
    made = trainer(tmp_path, evaluation={"every": 1, "held_out": ["sharpness", {"name": "colourfulness", "label": "colour"}]})
    run = made.train()
    for look in json.loads((run / "eval.json").read_text())["evaluations"]:
        assert set(look["held_out"]) == {"sharpness", "colour"}
        assert look["held_out"]["colour"]["mean"] > 0
    rows = metrics_of(run)
    assert set(rows[0]) >= {"eval/held_out.sharpness", "eval/guard.diversity", "eval/reward", "rewards/brightness"}
    assert "rewards/sharpness" not in rows[0]


def test_a_figure_that_is_not_there_is_refused_before_the_first_round(tmp_path):
    with pytest.raises(ConfigError, match=r"best names 'judge\.right'.* it may be reward, kl, rewards\.brightness"):
        trainer(tmp_path, evaluation={"best": "judge.right"})
    assert not list(tmp_path.iterdir())
