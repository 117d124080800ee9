"""Which denoiser serves which diffusers pipeline."""

from __future__ import annotations

from rlcm.pipelines.base import PipelineDenoiser
from rlcm.pipelines.flux import FluxDenoiser
from rlcm.pipelines.pixart import PixArtDenoiser
from rlcm.pipelines.pixel import PixelDenoiser
from rlcm.pipelines.sana import SanaDenoiser
from rlcm.pipelines.sdxl import SDXLDenoiser
from rlcm.pipelines.unet import UNetDenoiser

FAMILIES: dict[str, type[PipelineDenoiser]] = {
    "LatentConsistencyModelPipeline": UNetDenoiser,
    "StableDiffusionPipeline": UNetDenoiser,
    "StableDiffusionXLPipeline": SDXLDenoiser,
    "ConsistencyModelPipeline": PixelDenoiser,
    "SanaSprintPipeline": SanaDenoiser,
    "FluxPipeline": FluxDenoiser,
    "PixArtAlphaPipeline": PixArtDenoiser,
    "PixArtSigmaPipeline": PixArtDenoiser,
}
"""The supported pipelines, by class name."""
