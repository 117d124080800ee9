"""Rewards learned from people's judgements, on transformers models: aesthetics, CLIPScore, PickScore, HPS v2.1, imscore.

Weights come from a local folder or a pinned revision of the Hub, are loaded at the first call, and stay frozen. Images of
any size are resized and normalised as the originals do, but differentiably, so without rounding to 256 levels in between.

All take `batch_size` (images that go through the network at once), `dtype` (float32, float16 or bfloat16) and `device`
("auto" is a GPU if there is one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from rlcm.errors import RewardError
from rlcm.rewards.clip import ClipEncoder, Lazy, Network, load_clip, load_tokenizer, resize_crop, resize_pad, standardise
from rlcm.rewards.hub import TOKENIZER_FILES, Source, read_tensors
from rlcm.rewards.user import load_callable

CLIP_L = Source("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
CLIP_H = Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c", TOKENIZER_FILES)
"""Configuration and tokenizer only."""
PICKSCORE = Source("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
HPS_SHA256 = "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"
AESTHETIC_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"


class Aesthetic:
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
        encoder = _choose(clip, revision, CLIP_L)
        self.sources = [head, encoder]

        def load() -> tuple[ClipEncoder, nn.Module]:
            found = _load(encoder, encoder, _crop, network)
            return found, aesthetic_head(read_tensors(head.fetch())).to(network.torch_device)

        self._parts = Lazy(load)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w]; the prompts are not looked at."""
        encoder, head = self._parts()
        return head(encoder.images(images)).squeeze(-1)


class ClipScore:
    """CLIPScore, 0 to 2.5: weight * max(cos(image, prefix + prompt), 0).

    Hessel et al. 2021, "CLIPScore: a reference-free evaluation metric for image captioning" (arXiv:2104.08718), section 3.
    Differentiable; no gradient where the cosine is negative.

    Args:
        model: folder or Hub repository of a CLIP model; left out, OpenAI's ViT-L/14.
        revision: the repository's commit.
        prefix: put before every prompt, as the paper does.
        weight: the factor of the paper.
    """

    differentiable = True
    """Gradients flow through it."""

    def __init__(
        self,
        *,
        model: str | None = None,
        revision: str | None = None,
        prefix: str = "A photo depicts ",
        weight: float = 2.5,
        batch_size: int = 32,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        network = Network(batch_size, dtype, device)
        source = _choose(model, revision, CLIP_L)
        self.sources = [source]
        self.prefix, self.weight = prefix, weight
        self._encoder = Lazy(lambda: _load(source, source, _crop, network))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] and their prompts."""
        return self.weight * self._encoder().cosine(images, [self.prefix + prompt for prompt in prompts]).clamp(min=0)


class PickScore:
    """PickScore, about 18 to 24: exp(logit_scale) cos(image, prompt); one more means odds of e : 1 to be preferred.

    Kirstain et al. 2023, "Pick-a-Pic: an open dataset of user preferences" (arXiv:2305.01569), eq. 1. Differentiable.

    Args:
        model: folder or Hub repository of the model, tokenizer included if local; left out, PickScore_v1.
        revision: the repository's commit.
    """

    differentiable = True
    """Gradients flow through it."""

    def __init__(
        self,
        *,
        model: str | None = None,
        revision: str | None = None,
        batch_size: int = 16,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        network = Network(batch_size, dtype, device)
        source = _choose(model, revision, PICKSCORE)
        tokenizer = source if source.is_local else CLIP_H
        self.sources = [source, tokenizer]
        self._encoder = Lazy(lambda: _load(source, tokenizer, _crop, network))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] and their prompts."""
        encoder = self._encoder()
        return encoder.scale * encoder.cosine(images, prompts)


class HumanPreference:
    """Human preference score v2.1, about 0.2 to 0.35: cos(image, prompt) of a fine-tuned CLIP ViT-H/14.

    Wu et al. 2023, "Human preference score v2" (arXiv:2306.09341). Pictures are padded with black, not cropped.
    Differentiable.

    Args:
        model: the published file (open_clip's names), or a folder with a CLIP model in transformers format; left out, the
            published one from the Hub.
        sha256: checksum of the file, or null for none.
        base: folder or Hub repository with configuration and tokenizer of CLIP ViT-H/14.
        revision: the base repository's commit.
    """

    differentiable = True
    """Gradients flow through it."""

    def __init__(
        self,
        *,
        model: str | None = None,
        sha256: str | None = HPS_SHA256,
        base: str | None = None,
        revision: str | None = None,
        batch_size: int = 16,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        network = Network(batch_size, dtype, device)
        published = Source("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", ("HPS_v2.1_compressed.pt",), sha256)
        source = Source(model, sha256=sha256) if model else published
        config = Source(base, revision, TOKENIZER_FILES) if base else CLIP_H
        self.sources = [source, config]

        def load() -> ClipEncoder:
            path, folder = source.fetch(), config.fetch()
            if path.is_dir():
                return load_clip(path, folder, _pad, network)
            clip = CLIPModel(CLIPConfig.from_pretrained(folder))
            fill(clip, from_open_clip(read_tensors(path)), str(path))
            return ClipEncoder(clip, load_tokenizer(folder), _pad, network)

        self._encoder = Lazy(load)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] and their prompts."""
        return self._encoder().cosine(images, prompts)


IMSCORE = {
    "ImageReward": ("imscore.imreward.model:ImageReward", "RE-N-Y/ImageReward"),
    "MPS": ("imscore.mps.model:MPS", "RE-N-Y/mpsv1"),
    "HPSv3": ("imscore.hpsv3.model:HPSv3", "RE-N-Y/hpsv3"),
    "SiglipPreference": ("imscore.preference.model:SiglipPreferenceScorer", "RE-N-Y/pickscore-siglip"),
    "ShadowAesthetic": ("imscore.aesthetic.model:ShadowAesthetic", "RE-N-Y/aesthetic-shadow-v2"),
    "CycleReward": ("imscore.cyclereward.model:CycleReward", "NagaSaiAbhinay/CycleReward-Combo"),
    "EvalMuse": ("imscore.evalmuse.model:EvalMuse", "RE-N-Y/evalmuse"),
    "VQAScore": ("imscore.vqascore.model:VQAScore", "RE-N-Y/clip-t5-xxl"),
}


class ImScore:
    """Any scorer of the package imscore (`pip install "rlcm[imscore]"`): ImageReward, MPS, HPSv3 and others.

    Args:
        scorer: one of the names in `IMSCORE`, or module:class of another scorer of that package.
        model: folder or Hub repository of its weights; left out, the usual one.
        revision: the repository's commit.
    """

    differentiable = True
    """Gradients flow through it."""

    def __init__(
        self,
        *,
        scorer: str = "ImageReward",
        model: str | None = None,
        revision: str | None = None,
        batch_size: int = 16,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        self.network = Network(batch_size, dtype, device)
        if scorer not in IMSCORE and ":" not in scorer:
            raise ValueError(f"scorer={scorer!r} is not one of {', '.join(IMSCORE)}, nor module:class.")
        path, place = IMSCORE.get(scorer, (scorer, model))
        if not (model or place):
            raise ValueError(f"scorer={scorer!r} needs `model`, the folder or repository of its weights.")
        source = Source(model or str(place), revision, ("*",))
        self.sources = [source]

        def load() -> Any:
            scorer_class: Any = load_callable(path)
            found = scorer_class.from_pretrained(str(source.fetch()))
            return found.requires_grad_(False).eval().to(self.network.torch_device, self.network.torch_dtype)

        self._scorer = Lazy(load)

    def load(self) -> None:
        """Make the scorer now. Its class may fetch more than `sources`: tokenizers and encoders of other repositories."""
        self._scorer()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] and their prompts."""
        scorer, size = self._scorer(), self.network.batch_size
        rows = []
        for start in range(0, len(prompts), size):
            part = images[start : start + size].to(self.network.torch_device, self.network.torch_dtype)
            rows.append(scorer.score(part, list(prompts[start : start + size])).float().reshape(len(part)))
        return torch.cat(rows)


def aesthetic_head(state: Mapping[str, Tensor]) -> nn.Module:
    """Return LAION's predictor, five linear layers without activations between, from its published tensors.

    Raises:
        RewardError: if the tensors are not those of such a predictor.
    """
    layers = sorted({int(found[1]) for name in state if (found := re.fullmatch(r"layers\.(\d+)\.weight", name))})
    shapes = [state[f"layers.{layer}.weight"].shape for layer in layers]
    head = nn.Sequential(*(nn.Linear(inputs, outputs) for outputs, inputs in shapes))
    named = {f"{place}.{kind}": f"layers.{layer}.{kind}" for place, layer in enumerate(layers) for kind in ("weight", "bias")}
    if set(named.values()) != set(state) or not layers:
        raise RewardError(f"these are not the tensors of an aesthetic predictor: {', '.join(sorted(state)[:4])} ...")
    head.load_state_dict({ours: state[theirs].float() for ours, theirs in named.items()})
    return head.requires_grad_(False).eval()


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an open_clip vision transformer CLIP under the names of transformers' `CLIPModel`.

    open_clip joins the projections of query, key and value in one matrix [3 D, D], and multiplies by its projections from the
    right, so these are transposed.
    """
    plain = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    inner = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        stem, _, kind = name.rpartition(".")
        if name in plain:
            found[plain[name]] = value
        elif stem in norms:
            found[f"{norms[stem]}.{kind}"] = value
        elif name == "visual.proj":
            found["visual_projection.weight"] = value.T.contiguous()
        elif name == "text_projection":
            found["text_projection.weight"] = value.T.contiguous()
        elif block and (block[3] in inner or block[3] == "attn.in_proj"):
            layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"
            if block[3] == "attn.in_proj":
                for part, projection in zip(value.chunk(3), ("q_proj", "k_proj", "v_proj"), strict=True):
                    found[f"{layer}.self_attn.{projection}.{block[4]}"] = part.contiguous()
            else:
                found[f"{layer}.{inner[block[3]]}.{block[4]}"] = value
        elif name not in ("attn_mask", "text.attn_mask"):
            found[name] = value  # unknown: `fill` names it
    return found


def fill(model: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """Load tensors into a model, all of them and nothing else.

    Raises:
        RewardError: if names or shapes differ.
    """
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise RewardError(f"{place} does not fit the configuration: {error}") from error
    missing = [name for name in found.missing_keys if not name.endswith("position_ids")]
    if missing or found.unexpected_keys:
        raise RewardError(f"{place} lacks {missing[:3]} and has unknown {found.unexpected_keys[:3]}.")


def _choose(place: str | None, revision: str | None, default: Source) -> Source:
    if place is None:
        return Source(default.place, revision or default.revision, default.files)
    return Source(place, revision, default.files)


def _load(source: Source, tokenizer: Source, prepare: Any, network: Network) -> ClipEncoder:
    return load_clip(source.fetch(), tokenizer.fetch(), prepare, network)


def _crop(images: Tensor, side: int) -> Tensor:
    return standardise(resize_crop(images, side))


def _pad(images: Tensor, side: int) -> Tensor:
    return standardise(resize_pad(images, side))
