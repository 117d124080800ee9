"""What flow-matching transformers share: velocity, sign, time, packed latents, the time shift and guidance."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from rlcm.errors import ConfigError
from rlcm.pipelines.base import NEGATIVE, PipelineDenoiser, call_default, image_size, patch_side, with_negatives
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.types import Conditioning

PATCHES_AT_1024 = 64 * 64
FEWEST_STEPS_OF_A_BASE = 8
"""With fewer, a model that was not distilled draws nothing that a reward can tell apart."""
_POINTS = {
    "base_seq_len": "base_image_seq_len",
    "max_seq_len": "max_image_seq_len",
    "base_shift": "base_shift",
    "max_shift": "max_shift",
}
"""What the pipelines' `calculate_shift` takes, by its name in the scheduler's configuration."""


class FlowDenoiser(PipelineDenoiser):
    """A transformer that predicts a velocity: with s the noise level, x_s = (1 - s) x_0 + s eps and v = eps - x_0.

    The table's output m is v. A model of this family says how its network is called (`call`) and what its text encoders say
    (`encode_texts`); where it differs from FLUX.1 it sets one of the class attributes, or overrides `time`, `shift`, `unscale`.
    """

    network: ClassVar[str] = "transformer"
    schedulers: ClassVar[tuple[str, ...]] = ("flow_euler_stochastic", "flow_lcm")
    kind: ClassVar[str]
    """The pipeline's class, whose module has the rule of its time shift."""
    sign: ClassVar[float] = 1.0
    """What the network's output is multiplied by to give v."""
    packed: ClassVar[bool] = False
    """Whether latents are [L, C], one row for each patch of L = h w / 4, in place of [C, h, w]."""
    guided_by: ClassVar[str] = "guidance_scale"
    """The argument of the pipeline's call that is its guidance scale."""
    unguided: ClassVar[float] = 1.0
    """The guidance scale that is no guidance: 1, or 0 where the pipeline adds g (c - u) to c."""

    levels_are_the_pipelines: ClassVar[bool] = True
    """Whether the pipeline's own default noise levels are `levels`."""

    @classmethod
    def table_options(cls, pipeline: Any, sampler: SamplerSettings, model: ModelSettings) -> dict[str, Any]:
        """Return the noise levels before the shift, 1 .. 1/N, and mu, the shift's exponent."""
        (height, width), side = image_size(pipeline, model), patch_side(pipeline)
        return cls._options(pipeline.scheduler, sampler, (height // side) * (width // side), pipeline.config)

    @classmethod
    def options_before_loading(cls, scheduler: Any, sampler: SamplerSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return cls._options(scheduler, sampler, PATCHES_AT_1024, config)

    @classmethod
    def _options(cls, scheduler: Any, sampler: SamplerSettings, length: int, config: Mapping[str, Any]) -> dict[str, Any]:
        levels = list(sampler.timesteps) if sampler.timesteps else cls.levels(sampler.steps)
        return {
            "num_steps": len(levels),
            "eta": sampler.eta,
            "original_inference_steps": sampler.original_inference_steps,
            "sigmas": levels,
            "mu": cls.shift(scheduler, length, len(levels), config),
        }

    @classmethod
    def levels(cls, steps: int) -> list[float]:
        """Return the noise levels before the shift, as the pipeline spaces them."""
        return [1 - i / steps for i in range(steps)]

    @classmethod
    def shift(cls, scheduler: Any, length: int, steps: int, config: Mapping[str, Any]) -> float | None:
        """Return mu, as the pipeline computes it, for an image of `length` patches; None where it gives none.

        Args:
            config: the pipeline's configuration.
        """
        points = {name: scheduler.config[key] for name, key in _POINTS.items() if key in scheduler.config}
        return float(cls.rule("calculate_shift")(length, **points))

    @classmethod
    def rule(cls, name: str) -> Any:
        """Return a function of the module that the pipeline is in."""
        return getattr(sys.modules[getattr(diffusers, cls.kind).__module__], name)

    @classmethod
    def check(cls, config: Mapping[str, Any], sampler: SamplerSettings, model: ModelSettings) -> None:
        """Refuse guidance on a distilled model, and few steps of one that is not distilled."""
        distilled = config.get("is_distilled")
        if distilled and sampler.guidance is not None and sampler.guidance > cls.unguided:
            raise ConfigError(
                f"sampler.guidance={sampler.guidance}: {model.path} is distilled and runs without guidance (is_distilled in its "
                f"model_index.json); leave it out, or set sampler.guidance={cls.unguided:g}."
            )
        if distilled is False and sampler.calls < FEWEST_STEPS_OF_A_BASE and not model.loras:
            many = inspect.signature(getattr(diffusers, cls.kind).__call__).parameters["num_inference_steps"].default
            raise ConfigError(
                f"sampler.steps={sampler.calls}: {model.path} is a base model that was not distilled (is_distilled is false in its "
                f"model_index.json), and such few steps draw no image. Use the distilled model, or sampler.steps={many}, or give a "
                "LoRA that distils it in model.loras."
            )

    def guidance_scale(self) -> float:
        given = self.sampler.guidance
        if given is not None:
            return float(given)
        own = self.own_guidance(self.pipeline.config)
        return float(call_default(self.pipeline, self.guided_by) if own is None else own)

    @classmethod
    def own_guidance(cls, config: Mapping[str, Any]) -> float | None:
        """Return no guidance for a model that says that it is distilled, whatever its pipeline's default."""
        return cls.unguided if config.get("is_distilled") else None

    @property
    def classifier_free(self) -> bool:
        return self.guidance > self.unguided

    def guide(self, unguided: Tensor, guided: Tensor) -> Tensor:
        return unguided + (self.guidance + 1 - self.unguided) * (guided - unguided)

    @property
    def negative_prompt(self) -> str:
        """What classifier-free guidance leads away from."""
        return self.sampler.negative_prompt

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        positive = self.encode_texts(prompts)
        if not self.classifier_free:
            return positive
        return with_negatives(positive, self.encode_texts([self.negative_prompt] * len(prompts)))

    def encode_texts(self, texts: list[str]) -> dict[str, Tensor]:
        """Return what the text encoders say of texts, each tensor [B, ...]; where they say more at once, see `encode_batch`."""
        raise NotImplementedError

    def predict(self, x: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        return self.sign * self.call(x.to(self.dtype), self.time(t), embeddings)

    def call(self, x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Return the network's own output for x [M, *latent_shape] in its precision, at `time` [M] in its own units."""
        raise NotImplementedError

    def time(self, t: Tensor) -> Tensor:
        """Return the network's time [M] of timesteps 1000 s."""
        return t.to(self.dtype) / 1000  # rounded first, as the networks were trained

    def join(self, parts: Sequence[Conditioning]) -> Conditioning:
        """Return the parts as one, each tensor with zeros behind up to the longest, the negative prompt's included."""
        longest: dict[str, int] = {}
        for name, value in ((name, value) for part in parts for name, value in part.items() if value.dim() > 1):
            plain = name.removeprefix(NEGATIVE)
            longest[plain] = max(longest.get(plain, 0), value.shape[1])
        return Conditioning.cat(
            [
                Conditioning(
                    {
                        name: _lengthened(value, longest.get(name.removeprefix(NEGATIVE), 0)) if value.dim() > 1 else value
                        for name, value in part.items()
                    }
                )
                for part in parts
            ]
        )

    def unscale(self, latents: Tensor) -> Tensor:
        """Return unpacked latents [B, C, h, w] in the units of the VAE."""
        config = self.pipeline.vae.config
        return self.unpack(latents) / config.scaling_factor + config.shift_factor

    def unpack(self, latents: Tensor) -> Tensor:
        """Return latents with rows and columns, by the pipeline's own function where they are packed."""
        if not self.packed:
            return latents
        unpacked: Tensor = self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor)
        return unpacked

    def shape_of_latents(self) -> tuple[int, ...]:
        rows, columns = self.patches()
        return (rows * columns, self.config.in_channels) if self.packed else super().shape_of_latents()

    def patches(self) -> tuple[int, int]:
        """Return the rows and columns of patches of an image."""
        side = patch_side(self.pipeline)
        return self.height // side, self.width // side


def padded(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the embeddings of prompts [T_i, ...] as one batch [B, T, ...] and a mask [B, T], true where a token is."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    embeddings = pad_sequence(list(rows), batch_first=True)
    mask = torch.arange(embeddings.shape[1], device=rows[0].device) < lengths[:, None]
    return {"embeddings": embeddings, "mask": mask}


def with_batch_norm_undone(vae: Any, latents: Tensor, eps: float) -> Tensor:
    """Return latents [B, C, h, w] with the mean and the variance that the VAE's batch norm keeps."""
    mean, variance = (each.view(1, -1, 1, 1).to(latents) for each in (vae.bn.running_mean, vae.bn.running_var))
    return latents * (variance + eps).sqrt() + mean


def _lengthened(value: Tensor, length: int) -> Tensor:
    return pad(value, (0, 0) * (value.dim() - 2) + (0, length - value.shape[1]))
