"""Latent consistency distillation: the schedule's identities, the boundary condition, and a loss that is 0 for the perfect."""

import diffusers
import pytest
import torch
from tiny_pipelines import small_unet
from tiny_runs import largest_difference, lcm_pipeline

from rlcm.distillation.loss import Distiller, NoiseSchedule, guidance_embedding, student_of
from rlcm.types import Conditioning

TYPES = ("epsilon", "v_prediction", "sample")


def schedule(prediction_type="epsilon"):
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)
    return NoiseSchedule.of(scheduler)


def latents(count=5, seed=0):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


TIMES = torch.tensor([19, 999, 500, 259, 1])


@pytest.mark.parametrize("kind", TYPES)
def test_predict_inverts_add_noise(kind):
    of, x_0, noise = schedule(kind), latents(), latents(seed=1)
    x_t = of.add_noise(x_0, noise, TIMES)
    output = {"epsilon": noise, "v_prediction": of.velocity(x_0, noise, TIMES), "sample": x_0}[kind]
    found_x_0, found_noise = of.predict(x_t, output, TIMES)
    torch.testing.assert_close(found_x_0, x_0, rtol=0, atol=1e-4)
    torch.testing.assert_close(found_noise, noise, rtol=0, atol=1e-4)


def test_add_noise_and_velocity_are_those_of_diffusers():
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear")
    of, x_0, noise = NoiseSchedule.of(scheduler), latents(), latents(seed=1)
    torch.testing.assert_close(of.add_noise(x_0, noise, TIMES), scheduler.add_noise(x_0, noise, TIMES))
    torch.testing.assert_close(of.velocity(x_0, noise, TIMES), scheduler.get_velocity(x_0, noise, TIMES))


def test_unknown_predictions_are_refused():
    with pytest.raises(ValueError, match="prediction_type='flow'"):
        schedule("flow").predict(latents(), latents(), TIMES)


@pytest.mark.parametrize("kind", TYPES)
def test_boundary_condition(kind):
    """f(x, 0) = x whatever the network says; at late times f is the prediction of x_0."""
    of, x, output = schedule(kind), latents(), latents(seed=1)
    torch.testing.assert_close(of.consistency(x, output, torch.zeros(5, dtype=torch.long)), x)
    late = torch.full((5,), 999)
    predicted = of.predict(x, output, late)[0]
    assert largest_difference(of.consistency(x, output, late), predicted) < 1e-6 * float(predicted.abs().max() + 1)


def test_consistency_has_the_scheduler_s_coefficients():
    scheduler = diffusers.LCMScheduler(clip_sample=False)
    scheduler.set_timesteps(3, device="cpu")
    of, x, output = NoiseSchedule.of(scheduler), latents(1), latents(1, seed=1)
    for t in scheduler.timesteps:
        denoised = scheduler.step(output, t, x, generator=torch.Generator()).denoised
        torch.testing.assert_close(of.consistency(x, output, t[None]), denoised, rtol=1e-5, atol=1e-5)


def test_guidance_embedding_is_that_of_the_pipeline():
    pipeline = lcm_pipeline()
    scale = torch.tensor([1.0, 3.5, 7.9])
    for size in (8, 9, 256):
        expected = pipeline.get_guidance_scale_embedding(scale - 1, embedding_dim=size)
        torch.testing.assert_close(guidance_embedding(scale, size), expected, rtol=0, atol=2e-4)


def test_the_student_begins_as_the_teacher():
    torch.manual_seed(0)
    teacher = small_unet().eval()
    student = student_of(teacher, 12).eval()
    assert student.config.time_cond_proj_dim == 12
    text = torch.randn(5, 3, 16)
    with torch.no_grad():
        expected = teacher(latents(), TIMES, text).sample
        for scale in (1.0, 8.0):
            embedding = guidance_embedding(torch.full((5,), scale), 12)
            assert torch.equal(student(latents(), TIMES, text, timestep_cond=embedding).sample, expected)
    with torch.no_grad():
        student.time_embedding.cond_proj.weight.normal_()
        changed = student(latents(), TIMES, text, timestep_cond=embedding).sample
    assert largest_difference(changed, expected) > 1e-4


def toy(answer):
    """Return a distiller whose networks are a tiny UNet by name only: `answer(unet, x, t)` is what they say."""
    torch.manual_seed(0)
    abar = torch.linspace(1.0, 0.01, 1000)  # no noise at t = 0, so that even the last jump ends at the picture
    teacher = small_unet()
    return Distiller(
        teacher,
        student_of(teacher, 8),
        NoiseSchedule(abar, "sample"),
        solver_steps=20,
        run=lambda unet, x, t, condition, scale: answer(unet, x, t),
    )


def loss_of(distiller, picture, seed=0, **options):
    condition = Conditioning({"encoder_hidden_states": torch.zeros(len(picture), 1, 16)})
    rng = torch.Generator().manual_seed(seed)
    return distiller.loss(picture, condition, condition, rng, guidance=(1.0, 8.0), **options)


@pytest.mark.parametrize("jump", [1, 4, 20])
def test_networks_that_know_the_picture_have_no_loss(jump):
    picture = latents(16)
    distiller = toy(lambda unet, x, t: picture if len(x) == 16 else torch.cat([picture, picture]))
    # What is left is c_skip of the times from 49 on, about 1e-6 of a noisy picture.
    assert abs(float(loss_of(distiller, picture, jump=jump))) < 1e-5


def test_a_student_that_is_wrong_has_a_loss_of_that_size():
    picture = latents(16)
    distiller = toy(lambda unet, x, t: torch.cat([picture] * (len(x) // 16)))
    teacher, target = distiller.teacher, distiller.target
    distiller.run = lambda unet, x, t, condition, scale: (
        torch.cat([picture] * (len(x) // 16)) + (0.0 if unet in (teacher, target) else 0.5)
    )
    assert float(loss_of(distiller, picture, huber_c=1e-3)) == pytest.approx(0.5 - 1e-3, abs=1e-4)


def test_guidance_moves_the_solver():
    """x_s follows x_c + w (x_c - x_u): a target network that repeats its input shows where it was led."""
    picture = latents(16)
    seen = []

    def answer(unet, x, t):
        if len(x) == 32:  # the teacher, for the prompt and for the empty prompt
            return torch.cat([picture, picture - 1])
        seen.append((x, t))
        return picture

    distiller = toy(answer)
    condition = Conditioning({"encoder_hidden_states": torch.zeros(16, 1, 16)})
    for scale in (1.0, 3.0):
        distiller.loss(picture, condition, condition, torch.Generator().manual_seed(0), guidance=(scale, scale), jump=3)
    (plain, s), _, (guided, _), (x_t, t) = seen
    assert (s == (t - 150).clamp(min=0)).all()
    alpha, sigma = distiller.schedule.rates(t, x_t)
    alpha_s, sigma_s = distiller.schedule.rates(s, x_t)
    torch.testing.assert_close(
        guided - plain, 2 * (alpha_s - sigma_s * alpha / sigma) * torch.ones_like(plain), rtol=0, atol=1e-3
    )


def test_only_the_student_learns_and_its_copy_follows():
    torch.manual_seed(0)
    teacher = small_unet()
    student = student_of(teacher, 8)
    distiller = Distiller(teacher, student, schedule(), solver_steps=10, target_decay=0.75)
    condition = Conditioning({"encoder_hidden_states": torch.randn(5, 3, 16)})
    value = distiller.loss(latents(), condition, condition, torch.Generator().manual_seed(0), guidance=(1.0, 8.0))
    value.backward()
    assert value > 0
    assert student.time_embedding.cond_proj.weight.grad.abs().max() > 0
    assert all(p.grad is None for unet in (teacher, distiller.target) for p in unet.parameters())
    again = distiller.loss(latents(), condition, condition, torch.Generator().manual_seed(0), guidance=(1.0, 8.0))
    assert torch.equal(value, again)
    before = student.conv_in.weight.detach().clone()
    with torch.no_grad():
        student.conv_in.weight.add_(1.0)
    distiller.follow()
    torch.testing.assert_close(distiller.target.conv_in.weight, before + 0.25)
