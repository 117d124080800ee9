"""The figures of the recipe: how long each stage learns, how fast, and from which seed."""

from __future__ import annotations

from rlcm.distillation.fit import Fit

PICTURES = 30_000
"""Pictures whose latents the generators learn from."""
TRAJECTORIES = 4_000
STAGES: dict[str, Fit] = {
    "autoencoder": Fit(1400, muon_lr=0.02),
    "detector": Fit(700, muon_lr=0.02),
    "judge": Fit(700, muon_lr=0.01),
    "teacher": Fit(3000, lr=1e-3, muon_lr=0.01),
    "student": Fit(800, lr=5e-4, muon_lr=0.003, ema=0.99),
    "detector_hard": Fit(300, lr=1e-3, muon_lr=0.008, ema=0.99),
    "judge_hard": Fit(300, lr=1e-3, muon_lr=0.004, ema=0.99),
    "clip": Fit(600, lr=1e-3, muon_lr=0.01),
}
"""In this order; each uses the ones before it."""
BATCH = {
    "autoencoder": 16,
    "detector": 64,
    "judge": 64,
    "teacher": 64,
    "trajectories": 100,
    "student": 64,
    "detector_hard": 64,
    "judge_hard": 64,
    "clip": 96,
}
"""Pictures an update."""
PACK = "pack"
"""The last stage, which learns nothing: it writes all parts as the package holds them."""
SEEDS = {
    "autoencoder": 21,
    "detector": 22,
    "judge": 23,
    "teacher": 24,
    "student": 25,
    "detector_hard": 26,
    "judge_hard": 27,
    "clip": 28,
}
