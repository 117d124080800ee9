"""The scorers of imscore, by one that stands for them."""

import pytest
import torch

from rlcm.rewards.learned import ImScore

CPU = {"device": "cpu"}


class Scorer(torch.nn.Module):
    """Stands for imscore's classes: from_pretrained and score, which may answer [B, 1]."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    @classmethod
    def from_pretrained(cls, path):
        return cls()

    def score(self, pixels, prompts):
        assert len(pixels) == len(prompts)
        return self.weight * pixels.mean((1, 2, 3))[:, None]


def test_imscore(tmp_path, images, prompts, monkeypatch):
    reward = ImScore(scorer=f"{__name__}:Scorer", model=str(tmp_path), batch_size=2, **CPU)
    torch.testing.assert_close(reward(images, prompts), 2 * images.mean((1, 2, 3)))
    with pytest.raises(ValueError, match="ImageReward"):
        ImScore(scorer="ImageRewrad")
