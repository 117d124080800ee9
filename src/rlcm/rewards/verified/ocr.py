"""Words in the picture: what stands in quotes in the prompt, against what can be read."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import ConfigError
from rlcm.extras import to_install
from rlcm.rewards.image.pixels import to_uint8
from rlcm.rewards.learned.clip import Lazy

_QUOTED = re.compile('"([^"]+)"|\u201c([^\u201d]+)\u201d|\u201e([^\u201c]+)\u201c|\u00ab([^\u00bb]+)\u00bb')


def quoted(prompt: str) -> str:
    """Return what stands in double quotes in a prompt, several places joined by spaces; empty if there is none."""
    return " ".join(filter(None, (next(filter(None, groups), "").strip() for groups in _QUOTED.findall(prompt))))


class Ocr:
    """How well the words in quotes in the prompt can be read in the picture, 0 to 1.

        1 - d(read, asked) / max(|read|, |asked|),   d: Levenshtein's edit distance

    so letters too many cost as much as letters missing. All that is read counts, from top to bottom and left to right. Spaces
    are left out of both. Needs the packages of the extra `ocr`, which bring RapidOCR's weights with them.

    Args:
        case_sensitive: whether capital and small letters are different.
        confidence: of the reader, from which on a line of text counts, 0 to 1.

    Raises:
        ConfigError: if the packages are not installed.
    """

    display: Mapping[str, str] = {"label": "words readable", "better": "higher"}

    def __init__(self, *, case_sensitive: bool = False, confidence: float = 0.5) -> None:
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence={confidence} is not between 0 and 1.")
        self.case_sensitive, self.confidence = case_sensitive, confidence
        self._similar, self._reader = _similarity(), Lazy(_reader)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing if every prompt has words in quotes.

        Raises:
            ConfigError: if one has none.
        """
        for prompt in prompts:
            self._asked(prompt)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] in [0, 1] for B prompts; errors as `check_prompts`."""
        asked = [self._asked(prompt) for prompt in prompts]
        read = [self._plain(" ".join(self.read(level))) for level in to_uint8(images)]
        return torch.tensor([self._similar(one, other) for one, other in zip(read, asked, strict=True)])

    def read(self, picture: Any) -> list[str]:
        """Return the lines of text in a picture [h, w, 3] of 8-bit levels."""
        found = self._reader()(picture)
        if found.txts is None:
            return []
        lines = zip(found.boxes, found.txts, found.scores, strict=True)
        return [text for _, text, score in sorted(lines, key=_place) if score >= self.confidence]

    def _asked(self, prompt: str) -> str:
        words = self._plain(quoted(prompt))
        if not words:
            raise ConfigError(
                f"the reward ocr: the prompt {prompt!r} has no words in double quotes, so nothing is asked to be written; write "
                f'them so: a sign that says "OPEN".'
            )
        return words

    def _plain(self, text: str) -> str:
        text = "".join(text.split())
        return text if self.case_sensitive else text.casefold()


def _place(line: tuple[Any, ...]) -> tuple[float, float]:
    """Return a line's place in the order of reading: by rows of half its height, then from the left."""
    corners = line[0]
    height = max(float(corners[:, 1].max() - corners[:, 1].min()), 1.0)
    return round(float(corners[:, 1].mean()) / height * 2), float(corners[:, 0].min())


def _similarity() -> Callable[[str, str], float]:
    try:
        import onnxruntime  # noqa: F401
        import rapidocr  # noqa: F401
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise ConfigError(f"the reward ocr needs the module {error.name!r}; install it with: {to_install('ocr')}") from error
    return Levenshtein.normalized_similarity


@functools.cache
def _reader() -> Any:
    from rapidocr import RapidOCR

    # Small pictures are enlarged to this shorter side before words are looked for; its own default, 736, is for scanned pages.
    sizes = {"Det.limit_type": "min", "Det.limit_side_len": 192}
    threads = {"EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads()}
    engine = RapidOCR(params={"Global.log_level": "error", **sizes, **threads})
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)  # it says of every picture without words that it has none
    return engine
