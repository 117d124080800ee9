"""A vision-language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from rlcm.addresses import bearer_token, request_address
from rlcm.rewards.image.pixels import to_png, to_uint8
from rlcm.rewards.served.client import Client
from rlcm.rewards.served.turns import Servers, ask_each, post_patiently
from rlcm.rewards.served.wire import JSON
from rlcm.rewards.settings import OnFailure
from rlcm.rewards.vlm.answers import Answer, read_completion
from rlcm.rewards.vlm.settings import VlmSettings


class EndpointVlm:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        settings: with an endpoint.
        on_failure: "skip" answers None for pictures whose request failed for good, instead of raising.
    """

    def __init__(self, settings: VlmSettings, on_failure: OnFailure) -> None:
        self.settings, self.on_failure = settings, on_failure
        request_address(str(settings.endpoint), "")
        self.servers = Servers([str(settings.endpoint).rstrip("/")], breaker_failures=3, breaker_seconds=30)
        self._client = Client(bearer_token(settings.key_env), settings.parallel)
        self._pool = ThreadPoolExecutor(settings.parallel, thread_name_prefix="vlm")

    def __call__(self, images: Tensor, questions: Sequence[str], /) -> list[Answer | None]:
        """Return one answer a picture.

        Raises:
            RewardError: if a request failed for good and `on_failure` is "stop", or if all failed.
        """

        def ask(request: tuple[Any, str]) -> Answer:
            return self._ask(*request)

        requests = list(zip(to_uint8(images), questions, strict=True))
        found = ask_each(self._pool, self.servers, ask, requests, self.on_failure)
        return [answer if isinstance(answer, Answer) else None for answer in found]

    def _ask(self, picture: Any, question: str) -> Answer:
        url = "data:image/png;base64," + base64.b64encode(to_png(picture)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.settings.max_tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
            **self.settings.request,
        }
        return post_patiently(
            self._client,
            self.servers,
            "/chat/completions",
            json.dumps(body).encode(),
            JSON,
            read_completion,
            timeout=self.settings.timeout,
            retries=self.settings.retries,
            backoff=self.settings.backoff,
        )
