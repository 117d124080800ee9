"""The figures of the recipe: how many pictures, how long each stage learns, and from which seed."""

from __future__ import annotations

from rlcm.distillation.fit import Fit

PICTURES = 30_000
STAGES: dict[str, Fit] = {
    "autoencoder": Fit(2000, muon_lr=0.02),
    "clip": Fit(500, lr=1e-3, muon_lr=0.01),
    "teacher": Fit(2000, lr=1e-3, muon_lr=0.01),
    "student": Fit(1000, lr=3e-4, warmup=50, ema=0.99),
    "judge": Fit(1200),
}
"""In this order; each uses the ones before it."""
SEEDS = {"autoencoder": 11, "clip": 13, "teacher": 14, "student": 15, "judge": 12}
