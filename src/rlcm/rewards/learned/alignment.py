"""Prompt-image alignment by the small CLIP model that comes with the package."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from rlcm.builtin import model_path
from rlcm.paths import local
from rlcm.rewards.learned.clip import ClipEncoder, HasClip, Lazy, Network, load_clip


class Alignment(HasClip):
    """The cosine of the angle between image and prompt in the embedding of the built-in model's CLIP, in [-1, 1].

    It knows what the built-in model draws at 64 x 64 pixels, and nothing else. Differentiable.

    Args:
        path: a CLIP model in transformers format, trained on images 2 x - 1; left out, the built-in one.
        batch_size: images that go through the network at once.
        dtype: of the network: float32, float16 or bfloat16.
        device: of the network; "auto" is a GPU if there is one.

    Raises:
        ValueError: if an argument is out of range.
    """

    differentiable = True
    """Gradients flow through it."""
    places = ("path",)
    """Arguments that may name a local file or folder."""

    def __init__(self, *, path: str | None = None, batch_size: int = 64, dtype: str = "float32", device: str = "auto") -> None:
        network = Network(batch_size, dtype, device)

        def load() -> ClipEncoder:
            folder = local(path, "rewards.alignment.args.path") if path else model_path("clip")
            return load_clip(folder, folder, _prepare, network)

        self._encoder = Lazy(load)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosines [B] of images [B, 3, h, w] and their prompts.

        Raises:
            MissingFileError: if the model is not there.
        """
        return self._encoder().cosine(images, prompts)


def _prepare(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return 2 * images - 1
