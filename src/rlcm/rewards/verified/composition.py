"""Composition: the right objects, as many as asked, in the right colours and places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import ConfigError
from rlcm.rewards.learned.clip import Lazy, Network
from rlcm.rewards.learned.hub import Source
from rlcm.rewards.learned.published import CLIP_L, choose, crop, fetch_clip
from rlcm.rewards.verified.asked import Asked, asked_of
from rlcm.rewards.verified.colours import COLOURS, ClipColours
from rlcm.rewards.verified.detectors import ALIASES, Detector, Finds, load_detector, vocabulary
from rlcm.rewards.verified.verdict import Found, Verdict, judge, without_doubles
from rlcm.rewards.verified.world import WorldChecker

_STRICT, _WORDS = (0.3, 0.9, 1.0), (0.3, 0.3, 0.5)
"""Confidence, confidence for counting, and overlap: GenEval's for detectors of fixed classes; ours for those that look for words."""


class Composition:
    """Whether the picture shows what was asked, 0 or 1: objects, counts, colours and positions, by an object detector.

    The rules are those of GenEval (Ghosh et al. 2023, arXiv:2310.11513), and so is the metadata that every prompt needs; its
    own file of prompts can be used as it is. The detector is another than GenEval's, so the figures are not GenEval's.

    Without a `model` the detector is the built-in one. It knows the built-in model's world and nothing else, and prompts of that
    world need no metadata.

    Args:
        model: folder or Hub repository of the detector: of the DETR family, OWLv2 or Grounding DINO; left out, the built-in one.
        revision: the repository's commit.
        graded: give the share of the demands that are met, 0 to 1, in place of 0 for every picture that is not all right; with the
            built-in detector the geometric mean of the demands' probabilities, which is differentiable.
        threshold: confidence from which on an object counts; left out, 0.3.
        counting_threshold: the same for prompts tagged `counting`; left out, 0.9, and 0.3 for detectors that look for words.
        max_overlap: two boxes of a class that overlap by more are one object, 0 to 1; left out, 1 (all are kept), and 0.5 for
            detectors that look for words.
        colours: the colours to tell apart; asked ones are added.
        clip: folder or Hub repository of the CLIP that names colours; left out, OpenAI's ViT-L/14.
        clip_revision: its commit.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        revision: str | None = None,
        graded: bool = False,
        threshold: float | None = None,
        counting_threshold: float | None = None,
        max_overlap: float | None = None,
        colours: Sequence[str] = COLOURS,
        clip: str | None = None,
        clip_revision: str | None = None,
        batch_size: int = 16,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        given = {"threshold": threshold, "counting_threshold": counting_threshold, "max_overlap": max_overlap}
        for name, value in given.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} is not between 0 and 1.")
        self.network, self.graded, self.colours = Network(batch_size, dtype, device), graded, tuple(colours)
        self.world = WorldChecker() if model is None else None
        self.differentiable = graded and model is None
        label = "demands met" if graded else "right pictures"
        self.display: Mapping[str, str] = {"label": label, "better": "higher", "question": "right"}
        if model is None:
            needless = {**given, "revision": revision, "clip": clip, "clip_revision": clip_revision}
            if told := [f"{name}={needless[name]}" for name in needless if needless[name] is not None]:
                raise ValueError(f"{', '.join(told)}: for a detector that `model` names; the built-in one has its own rules.")
            self.sources: list[Source] = []
            return
        self.source, encoder = Source(model, revision), choose(clip, clip_revision, CLIP_L)
        self.sources = [self.source, encoder]
        self._limits = (threshold, counting_threshold, max_overlap)
        self._detector: Lazy[Detector] = Lazy(lambda: load_detector(self.source.fetch(), self.network))
        self._encoder = Lazy(lambda: fetch_clip(encoder, encoder, crop, self.network))

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing if the detector can judge pictures of all prompts.

        Raises:
            ConfigError: if a prompt does not say what it asks for, or asks for a class that the detector does not know.
            MissingFileError: if there is no such detector.
        """
        if self.world:
            self.world.asked(prompts, metadata)
            return
        asked = {prompt: asked_of(prompt, entry) for prompt, entry in zip(prompts, metadata, strict=True)}
        self._check_classes(asked, vocabulary(self.source.fetch()))

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] in [0, 1] for B prompts and what they ask for."""
        if self.world and self.graded:
            return self.world.graded(images, self.world.asked(prompts, metadata))
        verdicts = self.verdicts(images, prompts, metadata)
        return torch.tensor([verdict.share if self.graded else float(verdict.right) for verdict in verdicts])

    def verdicts(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Return for each of B images what is right and wrong with it. Arguments as of the call, errors as `check_prompts`."""
        if self.world:
            return self.world.verdicts(images, self.world.asked(prompts, metadata))
        asked = [asked_of(prompt, entry) for prompt, entry in zip(prompts, metadata, strict=True)]
        detector = self._detector()
        self._check_classes(dict(zip(prompts, asked, strict=True)), detector.vocabulary)
        finds = detector(images, [[self._known(name, detector.vocabulary) for name in one.classes] for one in asked])
        return [
            self._verdict(image, one, find) for image, one, find in zip(images, asked, self._kept(asked, finds), strict=True)
        ]

    def _kept(self, asked: Sequence[Asked], finds: Finds) -> Finds:
        """Return the objects that are confident enough, under the names that were asked for."""
        known = self._detector().vocabulary
        usual = _WORDS if known is None else _STRICT
        threshold, counting, overlap = (own if given is None else given for given, own in zip(self._limits, usual, strict=True))
        kept: Finds = []
        for one, find in zip(asked, finds, strict=True):
            least = counting if one.counting else threshold
            names = {name: find[self._known(name, known)] for name in one.classes}
            kept.append({n: without_doubles([f for f in found if f.score > least], overlap) for n, found in names.items()})
        return kept

    def _verdict(self, image: Tensor, asked: Asked, found: dict[str, list[Found]]) -> Verdict:
        def colours_of(name: str, objects: Sequence[Found]) -> list[str]:
            wanted = [group.colour for group in asked.wanted if group.colour]
            return ClipColours(self._encoder(), list(dict.fromkeys([*self.colours, *wanted])))(image, name, objects)

        return judge(asked, found, colours_of)

    def _check_classes(self, asked: Mapping[str, Asked], known: frozenset[str] | None) -> None:
        if known is None:
            return
        for prompt, one in asked.items():
            for name in one.classes:
                if self._known(name, known) not in known:
                    raise ConfigError(
                        f"the prompt {prompt!r} asks for {name!r}, which the detector {self.source.place} does not know; it knows "
                        f"{', '.join(sorted(known)[:20])}{' ...' if len(known) > 20 else ''}. Change the prompt's metadata, or use a "
                        "detector that looks for words, such as OWLv2 or Grounding DINO."
                    )

    @staticmethod
    def _known(name: str, known: frozenset[str] | None) -> str:
        """Return the detector's word for a class."""
        return ALIASES[name] if known is not None and name not in known and name in ALIASES else name
