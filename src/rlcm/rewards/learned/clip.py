"""Image and text embeddings of a CLIP model, differentiable in the image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from rlcm.errors import MissingFileError
from rlcm.runs.weights import load_whole

T = TypeVar("T")
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the images that CLIP was trained with."""


@dataclass(frozen=True, slots=True)
class Network:
    """How a reward's network runs.

    Raises:
        ValueError: if a value is out of range.
    """

    batch_size: int
    """Images, and prompts, that go through it at once."""
    dtype: str
    """float32, float16 or bfloat16."""
    device: str
    """A torch device; "auto" is a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be positive.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}.")
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise ValueError(f"device={self.device!r} is not a torch device; use auto, cpu, cuda or cuda:N.") from error

    @property
    def torch_device(self) -> torch.device:
        """The device that is meant."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that is meant."""
        return DTYPES[self.dtype]


class Lazy(Generic[T]):
    """Something expensive, made when it is first asked for, once even if threads ask at the same time."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        """Return it."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


def resize_crop(images: Tensor, size: int) -> Tensor:
    """Return the centre [B, 3, size, size] of images whose shorter side was resized to `size`, bicubic with antialiasing.

    Pillow's resizing of 8-bit pictures but for its rounding to 256 levels, so within 1/255 of it.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    images = resize(images, int(size * height / short), int(size * width / short))
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def resize_pad(images: Tensor, size: int) -> Tensor:
    """Return images [B, 3, size, size] whose longer side was resized to `size`, the rest filled with black, centred."""
    height, width = images.shape[-2:]
    long = max(height, width)
    images = resize(images, round(size * height / long), round(size * width / long))
    rows, columns = size - images.shape[-2], size - images.shape[-1]
    return F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Return images [B, 3, height, width] resized as Pillow does: bicubic with antialiasing, overshoots cut to [0, 1].

    Rows first, then columns, each cut by itself, since Pillow cuts in between.
    """
    for size in ((images.shape[-2], width), (height, width)):
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return images


def standardise(images: Tensor) -> Tensor:
    """Return images in [0, 1] with CLIP's mean subtracted and divided by its standard deviation."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


class HasClip:
    """A reward on a CLIP model, whose features of images others may use."""

    _encoder: Lazy[ClipEncoder]

    @torch.no_grad()
    def clip_features(self, images: Tensor) -> Tensor:
        """Return the embeddings [B, D] of images [B, 3, h, w], of length 1, fp32 on the model's device."""
        return self._encoder().images(images)


class ClipEncoder:
    """A CLIP model that turns images and prompts into unit vectors.

    Args:
        model: weights, frozen here; its projections are used.
        tokenizer: cuts prompts to the model's context length.
        prepare: images [B, 3, h, w] in [0, 1] and the model's image size -> pixel values, differentiable.
        network: batch size, dtype and device.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any, prepare: Callable[[Tensor, int], Tensor], network: Network) -> None:
        self.model = model.requires_grad_(False).eval().to(network.torch_device, network.torch_dtype)
        self.tokenizer = tokenizer
        self.prepare = prepare
        self.batch_size = network.batch_size
        self._known: dict[str, Tensor] = {}

    def images(self, images: Tensor) -> Tensor:
        """Return the embeddings [B, D] of images [B, 3, h, w], of length 1, fp32 on the model's device; carries grad."""
        weight = self.model.visual_projection.weight
        rows = []
        for part in images.to(weight.device).split(self.batch_size):
            pixels = self.prepare(part.float(), self.model.config.vision_config.image_size).to(weight.dtype)
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            rows.append(F.normalize(self.model.visual_projection(pooled).float(), dim=-1))
        return torch.cat(rows)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings [B, D] of prompts, of length 1, fp32 on the model's device; each text is encoded once."""
        new = [text for text in dict.fromkeys(prompts) if text not in self._known]
        weight = self.model.text_projection.weight
        for start in range(0, len(new), self.batch_size):
            part = new[start : start + self.batch_size]
            length = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(part, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            tokens = tokens.to(weight.device)
            pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            rows = F.normalize(self.model.text_projection(pooled).float(), dim=-1)
            self._known.update(zip(part, rows, strict=True))
        found = torch.stack([self._known[text] for text in prompts])
        if len(self._known) > 10_000:
            self._known.clear()
        return found

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosines [B] of the angles between images and their prompts, in [-1, 1]; carries grad."""
        return (self.images(images) * self.texts(prompts)).sum(-1)

    @property
    def scale(self) -> Tensor:
        """The factor of the model's logits, exp(logit_scale)."""
        return self.model.logit_scale.exp().float()


def load_clip(path: Path, tokenizer: Path, prepare: Callable[[Tensor, int], Tensor], network: Network) -> ClipEncoder:
    """Return the CLIP model of a transformers folder.

    Raises:
        MissingFileError: if the files are not there or are no CLIP model.
        WeightsError: if weights are damaged or missing.
    """
    try:
        model = load_whole(CLIPModel, path)
    except (OSError, ValueError, KeyError) as error:
        raise MissingFileError(f"{path} holds no CLIP model in transformers format ({error}).") from error
    return ClipEncoder(model, load_tokenizer(tokenizer), prepare, network)


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a transformers folder.

    Raises:
        MissingFileError: if there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise MissingFileError(f"{path} holds no tokenizer in transformers format ({error}).") from error
