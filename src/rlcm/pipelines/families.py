"""Which denoiser serves which diffusers pipeline."""

from __future__ import annotations

from rlcm.pipelines.base import PipelineDenoiser
from rlcm.pipelines.ernie import ErnieDenoiser
from rlcm.pipelines.flux import FluxDenoiser
from rlcm.pipelines.flux2 import Flux2KleinDenoiser
from rlcm.pipelines.krea import KreaDenoiser
from rlcm.pipelines.pixart import PixArtDenoiser
from rlcm.pipelines.pixel import PixelDenoiser
from rlcm.pipelines.qwen import QwenDenoiser
from rlcm.pipelines.sana import SanaDenoiser
from rlcm.pipelines.sd3 import SD3Denoiser
from rlcm.pipelines.sdxl import SDXLDenoiser
from rlcm.pipelines.unet import UNetDenoiser
from rlcm.pipelines.z_image import ZImageDenoiser

FAMILIES: dict[str, type[PipelineDenoiser]] = {
    "LatentConsistencyModelPipeline": UNetDenoiser,
    "StableDiffusionPipeline": UNetDenoiser,
    "StableDiffusionXLPipeline": SDXLDenoiser,
    "ConsistencyModelPipeline": PixelDenoiser,
    "SanaSprintPipeline": SanaDenoiser,
    "FluxPipeline": FluxDenoiser,
    "ZImagePipeline": ZImageDenoiser,
    "Flux2KleinPipeline": Flux2KleinDenoiser,
    "StableDiffusion3Pipeline": SD3Denoiser,
    "QwenImagePipeline": QwenDenoiser,
    "Krea2Pipeline": KreaDenoiser,
    "ErnieImagePipeline": ErnieDenoiser,
    "PixArtAlphaPipeline": PixArtDenoiser,
    "PixArtSigmaPipeline": PixArtDenoiser,
}
"""The supported pipelines, by class name."""
