"""A vision-language model in this process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from rlcm.errors import MissingFileError
from rlcm.rewards.image.pixels import to_uint8
from rlcm.rewards.learned.clip import Network
from rlcm.rewards.learned.hub import Source
from rlcm.rewards.vlm.answers import WORDS, Answer
from rlcm.rewards.vlm.settings import VlmSettings
from rlcm.runs.weights import load_whole


class LocalVlm:
    """A transformers model that takes images and text, such as LLaVA or Qwen-VL; answers greedily.

    Args:
        source: its folder or Hub repository.
        settings: what else is to be known.

    Raises:
        MissingFileError: if there is no such model.
        WeightsError: if weights are damaged or missing.
    """

    def __init__(self, source: Source, settings: VlmSettings) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        path = source.fetch()
        try:
            self.processor = AutoProcessor.from_pretrained(path)
            self.model = load_whole(AutoModelForImageTextToText, path).requires_grad_(False).eval()
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
