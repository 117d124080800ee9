"""The figures of the recipe: how long each stage learns, how fast, and from which seed."""

from __future__ import annotations

from rlcm.distillation.fit import Fit

STAGES: dict[str, Fit] = {
    "autoencoder": Fit(3000, muon_lr=0.02),
    "detector": Fit(1200, muon_lr=0.02),
    "judge": Fit(1200, muon_lr=0.01),
}
"""In this order; each uses the ones before it."""
SEEDS = {"autoencoder": 21, "detector": 22, "judge": 23}
