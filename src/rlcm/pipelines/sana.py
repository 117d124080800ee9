"""SANA-Sprint: a continuous-time consistency transformer in TrigFlow angles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcm.pipelines.base import PipelineDenoiser, call_default, expand_as
from rlcm.pipelines.settings import ModelSettings, SamplerSettings


class SanaDenoiser(PipelineDenoiser):
    """SanaSprintPipeline. The network predicts a flow-matching velocity and takes the guidance scale as an input.

    Images are made at exactly the height and width of the settings; the pipeline's resolution bins are not used.
    """

    network: ClassVar[str] = "transformer"
    schedulers: ClassVar[tuple[str, ...]] = ("scm",)

    @classmethod
    def table_options(cls, pipeline: Any, sampler: SamplerSettings, model: ModelSettings) -> dict[str, Any]:
        steps = len(sampler.timesteps) - 1 if sampler.timesteps else sampler.steps
        return {**super().table_options(pipeline, sampler, model), "num_steps": steps, "timesteps": sampler.timesteps}

    @staticmethod
    def latent_unit(scheduler: Any) -> float:
        return float(scheduler.config.sigma_data)

    @property
    def classifier_free(self) -> bool:
        return False

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        embeddings, mask = self.pipeline.encode_prompt(
            prompts,
            device=self.device,
            clean_caption=call_default(self.pipeline, "clean_caption"),
            max_sequence_length=call_default(self.pipeline, "max_sequence_length"),
            complex_human_instruction=call_default(self.pipeline, "complex_human_instruction"),
        )
        return {"embeddings": embeddings, "mask": mask}

    def predict(self, x: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Return the TrigFlow velocity times sigma_data, from the flow-matching velocity v.

            s = sin t / (sin t + cos t),  n = sqrt(s^2 + (1 - s)^2),  x_in = n x / sigma_data
            m = sigma_data ((1 - 2 s) x_in + (1 - 2 s + 2 s^2) v) / n

        Chen et al. 2025, SANA-Sprint (arXiv:2503.09641), section 3.1.
        """
        sigma_data = self.pipeline.scheduler.config.sigma_data
        s_row = t.sin() / (t.cos() + t.sin())
        s = expand_as(s_row, x)
        norm = (s**2 + (1 - s) ** 2).sqrt()
        x_in = x / sigma_data * norm
        guidance = torch.full((len(x),), self.guidance, device=x.device).to(self.dtype)
        velocity = self.module(
            x_in.to(self.dtype),
            encoder_hidden_states=embeddings["embeddings"],
            encoder_attention_mask=embeddings["mask"],
            guidance=guidance * self.config.guidance_embeds_scale,
            timestep=s_row,
            return_dict=False,
        )[0].float()
        return ((1 - 2 * s) * x_in + (1 - 2 * s + 2 * s**2) * velocity) / norm * sigma_data

    def unscale(self, latents: Tensor) -> Tensor:
        return super().unscale(latents / self.pipeline.scheduler.config.sigma_data)
