"""Rewards that ask a vision-language model, by an OpenAI-compatible endpoint (vLLM, SGLang, hosted) or a local model."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from rlcm.errors import MissingFileError
from rlcm.rewards.image.pixels import to_png, to_uint8
from rlcm.rewards.learned.bertscore import ENCODER, ENCODER_LAYER, BertRecall
from rlcm.rewards.learned.clip import Lazy, Network
from rlcm.rewards.learned.hub import Source
from rlcm.rewards.served.http import Servers, ask_each, open_client, post_patiently
from rlcm.rewards.served.wire import JSON, WireError
from rlcm.rewards.settings import OnFailure
from rlcm.settings import Settings

logger = logging.getLogger(__name__)

WORDS = ("yes", "no")
VLM_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


@dataclass(slots=True)
class Answer:
    """What a model said about one picture."""

    text: str
    probabilities: dict[str, float] = field(default_factory=dict)
    """Of the first token, by the token in lower case without spaces; only those that were reported."""


class Vlm(Protocol):
    """Answers one question about each picture; None where no answer could be had and that is allowed."""

    def __call__(self, images: Tensor, questions: Sequence[str], /) -> list[Answer | None]: ...


class VlmSettings(Settings):
    """Which vision-language model is asked, and how: the arguments that all rewards of this module take."""

    model: str = Field(min_length=1)
    """The model's name at the endpoint; without an endpoint a local folder or a Hub repository."""
    endpoint: str | None = Field(default=None, pattern="^https?://")
    """http://host:port/v1 of an OpenAI-compatible server; left out, the model runs in this process."""
    revision: str | None = None
    """The commit, if the model comes from the Hub."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest answer."""
    parallel: int = Field(default=8, ge=1)
    """Requests under way at the same time at an endpoint."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds that one request may take."""
    retries: int = Field(default=6, ge=0)
    """Attempts after the first, of one request."""
    backoff: float = Field(default=0.5, ge=0)
    """Seconds of the first pause between attempts; each further one is twice as long, up to 30 s."""
    key_env: str = "RLCM_VLM_KEY"
    """The environment variable with the endpoint's bearer token, if it wants one."""
    request: dict[str, Any] = Field(default_factory=dict)
    """More fields of a request to an endpoint, such as {"seed": 1}."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures that go through a local model at once."""
    dtype: str = Field(default="bfloat16", pattern="^(float32|float16|bfloat16)$")
    """Of a local model."""
    device: str = "auto"
    """Of a local model; "auto" is a GPU if there is one."""


class EndpointVlm:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        settings: with an endpoint.
        on_failure: "skip" answers None for pictures whose request failed for good, instead of raising.
    """

    def __init__(self, settings: VlmSettings, on_failure: OnFailure) -> None:
        self.settings, self.on_failure = settings, on_failure
        self.servers = Servers([str(settings.endpoint).rstrip("/")], breaker_failures=3, breaker_seconds=30)
        self._client = open_client(os.environ.get(settings.key_env), settings.parallel)
        self._pool = ThreadPoolExecutor(settings.parallel, thread_name_prefix="vlm")

    def __call__(self, images: Tensor, questions: Sequence[str], /) -> list[Answer | None]:
        """Return one answer a picture.

        Raises:
            RewardError: if a request failed for good and `on_failure` is "stop", or if all failed.
        """

        def ask(request: tuple[Any, str]) -> Answer:
            return self._ask(*request)

        requests = list(zip(to_uint8(images), questions, strict=True))
        found = ask_each(self._pool, self.servers, ask, requests, self.on_failure)
        return [answer if isinstance(answer, Answer) else None for answer in found]

    def _ask(self, picture: Any, question: str) -> Answer:
        url = "data:image/png;base64," + base64.b64encode(to_png(picture)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.settings.max_tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
            **self.settings.request,
        }
        return post_patiently(
            self._client,
            self.servers,
            "/chat/completions",
            json.dumps(body).encode(),
            JSON,
            read_completion,
            timeout=self.settings.timeout,
            retries=self.settings.retries,
            backoff=self.settings.backoff,
        )


def read_completion(body: bytes) -> Answer:
    """Return the answer in the body of a chat completion.

    Raises:
        WireError: if it is not one.
    """
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
        logprobs = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
        pairs = [(str(entry["token"]), math.exp(min(0.0, float(entry["logprob"])))) for entry in logprobs]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"the answer is no chat completion ({type(error).__name__}: {error}): {body[:80]!r}") from error
    if not isinstance(text, str):
        raise WireError(f"the answer has no text: {body[:80]!r}")
    return Answer(text, _by_word(pairs))


class LocalVlm:
    """A transformers model that takes images and text, such as LLaVA or Qwen-VL; answers greedily.

    Args:
        source: its folder or Hub repository.
        settings: what else is to be known.

    Raises:
        MissingFileError: if there is no such model.
    """

    def __init__(self, source: Source, settings: VlmSettings) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        path = source.fetch()
        try:
            self.processor = AutoProcessor.from_pretrained(path)
            self.model = AutoModelForImageTextToText.from_pretrained(path).requires_grad_(False).eval()
        except (OSError, ValueError, KeyError) as error:
            raise MissingFileError(f"{path} holds no vision-language model in transformers format ({error}).") from error
        self.processor.tokenizer.padding_side = "left"
        self.max_tokens, self.network = settings.max_tokens, Network(settings.batch_size, settings.dtype, settings.device)
        self.model.to(self.network.torch_device, self.network.torch_dtype)
        self._ids = {word: self._single_tokens(word) for word in WORDS}

    def __call__(self, images: Tensor, questions: Sequence[str], /) -> list[Answer | None]:
        """Return one answer a picture."""
        pictures = [Image.fromarray(level) for level in to_uint8(images)]
        answers: list[Answer | None] = []
        for start in range(0, len(pictures), self.network.batch_size):
            part = slice(start, start + self.network.batch_size)
            answers += self._answer(pictures[part], questions[part])
        return answers

    @torch.no_grad()
    def _answer(self, pictures: list[Image.Image], questions: Sequence[str]) -> list[Answer]:
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}] for question in questions
        ]
        texts = [self.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        inputs = self.processor(images=[[picture] for picture in pictures], text=texts, padding=True, return_tensors="pt")
        inputs = inputs.to(self.network.torch_device, self.network.torch_dtype)
        found = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=self.max_tokens, output_logits=True, return_dict_in_generate=True
        )
        said = self.processor.batch_decode(found.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        first = found.logits[0].float().softmax(-1)
        return [
            Answer(text.strip(), {word: float(row[ids].sum()) for word, ids in self._ids.items()})
            for text, row in zip(said, first, strict=True)
        ]

    def _single_tokens(self, word: str) -> list[int]:
        spellings = [space + form for form in (word, word.capitalize(), word.upper()) for space in ("", " ")]
        tokenizer = self.processor.tokenizer
        tokens = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
        # Read back, because a spelling outside the vocabulary may be a single token too: that of unknown words.
        return sorted({ids[0] for ids in tokens if len(ids) == 1 and tokenizer.decode(ids).strip().lower() == word})


def make_vlm(settings: VlmSettings, on_failure: OnFailure) -> tuple[Callable[[], Vlm], list[Source]]:
    """Return what makes the model when it is first needed, and what it needs on disk.

    Raises:
        ValueError: if a model of the Hub is not pinned.
    """
    if settings.endpoint is not None:
        return Lazy(lambda: EndpointVlm(settings, on_failure)), []
    Network(settings.batch_size, settings.dtype, settings.device)
    source = Source(settings.model, settings.revision, VLM_FILES)
    return Lazy(lambda: LocalVlm(source, settings)), [source]


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


def _by_word(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, probability in pairs:
        word = token.strip().lower()
        found[word] = found.get(word, 0.0) + probability
    return found
