"""ConsistencyModelPipeline: class labels for prompts, and pixels for latents."""

import pytest
from tiny_pipelines import distance, generators, pixel, rollout

from rlcm.errors import ConfigError
from rlcm.pipelines import ModelSettings, SamplerSettings, make_denoiser

EXACT = 5e-6


@pytest.mark.parametrize("timesteps", [None, (22.0, 11.0, 0.0)])
def test_rollout_is_the_pipelines_own(timesteps):
    pipeline = pixel()
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=4, timesteps=timesteps))
    call = {"num_inference_steps": 4} if timesteps is None else {"num_inference_steps": None, "timesteps": [22, 11, 0]}
    expected = pipeline(2, class_labels=[3, 7], generator=generators(2), output_type="pt", **call).images
    assert distance(rollout(denoiser, denoiser.encode(["3", "7"]), generators(2)), expected) < EXACT
    assert distance(rollout(denoiser, denoiser.encode(["7", "3"]), generators(2)), expected) > 1e-4


def test_unconditional_model():
    pipeline = pixel(classes=None)
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=2))
    expected = pipeline(2, num_inference_steps=2, generator=generators(2), output_type="pt").images
    conditioning = denoiser.encode(["anything", "else"])
    assert len(conditioning) == 2
    assert distance(rollout(denoiser, conditioning, generators(2)), expected) < EXACT


@pytest.mark.parametrize("prompt", ["a cat", "10", "-1", ""])
def test_prompts_are_class_numbers(prompt):
    with pytest.raises(ConfigError, match="numbers from 0 to 9"):
        make_denoiser(pixel(), SamplerSettings(steps=2)).encode([prompt])


def test_what_does_not_fit():
    with pytest.raises(ConfigError, match="no guidance"):
        make_denoiser(pixel(), SamplerSettings(steps=2, guidance=3.0))
    with pytest.raises(ConfigError, match="8 x 8"):
        make_denoiser(pixel(), SamplerSettings(steps=2), ModelSettings(height=16))
    with pytest.raises(ConfigError, match="use auto or one of consistency"):
        make_denoiser(pixel(), SamplerSettings(steps=2, scheduler="lcm"))
