"""Updates: the gradient is that of a plain double loop, whatever the micro-batch; what is not finite is left out."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import (
    PROMPTS,
    experience_of,
    largest_difference,
    plain_rollout,
    stir,
    tiny_denoiser,
    tiny_policy,
)

from rlcm.errors import PreflightError, TrainingError
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.losses import adaptive_coefficient, consistency_huber, consistency_l2, pair_by_prompt, rebel
from rlcm.learning.optimisation import Optimisation, OptimizerSettings, make_optimizer
from rlcm.learning.updates import PolicyGradient
from rlcm.policy.gaussian import log_ratio
from rlcm.policy.rollout import rollout
from rlcm.processes.distributed import World

COUNT = 4
CLIP = 1e-3


def updater(policy, micro_batch_size=64, algorithm=None, **optimizer):
    algorithm = AlgorithmSettings(**{"clip_range": CLIP, "kl_coefficient": 0.0, "kl_target": None, **(algorithm or {})})
    settings = OptimizerSettings(**{"max_grad_norm": 1e6, **optimizer})
    return PolicyGradient(Optimisation(policy, settings, World()), algorithm, Leash(algorithm), micro_batch_size)


def learn(update, experience, whose, conditioning, images=COUNT):
    return update.update(
        experience, whose, images, conditioning, torch.Generator().manual_seed(0), update.optimisation.settings.lr
    )


def gradients(update, experience, whose, conditioning):
    """Return the gradient that one optimiser step would follow."""
    update.optimisation.optimizer.step = lambda: None
    learn(update, experience, whose, conditioning)
    return [p.grad.clone() for p in update.policy.parameters]


@pytest.fixture(scope="module")
def situation():
    """A policy, four trajectories of two actions each, and random advantages."""
    policy = stir(tiny_policy())
    trajectory, conditioning = plain_rollout(policy, COUNT)
    experience, whose = experience_of(trajectory)
    return SimpleNamespace(
        policy=policy,
        trajectory=trajectory,
        args=(experience, whose, conditioning),
        weights={name: p.detach().clone() for name, p in policy.named_parameters.items()},
    )


@pytest.fixture
def moved(situation):
    """The same after the policy has moved away from the one that drew the actions."""
    stir(situation.policy, size=0.02, seed=9)
    yield situation
    situation.policy.load(situation.weights)


@pytest.fixture
def fresh(situation):
    """The same, with the weights put back afterwards."""
    yield situation
    situation.policy.load(situation.weights)


def double_loop(policy, experience, conditioning, loss):
    """Return the gradient of the mean of `loss(log_ratio, advantage)` over states and actions, one action at a time."""
    policy.denoiser.module.zero_grad(set_to_none=True)
    clipped = 0
    for n in range(len(experience)):
        condition = conditioning.take(experience.prompt_index[n : n + 1])
        _, mean, std = policy.step(experience.states[n : n + 1], experience.steps[n : n + 1], condition)
        for k in range(experience.actions.shape[1]):
            # The log-density without its constants, new minus old.
            new = -((experience.actions[n, k] - mean[0]).double() / std).square() / 2
            old = -((experience.actions[n, k] - experience.old_means[n]).double() / std).square() / 2
            log_ratio = (new - old).mean()
            clipped += bool((log_ratio.exp() - 1).abs() > CLIP)
            value = loss(log_ratio, experience.advantages[n, k]) * experience.weights[n]
            (value / len(experience) / experience.actions.shape[1]).backward(retain_graph=True)
    return [p.grad.clone() for p in policy.parameters], clipped


def clipped_surrogate(log_ratio, advantage):
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)


def assert_same_gradient(found, wanted, accuracy=1e-5):
    scale = max(float(g.abs().max()) for g in wanted)
    assert scale > 1e-5
    assert max(largest_difference(f, w) for f, w in zip(found, wanted, strict=True)) < accuracy * scale


@pytest.mark.parametrize("micro_batch_size", [1, 3, 64])
def test_gradient_is_that_of_a_double_loop_whatever_the_micro_batch(moved, micro_batch_size):
    experience, whose, conditioning = moved.args
    wanted, clipped = double_loop(moved.policy, experience, conditioning, clipped_surrogate)
    assert 0 < clipped < len(experience)
    found = gradients(updater(moved.policy, micro_batch_size), experience, whose, conditioning)
    assert_same_gradient(found, wanted)


def test_gradient_of_branched_actions_is_that_of_a_double_loop():
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    steps = torch.tensor([0, 1, 1, 0])
    found = rollout(policy, conditioning, torch.tensor([0, 1, 2, 1]), range(4), branch_steps=steps, branches=3)
    experience, whose = experience_of(found)
    stir(policy, size=0.02, seed=9)
    wanted, _ = double_loop(policy, experience, conditioning, clipped_surrogate)
    assert_same_gradient(gradients(updater(policy, 2), experience, whose, conditioning), wanted)


def test_ppo_and_reinforce_have_one_gradient_at_ratio_one(situation):
    ppo = gradients(updater(situation.policy), *situation.args)
    reinforce = gradients(updater(situation.policy, algorithm={"loss": "reinforce"}), *situation.args)
    assert_same_gradient(reinforce, ppo)


def test_ratio_is_one_before_the_first_update(fresh):
    found = learn(updater(fresh.policy), *fresh.args)
    assert found["ratio_deviation_max"] < 1e-6
    assert found["clip_fraction"] == 0
    assert found["skipped_updates"] == 0
    again = updater(fresh.policy).loss(fresh.args[0], fresh.args[2])[1]
    assert again["ratio_deviation_max"] > 1e-6


def test_an_update_raises_what_was_better_than_expected(fresh):
    experience, whose, conditioning = fresh.args
    update = updater(fresh.policy, algorithm={"clip_range": 10.0}, lr=1e-3)
    before = update.loss(experience, conditioning)[0].sum().item()
    learn(update, experience, whose, conditioning)
    assert update.loss(experience, conditioning)[0].sum().item() < before


def test_kl_is_zero_for_the_untrained_policy_and_pulls_back():
    policy = tiny_policy()
    trajectory, conditioning = plain_rollout(policy, COUNT)
    experience, whose = experience_of(trajectory)
    update = updater(policy, 3, {"kl_coefficient": 5.0}, lr=3e-3)
    assert update.loss(experience, conditioning)[1]["kl"] == 0
    stir(policy)
    experience.advantages.zero_()
    course = [learn(update, experience, whose, conditioning)["kl"] for _ in range(8)]
    assert course[0] > 1e-4
    assert course[-1] < 0.5 * course[0]


def test_kl_is_the_squared_distance_of_the_means(situation):
    experience, _, conditioning = situation.args
    update = updater(situation.policy, algorithm={"kl_coefficient": 2.0})
    loss, metrics = update.loss(experience, conditioning)
    plain, _ = updater(situation.policy).loss(experience, conditioning)
    with situation.policy.reference(), torch.no_grad():
        _, reference, std = situation.policy.step(
            experience.states, experience.steps, conditioning.take(experience.prompt_index)
        )
    kl = ((experience.old_means - reference) / std.view(-1, 1, 1, 1)).square().flatten(1).mean(1) / 2
    assert abs(metrics["kl"] - kl.mean().item()) < 1e-6
    torch.testing.assert_close((loss - plain).detach(), 2 * kl * experience.weights, rtol=1e-4, atol=1e-7)


def test_the_pace_follows_the_share_of_the_target_that_is_used():
    leash = Leash(AlgorithmSettings(kl_coefficient=1.0, kl_target=0.1), 1.5)

    def paces(kl: float, *progress: float) -> list[float]:
        found = []
        for share in progress:
            leash.follow(kl, share)
            found.append(leash.pace)
        return found

    assert paces(0.0, 0.25, 0.5, 0.75, 1.0, 1.0) == pytest.approx([1 / 0.9, 1 / 0.9**2, 1 / 0.9**3, 1.5, 1.5])
    assert paces(0.03, 0.5) == pytest.approx([1.5])  # below half of 0.1, and no faster than the most
    assert paces(0.03, 0.2) == pytest.approx([1.5 / 1.05])  # 1.5 times its share of 0.02
    assert paces(9.0, 0.2, 0.2) == pytest.approx([1.5 / 1.05 / 1.1, 1.5 / 1.05 / 1.1**2])
    assert paces(9.0, *[0.2] * 9)[-1] == pytest.approx(1 / 1.5)  # and no slower than one most-th


@pytest.mark.parametrize(("target", "grows"), [(1e-9, True), (1e3, False), (None, False)])
def test_the_weight_of_the_kl_follows_its_target_and_never_falls_below_the_setting(fresh, target, grows):
    update = updater(fresh.policy, algorithm={"kl_coefficient": 1.0, "kl_target": target})
    course, found = [1.0], []
    for _ in range(3):
        found.append(learn(update, *fresh.args)["kl"])
        update.leash.follow(found[-1], 1.0)
        course.append(update.leash.coefficient)
    if grows:
        assert 1.0 < course[1] < course[2] == adaptive_coefficient(course[1], found[1], target, minimum=1.0)
    else:
        assert course == [1.0] * 4
    loss, metrics = update.loss(fresh.args[0], fresh.args[2])
    plain, _ = updater(fresh.policy).loss(fresh.args[0], fresh.args[2])
    weighted = ((loss - plain) / fresh.args[0].weights).mean().item()
    assert weighted == pytest.approx(update.leash.coefficient * metrics["kl"].item(), rel=1e-3)


def test_every_trajectory_is_in_one_minibatch_of_every_epoch(fresh, monkeypatch):
    experience, whose, conditioning = fresh.args
    update = updater(fresh.policy, algorithm={"minibatches": 3, "inner_epochs": 2})
    taken = []
    real = update._optimiser_step

    def step(experience, rows, owners, *rest, **named):
        taken.append(owners.tolist())
        return real(experience, rows, owners, *rest, **named)

    monkeypatch.setattr(update, "_optimiser_step", step)
    learn(update, experience, whose, conditioning)
    assert len(taken) == 6
    for epoch in (taken[:3], taken[3:]):
        assert sorted(row for part in epoch for row in part) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert all(part.count(row) == 2 for part in epoch for row in part)
    assert taken[:3] != taken[3:]


def test_a_minibatch_whose_images_were_all_dropped_is_skipped(fresh):
    experience, whose, conditioning = fresh.args
    kept = (whose == 2).nonzero().squeeze(1)
    update = updater(fresh.policy, algorithm={"minibatches": 2})
    found = learn(update, experience.take(kept), whose[kept], conditioning)
    assert found["skipped_updates"] == 0.5
    assert found["grad_norm"] > 0
    none = torch.tensor([], dtype=torch.long)
    assert learn(update, experience.take(none), whose[none], conditioning) == {"skipped_updates": 1.0}


def test_the_learning_rate_of_the_round_and_the_average_are_used(monkeypatch):
    policy = tiny_policy(ema_decay=0.5)
    trajectory, conditioning = plain_rollout(policy, COUNT)
    experience, whose = experience_of(trajectory)
    update = updater(policy, lr=1e-2)
    start = {name: p.detach().clone() for name, p in policy.named_parameters.items()}
    update.update(experience, whose, COUNT, conditioning, torch.Generator(), 1e-3)
    assert update.optimisation.optimizer.param_groups[0]["lr"] == 1e-3
    for name, p in policy.named_parameters.items():
        assert largest_difference(p.detach(), start[name]) < 1.01e-3  # Adam's first step is the learning rate at most
        torch.testing.assert_close(policy.average[name], (start[name] + p.detach()) / 2, rtol=0, atol=1e-7)


def test_gradients_are_shortened_to_the_limit(situation):
    update = updater(situation.policy, max_grad_norm=1e-3)
    found = gradients(update, *situation.args)
    norm = torch.cat([g.flatten() for g in found]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_what_is_not_finite_is_skipped_and_the_third_in_a_row_stops(fresh):
    experience, whose, conditioning = fresh.args
    update = updater(fresh.policy)
    bad = experience.take(torch.arange(len(experience)))
    bad.advantages[3] = float("inf")
    before = [p.detach().clone() for p in fresh.policy.parameters]
    for _ in range(2):
        assert learn(update, bad, whose, conditioning) == {"skipped_updates": 1.0}
    assert all(torch.equal(p, b) for p, b in zip(fresh.policy.parameters, before, strict=True))
    assert learn(update, experience, whose, conditioning)["skipped_updates"] == 0  # the count starts anew
    assert not torch.equal(fresh.policy.parameters[0], before[0])
    for _ in range(2):
        learn(update, bad, whose, conditioning)
    with pytest.raises(TrainingError, match=r"3 updates in a row.*optimizer\.lr"):
        learn(update, bad, whose, conditioning)
    assert all(p.isfinite().all() for p in fresh.policy.parameters)


def test_check_passes_and_changes_nothing(situation):
    experience, _, conditioning = situation.args
    found = updater(situation.policy).check(experience, conditioning)
    assert found["ratio_deviation"] < 1e-6
    assert found["parameters_with_gradient"] == len(situation.policy.parameters)
    assert all(p.grad is None for p in situation.policy.parameters)


def test_check_refuses_a_network_with_dropout_on():
    policy = stir(tiny_policy(tiny_denoiser(unet={"dropout": 0.3})))
    policy.denoiser.module.train()
    trajectory, conditioning = plain_rollout(policy, COUNT)
    with pytest.raises(PreflightError, match=r"ratio of new to old policy is off 1.*dropout"):
        updater(policy).check(experience_of(trajectory)[0], conditioning)


@pytest.mark.parametrize("cut", ["graph", "values"])
def test_check_refuses_when_no_gradient_arrives(cut, monkeypatch):
    policy = tiny_policy()
    trajectory, conditioning = plain_rollout(policy, COUNT)
    real = policy.denoiser.denoise

    def detached(x, step, conditioning):
        output = real(x, step, conditioning)
        return output.detach() if cut == "graph" else output.detach() + 0 * output

    monkeypatch.setattr(policy.denoiser, "denoise", detached)
    with pytest.raises(PreflightError, match="no gradient reaches the adapter"):
        updater(policy).check(experience_of(trajectory)[0], conditioning)


def test_optimisers_by_name():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    adam = make_optimizer(OptimizerSettings(name="adam", betas=(0.5, 0.6)), parameters)
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["betas"] == (0.5, 0.6)
    assert type(make_optimizer(OptimizerSettings(), parameters)) is torch.optim.AdamW


def pairs_loss(policy, experience, whose, conditioning, eta, rng):
    """Return REBEL's loss of a minibatch, with gradient, in one piece."""
    _, means, stds = policy.step(experience.states, experience.steps, conditioning.take(experience.prompt_index))
    ratios = log_ratio(experience.actions, experience.old_means, means, stds, "mean")
    owners = whose.unique()
    totals = torch.stack([ratios[whose == owner].sum(0) for owner in owners])
    worth = torch.stack([experience.advantages[whose == owner][0] for owner in owners])
    actions = totals.shape[1]
    prompts = torch.stack([experience.prompt_index[whose == owner][0] for owner in owners])
    comparable = torch.arange(len(owners)).repeat_interleave(actions) if actions > 1 else prompts
    one, other = pair_by_prompt(comparable, rng).unbind(1)
    flat, rewards = totals.flatten(), worth.flatten()
    return rebel(flat[one], flat[other], rewards[one], rewards[other], eta=eta).mean()


@pytest.mark.parametrize("micro_batch_size", [1, 64])
@pytest.mark.parametrize("branches", [1, 4])
def test_rebels_gradient_is_that_of_the_loss_on_pairs(micro_batch_size, branches):
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    steps = None if branches == 1 else torch.tensor([0, 1, 1, 0])
    trajectory = rollout(policy, conditioning, torch.tensor([0, 0, 2, 2]), [1, 2, 3, 4], branch_steps=steps, branches=branches)
    experience, whose = experience_of(trajectory)
    experience.weights = torch.ones(len(experience))
    experience.advantages = experience.advantages[:: trajectory.steps.shape[1]][whose].contiguous()
    stir(policy, size=0.02, seed=9)
    update = updater(policy, micro_batch_size, {"loss": "rebel", "rebel_eta": 0.01})
    args = (experience, whose, conditioning, torch.Generator().manual_seed(3), len(experience))
    reported = update._judge_by_pairs(*args, first=False)
    update.optimisation.optimizer.step = lambda: None
    for part in torch.arange(len(experience)).split(micro_batch_size):
        (update.loss(experience.take(part), conditioning)[0].sum() / len(experience)).backward()
    found = [p.grad.clone() for p in policy.parameters]
    policy.denoiser.module.zero_grad(set_to_none=True)
    experience, _ = experience_of(trajectory)
    experience.advantages = experience.advantages[:: trajectory.steps.shape[1]][whose].contiguous()
    wanted = pairs_loss(policy, experience, whose, conditioning, 0.01, torch.Generator().manual_seed(3))
    wanted.backward()
    assert reported == pytest.approx(wanted.item(), rel=1e-4)
    # A pair's two log-ratios nearly cancel, and their difference is divided by eta = .01: some digits of fp32 are lost.
    assert_same_gradient(found, [p.grad for p in policy.parameters], accuracy=3e-5)


def test_rebel_without_a_pair_learns_nothing(fresh):
    experience, whose, conditioning = fresh.args
    alone = experience.take((whose == 1).nonzero().squeeze(1))
    update = updater(fresh.policy, algorithm={"loss": "rebel"}, weight_decay=0.0)
    metrics = learn(update, alone, torch.ones(len(alone), dtype=torch.long), conditioning)
    assert metrics["rebel_loss"] == 0
    assert metrics["grad_norm"] == 0


def test_an_update_that_has_gone_too_far_ends_the_round(fresh):
    free = updater(fresh.policy, algorithm={"inner_epochs": 6}, lr=1e-2)
    assert "updates_left_out" not in learn(free, *fresh.args)
    fresh.policy.load(fresh.weights)
    held = updater(fresh.policy, algorithm={"inner_epochs": 6, "stop_kl": 1e-4}, lr=1e-2)
    steps = []
    held.optimisation.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    metrics = learn(held, *fresh.args)
    assert len(steps) == 6 - metrics["updates_left_out"] < 6
    assert steps  # at the first step the policy is the one that sampled
    assert metrics["kl_from_sampling"] > 0


def test_log_ratios_to_the_reference_have_the_divergence_as_their_mean():
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    trajectory = rollout(policy, conditioning, torch.tensor([0, 1]), [5, 6], branch_steps=torch.tensor([0, 1]), branches=4096)
    experience, _ = experience_of(trajectory)
    ratios, divergences = updater(policy, micro_batch_size=1).reference_log_ratios(experience, conditioning)
    assert ratios.shape == (2, 4096)
    assert (divergences > 0).all()
    error = (ratios.mean(1) - divergences).abs() / (ratios.std(1) / 4096**0.5)
    assert error.max() < 4


@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_the_consistency_term_is_the_distance_to_the_targets(fresh, distance):
    experience, _, conditioning = fresh.args
    targets = torch.randn(experience.actions.shape, generator=torch.Generator().manual_seed(2))
    aimed = replace(experience, targets=targets)
    settings = {"consistency_coefficient": 0.5, "consistency_distance": distance}
    loss, metrics = updater(fresh.policy, algorithm=settings).loss(aimed, conditioning)
    plain, _ = updater(fresh.policy).loss(experience, conditioning)
    with torch.no_grad():
        predictions, _, _ = fresh.policy.step(experience.states, experience.steps, conditioning.take(experience.prompt_index))
    kind = {"huber": consistency_huber, "l2": consistency_l2}[distance]
    wanted = kind(predictions, targets[:, 0])
    assert metrics["consistency"] == pytest.approx(wanted.mean().item(), rel=1e-5)
    torch.testing.assert_close((loss - plain).detach(), 0.5 * wanted * experience.weights, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="targets"):
        updater(fresh.policy, algorithm=settings).loss(experience, conditioning)


def test_the_weight_of_the_consistency_term_may_rise_over_the_run(fresh):
    experience, whose, conditioning = fresh.args
    aimed = replace(experience, targets=experience.actions)
    update = updater(fresh.policy, algorithm={"consistency_coefficient": 2.0, "consistency_schedule": "linear"})
    for progress, weight in ((0.0, 0.0), (0.25, 0.5), (1.0, 2.0)):
        update.update(aimed, whose, COUNT, conditioning, torch.Generator().manual_seed(0), 1e-5, progress)
        assert update.consistency_coefficient == weight


@pytest.mark.parametrize(("target", "most"), [(None, 3.0), (1.0, 1.0)])
def test_without_a_target_or_with_a_largest_pace_of_1_the_schedule_stands(target, most):
    leash = Leash(AlgorithmSettings(kl_coefficient=0.1, kl_target=target), most)
    for kl in (0.0, 5.0):
        leash.follow(kl, progress=0.5)
        assert leash.pace == 1
