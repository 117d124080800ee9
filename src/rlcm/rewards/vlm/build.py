"""From settings to the model that is asked: behind an endpoint, or in this process."""

from __future__ import annotations

from collections.abc import Callable

from rlcm.rewards.learned.clip import Lazy, Network
from rlcm.rewards.learned.hub import Source
from rlcm.rewards.settings import OnFailure
from rlcm.rewards.vlm.answers import Vlm
from rlcm.rewards.vlm.endpoint import EndpointVlm
from rlcm.rewards.vlm.local import LocalVlm
from rlcm.rewards.vlm.settings import VlmSettings

VLM_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


def make_vlm(settings: VlmSettings, on_failure: OnFailure) -> tuple[Callable[[], Vlm], list[Source]]:
    """Return what makes the model when it is first needed, and what it needs on disk.

    Raises:
        ValueError: if a model of the Hub is not pinned.
    """
    if settings.endpoint is not None:
        return Lazy(lambda: EndpointVlm(settings, on_failure)), []
    Network(settings.batch_size, settings.dtype, settings.device)
    source = Source(settings.model, settings.revision, VLM_FILES)
    return Lazy(lambda: LocalVlm(source, settings)), [source]
