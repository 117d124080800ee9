"""What is asked about a picture, and the reward that its answer is."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.rewards.learned.bertscore import ENCODER, ENCODER_LAYER, BertRecall
from rlcm.rewards.learned.clip import Lazy, Network
from rlcm.rewards.learned.hub import Source
from rlcm.rewards.settings import OnFailure
from rlcm.rewards.vlm.answers import WORDS, Answer
from rlcm.rewards.vlm.build import make_vlm
from rlcm.rewards.vlm.settings import VlmSettings

logger = logging.getLogger(__name__)


class VlmAlignment:
    """How much of the prompt the model mentions when it describes the picture: BERTScore recall, about 0.5 to 1.

    Black et al. 2023, section 5.1 (arXiv:2305.13301), and the alignment task of RLCM; recall of `reference` in the answer.

    Args:
        question: asked about every picture; {prompt} may stand in it.
        reference: the sentence that the answer is compared with; {prompt} must stand in it.
        encoder: folder or Hub repository of BERTScore's encoder; left out, DeBERTa XL MNLI.
        encoder_revision: the repository's commit.
        layer: the encoder's layer; 40 for DeBERTa XL MNLI.
        on_failure: see `EndpointVlm`.
        **vlm: see `VlmSettings`.

    Raises:
        ValueError: if an argument is unknown or out of range.
    """

    more_arguments = VlmSettings
    """Further arguments: those of the model or its endpoint."""
    places = ("model", "encoder")
    """Arguments that may name a local file or folder."""

    def __init__(
        self,
        *,
        question: str = "Answer concisely: what is going on in this image?",
        reference: str = "The image contains {prompt}",
        encoder: str | None = None,
        encoder_revision: str | None = None,
        layer: int = ENCODER_LAYER,
        on_failure: OnFailure = "stop",
        **vlm: Any,
    ) -> None:
        settings = VlmSettings(**vlm)
        self.question = _template("question", question, required=False)
        self.reference = _template("reference", reference)
        self._vlm, sources = make_vlm(settings, on_failure)
        source = Source(encoder, encoder_revision, ENCODER.files) if encoder else ENCODER
        self.sources = [*sources, source]
        network = Network(32, "float32", settings.device)
        self._recall = Lazy(lambda: BertRecall(source.fetch(), layer, network))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the recalls [B] of prompts in the descriptions of images [B, 3, h, w]; NaN without an answer."""
        answers = self._vlm()(images, [self.question(prompt) for prompt in prompts])
        scores = torch.full((len(prompts),), math.nan)
        there = [index for index, answer in enumerate(answers) if answer is not None]
        texts = [answer.text for answer in answers if answer is not None]
        scores[there] = self._recall()([self.reference(prompts[index]) for index in there], texts)
        return scores


class VlmRating:
    """The first number in the model's answer to "rate this picture from 1 to 10".

    Args:
        question: asked about every picture; {prompt} stands for its prompt, {lowest} and {highest} for the ends of the scale.
        lowest: end of the scale.
        highest: end of the scale; answers outside are no answers.
        on_failure: see `EndpointVlm`.
        **vlm: see `VlmSettings`.

    Raises:
        ValueError: if an argument is unknown or out of range.
    """

    more_arguments = VlmSettings
    """Further arguments: those of the model or its endpoint."""
    places = ("model",)
    """Arguments that may name a local file or folder."""

    def __init__(
        self,
        *,
        question: str = "Rate from {lowest} to {highest} how well this picture shows the following: {prompt}. "
        "Answer with the number alone.",
        lowest: float = 1,
        highest: float = 10,
        on_failure: OnFailure = "stop",
        **vlm: Any,
    ) -> None:
        if not lowest < highest:
            raise ValueError(f"lowest={lowest} must be below highest={highest}.")
        question = question.replace("{lowest}", f"{lowest:g}").replace("{highest}", f"{highest:g}")
        self.question = _template("question", question)
        self.lowest, self.highest = lowest, highest
        self._vlm, self.sources = make_vlm(VlmSettings(**vlm), on_failure)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the ratings [B] of images [B, 3, h, w]; NaN where the answer holds none."""
        answers = self._vlm()(images, [self.question(prompt) for prompt in prompts])
        return torch.tensor([math.nan if answer is None else self._read(answer.text) for answer in answers])

    def _read(self, text: str) -> float:
        found = re.search(r"-?\d+(?:\.\d+)?", text)
        value = float(found[0]) if found else math.nan
        if not self.lowest <= value <= self.highest:
            logger.warning("no rating from %g to %g in the answer %r", self.lowest, self.highest, text[:200])
            return math.nan
        return value


class VlmYes:
    """The probability that the model's answer begins with yes: p(yes) / (p(yes) + p(no)) of the first token, in [0, 1].

    Args:
        question: asked about every picture; {prompt} stands for its prompt.
        on_failure: see `EndpointVlm`.
        **vlm: see `VlmSettings`; an endpoint must report `top_logprobs`.

    Raises:
        ValueError: if an argument is unknown or out of range.
    """

    more_arguments = VlmSettings
    """Further arguments: those of the model or its endpoint."""
    places = ("model",)
    """Arguments that may name a local file or folder."""

    def __init__(
        self,
        *,
        question: str = "Does this picture show the following: {prompt}? Answer yes or no.",
        on_failure: OnFailure = "stop",
        **vlm: Any,
    ) -> None:
        self.question = _template("question", question)
        self._vlm, self.sources = make_vlm(VlmSettings(**vlm), on_failure)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the probabilities [B] for images [B, 3, h, w]; NaN where neither yes nor no was among the likely tokens."""
        answers = self._vlm()(images, [self.question(prompt) for prompt in prompts])
        return torch.tensor([math.nan if answer is None else self._read(answer) for answer in answers])

    def _read(self, answer: Answer) -> float:
        yes, no = (answer.probabilities.get(word, 0.0) for word in WORDS)
        if yes + no == 0:
            logger.warning("neither yes nor no is a likely beginning of the answer %r", answer.text[:200])
            return math.nan
        return yes / (yes + no)


def _template(name: str, text: str, *, required: bool = True) -> Callable[[str], str]:
    """Return what puts a prompt into a text; not str.format, so that braces may stand in prompts and texts."""
    if required and "{prompt}" not in text:
        raise ValueError(f"{name}={text!r} must contain {{prompt}}.")
    return lambda prompt: text.replace("{prompt}", prompt)
