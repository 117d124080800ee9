"""The call of the model card samples as the run did, where a pipeline's defaults would not, or would refuse it."""

import diffusers
import pytest
from tiny_pipelines import pixart, pixel, sana, schedule
from tiny_runs import tiny_config

from rlcm.pipelines import ModelSettings, make_denoiser
from rlcm.training.usage import local_usage, usage


def called(pipeline, sampler, prompt="a cat", **model):
    """Call a pipeline as the card says; return the denoiser of the run, and the call."""
    config = tiny_config("x", model={"path": "a/b", **model}, sampler={"guidance": None, **sampler})
    call = usage(config, "me/x", type(pipeline).__name__, "a/b", prompt).splitlines()[-1]
    denoiser = make_denoiser(pipeline, config.sampler, ModelSettings(**model))
    image = eval(call.removesuffix('.save("picture.png")'), {"pipe": pipeline})
    assert image.size == (denoiser.width, denoiser.height)
    return denoiser, call


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_sana_in_any_number_of_steps(steps):
    pipeline = sana()
    denoiser, call = called(pipeline, {"scheduler": "scm", "steps": steps}, height=32, width=32)
    angles = pipeline.scheduler.timesteps
    assert len(angles) == len(denoiser.table) + 1
    assert angles[:-1].tolist() == pytest.approx(denoiser.table.timesteps.tolist())
    assert ("intermediate_timesteps=None" in call) == (steps != 2)


def test_angles_that_its_pipeline_cannot_take_are_named():
    angles = [1.5, 1.0, 0.4, 0.0]
    config = tiny_config(
        "x", sampler={"scheduler": "scm", "timesteps": angles}, model={"path": "a/b", "height": 32, "width": 32}
    )
    text = usage(config, "me/x", "SanaSprintPipeline", "a/b", "a cat")
    assert f"# The run sampled with sampler.timesteps={angles}, which diffusers has not" in text
    called(sana(), {"scheduler": "scm", "timesteps": angles}, height=32, width=32)


@pytest.mark.parametrize("kind", [diffusers.PixArtAlphaPipeline, diffusers.PixArtSigmaPipeline])
def test_pixart_at_the_runs_own_size(kind):
    pipeline = pixart(diffusers.LCMScheduler(**schedule(clip_sample=False)), kind, sample_size=32)
    called(pipeline, {"scheduler": "lcm", "steps": 3, "guidance": 1.0}, height=64, width=96)


@pytest.mark.parametrize(("prompt", "label"), [("3", 3), ("a fox", 0)])
def test_a_model_of_classes_is_asked_for_one(prompt, label):
    _, call = called(pixel(10), {"steps": 2}, prompt)
    assert f"class_labels={label}" in call
    config = tiny_config("x", model={"path": "a/b"}, sampler={"guidance": None, "steps": 2})
    assert "class_labels=0" in local_usage(config, "ConsistencyModelPipeline")
