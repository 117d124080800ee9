"""Sampling and learning that round otherwise: the ratio begins at 1 by construction, and what is left is measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_runs import PROMPTS, Listener, brightness, experience_of, lcm_pipeline, stir, tiny_config, tiny_denoiser, tiny_policy

from benchmarks.shared.simulated_accelerator import MANTISSA, rounded, simulated
from rlcm.errors import ConfigError, PreflightError, TrainingError
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.micro_batches import MicroBatches
from rlcm.learning.mismatch import Mismatch, computes_alike, standard_distance
from rlcm.learning.optimisation import Optimisation, OptimizerSettings
from rlcm.learning.updates import PolicyGradient
from rlcm.policy import gaussian
from rlcm.policy.rollout import rollout
from rlcm.processes.distributed import World
from rlcm.processes.memory_retry import BatchSize
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.trainer import Trainer
from rlcm.types import Experience

PRECISIONS = list(MANTISSA)


def test_the_simulation_rounds_to_the_next_number_and_depends_on_the_batch():
    output = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        found = rounded(output, precision)
        assert torch.equal(found, found.to(dtype).float())
        spacing = torch.exp2(output.detach().abs().log2().floor() - MANTISSA[precision])
        assert ((found - output).abs() <= spacing).all()
        assert torch.equal(found[:1], rounded(output, precision)[:1])
        assert not torch.equal(found[:3], rounded(output[:3], precision))
    (gradient,) = torch.autograd.grad(rounded(output, "tf32").sum(), output)
    assert torch.equal(gradient, torch.ones_like(output))


def run(tmp_path, precision, watcher=None, **changes):
    """Return a trainer on a simulated accelerator that samples in batches of another size than it learns in."""
    changes["rollout"] = {"batch_size": 8, "sample_batch_size": 8} | changes.get("rollout", {})
    changes["run"] = {"micro_batch_size": 3} | changes.get("run", {})
    changes["algorithm"] = {"old_policy": "learning"} | changes.get("algorithm", {})
    config = tiny_config(tmp_path, **changes)
    made = Trainer(config, model=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS, watcher=watcher)
    denoiser = made.parts.policy.denoiser
    real = denoiser.denoise
    denoiser.denoise = lambda *arguments: rounded(real(*arguments), precision)
    return made


VARIANTS = {
    "plain": {},
    "branched": {"rollout": {"branches": 2, "branch_schedule": "mixed"}},
    "minibatches": {"algorithm": {"minibatches": 2, "inner_epochs": 2}},
    "dense": {"algorithm": {"dense_every": 1, "advantage": "batch"}},
    "rebel": {"algorithm": {"loss": "rebel", "minibatches": 2}, "rollout": {"images_per_prompt": 4}},
    "kl as loss": {"algorithm": {"kl_coefficient": 0.1}},
    "kl as reward": {"algorithm": {"kl_coefficient": 0.1, "kl_form": "reward", "minibatches": 2}},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ratio_begins_at_exactly_1(variant, precision, tmp_path, monkeypatch):
    listener = Listener()
    made = run(tmp_path, precision, listener, **VARIANTS[variant])
    first = []
    real = made.learner.update._gradients

    def gradients(*arguments):
        found = real(*arguments)
        if arguments[-1]:
            first.append(found)
        return found

    monkeypatch.setattr(made.learner.update, "_gradients", gradients)
    made.train()
    assert any("ratio off 1 by 0.0e+00" in note for note in listener.notes)
    assert len(first) == 2
    for sums, worst, _ in first:
        assert worst["ratio_deviation_max"] == sums["kl_from_sampling"] == sums["clip_fraction"] == 0
        assert worst["mismatch_ratio_max"] > 0
        assert sums["mismatch_kl"] > 0
    if variant == "kl as reward":  # before the first update the policy is the base model: nothing is charged
        assert made.evaluations
    assert all(bool(p.isfinite().all()) for p in made.parts.policy.parameters)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_with_the_means_of_sampling_the_check_fails(precision, tmp_path):
    made = run(tmp_path, precision, algorithm={"old_policy": "sampling"}, sampler={"steps": 2})
    with pytest.raises(PreflightError, match=r"is off 1 by .* Use algorithm\.old_policy=learning"):
        made.train()


def test_at_the_first_update_kl_as_reward_charges_nothing(tmp_path):
    made = run(tmp_path, "bf16", algorithm={"kl_coefficient": 1.0, "kl_form": "reward"}, run={"rounds": 1})
    made.train()
    line = (made.directory.path / "metrics.jsonl").read_text()
    assert '"kl": 0.0,' in line


def test_later_minibatches_have_the_old_means_of_the_policy_before_the_first_update():
    policy = stir(tiny_policy())
    update, experience, whose, conditioning = learning(policy, minibatches=3, inner_epochs=2)
    with simulated(policy.denoiser, "bf16"):
        before = update._means(experience.take(torch.arange(len(experience))), None, conditioning)
        kept = experience.to("cpu")
        seen: list[Experience] = []
        real = update._optimiser_step

        def step(experience, rows, *rest, **named):
            found = real(experience, rows, *rest, **named)
            seen.append(experience)
            return found

        update._optimiser_step = step
        update.update(experience, whose, 4, conditioning, torch.Generator().manual_seed(0), 1e-3)
    assert len(seen) == 6
    assert torch.equal(seen[0].old_means, before)
    assert torch.equal(seen[-1].old_means, before), "later steps leave them alone"
    assert torch.equal(seen[-1].sampling_means, kept.old_means)
    assert torch.equal(experience.old_means, kept.old_means), "the caller's own are untouched"


def learning(policy, micro_batch_size=3, **algorithm):
    """Return an update of recomputed old means, and what it learns from: 4 trajectories, 2 actions each."""
    conditioning = policy.denoiser.encode(PROMPTS)
    trajectory = rollout(policy, conditioning, torch.tensor([0, 1, 2, 0]), [1, 2, 3, 4])
    experience, whose = experience_of(trajectory)
    experience.weights = torch.ones(len(experience))
    settings = AlgorithmSettings(**{"old_policy": "learning", **algorithm})
    optimisation = Optimisation(policy, OptimizerSettings(), World())
    update = PolicyGradient(optimisation, settings, Leash(settings), micro_batch_size, planned=len(experience))
    return update, experience, whose, conditioning


def test_parts_have_one_shape_and_what_fills_them_weighs_nothing():
    update, experience, _, conditioning = learning(tiny_policy())
    parts = list(update.parts.over(experience))
    assert [len(part.experience) for part in parts] == [3, 3, 3], "8 states in three passes"
    assert [part.size for part in parts] == [3, 3, 2]
    assert parts[-1].experience.weights.tolist() == [1, 1, 0]
    assert torch.equal(parts[-1].experience.states[2], parts[-1].experience.states[0])
    few = list(update.parts.over(experience.part(0, 1)))
    assert [(len(part.experience), part.size) for part in few] == [(3, 1)]
    loss, _ = update.loss(parts[-1].experience, conditioning, size=2)
    assert loss[2] == 0


@pytest.mark.parametrize(("planned", "batch", "states"), [(8, 3, 3), (9, 8, 5), (64, 64, 64), (65, 64, 33), (4, 64, 4)])
def test_states_are_shared_out_evenly(planned, batch, states):
    assert MicroBatches(BatchSize(batch, "s"), planned, is_padded=True).states == states
    assert MicroBatches(BatchSize(batch, "s"), planned).states == batch


def test_what_fills_a_part_changes_neither_gradient_nor_metrics():
    policy = stir(tiny_policy())
    update, experience, _, conditioning = learning(policy)
    filled = update._gradients(experience, None, conditioning, len(experience), True)
    gradients = [p.grad.clone() for p in policy.parameters]
    whole = learning(policy, micro_batch_size=8)[0]
    plain = whole._gradients(experience, None, conditioning, len(experience), True)
    for found, wanted in zip(gradients, (p.grad for p in policy.parameters), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert filled[0] == pytest.approx(plain[0], rel=1e-4, abs=1e-7)


def test_the_mismatch_is_that_of_two_gaussians():
    generator = torch.Generator().manual_seed(0)
    actions, sampling = torch.randn(2, 3, 4, 8, 8, generator=generator), torch.zeros(2, 4, 8, 8)
    learning, stds = sampling + 0.02, torch.tensor([0.5, 2.0])
    found = Mismatch(AlgorithmSettings(log_prob_reduction="mean")).of(actions, sampling, learning, stds)
    # KL = D d^2 / (2 std^2), summed over D = 256 entries
    wanted = 256 * 0.02**2 / 2 * (1 / 0.25 + 1 / 4) / 2
    assert found["mismatch_kl"].item() == pytest.approx(wanted, rel=1e-5)
    assert standard_distance(256 * 0.1**2 / 2, 256) == pytest.approx(0.1)


def test_truncated_importance_weights_are_capped_ratios():
    mismatch = Mismatch(AlgorithmSettings(importance_cap=1.0, log_prob_reduction="sum"))
    generator = torch.Generator().manual_seed(0)
    sampling = torch.zeros(3, 4)
    actions, learning, stds = torch.randn(3, 5, 4, generator=generator), sampling + 0.3, torch.ones(3)
    weights = mismatch.weights(actions, sampling, learning, stds)
    ratio = (gaussian.log_prob(actions, learning, stds, "sum") - gaussian.log_prob(actions, sampling, stds, "sum")).exp()
    torch.testing.assert_close(weights, ratio.clamp(max=1.0))
    assert (weights < 1).any()
    assert (weights == 1).any()


def test_the_weights_multiply_the_loss_of_every_action():
    policy = stir(tiny_policy())
    update, experience, _, conditioning = learning(policy, importance_cap=1.5)
    apart = experience.old_means + 0.05
    given = replace(experience, sampling_means=experience.old_means, old_means=apart)
    weighed, metrics = update.loss(given, conditioning)
    plain, _ = learning(policy)[0].loss(given, conditioning)
    stds = policy.table.std[given.steps]
    weights = update.mismatch.weights(given.actions, given.sampling_means, given.old_means, stds)
    torch.testing.assert_close(weighed, plain * weights[:, 0])
    assert metrics["importance"].item() == pytest.approx(weights.mean().item())


def test_importance_weights_take_away_the_bias_of_sampling_elsewhere():
    """E_sampling[w A grad log p] = E_learning[A grad log p] where nothing is cut off: checked on a Gaussian with A = a."""
    generator = torch.Generator().manual_seed(0)
    shift, count = 0.4, 400_000
    actions = torch.randn(count, 1, 1, generator=generator)
    sampling, learning, stds = torch.zeros(count, 1), torch.full((count, 1), shift), torch.ones(count)
    weights = Mismatch(AlgorithmSettings(importance_cap=1e6, log_prob_reduction="sum")).weights(
        actions, sampling, learning, stds
    )
    score = (actions - shift)[..., 0]
    assert (weights * actions[..., 0] * score).mean().item() == pytest.approx(1.0, abs=0.02)  # d/dmu E[a] = 1
    biased = ((actions[..., 0] ** 2) * score).mean().item()
    assert (weights * actions[..., 0] ** 2 * score).mean().item() == pytest.approx(2 * shift, abs=0.05)  # d/dmu E[a^2] = 2 mu
    assert biased == pytest.approx(-shift, abs=0.05), "and without weights it has the wrong sign"


def test_policies_too_far_apart_stop_the_run():
    mismatch = Mismatch(AlgorithmSettings())
    mismatch.require_agreement({"mismatch_kl": 0.49**2 / 2 * 100}, 100)
    with pytest.raises(TrainingError, match=r"0\.6 standard deviations .* \(accepted: 0\.5\)"):
        mismatch.require_agreement({"mismatch_kl": 0.6**2 / 2 * 100}, 100)
    with pytest.raises(TrainingError, match="nan"):
        mismatch.require_agreement({"mismatch_kl": math.nan}, 100)


def test_randomness_in_the_network_is_found(tmp_path):
    made = run(tmp_path, "fp16")
    denoiser = made.parts.policy.denoiser
    real = denoiser.denoise
    denoiser.denoise = lambda *arguments: real(*arguments) * (1 + 0.01 * torch.randn(()))
    with pytest.raises(PreflightError, match=r"answers the same states twice .* Switch dropout"):
        made.train()


def test_who_computes_alike():
    denoiser = tiny_denoiser()
    assert computes_alike(denoiser)
    denoiser.module.to(torch.bfloat16)
    assert not computes_alike(denoiser)


def test_rebel_takes_no_importance_weights():
    with pytest.raises(ConfigError, match=r"algorithm\.importance_cap=2\.0 corrects a mean .* leave it out"):
        parse_settings(TrainConfig, {"algorithm": {"loss": "rebel", "importance_cap": 2.0}})


@pytest.mark.parametrize("branches", [1, 2])
def test_a_run_in_half_precision_goes_on_bit_for_bit(branches, tmp_path):
    changes = {"algorithm": {"minibatches": 2}, "rollout": {"branches": branches}, "run": {"save_every": 1, "rounds": 3}}
    whole = run(tmp_path / "whole", "bf16", **changes)
    whole.train()

    def stop() -> None:
        raise KeyboardInterrupt

    halted = run(tmp_path / "halted", "bf16", Listener(2, stop), **changes)
    with pytest.raises(KeyboardInterrupt):
        halted.train()
    again = Trainer.resume(tmp_path / "halted" / "run", model=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS)
    denoiser = again.parts.policy.denoiser
    real = denoiser.denoise
    denoiser.denoise = lambda *arguments: rounded(real(*arguments), "bf16")
    again.train()
    for one, other in zip(whole.parts.policy.parameters, again.parts.policy.parameters, strict=True):
        assert torch.equal(one, other)


def test_with_the_means_of_sampling_importance_weights_are_refused():
    with pytest.raises(ConfigError, match=r"algorithm\.importance_cap=2\.0 .* use algorithm\.old_policy=learning"):
        parse_settings(TrainConfig, {"algorithm": {"old_policy": "sampling", "importance_cap": 2.0}})
    assert parse_settings(TrainConfig, {"algorithm": {"old_policy": "learning", "importance_cap": 2.0}})


def test_rebels_later_minibatches_compare_like_with_like(monkeypatch):
    """A network that answers otherwise where no gradient is asked for: the log-ratios are 0 until something was learnt."""
    policy = stir(tiny_policy())
    update, experience, _, conditioning = learning(policy, loss="rebel")
    real = policy.denoiser.denoise
    monkeypatch.setattr(
        policy.denoiser, "denoise", lambda *given: real(*given) + 0.1 * (not torch.is_grad_enabled()), raising=False
    )
    settled = update.settled(experience, conditioning)
    assert not torch.equal(settled.old_means, settled.sampling_means)
    assert update._log_ratios(settled, conditioning).abs().max() == 0


def test_states_that_make_up_the_numbers_are_at_a_noisy_step():
    policy = tiny_policy()
    update, experience, _, _ = learning(policy)
    update.parts.noisy_step = 1
    (part,) = update.parts.over(experience.part(0, 0), longest=1)
    assert (part.size, part.experience.steps.unique().tolist(), part.experience.weights.sum()) == (0, [1], 0)


def test_means_that_were_settled_in_another_shape_are_taken_again():
    policy = stir(tiny_policy())
    update, experience, _, conditioning = learning(policy, micro_batch_size=8, minibatches=2)
    with simulated(policy.denoiser, "bf16"):
        settled = update.settled(experience, conditioning)
        update.micro_batch.size = 3  # what running out of memory does
        anew = update.parts
        wanted = torch.cat([update._means_of(part.experience, conditioning)[: part.size] for part in anew.over(settled)])
        assert not torch.equal(wanted, settled.old_means)
        update._fill_in(settled, torch.arange(len(settled)), conditioning)
        assert torch.equal(settled.old_means, wanted)


def test_a_mean_that_is_not_finite_leaves_a_step_out_and_is_not_called_perfect(monkeypatch):
    policy = tiny_policy()
    update, experience, whose, conditioning = learning(policy)
    real = policy.denoiser.denoise

    def overflowing(x, step, conditions):
        return real(x, step, conditions) * torch.where(torch.arange(len(x)) == 1, math.nan, 1.0).view(-1, 1, 1, 1)

    monkeypatch.setattr(policy.denoiser, "denoise", overflowing, raising=False)
    found = update.update(experience, whose, 4, conditioning, torch.Generator().manual_seed(0), 1e-3)
    assert found["skipped_updates"] == 1.0
    sums, worst, _ = update._gradients(experience, None, conditioning, len(experience), True)
    assert math.isnan(worst["ratio_deviation_max"])
    assert math.isnan(sums["loss"])
