"""Which vision-language model is asked, and how."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rlcm.settings import Settings


class VlmSettings(Settings):
    """Which vision-language model is asked, and how: the arguments that all rewards of this package take."""

    model: str = Field(min_length=1)
    """The model's name at the endpoint; without an endpoint a local folder or a Hub repository."""
    endpoint: str | None = Field(default=None, pattern="^https?://")
    """http://host:port/v1 of an OpenAI-compatible server; left out, the model runs in this process."""
    revision: str | None = None
    """The commit, if the model comes from the Hub."""
    max_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """Longest answer."""
    parallel: int = Field(default=8, ge=1, le=1024)
    """Requests under way at the same time at an endpoint."""
    timeout: float = Field(default=60.0, gt=0, le=1_000_000)
    """Seconds that one request may take."""
    retries: int = Field(default=6, ge=0, le=1_000_000)
    """Attempts after the first, of one request."""
    backoff: float = Field(default=0.5, ge=0, le=1_000_000)
    """Seconds of the first pause between attempts; each further one is twice as long, up to 30 s."""
    key_env: str = "RLCM_VLM_KEY"
    """The environment variable with the endpoint's bearer token, if it wants one."""
    request: dict[str, Any] = Field(default_factory=dict)
    """More fields of a request to an endpoint, such as {"seed": 1}."""
    batch_size: int = Field(default=8, ge=1, le=1_000_000)
    """Pictures that go through a local model at once."""
    dtype: str = Field(default="bfloat16", pattern="^(float32|float16|bfloat16)$")
    """Of a local model."""
    device: str = "auto"
    """Of a local model; "auto" is a GPU if there is one."""
