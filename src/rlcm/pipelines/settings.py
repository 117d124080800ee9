"""What model to load, how, and how it samples."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlcm.settings import Settings

Precision = Literal["auto", "fp32", "fp16", "bf16"]
Quantisation = Literal["none", "int8", "nf4"]
SchedulerName = Literal[
    "auto", "lcm", "tcd", "ddim", "ddpm", "euler_ancestral", "consistency", "scm", "flow_lcm", "flow_euler_stochastic"
]

BUILTIN = {"builtin": "student", "builtin-teacher": "teacher"}
"""The models of the package, by `model.path`."""
BUILTIN_GUIDANCE = 3.0
"""Where both of them are best; their pipelines' own default is far beyond."""
STRONGEST = 2.0
"""Greatest strength with which a page draws what a run has learnt."""


class LoraSettings(Settings):
    """A LoRA that is added to the weights before training begins, such as LCM-LoRA; a bare text is short for its `path`."""

    path: str
    """Local folder or Hugging Face Hub id of the LoRA."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of a Hub id."""
    weight_name: str | None = None
    """The file inside it, where it has several; safetensors only."""
    scale: float = Field(default=1.0, ge=-10, le=10)
    """What the LoRA's change of the weights is multiplied by."""
    fuse: bool = True
    """Add it to the frozen weights once, at no cost afterwards. `false` keeps it beside them: slower, but what it changes is not
    rounded to the weights' precision. Either way it is frozen; only the new LoRA is trained."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class ModelSettings(Settings):
    """Which diffusers pipeline is trained, and how it lies in memory."""

    path: str = "builtin"
    """`builtin` (the packaged few-step model), `builtin-teacher` (its many-step teacher), a local folder, a Hub id, or the folder of a
    run to go on from: its model, with what the run has learnt as one more of `loras`."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of a Hub id."""
    variant: str | None = None
    """Variant of the weights' files, e.g. `fp16` for `*.fp16.safetensors`."""
    precision: Precision = "auto"
    """Precision of the frozen weights. `auto`: bf16 on GPUs that have it, fp16 on older ones, fp32 on CPU and Apple GPUs.
    Latents, transitions and LoRA weights are always fp32."""
    quantisation: Quantisation = "none"
    """How the frozen weights of the network's linear layers are stored: `none`, as `precision` says; `int8` in 8 bits, half of
    bf16, with bf16 or fp32 for computing; `nf4` in 4 bits, on CUDA GPUs and CPUs. Convolutions, the new LoRA, text encoders and VAE
    stay as they are. For cards with little memory; needs the extra `quant`."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, mps, cuda or cuda:N."""
    loras: tuple[LoraSettings, ...] = ()
    """LoRAs to apply before training, in this order."""
    height: int | None = Field(default=None, ge=8, le=16_384, multiple_of=8)
    """Height of the images in pixels; None is the model's own."""
    width: int | None = Field(default=None, ge=8, le=16_384, multiple_of=8)
    """Width of the images in pixels; None is the model's own."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, several times less memory."""
    attention_slicing: bool = False
    """Compute attention head by head: slower, less memory on devices without fused attention."""
    vae_slicing: bool = False
    """Decode one image at a time."""
    vae_tiling: bool = False
    """Decode large images tile by tile."""
    offload_text_encoders: bool = False
    """Keep the text encoders in main memory except while prompts are encoded."""
    local_files_only: bool = False
    """Never ask the network."""
    tf32: bool = False
    """Let fp32 products and convolutions of NVIDIA GPUs round to TF32: faster, with the digits of fp16. What is in half precision
    is not touched by it; the LoRA, always fp32, is."""
    channels_last: bool = False
    """Lay out the weights of convolutions with the channels last: faster in half precision on tensor cores, for UNets."""
    compile: bool = False
    """Compile the network's repeated blocks: slow in the first round, faster in all others."""
    decode_batch_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Images decoded at once; left out, as many as are sampled at once. Smaller needs less memory; the images are the same."""


class SamplerSettings(Settings):
    """How the model samples. A policy gradient needs at least one step that draws noise."""

    scheduler: SchedulerName = "auto"
    """Which sampler; `auto` keeps the pipeline's own."""
    steps: int = Field(default=4, ge=1, le=1000)
    """Denoising steps, that is network calls an image."""
    guidance: float | None = Field(default=None, ge=0, le=100)
    """Guidance scale; None is the pipeline's own default, 3 for the built-in models. Up to 1 is off. Above it, models distilled
    with guidance get the scale as an input, others run twice a step."""
    eta: float | None = Field(default=None, ge=0, le=1)
    """Stochasticity: DDIM's eta (None: 1.0), TCD's gamma (None: 0.3), and for flow matching (flow_euler_stochastic) the share of
    the noise that a step draws anew, by coefficient-preserving sampling (None: 1.0, all of it). Other samplers have none. 0 draws
    no noise: pictures can be drawn with it, a policy gradient needs more."""
    shift: float | None = Field(default=None, gt=0, le=100)
    """Time shift of a flow-matching model, in place of the model's own, at every size of image: 3 for the Lightning LoRAs of
    Qwen-Image. Noise levels are then s k / (1 + (k - 1) s) of even ones s, for a shift k. None is the model's own."""
    noisy_steps: str | tuple[int, ...] = "all"
    """Which steps draw noise and are learnt from: `all` that can, `first:N` or `last:N` of them, or a list of steps, from 0. The
    others are taken without noise. A step that `final_std` adds noise to draws it in any case."""
    original_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    """Length of the grid that the model was distilled on (LCM, TCD); None is the scheduler's own, 50 as published."""
    timesteps: tuple[float, ...] | None = Field(default=None, min_length=1)
    """Timesteps in place of the sampler's spacing, descending; their number replaces `steps`. Whole numbers for LCM, TCD and
    DDPM, indices for consistency models, angles down to 0 for SCM (one more than steps), noise levels for flow matching."""
    negative_prompt: str = ""
    """What classifier-free guidance leads away from."""
    final_std: float = Field(default=0.0, ge=0, le=1)
    """Standard deviation of noise added to the last step, which draws none otherwise; 0 is off."""

    @field_validator("noisy_steps")
    @classmethod
    def _is_window(cls, value: str | tuple[int, ...]) -> str | tuple[int, ...]:
        words = value if isinstance(value, str) else "all"
        if not value or not re.fullmatch(r"all|(first|last):0*[1-9][0-9]{0,5}", words):
            raise ValueError(
                "use all, first:N or last:N with N of 1 or more, such as first:1, or a list of steps, such as [0, 1]"
            )
        if not isinstance(value, str) and min(value) < 0:
            raise ValueError("steps are counted from 0; use 0 or more")
        if not isinstance(value, str) and len(set(value)) < len(value):
            raise ValueError("a step is in it twice; name each once")
        return value

    def drawing(self, steps: int | None = None, guidance: float | None = None) -> SamplerSettings:
        """Return how pictures are drawn for people: without noise in the last step, and with other steps or guidance where given."""
        change: dict[str, Any] = {"final_std": 0.0}
        change |= {"steps": steps, "timesteps": None} if steps is not None else {}
        change |= {"guidance": guidance} if guidance is not None else {}
        if steps not in (None, self.calls):
            change["noisy_steps"] = "all"  # steps are counted in the run's own number of them
        return SamplerSettings.model_validate(self.model_dump() | change)

    @property
    def calls(self) -> int:
        """How many steps an image takes: those of `timesteps`, where it is set, else `steps`."""
        if self.timesteps is None:
            return self.steps
        return len(self.timesteps) - (self.scheduler == "scm")  # whose last angle is where it ends


class DrawSettings(Settings):
    """What is drawn of a prompt, beside the sampler."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the first image; the second has the next one. Torch uses the last 32 bits of it: 2^32 draws what 0 draws."""
    count: int = Field(default=1, ge=1, le=10_000)
    """Images of the prompt."""
    strength: float = Field(default=1.0, ge=0, le=STRONGEST)
    """Of what a run has learnt: 0 is the base model, 1 what was trained, above 1 more of it."""
