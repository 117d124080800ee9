"""Rewards learned from people's judgements, on transformers models: aesthetics, CLIPScore, PickScore, HPS v2.1, imscore.

Weights come from a local folder or a pinned revision of the Hub, are loaded at the first call, and stay frozen. Images of
any size are resized and normalised as the originals do, but differentiably, so without rounding to 256 levels in between.

All take `batch_size` (images that go through the network at once), `dtype` (float32, float16 or bfloat16) and `device`
("auto" is a GPU if there is one).
"""

from __future__ import annotations

from rlcm.rewards.learned.aesthetic import Aesthetic
from rlcm.rewards.learned.clipscore import ClipScore
from rlcm.rewards.learned.hps import HumanPreference
from rlcm.rewards.learned.imscore import ImScore
from rlcm.rewards.learned.pickscore import PickScore

__all__ = ["Aesthetic", "ClipScore", "HumanPreference", "ImScore", "PickScore"]
