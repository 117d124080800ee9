"""The reward `taste`: how much the voters of a file of votes would like a picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlcm.errors import ConfigError
from rlcm.paths import local
from rlcm.rewards.image.pixels import from_uint8, read_picture
from rlcm.rewards.learned.clip import Lazy, Network
from rlcm.rewards.learned.hub import Source
from rlcm.rewards.taste.features import BUILTIN, Encoder
from rlcm.rewards.taste.preference import Ballot, Preference
from rlcm.rewards.taste.votes import Vote, read_votes
from rlcm.runs import digests

logger = logging.getLogger(__name__)
FEWEST = 2
"""Votes, from which on there is something to learn."""


class Taste:
    """How much the voters would like a picture: its score above that of nothing at all, in nats, by a Bradley-Terry-Luce model.

    A picture with a score of 1 more than another is preferred to it 2.7 times as often. The model is fitted to the votes on frozen
    features when the reward is first asked; see `rlcm.rewards.taste.preference` for the equation. Differentiable.

    Args:
        votes: a file of votes, or several, whose votes add up; see `rlcm.rewards.taste.votes` for the format.
        model: of the features: `builtin`, or folder or Hub repository of a vision transformer (CLIP, SigLIP, DINOv2, ViT).
        revision: the repository's commit.
        batch_size: images that go through the network at once.
        dtype: of the network: float32, float16 or bfloat16.
        device: of the network; "auto" is a GPU if there is one.

    Raises:
        MissingFileError: if a file of votes is not there.
        ConfigError: if one cannot be read, or there are too few votes whose pictures are there.
    """

    differentiable = True
    """Gradients flow through it."""
    places = ("votes", "model")
    """Arguments that may name a local file or folder."""
    growing = ("votes",)
    """Arguments that name files that are only ever appended to: a run may go on with more in them."""
    display: Mapping[str, str] = {"label": "taste", "unit": "nats", "better": "higher"}

    def __init__(
        self,
        *,
        votes: str | list[str],
        model: str = BUILTIN,
        revision: str | None = None,
        batch_size: int = 64,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        network = Network(batch_size, dtype, device)
        source = None if model == BUILTIN else Source(model, revision)
        self.sources = [source] if source else []
        files = [votes] if isinstance(votes, str) else votes
        self.votes = with_pictures(read_votes(*(local(file, "rewards.taste.args.votes") for file in files)))
        if len(self.votes) < FEWEST:
            raise ConfigError(
                f"votes={votes!r} has {len(self.votes)} votes whose pictures are there; to learn a taste takes {FEWEST} or more."
            )
        self._encoder = Lazy(lambda: Encoder(source, network))
        self._preference = Lazy(self._learn)

    def _learn(self) -> Preference:
        encoder = self._encoder()
        return Preference(ballots(self.votes, encoder), encoder.groups)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] in [0, 1]; the prompts do not matter. Carries grad."""
        preference = self._preference()
        return preference.scores(self._encoder()(images))


def with_pictures(votes: Sequence[Vote]) -> list[Vote]:
    """Return the votes whose pictures are all there as they were shown, and say how many are left out."""
    shown = {picture: _is_as_shown(picture) for vote in votes for picture in vote.pictures}
    there = [vote for vote in votes if all(shown[picture] for picture in vote.pictures)]
    if len(there) < len(votes):
        logger.warning(
            "%d of %d votes are left out: pictures of theirs are not there, or are others than were voted on.",
            len(votes) - len(there), len(votes),
        )  # fmt: skip
    return there


def _is_as_shown(picture: Path) -> bool:
    """Return whether a picture is there, and holds what its name says where that is a digest."""
    if not picture.is_file():
        return False
    return not digests.is_one(picture.stem) or digests.of_file(picture) == picture.stem


@torch.no_grad()
def ballots(votes: Sequence[Vote], encoder: Encoder) -> list[Ballot]:
    """Return votes as the model sees them; a picture that is in several is looked at once.

    Raises:
        UsageError: if a file is no picture that can be read.
    """
    known: dict[Path, Tensor] = {}
    for picture in dict.fromkeys(picture for vote in votes for picture in vote.pictures):
        known[picture] = encoder(from_uint8(read_picture(picture)[None]))[0].cpu()
    return [Ballot(torch.stack([known[picture] for picture in vote.pictures]), vote.chosen) for vote in votes]
