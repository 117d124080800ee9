"""The start-up check of a table: what it catches, and that it leaves the scheduler alone."""

import math
from dataclasses import replace

import pytest
import torch
from sampler_matrix import SAMPLERS, sampler

from rlcm.errors import SamplerError
from rlcm.policy.samplers import check_replay, replay_error


def test_replay_catches_a_wrong_table():
    _, _, num_steps, settings = SAMPLERS["lcm-2"]
    table, scheduler = sampler("lcm-2")
    wrong = replace(table, std=table.std * 1.001)
    assert 5e-5 < replay_error(wrong, scheduler, num_steps, **settings) < 2e-3
    with pytest.raises(SamplerError, match=r"\d\.\d\de-05 \(relative\), more than the accepted 1e-05"):
        check_replay(wrong, scheduler, num_steps, **settings)
    with pytest.raises(SamplerError, match="nan"):
        check_replay(replace(table, ax=table.ax * math.nan), scheduler, num_steps, **settings)
    with pytest.raises(SamplerError, match="more than the accepted"):
        check_replay(replace(table, c_in=table.c_in * 2), scheduler, num_steps, **settings)
    with pytest.raises(ValueError, match="the table has 2 steps"):
        replay_error(table, scheduler, 4)
    before = scheduler.timesteps.clone()
    replay_error(table, scheduler, num_steps)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.step_index is None
