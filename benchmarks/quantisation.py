"""Frozen weights in 8 and 4 bits: what they save by the estimate, and what the built-in model learns under them on a CPU.

    python benchmarks/quantisation.py [--rounds 20]

Memory: models of published sizes without their weights, in bf16, with gradient checkpointing, the text encoders offloaded, VAE
slicing on, in the batches of `full_size.py`. Learning: configs/builtin.yaml with 64 images a round in fp32, three seeds. Needs
`rlcm[quant]`. Writes benchmarks/results/quantisation.json, for docs/performance.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS
from benchmarks.sizes.counting import on_meta
from benchmarks.sizes.shapes import SHAPES
from rlcm import Trainer, load_config
from rlcm.pipelines import ModelSettings, estimate
from rlcm.pipelines.quantisation import entries, linear_layers, stored_bytes
from rlcm.policy.policy import AdapterSettings, Policy

KINDS = ("none", "int8", "nf4")
MODELS = ("sd15", "sdxl", "sana-1.6b", "flux")
GIB = 2**30


def memory(name: str) -> dict[str, Any]:
    """Return the share of a network's weights in linear layers, and by quantisation its bytes and a run's peak in GiB."""
    shape, found = SHAPES[name], {}
    for kind in KINDS:
        model = ModelSettings.model_validate({"offload_text_encoders": True, "quantisation": kind})
        pipeline, denoiser = on_meta(shape, shape.sampler, model, torch.bfloat16)
        network = denoiser.module
        stored = sum(stored_bytes(p) for p in network.parameters())
        if kind == "none":
            found["linear"] = sum(layer.weight.numel() for layer in linear_layers(network).values()) / sum(
                entries(p) for p in network.parameters()
            )
        Policy(denoiser, AdapterSettings())
        whole = estimate(denoiser, shape.batch, shape.micro_batch, training=True).total
        network.enable_gradient_checkpointing()
        pipeline.vae.enable_slicing()
        peak = estimate(denoiser, shape.batch, shape.micro_batch, training=True).total
        found[kind] = {"network": stored / GIB, "peak": peak / GIB, "peak_without_checkpointing": whole / GIB}
    return found


def learning(kind: str, seed: int, rounds: int) -> list[float]:
    """Return the reward of every round."""
    changes = [f"seed={seed}", f"model.quantisation={kind}", "model.device=cpu", "rollout.batch_size=64", "evaluation.images=2"]
    changes += ["rewards=[jpeg_compressibility]", "prompts=world-objects"]
    with TemporaryDirectory() as folder:
        trainer = Trainer(load_config(None, [*changes, f"output={folder}"]))
        return [trainer.round()["reward"] for _ in range(rounds)]


def main() -> None:
    """Estimate, train and write the results."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=20)
    rounds = options.parse_args().rounds
    found: dict[str, Any] = {"torch": torch.__version__, "memory_gib": {name: memory(name) for name in MODELS}}
    found["reward_by_seed"] = {kind: [learning(kind, seed, rounds) for seed in (0, 1, 2)] for kind in KINDS}
    results.write(RESULTS / "quantisation.json", results.rounded(found))


if __name__ == "__main__":
    main()
