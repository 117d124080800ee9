"""Each flow-matching model as two processes train it, with its frozen weights shared out: its run is that of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_distributed import largest, on_processes
from tiny_flow import ernie, klein, krea, qwen_image, sd3, stochastic, z_image
from tiny_pipelines import flux
from tiny_runs import PROMPTS, brightness, tiny_config

from rlcm.training.trainer import Trainer

FAMILIES = {
    "z_image": (z_image, 0.0),
    "klein": (klein, None),
    "sd3": (sd3, 1.0),
    "qwen_image": (qwen_image, None),
    "krea": (krea, 0.0),
    "ernie": (ernie, 1.0),
    "flux": (flux, None),
}


def _every_family(folder: Path) -> dict:
    """Train each for a round, go on from its checkpoint for another, and return the adapters, what was held, and the evaluations."""
    found = {}
    for name, (make, guidance) in FAMILIES.items():
        config = tiny_config(
            folder / "runs",
            name=name,
            sampler={"steps": 3, "guidance": guidance},
            # eps far above the gradients: Adam's first steps are the sign of a gradient, rounding included, where it is tiny.
            optimizer={"lr": 1e-3, "eps": 1e-4},
            rollout={"batch_size": 3},
            evaluation={"every": 1},
            model={"height": 16, "width": 16},
            run={"rounds": 1, "sharding": "fsdp2", "micro_batch_size": 2},
        )
        objects = {"rewards": [brightness], "prompts": PROMPTS}
        Trainer(config, model=make(stochastic(shift=3.0)), **objects).train()
        path = folder / "runs" / name
        made = Trainer.resume(path, ["run.rounds=2"], model=make(stochastic(shift=3.0)), **objects)
        begun_at = made.round_number
        made.train()
        weights = [getattr(p, "to_local", lambda p=p: p)().numel() for p in made.parts.policy.denoiser.module.parameters()]
        found[name] = {
            "begun at": begun_at,
            "frozen": sum(weights) - sum(p.numel() for p in made.parts.policy.parameters),
            "adapter": dict(made.parts.policy.named_parameters),
            "evaluations": [look["reward"]["mean"] for look in made.evaluations],
        }
    return found


@pytest.mark.slow
def test_every_flow_matching_model_shares_its_weights_out_and_goes_on_from_a_checkpoint(tmp_path):
    single = _every_family(tmp_path / "single")
    for state in on_processes(_every_family, tmp_path):
        assert state.keys() == FAMILIES.keys()
        for name, of_two in state.items():
            of_one = single[name]
            assert of_two["begun at"] == of_one["begun at"] == 1
            assert of_two["frozen"] < 0.6 * of_one["frozen"]
            assert largest(of_two["adapter"], of_one["adapter"]) < 1e-5
            assert max(float(p.detach().abs().max()) for key, p in of_one["adapter"].items() if "lora_B" in key) > 1e-4
            assert of_two["evaluations"] == pytest.approx(of_one["evaluations"], abs=1e-6)
            assert len(of_one["evaluations"]) == 3
