"""Rollouts: the pipeline's own images, stored actions that fed the next step, and branches that share their trunk."""

import pytest
import torch
from pydantic import ValidationError
from tiny_runs import PROMPTS, STEPS, largest_difference, plain_rollout, stir, tiny_denoiser, tiny_policy

from rlcm.errors import WeightsError
from rlcm.policy.noise import draw, image_seed, stream
from rlcm.policy.rollout import RolloutSettings, decode_images, require_pictures, rollout, sample_latents

INDEX = torch.tensor([2, 0, 1, 0])
SEEDS = [11, 12, 13, 14]


def branched(policy, steps, branches, antithetic=False):
    conditioning = policy.denoiser.encode(PROMPTS)
    return rollout(
        policy, conditioning, INDEX, SEEDS, branch_steps=torch.tensor(steps), branches=branches, antithetic=antithetic
    )


def noises(policy, trajectory):
    """Return the noise [B, K, *latent] of every branch's action."""
    std = policy.table.std[trajectory.steps].view(-1, 1, 1, 1, 1)
    return (trajectory.actions[:, 0] - trajectory.means) / std


def test_plain_images_are_those_of_the_pipeline():
    policy = tiny_policy()
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    prompts = [PROMPTS[i] for i in INDEX]
    expected = policy.denoiser.pipeline(
        prompts, guidance_scale=3.0, num_inference_steps=STEPS, generator=generators, output_type="pt"
    ).images
    found = rollout(policy, policy.denoiser.encode(PROMPTS), INDEX, SEEDS)
    assert found.images.shape == (4, 1, 3, 16, 16)
    assert largest_difference(found.images[:, 0], expected) < 2e-6


def test_stored_actions_are_what_fed_the_next_step():
    policy = stir(tiny_policy())
    found, conditioning = plain_rollout(policy)
    assert found.states.shape == found.means.shape == (4, STEPS - 1, 4, 8, 8)
    assert found.actions.shape == (4, STEPS - 1, 1, 4, 8, 8)
    assert found.steps.tolist() == [[0, 1]] * 4
    conditions = conditioning.take(found.prompt_index)
    for column in range(STEPS - 1):
        _, mean, std = policy.step(found.states[:, column], found.steps[:, column], conditions)
        assert torch.equal(mean, found.means[:, column])
        noise = draw([stream(100 + i) for i in range(4)], (column + 2, 4, 8, 8))[:, column + 1]
        wanted = mean + std.view(-1, 1, 1, 1) * noise
        assert largest_difference(found.actions[:, column, 0], wanted) < 1e-6
    assert torch.equal(found.actions[:, 0, 0], found.states[:, 1])
    _, last, std = policy.step(found.actions[:, -1, 0], torch.full((4,), STEPS - 1), conditions)
    assert not std.any()
    assert torch.equal(decode_images(policy.denoiser, last), found.images[:, 0])


def test_an_image_does_not_depend_on_the_batch_around_it():
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    together = rollout(policy, conditioning, INDEX, SEEDS)
    for row in (0, 3):
        alone = rollout(policy, conditioning, INDEX[row : row + 1], SEEDS[row : row + 1])
        assert largest_difference(alone.images[0], together.images[row]) < 1e-6
    assert largest_difference(together.images[1], together.images[3]) > 1e-3  # the same prompt, another seed


def test_predictions_are_kept_on_request():
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    found = rollout(policy, conditioning, INDEX, SEEDS, keep_predictions=True)
    assert found.predictions.shape == (4, STEPS, 4, 8, 8)
    x0, _, _ = policy.step(found.states[:, 1], found.steps[:, 1], conditioning.take(INDEX))
    assert torch.equal(found.predictions[:, 1], x0)
    assert plain_rollout(policy)[0].predictions is None


def test_final_noise_makes_the_last_step_an_action():
    found, _ = plain_rollout(tiny_policy(tiny_denoiser(final_std=0.1)))
    assert found.steps.tolist() == [[0, 1, 2]] * 4
    noise = (found.actions[:, 2, 0] - found.means[:, 2]) / 0.1
    assert abs(noise.std().item() - 1) < 0.1


@pytest.mark.parametrize("antithetic", [False, True])
def test_branched_rollouts_are_a_plain_double_loop(antithetic):
    """Trajectory by trajectory and branch by branch, with mixed branch steps in one batch."""
    policy, steps, branches = stir(tiny_policy()), [1, 0, 0, 1], 4
    found = branched(policy, steps, branches, antithetic)
    assert found.states.shape == found.means.shape == (4, 1, 4, 8, 8)
    assert found.actions.shape == (4, 1, branches, 4, 8, 8)
    assert found.images.shape == (4, branches, 3, 16, 16)
    assert found.steps.tolist() == [[s] for s in steps]
    assert torch.equal(found.prompt_index, INDEX)
    conditioning, shape = policy.denoiser.encode(PROMPTS), policy.denoiser.latent_shape
    for row, (seed, branch_step) in enumerate(zip(SEEDS, steps, strict=True)):
        condition = conditioning.take(INDEX[row : row + 1])
        for branch in range(branches):
            x = policy.denoiser.scale_noise(draw([own := stream(seed)], shape))
            for step, std in enumerate(policy.table.std.tolist()):
                before = x
                with torch.no_grad():
                    _, mean, _ = policy.step(x, torch.tensor([step]), condition)
                sign = 1
                if step == branch_step:
                    half = branches // 2
                    mirrored = antithetic and branch >= half
                    own = stream(image_seed(seed, "branch", branch))
                    noise = draw([own], shape)
                    if mirrored:
                        sign, noise = -1, draw([stream(image_seed(seed, "branch", branch - half))], shape)
                elif std:
                    noise = draw([own], shape)
                x = mean + std * sign * noise if std else mean
                if step == branch_step:
                    assert largest_difference(found.states[row], before) < 2e-5
                    assert largest_difference(found.means[row], mean) < 2e-5
                    assert largest_difference(found.actions[row, 0, branch], x[0]) < 2e-5
            assert largest_difference(found.images[row, branch], decode_images(policy.denoiser, x)[0]) < 2e-5


def test_the_trunk_of_a_branched_trajectory_is_that_of_the_plain_one():
    policy = stir(tiny_policy())
    plain = rollout(policy, policy.denoiser.encode(PROMPTS), INDEX, SEEDS)
    found = branched(policy, [1, 0, 1, 0], 2)
    rows, steps = torch.arange(4), torch.tensor([1, 0, 1, 0])
    assert largest_difference(found.states[:, 0], plain.states[rows, steps]) < 1e-6
    assert largest_difference(found.means[:, 0], plain.means[rows, steps]) < 1e-6


def test_branches_draw_independent_noise():
    policy = tiny_policy()
    noise = noises(policy, branched(policy, [1, 0, 1, 0], 6)).flatten(0, 1).flatten(1)
    correlation = torch.corrcoef(noise) - torch.eye(24)
    assert correlation.abs().max() < 0.4  # 276 pairs of 256 numbers: six standard deviations
    assert abs(noise.std().item() - 1) < 0.05


def test_antithetic_branches_come_in_pairs():
    policy = tiny_policy()
    found = branched(policy, [0, 1, 1, 0], 6, antithetic=True)
    noise = noises(policy, found)
    assert largest_difference(noise[:, 3:], -noise[:, :3]) < 1e-5
    assert torch.corrcoef(noise[:, :3].reshape(12, -1)).fill_diagonal_(0).abs().max() < 0.4
    assert largest_difference(found.images[:, 3:], found.images[:, :3]) > 1e-3


def test_branching_is_asked_for_as_a_whole():
    policy = tiny_policy()
    conditioning = policy.denoiser.encode(PROMPTS)
    with pytest.raises(ValueError, match="branches=2 needs branch_steps"):
        rollout(policy, conditioning, INDEX, SEEDS, branches=2)
    with pytest.raises(ValueError, match="branches=1"):
        rollout(policy, conditioning, INDEX, SEEDS, branch_steps=INDEX)
    with pytest.raises(ValueError, match="branches=3 is odd"):
        branched(policy, [0, 0, 1, 1], 3, antithetic=True)
    with pytest.raises(ValidationError, match="even number"):
        RolloutSettings(branches=3, antithetic=True)
    with pytest.raises(ValueError, match="no actions"):
        rollout(tiny_policy(tiny_denoiser(steps=1)), conditioning, INDEX, SEEDS)


def test_sample_latents_draws_what_a_rollout_draws():
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    latents = sample_latents(policy.denoiser, policy.table, conditioning.take(INDEX), SEEDS)
    images = decode_images(policy.denoiser, latents)
    assert torch.equal(images, rollout(policy, conditioning, INDEX, SEEDS).images[:, 0])
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("final_std", [0.0, 0.1])
def test_targets_of_plain_trajectories_are_the_next_and_the_last_prediction(final_std):
    policy = stir(tiny_policy(tiny_denoiser(final_std=final_std)))
    conditioning = policy.denoiser.encode(PROMPTS)
    final = rollout(policy, conditioning, INDEX, SEEDS, keep_predictions=True, keep_targets="final")
    following = rollout(policy, conditioning, INDEX, SEEDS, keep_targets="next")
    actions = final.actions.shape[1]
    assert actions == STEPS - (final_std == 0)
    assert final.targets.shape == following.targets.shape == final.actions.shape
    for action in range(actions):
        assert torch.equal(final.targets[:, action, 0], final.predictions[:, -1])
        # No call follows a last action with noise: its own prediction stands in.
        assert torch.equal(following.targets[:, action, 0], final.predictions[:, min(action + 1, STEPS - 1)])


def test_targets_of_branches_are_what_each_branch_came_to():
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    common = {"branch_steps": torch.tensor([0, 1, 1, 0]), "branches": 3}
    final = rollout(policy, conditioning, INDEX, SEEDS, keep_targets="final", **common)
    following = rollout(policy, conditioning, INDEX, SEEDS, keep_targets="next", **common)
    for row, step in enumerate([0, 1, 1, 0]):
        conditions = conditioning.take(INDEX[row].repeat(3))
        predictions, _, _ = policy.step(final.actions[row, 0], torch.full((3,), step + 1), conditions)
        assert largest_difference(following.targets[row, 0], predictions) < 1e-5
        for branch in range(3):
            image = decode_images(policy.denoiser, final.targets[row, 0, branch : branch + 1])[0]
            assert largest_difference(image, final.images[row, branch]) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pictures_that_are_none_are_not_shown(value):
    images = torch.rand(3, 3, 4, 5)
    assert require_pictures(images) is images
    images[1, 0, 2, 2] = value
    with pytest.raises(WeightsError, match="1 of 3 pictures hold NaN or infinity"):
        require_pictures(images)
