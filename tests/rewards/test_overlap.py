"""Scoring beside sampling, and prompts' metadata, in a trainer's round."""

import threading

import pytest
import torch
from tiny_runs import PROMPTS, STEPS, lcm_pipeline, tiny_config

from rlcm.training.trainer import Trainer


def test_a_batch_is_scored_while_the_next_is_sampled(tmp_path):
    """The first batch's reward returns only after the second batch's sampling has begun, which it would never without overlap."""
    calls, begun, answers = [], [], []

    def patient(images, prompts):
        if begun and not answers:
            answers.append(begun[0].wait(60))
        return images.mean((1, 2, 3))

    config = tiny_config(tmp_path, rollout={"batch_size": 6, "sample_batch_size": 2})
    made = Trainer(config, model=lcm_pipeline(), rewards=[patient], prompts=PROMPTS)
    assert not made.parts.rewards.may_run_beside, "what was never asked may change anything of torch's while it is asked"
    made.parts.evaluator(made.parts.policy)
    assert made.parts.rewards.may_run_beside
    begun.append(threading.Event())
    denoise = made.parts.policy.denoiser.denoise

    def counted(*args, **named):
        calls.append(1)
        if len(calls) > STEPS:
            begun[0].set()
        return denoise(*args, **named)

    made.parts.policy.denoiser.denoise = counted
    found = made.round()
    assert answers == [True]
    assert found["time/sample"] > 0
    assert found["time/reward_wait"] >= 0


def test_a_reward_that_changes_torchs_state_is_not_asked_beside_sampling(tmp_path):
    """Its float64 would else reach the sampling of the next batch, and with it the images."""
    at_work = []

    def meddling(images, prompts):
        at_work.append("scoring")
        torch.set_default_dtype(torch.float64)
        return images.mean((1, 2, 3)).float()

    config = tiny_config(tmp_path, rollout={"batch_size": 6, "sample_batch_size": 2})
    made = Trainer(config, model=lcm_pipeline(), rewards=[meddling], prompts=PROMPTS)
    made.parts.evaluator(made.parts.policy)
    denoise = made.parts.policy.denoiser.denoise

    def watched(*args, **named):
        at_work.append(str(torch.get_default_dtype()))
        return denoise(*args, **named)

    made.parts.policy.denoiser.denoise = watched
    made.round()
    assert at_work.count("scoring") == 2 + 3
    assert set(at_work) == {"scoring", "torch.float32"}
    first, last = at_work.index("torch.float32"), len(at_work) - at_work[::-1].index("scoring")
    assert at_work[first:last] == 3 * [*STEPS * ["torch.float32"], "scoring"]


def test_metadata_of_the_prompts_file_reach_the_reward(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "{prompt}", "count": {i}}}\n' for i, prompt in enumerate(PROMPTS)))

    def counts(images, prompts, metadata):
        """Return a number that tells which prompt and metadata came together."""
        assert [entry["count"] for entry in metadata] == [PROMPTS.index(prompt) for prompt in prompts]
        return [float(entry["count"]) for entry in metadata]

    config = tiny_config(tmp_path, prompts=str(file))
    found = Trainer(config, model=lcm_pipeline(), rewards=[counts]).round()
    assert found["rewards/counts"] == pytest.approx(1.0)  # six images, two of each prompt
