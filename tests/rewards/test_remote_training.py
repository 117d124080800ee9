"""Runs whose reward is a real server process: what a fault costs them, and the shipped configuration of three rewards."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from reward_servers import Proxy, command_server
from tiny_runs import PROMPTS, Listener, lcm_pipeline, tiny_config

from rlcm.errors import RewardError
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.runs.serialization import load_state
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.trainer import Trainer

SHIPPED = Path(__file__).parents[2] / "configs" / "three-rewards.yaml"


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(rows):
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "reward_wait")) and "second" not in key}
        for row in rows
    ]


def remote(address, folder, on_failure="stop", rounds=4, **args):
    """Return the configuration of tiny rounds of six images, scored two at a time by a server and by this process."""
    served = {"name": address, "label": "remote", "weight": 2.0, "normalise": True, "on_failure": on_failure}
    args = {"retries": 1, "backoff": 0.01, "batch_size": 2, **args}
    return tiny_config(
        folder,
        rewards=[{**served, "args": args}, {"name": "sharpness", "weight": 0.01}],
        run={"rounds": rounds, "save_every": 0},
    )


def trainer(config, watcher=None):
    return Trainer(config, model=lcm_pipeline(), prompts=PROMPTS, watcher=watcher)


def test_a_server_killed_within_a_run_costs_the_round_and_nothing_else(tmp_path):
    with command_server("colourfulness") as server:
        config = remote(server.url, tmp_path / "straight")
        straight = trainer(config).train()
        config = remote(server.url, tmp_path / "halted")
        with pytest.raises(RewardError, match=r"reward remote: .*gave up after 2 attempts"):
            trainer(config, Listener(at=2, call=server.stop)).train()
        halted = tmp_path / "halted/run"
        assert newest_checkpoint(halted)[0].round == 2, "saved, though the configuration asks for no checkpoints"
        assert len(rows_of(halted)) == 2
    with command_server("colourfulness", port=server.port):
        Trainer.resume(halted, model=lcm_pipeline(), prompts=PROMPTS).train()
    assert without_times(rows_of(halted)) == without_times(rows_of(straight)), "as if the server had never been away"
    assert all("rewards/remote" in row and "rewards/sharpness" in row for row in rows_of(halted))


@pytest.fixture(scope="module")
def server():
    with command_server("colourfulness") as found:
        yield found


@pytest.fixture
def proxied(server):
    proxy = Proxy(server.url)
    yield proxy
    proxy.close()


FAULTS = ["error", "malformed", "short", "nan", "truncated", "reset"]


def test_faults_that_pass_do_not_show_in_a_run(proxied, tmp_path):
    rows = []
    for folder, faults in (("well", []), ("ill", [entry for fault in FAULTS for entry in (fault, None)])):
        made = trainer(remote(proxied.url, tmp_path / folder))
        proxied.faults = faults
        rows.append([made.round(), made.round()])
    assert not proxied.faults, "two rounds of three requests, each of which failed once"
    assert without_times(rows[0]) == without_times(rows[1])


def test_skipped_images_are_counted_and_the_run_goes_on(proxied, tmp_path):
    made = trainer(remote(proxied.url, tmp_path, "skip", rounds=8, retries=0))
    rows = [made.round()]
    for fault in FAULTS:
        proxied.faults = [None, fault]
        rows.append(made.round())
    assert [row["dropped_images"] for row in rows] == [0] + [2] * len(FAULTS)
    assert all(row["rewards/remote"] > 1 for row in rows), "means over four values, none of them a silent zero"
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["skipped_updates"] == 0 for row in rows)


def shipped(address, folder):
    """Return the shipped configuration, three rounds long, with the server where it is."""
    config = load_config(SHIPPED)
    rewards = [r.model_copy(update={"name": address}) if r.name.startswith("http") else r for r in config.rewards]
    changes = {
        "name": "run",
        "output": str(folder),
        "rewards": rewards,
        "rollout": config.rollout.model_copy(update={"batch_size": 16, "sample_batch_size": 8}),
        "evaluation": config.evaluation.model_copy(update={"images": 4}),
        "run": config.run.model_copy(update={"rounds": 3, "tracker": "none", "save_every": 1, "keep_last": 9}),
    }
    return TrainConfig.model_validate(config.model_copy(update=changes).model_dump())


def test_the_shipped_configuration_of_three_rewards_trains_the_built_in_model(tmp_path):
    serve, train = re.findall(r"(?m)^# +(rlcm (?:rewards serve|train configs).*)$", SHIPPED.read_text(encoding="utf-8"))
    words = shlex.split(serve)
    assert train.startswith("rlcm train configs/three-rewards.yaml")
    assert f"http://127.0.0.1:{words[words.index('--port') + 1]}" in [r.name for r in load_config(SHIPPED).rewards]
    with command_server(words[words.index("--rewards") + 1]) as server:
        made = Trainer(shipped(server.url, tmp_path))
        before = [p.detach().clone() for p in made.parts.policy.parameters]
        run = made.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, made.parts.policy.parameters, strict=True))
    labels = [reward.label for reward in made.config.rewards]
    assert len(labels) == 3
    for row in rows_of(run):
        # The mix is linear in the raw values, so its mean is the mix of their means, by the statistics saved after the round.
        saved = load_state(run / f"checkpoint-{row['round']:06d}" / "state.safetensors")
        state = saved["rewards"]["training"]
        parts = [
            part.weight
            * (row[f"rewards/{part.label}"] - state[part.label]["mean"])
            / (math.sqrt(state[part.label]["variance"]) + 1e-8)
            for part in made.parts.rewards.parts
        ]
        assert row["reward"] == pytest.approx(sum(parts), abs=1e-3)
        assert 0 < row["rewards/colourfulness"] < 200
        assert -10 < row["rewards/jpeg_compressibility"] < -1
        assert -1 < row["rewards/alignment"] < 1
    looks = json.loads((run / "eval.json").read_text())["evaluations"]
    assert looks[0]["reward"]["mean"] == pytest.approx(0, abs=1e-4), "normalised rewards begin at 0"
    assert set(looks[0]["rewards"]) == set(labels)
