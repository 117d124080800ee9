"""What the denoisers of all families share: precision, guidance, text encoders that come and go, and decoding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from rlcm.builtin import is_part
from rlcm.errors import ConfigError
from rlcm.pipelines.acceleration import compile_network
from rlcm.pipelines.settings import BUILTIN_GUIDANCE, ModelSettings, SamplerSettings
from rlcm.types import Conditioning, TransitionTable

NEGATIVE = "negative_"
PIXELS = 1024
"""Height and width of the images of models that do not say theirs."""
PROMPTS_AT_ONCE = 8
"""Long prompts of large text encoders take a quarter of a GiB each."""


class PipelineDenoiser:
    """A diffusers pipeline as a `rlcm.types.Denoiser`; each family of models overrides what differs.

    The network and the text encoders run in the precision they were loaded in. Everything that enters or leaves a method,
    the conditioning apart, is fp32.

    Args:
        pipeline: as `load_pipeline` returns it.
        table: the sampler's coefficients.
        initial_scale: what standard normal noise is multiplied by to give the first latents.
        sampler: its settings.
        model: settings of the model, of which the sizes, `offload_text_encoders` and `decode_batch_size` are read.
    """

    network: ClassVar[str] = "unet"
    """The pipeline's attribute that is trained."""
    schedulers: ClassVar[tuple[str, ...]] = ("lcm", "tcd", "ddim", "ddpm", "euler_ancestral")
    """The samplers this family's network was trained for."""
    is_compiled = False
    """Whether the network has been compiled: what it answers then depends on the shape of the batch."""

    def __init__(
        self, pipeline: Any, table: TransitionTable, initial_scale: float, sampler: SamplerSettings, model: ModelSettings
    ) -> None:
        self.pipeline = pipeline
        self.module: nn.Module = getattr(pipeline, self.network)
        self.config: Any = self.module.config
        self.table = table.to(self.device)
        self.initial_scale = initial_scale
        self.sampler = sampler
        self.offload_text_encoders = model.offload_text_encoders
        self.decode_batch_size = model.decode_batch_size
        self.height, self.width = image_size(pipeline, model)
        self.guidance = self.guidance_scale()
        self.latent_shape = self.shape_of_latents()
        if sampler.negative_prompt and not self.classifier_free:
            raise ConfigError(
                f"sampler.negative_prompt={sampler.negative_prompt!r} has no effect: at guidance {self.guidance} this model "
                "sees the prompt alone. Leave it out, or set sampler.guidance above 1 on a model not distilled with guidance."
            )

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network's weights, adapters apart."""
        # A layer with an adapter lists its own weights first, but those in 4 bits are no floating-point numbers.
        return next(p.dtype for name, p in self.module.named_parameters() if p.is_floating_point() and ".lora_" not in name)

    @property
    def classifier_free(self) -> bool:
        """Whether each step runs the network on the negative prompt too."""
        return self.guidance > 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (3, h, w) of one image."""
        return (3, self.height, self.width)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts, one row each, on the network's device and in its precision.

        With classifier-free guidance every tensor has a companion `negative_<name>`.

        Raises:
            ValueError: if there are no prompts.
        """
        if not prompts:
            raise ValueError("there are no prompts to encode; give at least one.")
        with self._text_encoders_on_device(), _without_warnings():
            parts = [
                self._in_precision(self.encode_batch(list(prompts[start : start + PROMPTS_AT_ONCE])))
                for start in range(0, len(prompts), PROMPTS_AT_ONCE)
            ]
        return self.join(parts)

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Return the first latents [B, *latent_shape] for standard normal noise of that shape."""
        return noise.to(self.device, torch.float32) * self.initial_scale

    def denoise(self, x: Tensor, step: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the network's output, fp32 and shaped like x.

            guided = u + g (c - u),  c and u the outputs for the prompt and for the negative prompt

        Args:
            x: [B, *latent_shape] fp32 latents. Carries grad.
            step: [B] rows of the table.
            conditioning: B rows of what `encode` returned.
        """
        step = step.to(self.device)
        t = self.table.timesteps[step]
        x_in = expand_as(self.table.c_in[step], x) * x
        conditioning = self._in_precision(conditioning)
        positive = {name: value for name, value in conditioning.items() if not name.startswith(NEGATIVE)}
        if not self.classifier_free:
            return self.predict(x_in, t, positive).float()
        both = {name: torch.cat([conditioning[NEGATIVE + name], value]) for name, value in positive.items()}
        return self.guide(*self.predict(torch.cat([x_in, x_in]), torch.cat([t, t]), both).float().chunk(2))

    def guide(self, unguided: Tensor, guided: Tensor) -> Tensor:
        """Return the network's outputs for the negative prompt and for the prompt as one, each shaped like the latents."""
        return unguided + self.guidance * (guided - unguided)

    def compile(self) -> None:
        """Compile the network, with the adapters that it has by now.

        Raises:
            ConfigError: if there is no compiler for its device.
        """
        compile_network(self.module, self.device)
        self.is_compiled = True

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, h, w], fp32 and UNCLAMPED: nominally in [0, 1]. Differentiable."""
        vae = self.pipeline.vae
        return vae.decode(self.unscale(latents.float()).to(vae.dtype), return_dict=False)[0].float() * 0.5 + 0.5

    @classmethod
    def table_options(cls, pipeline: Any, sampler: SamplerSettings, model: ModelSettings) -> dict[str, Any]:
        """Return the arguments of `rlcm.policy.samplers.build_table` after the scheduler."""
        return {
            "num_steps": sampler.calls,
            "eta": sampler.eta,
            "original_inference_steps": sampler.original_inference_steps,
            "timesteps": None if sampler.timesteps is None else [int(t) for t in sampler.timesteps],
        }

    @classmethod
    def options_before_loading(cls, scheduler: Any, sampler: SamplerSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return `table_options` for a model of which only the scheduler is there, at a common size of image.

        Args:
            config: as for `check`.
        """
        return cls.table_options(None, sampler, ModelSettings())

    @classmethod
    def check(cls, config: Mapping[str, Any], sampler: SamplerSettings, model: ModelSettings) -> None:
        """Refuse settings that do not go with what the model says of itself; most models say nothing.

        Args:
            config: the entries of the network's configuration, and over them those of the pipeline's.

        Raises:
            ConfigError: with what to use.
        """

    @classmethod
    def own_guidance(cls, config: Mapping[str, Any]) -> float | None:
        """Return the guidance scale of a model by itself, where its pipeline's default is another; None where it is that.

        Args:
            config: the pipeline's configuration.
        """
        return None

    def guidance_scale(self) -> float:
        """Return the guidance scale: the setting's, or the built-in model's or pipeline's own default; 0 without guidance.

        Raises:
            ConfigError: if guidance is set for a model that has none.
        """
        return guidance_scale(self.pipeline, self.sampler)

    def join(self, parts: Sequence[Conditioning]) -> Conditioning:
        """Return the conditioning of a few prompts after another as one."""
        return Conditioning.cat(parts)

    @staticmethod
    def latent_unit(scheduler: Any) -> float:
        """Return the factor of the first latents beside the scheduler's init_noise_sigma."""
        return 1.0

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return the named embeddings of a few prompts, with their negative companions under classifier-free guidance."""
        raise NotImplementedError

    def predict(self, x: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Return the network's output for scaled inputs x [M, *latent_shape] at timesteps t [M]."""
        raise NotImplementedError

    def unscale(self, latents: Tensor) -> Tensor:
        """Return latents in the units of the VAE."""
        return latents / self.pipeline.vae.config.scaling_factor

    def shape_of_latents(self) -> tuple[int, ...]:
        """Return the shape of one latent."""
        factor = getattr(self.pipeline, "vae_scale_factor", 1)
        return (self.config.in_channels, self.height // factor, self.width // factor)

    def _in_precision(self, conditioning: Mapping[str, Tensor]) -> Conditioning:
        dtype = self.dtype
        return Conditioning({name: v.to(dtype) if v.is_floating_point() else v for name, v in conditioning.items()})

    @contextmanager
    def _text_encoders_on_device(self) -> Iterator[None]:
        encoders = text_encoders(self.pipeline) if self.offload_text_encoders else []
        for encoder in encoders:
            encoder.to(self.device)
        try:
            yield
        finally:
            for encoder in encoders:
                encoder.to("cpu")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence diffusers, which warns of long prompts at every call; `truncated_prompts` lists them once."""
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)


def with_negatives(positive: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one dict of both, the negative ones under `negative_<name>`."""
    return {**positive, **{NEGATIVE + name: value for name, value in negative.items()}}


def expand_as(row: Tensor, x: Tensor) -> Tensor:
    """Return row [B] as [B, 1, ...] with the dimensions of x."""
    return row.view(-1, *(1,) * (x.dim() - 1))


def text_encoders(pipeline: Any) -> list[nn.Module]:
    """Return the pipeline's text encoders."""
    found = (getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    return [encoder for encoder in found if encoder is not None]


def call_default(pipeline: Any, name: str) -> Any:
    """Return the default that the pipeline's own call has for an argument, None where it has no such argument."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(name)
    return None if parameter is None else parameter.default


def guidance_scale(pipeline: Any, sampler: SamplerSettings) -> float:
    """Return the guidance scale: the setting's, or the built-in model's or pipeline's own default; 0 for models without guidance.

    Raises:
        ConfigError: if guidance is set for a model that has none.
    """
    default = call_default(pipeline, "guidance_scale")
    if default is None and sampler.guidance is not None:
        raise ConfigError(f"sampler.guidance={sampler.guidance}: {type(pipeline).__name__} has no guidance; leave it out.")
    if is_part(getattr(pipeline, "name_or_path", None) or ""):
        default = BUILTIN_GUIDANCE
    return float((default or 0.0) if sampler.guidance is None else sampler.guidance)


def image_size(pipeline: Any, model: ModelSettings) -> tuple[int, int]:
    """Return the height and width of images in pixels: the settings', or the model's own.

    Raises:
        ConfigError: if a size does not fit the model's grid.
    """
    factor = getattr(pipeline, "vae_scale_factor", 1)
    sample = getattr(pipeline, "default_sample_size", None) or _network(pipeline).config.get("sample_size")
    rows, columns = (sample, sample) if isinstance(sample, int) else sample or (PIXELS / factor, PIXELS / factor)
    height, width = model.height or int(rows * factor), model.width or int(columns * factor)
    grid = patch_side(pipeline)
    for name, size in (("height", height), ("width", width)):
        if size % grid:
            near = max(size // grid, 1) * grid
            raise ConfigError(
                f"model.{name}={size} does not fit {type(pipeline).__name__}; use a multiple of {grid}, e.g. {near}."
            )
    return height, width


def patch_side(pipeline: Any) -> int:
    """Return the pixels along a side of what is one position to the network."""
    config = _network(pipeline).config
    own = getattr(pipeline, "patch_size", None) or config.get("patch_size") or config.get("all_patch_size", (1,))[0]
    # Pipelines that pack latents make patches before the network, whose own are then single pixels.
    patch = getattr(pipeline, "patch_size", 2) if hasattr(pipeline, "_pack_latents") else own
    return int(getattr(pipeline, "vae_scale_factor", 1) * patch)


def _network(pipeline: Any) -> Any:
    return getattr(pipeline, "unet", None) or pipeline.transformer
