"""The one-page example is the library's algorithm: the same rewards and the same weights from the same seeds."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_runs import lcm_pipeline

from rlcm.builtin import model_path
from rlcm.rewards.image.jpeg import Compressibility
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.trainer import Trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal_rlcm.py"
ROUNDS = 3
# Five prompts and twelve images a round: two passes and a bit, so that some prompts use their own statistics and some do not.
PROMPTS = ["a cat", "an owl", "a fox", "three pigs", "a red car"]
NUMBERS = {"images": 12, "steps": 4, "guidance": 3.0, "lr": 1e-3, "minibatches": 3, "remembered": 6, "needed": 5, "seed": 7}


@pytest.fixture(scope="module")
def example() -> Any:
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location("minimal_rlcm", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library(pipeline: Any = None) -> Trainer:
    """Return the library's trainer with the example's settings."""
    config = {
        "name": "minimal",
        "seed": NUMBERS["seed"],
        "prompts": PROMPTS,
        "rewards": ["jpeg_compressibility"],
        "sampler": {"steps": NUMBERS["steps"], "guidance": NUMBERS["guidance"]},
        "rollout": {"batch_size": NUMBERS["images"], "branches": 1},
        "algorithm": {
            "minibatches": NUMBERS["minibatches"],
            "stat_buffer_size": NUMBERS["remembered"],
            "stat_min_count": NUMBERS["needed"],
            "kl_coefficient": 0.0,
        },
        "optimizer": {"lr": NUMBERS["lr"], "schedule": "constant"},
        "run": {"tracker": "none"},
    }
    return Trainer(parse_settings(TrainConfig, config), model=pipeline)


def adapter(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's LoRA weights by name, without the adapter's own name in it."""
    named = {name: p.detach().clone() for name, p in network.named_parameters() if "lora_" in name}
    return {name.replace(".default.", ".").replace(".rlcm.", "."): tensor for name, tensor in named.items()}


@pytest.mark.parametrize("model", ["builtin", "tiny"])
def test_one_page_gives_the_librarys_rewards_and_weights(example: Any, model: str) -> None:
    # The built-in model predicts v, the tiny one noise.
    pipeline = DiffusionPipeline.from_pretrained(model_path("student")) if model == "builtin" else lcm_pipeline()
    start = adapter(pipeline.unet)
    rewards = list(example.rlcm(pipeline, PROMPTS, example.compressibility, rounds=ROUNDS, **NUMBERS))
    trainer = library(None if model == "builtin" else lcm_pipeline())
    rounds = [trainer.round() for _ in range(ROUNDS)]

    assert not start
    assert rewards == pytest.approx([metrics["reward"] for metrics in rounds], abs=1e-6)
    ours, theirs = adapter(pipeline.unet), adapter(trainer.parts.policy.denoiser.module)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-6
    # The comparison had something to compare: weights moved, ratios left 1, and both kinds of statistics were used.
    assert all(bool(weight.any()) for name, weight in ours.items() if "lora_B" in name)
    assert max(metrics["ratio_deviation_max"] for metrics in rounds) > 1e-5
    assert 0 < rounds[1]["own_statistics"] < 1


def test_the_pages_reward_is_the_librarys(example: Any) -> None:
    images = torch.rand((3, 3, 16, 24), generator=torch.Generator().manual_seed(0))
    assert torch.equal(example.compressibility(images, PROMPTS[:3]), Compressibility()(images, PROMPTS[:3]))
