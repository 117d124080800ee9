"""What the licences of published models restrict, as far as we know: said before a run, for it may be what decides."""

from __future__ import annotations

from typing import Any

from rlcm.paths import existing
from rlcm.pipelines.settings import ModelSettings

_FLUX = "the FLUX non-commercial licence: no commercial use without another licence of Black Forest Labs"
_STABILITY = (
    "the Stability AI Community Licence: commercial use is free up to a yearly revenue of one million US dollars, and needs "
    "another licence above it"
)
_KREA = "the Krea 2 Community Licence: free for persons and small companies, larger ones need another licence"
_NVIDIA = "a licence of NVIDIA, and its text encoder under Google's terms for Gemma: read both before commercial use"

RESTRICTED = {
    "black-forest-labs/FLUX.1-dev": _FLUX,
    "black-forest-labs/FLUX.1-Krea-dev": _FLUX,
    "black-forest-labs/FLUX.2-klein-9B": _FLUX,
    "black-forest-labs/FLUX.2-klein-base-9B": _FLUX,
    "stabilityai/sd-turbo": _STABILITY,
    "stabilityai/sdxl-turbo": _STABILITY,
    "stabilityai/stable-diffusion-3-medium-diffusers": _STABILITY,
    "stabilityai/stable-diffusion-3.5-medium": _STABILITY,
    "stabilityai/stable-diffusion-3.5-large": _STABILITY,
    "stabilityai/stable-diffusion-3.5-large-turbo": _STABILITY,
    "krea/Krea-2-Turbo": _KREA,
    "krea/Krea-2-Raw": _KREA,
    "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers": _NVIDIA,
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": _NVIDIA,
    "tianweiy/DMD2": "CC BY-NC 4.0: no commercial use",
}
"""What a repository's licence says of use, by its name on the Hub. ByteDance/Hyper-SD is under that of the model that each of its
files is for, which is here by itself."""
_BY_NAME = {name.casefold(): text for name, text in RESTRICTED.items()}


def restrictions(settings: ModelSettings, pipeline: Any = None) -> list[str]:
    """Return a note for each of the model and its LoRAs whose licence is known to restrict use.

    Nothing is known of a local folder, whatever is in it.

    Args:
        pipeline: a loaded one in place of the model of the settings.
    """
    path = settings.path if pipeline is None else str(getattr(pipeline, "name_or_path", None) or "")
    names = dict.fromkeys([path, *(lora.path for lora in settings.loras)])
    return [
        f"licence: {name} is under {_BY_NAME[name.casefold()]}. What is trained on it is bound by it, too. This is what we know of "
        "it; its page on the Hub counts"
        for name in names
        if name.casefold() in _BY_NAME and existing(name, "model.path") is None
    ]
