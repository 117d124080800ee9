"""LAION's aesthetic score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rlcm.errors import RewardError
from rlcm.rewards.learned.clip import ClipEncoder, HasClip, Lazy, Network
from rlcm.rewards.learned.hub import Source, read_tensors
from rlcm.rewards.learned.published import CLIP_L, choose, crop, fetch_clip

AESTHETIC_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"


class Aesthetic(HasClip):
    """LAION's aesthetic score, 1 to 10: a small network on the embedding of CLIP ViT-L/14, blind to the prompt.

    "Improved aesthetic predictor", C. Schuhmann 2022; the reward of the DDPO and RLCM papers. Differentiable.

    Args:
        model: file of the predictor, .pth or .safetensors; left out, the published one from the Hub.
        sha256: checksum of that file, or null for none.
        clip: folder or Hub repository of CLIP ViT-L/14.
        revision: the CLIP repository's commit.
    """

    differentiable = True
    """Gradients flow through it."""
    places = ("model", "clip")
    """Arguments that may name a local file or folder."""

    def __init__(
        self,
        *,
        model: str | None = None,
        sha256: str | None = AESTHETIC_SHA256,
        clip: str | None = None,
        revision: str | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        network = Network(batch_size, dtype, device)
        head = Source(model or "camenduru/improved-aesthetic-predictor", None, ("sac+logos+ava1-l14-linearMSE.pth",), sha256)
        encoder = choose(clip, revision, CLIP_L)
        self.sources = [head, encoder]

        def load() -> tuple[ClipEncoder, nn.Module]:
            found = fetch_clip(encoder, encoder, crop, network)
            return found, aesthetic_head(read_tensors(head.fetch())).to(network.torch_device)

        self._parts = Lazy(load)
        self._encoder = Lazy(lambda: self._parts()[0])

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w]; the prompts are not looked at."""
        encoder, head = self._parts()
        return head(encoder.images(images)).squeeze(-1)


def aesthetic_head(state: Mapping[str, Tensor]) -> nn.Module:
    """Return LAION's predictor, five linear layers without activations between, from its published tensors.

    Raises:
        RewardError: if the tensors are not those of such a predictor.
    """
    layers = sorted({int(found[1]) for name in state if (found := re.fullmatch(r"layers\.([0-9]+)\.weight", name))})
    named = {f"{place}.{kind}": f"layers.{layer}.{kind}" for place, layer in enumerate(layers) for kind in ("weight", "bias")}
    if set(named.values()) != set(state) or not layers:
        raise RewardError(f"these are not the tensors of an aesthetic predictor: {', '.join(sorted(state)[:4])} ...")
    try:
        shapes = [state[f"layers.{layer}.weight"].shape for layer in layers]
        head = nn.Sequential(*(nn.Linear(inputs, outputs) for outputs, inputs in shapes))
        head.load_state_dict({ours: state[theirs].float() for ours, theirs in named.items()})
    except (RuntimeError, ValueError) as error:
        raise RewardError(f"these are not the tensors of an aesthetic predictor: {error}") from error
    return head.requires_grad_(False).eval()
