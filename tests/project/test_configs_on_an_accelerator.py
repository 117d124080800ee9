"""Every configuration for GPUs, on a simulated one: with the old means of learning it passes the check and learns."""

import pytest
import torch
from shipped_configs import ROOT, TINY, redness, tiny

from benchmarks.shared.simulated_accelerator import rounded
from rlcm.errors import PreflightError
from rlcm.training.config import TrainConfig
from rlcm.training.trainer import Trainer

FOR_GPUS = [name for name in TINY if not name.startswith(("builtin", "three-rewards"))]
PRECISION = {"sd-turbo": "fp16", "sdxl-turbo": "fp16", "pixel-consistency": "tf32"}


def on_an_accelerator(name, folder, old_policy):
    """Return a trainer that samples in batches of another size than it learns in, and rounds as a GPU does."""
    config = tiny(name, folder)
    changes = {
        "algorithm": config.algorithm.model_copy(update={"old_policy": old_policy}),
        "rollout": config.rollout.model_copy(update={"sample_batch_size": config.rollout.batch_size}),
        "run": config.run.model_copy(update={"micro_batch_size": 3}),
        "sampler": config.sampler.model_copy(update={"steps": min(config.sampler.steps, 4), "noisy_steps": "all"}),
    }
    made = Trainer(TrainConfig.model_validate(config.model_copy(update=changes).model_dump()), rewards=[redness])
    denoiser = made.parts.policy.denoiser
    real = denoiser.denoise
    denoiser.denoise = lambda *arguments: rounded(real(*arguments), PRECISION.get(name, "bf16"))
    return made


@pytest.mark.parametrize("name", FOR_GPUS)
def test_it_learns_there_and_the_means_of_sampling_do_not_pass_the_check(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(PreflightError, match=r"the ratio of new to old policy is off 1 by .* algorithm\.old_policy=learning"):
        on_an_accelerator(name, tmp_path / "sampling", "sampling").round()
    made = on_an_accelerator(name, tmp_path / "learning", "learning")
    before = [p.detach().clone() for p in made.parts.policy.parameters]
    for _ in range(2):
        metrics = made.round()
        assert metrics["grad_norm"] > 0
        assert metrics["skipped_updates"] == 0
        assert metrics["mismatch_kl"] > 0
        if made.config.algorithm.minibatches * made.config.algorithm.inner_epochs == 1:
            assert metrics["ratio_deviation_max"] == metrics["clip_fraction"] == 0
    assert any(not torch.equal(old, new) for old, new in zip(before, made.parts.policy.parameters, strict=True))
