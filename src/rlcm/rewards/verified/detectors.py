"""Detectors of transformers: those of fixed classes (the DETR family), and those that look for a word (OWL, Grounding DINO)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from rlcm.errors import ConfigError, MissingFileError
from rlcm.extras import to_install
from rlcm.rewards.image.pixels import to_uint8
from rlcm.rewards.learned.clip import Network
from rlcm.rewards.verified.verdict import Found

Finds = list[dict[str, list[Found]]]
"""For each picture the objects of each class that was asked for."""
FLOOR = 0.05
"""Objects below this confidence are not returned."""
ALIASES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
"""Classes that GenEval's prompts name otherwise than COCO, whose classes most detectors know."""


class Detector(Protocol):
    """What finds objects in pictures."""

    vocabulary: frozenset[str] | None
    """The classes that it knows, or None if it looks for any word."""

    def __call__(self, images: Tensor, classes: Sequence[Sequence[str]], /) -> Finds:
        """Return what is found in images [B, 3, h, w] in [0, 1] of the B lists of classes."""


def looks_for_words(path: Path) -> bool:
    """Return whether the model of a folder is a zero-shot detector.

    Raises:
        MissingFileError: if it is no detector that transformers can load.
    """
    from transformers import MODEL_FOR_OBJECT_DETECTION_MAPPING, MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING, AutoConfig

    try:
        kind = type(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, KeyError) as error:
        raise MissingFileError(f"{path} holds no model in transformers format ({error}).") from error
    if kind in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING:
        return True
    if kind in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        return False
    raise MissingFileError(
        f"{path} holds a {kind.__name__.removesuffix('Config')}, which is no object detector; use one of the DETR family, OWLv2 or "
        "Grounding DINO."
    )


def vocabulary(path: Path) -> frozenset[str] | None:
    """Return the classes that the detector of a folder knows, or None if it looks for any word. Errors as `looks_for_words`."""
    from transformers import AutoConfig

    if looks_for_words(path):
        return None
    return frozenset(map(str, AutoConfig.from_pretrained(path).id2label.values()))


def load_detector(path: Path, network: Network) -> Detector:
    """Return the detector of a transformers folder. Errors as `looks_for_words`."""
    return WordDetector(path, network) if looks_for_words(path) else ClassDetector(path, network)


class ClassDetector:
    """An object detector that knows a fixed list of classes.

    Raises:
        MissingFileError: if its files are not all there.
    """

    def __init__(self, path: Path, network: Network) -> None:
        from transformers import AutoModelForObjectDetection

        self.vocabulary: frozenset[str] | None = vocabulary(path)
        self.processor, self.model = _load(AutoModelForObjectDetection, path, network)
        self.network = network
        self.names: dict[int, str] = self.model.config.id2label

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: Sequence[Sequence[str]], /) -> Finds:
        """Return what is found in images [B, 3, h, w] in [0, 1] of the B lists of classes."""
        finds: Finds = [{name: [] for name in names} for names in classes]
        pictures = [Image.fromarray(level) for level in to_uint8(images)]
        for start in range(0, len(pictures), self.network.batch_size):
            part = pictures[start : start + self.network.batch_size]
            inputs = self.processor(images=part, return_tensors="pt").to(self.network.torch_device, self.network.torch_dtype)
            sizes = [(picture.height, picture.width) for picture in part]
            answers = self.processor.post_process_object_detection(self.model(**inputs), threshold=FLOOR, target_sizes=sizes)
            for find, answer in zip(finds[start:], answers, strict=False):
                for label, found in zip(answer["labels"].tolist(), _objects(answer), strict=True):
                    if self.names[label] in find:
                        find[self.names[label]].append(found)
        return finds


class WordDetector:
    """A zero-shot detector, asked for one class at a time, so that no two of them are taken for one phrase.

    Raises:
        MissingFileError: if its files are not all there.
        ConfigError: if a package that it needs is not installed.
    """

    vocabulary: frozenset[str] | None = None

    def __init__(self, path: Path, network: Network) -> None:
        from transformers import AutoModelForZeroShotObjectDetection

        self.processor, self.model = _load(AutoModelForZeroShotObjectDetection, path, network)
        self.network = network
        self.is_owl = self.model.config.model_type.startswith("owl")
        if self.is_owl and importlib.util.find_spec("scipy") is None:
            raise ConfigError(f"the detector {path} prepares its pictures with scipy; install it with: {to_install('owl')}")

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: Sequence[Sequence[str]], /) -> Finds:
        """Return what is found in images [B, 3, h, w] in [0, 1] of the B lists of classes."""
        finds: Finds = [{name: [] for name in names} for names in classes]
        pictures = [_square(Image.fromarray(level)) for level in to_uint8(images)]
        pairs = [(index, name) for index, names in enumerate(classes) for name in names]
        for start in range(0, len(pairs), self.network.batch_size):
            part = pairs[start : start + self.network.batch_size]
            asked = [pictures[index] for index, _ in part]
            for (index, name), answer in zip(part, self._answers(asked, [name for _, name in part]), strict=True):
                finds[index][name] = _objects(answer)
        return finds

    def _answers(self, pictures: list[Image.Image], names: list[str]) -> list[dict[str, Any]]:
        texts: list[Any] = [[f"a photo of a {name}"] for name in names] if self.is_owl else [f"{name}." for name in names]
        # OWL's processor joins texts of one length only.
        length: dict[str, Any] = {"padding": "max_length", "truncation": True} if self.is_owl else {"padding": True}
        inputs = self.processor(images=pictures, text=texts, return_tensors="pt", **length)
        inputs = inputs.to(self.network.torch_device, self.network.torch_dtype)
        outputs = self.model(**inputs)
        sizes = [(picture.height, picture.width) for picture in pictures]
        kind = (
            self.processor
            if hasattr(self.processor, "post_process_grounded_object_detection")
            else self.processor.image_processor
        )
        # A box is judged by its confidence alone: there is one phrase, so it need not be told which words of it were meant.
        more = {} if self.is_owl else {"input_ids": inputs["input_ids"], "text_threshold": 0.0}
        return kind.post_process_grounded_object_detection(outputs, threshold=FLOOR, target_sizes=sizes, **more)


def _load(kind: Any, path: Path, network: Network) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoProcessor

    words = "ZeroShot" in kind.__name__
    try:
        processor = (AutoProcessor if words else AutoImageProcessor).from_pretrained(path)
        model = kind.from_pretrained(path).requires_grad_(False).eval()
    except (OSError, ValueError, KeyError) as error:
        raise MissingFileError(f"{path} holds no detector in transformers format ({error}).") from error
    return processor, model.to(network.torch_device, network.torch_dtype)


def _objects(answer: dict[str, Any]) -> list[Found]:
    boxes, scores = answer["boxes"].float().cpu().tolist(), answer["scores"].float().cpu().tolist()
    return [Found(tuple(box), score) for box, score in zip(boxes, scores, strict=True)]


def _square(picture: Image.Image) -> Image.Image:
    """Return a picture made square by grey at its right or lower edge, so that no detector stretches it; boxes stay as they are."""
    side = max(picture.size)
    if picture.size == (side, side):
        return picture
    square = Image.new("RGB", (side, side), (128, 128, 128))
    square.paste(picture, (0, 0))
    return square
