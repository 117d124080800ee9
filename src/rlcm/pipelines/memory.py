"""How much memory a run will take, before it takes it: an estimate from measured models, scaled to this one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlcm.pipelines.base import PROMPTS_AT_ONCE, PipelineDenoiser, call_default, text_encoders
from rlcm.pipelines.quantisation import entries, kept_for_backward, stored_bytes

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Reference:
    """What one sample's activations take in a published network with fused attention: GiB in 16 and in 32 bits.

    With a LoRA, which is fp32 in both, the second is less than twice the first.
    """

    sampling: tuple[float, float]
    """A call without gradient."""
    saved: tuple[float, float]
    """A forward and backward pass."""
    checkpointed: tuple[float, float]
    """The same with gradient checkpointing."""
    positions: int
    """Positions of the latent there (h w, or the packed length); of the image for a decoder."""
    size: float
    """Parameters; for a decoder, channels of its last block."""


STABLE_DIFFUSION = (Reference((0.0637, 0.127), (0.999, 1.54), (0.242, 0.432), 64 * 64, 0.863e9),)
PIXART = (Reference((0.116, 0.214), (6.08, 7.12), (0.531, 0.883), 128 * 128, 0.620e9),)
REFERENCES: dict[str, tuple[Reference, ...]] = {
    "LatentConsistencyModelPipeline": STABLE_DIFFUSION,
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": (Reference((0.155, 0.309), (7.33, 10.5), (0.543, 1.02), 128 * 128, 2.59e9),),
    "ConsistencyModelPipeline": (Reference((0.0221, 0.044), (0.254, 0.428), (0.168, 0.255), 64 * 64, 0.298e9),),
    "SanaSprintPipeline": (
        Reference((0.0378, 0.0658), (3.65, 4.72), (0.203, 0.314), 32 * 32, 0.602e9),
        Reference((0.0719, 0.125), (5.06, 6.55), (0.360, 0.542), 32 * 32, 1.62e9),
    ),
    "FluxPipeline": (Reference((0.457, 0.803), (30.1, 37.7), (2.38, 4.23), 64 * 64, 11.9e9),),
    "ZImagePipeline": (Reference((0.481, 0.954), (37.0, 37.2), (2.36, 3.51), 128 * 128, 6.17e9),),
    "Flux2KleinPipeline": (Reference((0.573, 1.14), (14.5, 22.6), (1.7, 3.17), 64 * 64, 3.88e9),),
    "StableDiffusion3Pipeline": (Reference((0.261, 0.499), (18.1, 21.6), (1.38, 2.37), 128 * 128, 8.08e9),),
    "QwenImagePipeline": (Reference((0.437, 0.768), (34.8, 43.6), (2.26, 4.02), 64 * 64, 20.5e9),),
    "Krea2Pipeline": (Reference((0.69, 1.18), (38.3, 51.0), (3.58, 5.85), 64 * 64, 12.9e9),),
    "ErnieImagePipeline": (Reference((0.75, 1.36), (45.8, 47.5), (2.91, 4.59), 64 * 64, 8.07e9),),
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
}
"""Counted by benchmarks/full_size.py, with their adapters among the parameters: Stable Diffusion at 512x512 pixels, consistency
models on pixels at 64x64, all others at 1024x1024. For Qwen-Image what 32 bits take is FLUX.1's
multiple of the count in 16."""
DECODERS = {
    "AutoencoderKL": Reference((0.375, 0.750), (2.84, 5.68), (1.52, 3.05), 512 * 512, 128),
    "AutoencoderKLQwenImage": Reference((3.38, 6.76), (16.8, 29.0), (16.8, 29.0), 1024 * 1024, 128),
    "AutoencoderDC": Reference((1.63, 2.26), (16.8, 23.3), (16.8, 23.3), 1024 * 1024, 128),
}
"""By class; other decoders are taken to be like Stable Diffusion's."""
_INNER = ("intermediate_size", "d_ff")
LONGEST_PROMPT = 1024
"""Tokens: tokenizers of language models read more than anybody writes."""
HEAP = 1.6
"""How many times its activations the heap of a process grows on a CPU, measured: freed blocks lie scattered and are kept."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part. Sampling, decoding and learning take turns, so only the largest of the three counts."""

    weights: int
    """All weights on the network's device."""
    optimiser: int
    """Gradients and Adam's two moments of the trainable weights, fp32."""
    sampling: int
    """A forward pass of a whole batch, without gradient."""
    decode: int
    """The decoder's activations."""
    learning: int
    """Activations of a micro-batch's forward and backward pass; 0 when not training."""
    heap: int = 0
    """What a CPU's memory allocator keeps of freed activations while others need room; a GPU's cache gives it to them."""
    encoding: int = 0
    """Text encoders that are offloaded afterwards, and their activations: before the first round, when the rest is not there."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        rounds = self.optimiser + max(self.sampling, self.decode, self.learning) + self.heap
        return self.weights + max(rounds, self.encoding)

    def __str__(self) -> str:
        names = ("weights", "encoding", "optimiser", "sampling", "decode", "learning", *(["heap"] if self.heap else []))
        parts = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in names)
        return f"about {self.total / GIB:.2f} GiB at the peak ({parts})"


def estimate(
    denoiser: PipelineDenoiser,
    batch: int,
    micro_batch: int,
    training: bool,
    *,
    differentiable: bool = False,
    calls: int = 1,
) -> MemoryEstimate:
    """Return an estimate of the memory that sampling and training take.

        activations = counted x (positions / counted's) x sqrt(parameters / counted's)

    The root, because at equal depth parameters grow with the width's square and activations with the width. Expect a factor
    of about two for networks unlike the counted ones.

    On a CPU the parts add up: network activations stay in the heap, grown by `HEAP`, while the decoder's large ones come on
    top, and text encoders that are offloaded stay where they are.

    Args:
        denoiser: with its adapters, if they are to be counted.
        batch: images sampled and decoded at once.
        micro_batch: samples of one backward pass.
        training: whether there are backward passes.
        differentiable: whether the reward is back-propagated through the decoder.
        calls: network calls that one backward pass goes through.

    Raises:
        ValueError: if batch, micro_batch or calls is below 1.
    """
    if min(batch, micro_batch, calls) < 1:
        raise ValueError(f"batch={batch}, micro_batch={micro_batch}, calls={calls}: use 1 or more.")
    shape = denoiser.latent_shape
    positions = shape[0] if len(shape) == 2 else math.prod(shape[1:])
    parameters = sum(entries(p) for p in denoiser.module.parameters())
    reference = min(REFERENCES[type(denoiser.pipeline).__name__], key=lambda found: abs(math.log(parameters / found.size)))
    scale = positions / reference.positions * math.sqrt(parameters / reference.size) * GIB
    scale *= 2 if denoiser.classifier_free else 1
    wide = denoiser.dtype.itemsize > 2
    checkpointed = getattr(denoiser.module, "is_gradient_checkpointing", False)
    kept = reference.checkpointed if checkpointed else reference.saved
    sampling = round(batch * reference.sampling[wide] * scale)
    network = round(micro_batch * calls * kept[wide] * scale) if training else 0
    if training and not checkpointed:
        network += kept_for_backward(denoiser.module, denoiser.dtype)
    decode = _decode(denoiser, batch, micro_batch, training and differentiable)
    learning = network + (decode if training and differentiable else 0)
    heap = 0
    if denoiser.device.type == "cpu":
        heap = round(HEAP * max(sampling, network)) + decode - max(sampling, decode, learning)
    return MemoryEstimate(
        weights=_weights(denoiser),
        optimiser=12 * sum(p.numel() for p in denoiser.module.parameters() if p.requires_grad) if training else 0,
        sampling=sampling,
        decode=decode,
        learning=learning,
        heap=heap,
        encoding=_encoding(denoiser),
    )


def _weights(denoiser: PipelineDenoiser) -> int:
    away = {id(encoder) for encoder in _away(denoiser)}
    modules = [m for m in denoiser.pipeline.components.values() if isinstance(m, nn.Module) and id(m) not in away]
    return sum(_bytes(module) for module in modules)


def _encoding(denoiser: PipelineDenoiser) -> int:
    """Return the bytes of encoding a few prompts: T (3 inner + 4 hidden + 2 heads T) numbers each, T their tokens.

    Counted for CLIP, Gemma 2 and T5, this is within a fifth.
    """
    activations = 0
    for encoder in text_encoders(denoiser.pipeline):
        whole: Any = encoder.config
        config, tokens = whole.get_text_config(), _longest_prompt(denoiser.pipeline)
        hidden, inner, heads = (
            getattr(config, name) for name in ("hidden_size", _INNER[hasattr(config, "d_ff")], "num_attention_heads")
        )
        size = next(encoder.parameters()).element_size()
        activations = max(activations, PROMPTS_AT_ONCE * tokens * (3 * inner + 4 * hidden + 2 * heads * tokens) * size)
    return sum(_bytes(encoder) for encoder in _away(denoiser)) + activations


def _longest_prompt(pipeline: Any) -> int:
    """Return the tokens of the longest prompt, with the instruction that SANA puts before it."""
    clip = min(getattr(getattr(pipeline, "tokenizer", None), "model_max_length", 77), LONGEST_PROMPT)
    tokens = int(call_default(pipeline, "max_sequence_length") or clip)
    instruction = call_default(pipeline, "complex_human_instruction")
    return tokens + (len("\n".join(instruction).split()) * 3 // 2 if instruction else 0)


def _away(denoiser: PipelineDenoiser) -> list[nn.Module]:
    """Return the text encoders that are sent to main memory; to a CPU that makes no difference."""
    return text_encoders(denoiser.pipeline) if denoiser.offload_text_encoders and denoiser.device.type != "cpu" else []


def _bytes(module: nn.Module) -> int:
    return sum(stored_bytes(p) for p in module.parameters())


def _decode(denoiser: PipelineDenoiser, batch: int, micro_batch: int, differentiable: bool) -> int:
    vae: Any = getattr(denoiser.pipeline, "vae", None)
    if vae is None:
        return 0
    channels = (vae.config.get("block_out_channels") or vae.config.get("decoder_block_out_channels") or [None])[0]
    reference = DECODERS.get(type(vae).__name__, DECODERS["AutoencoderKL"])
    scale = denoiser.height * denoiser.width / reference.positions * (channels or reference.size) / reference.size * GIB
    dtype: torch.dtype = vae.dtype
    if not differentiable:
        at_once = min(denoiser.decode_batch_size or batch, batch)
        kept, images = reference.sampling, 1 if getattr(vae, "use_slicing", False) else at_once
    else:
        checkpointed = getattr(vae, "is_gradient_checkpointing", False)
        kept, images = reference.checkpointed if checkpointed else reference.saved, micro_batch
    return round(images * kept[dtype.itemsize > 2] * scale)
