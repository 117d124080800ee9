"""Several rewards as one: every answer is checked, normalised if wished, weighted and summed.

    R_i = sum over rewards k of  w_k * sum over components c of  n_kc(r_kc(image_i, prompt_i))

with n the identity, or the running normalisation of `RunningNorm`.
"""

from __future__ import annotations

from rlcm.rewards.composition.mix import RewardMix
from rlcm.rewards.composition.normalising import RunningNorm
from rlcm.rewards.composition.scores import RawScores, RewardPart, Scores

__all__ = ["RawScores", "RewardMix", "RewardPart", "RunningNorm", "Scores"]
