"""The client of reward servers: a reward that is scored in another process or on another machine."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import torch
from torch import Tensor

from rlcm.addresses import bearer_token, check_address, request_address
from rlcm.errors import RewardError
from rlcm.rewards.served.client import Client, RefusedError, TransientError, get, post
from rlcm.rewards.served.turns import LONGEST_PAUSE, Servers, ask_each, post_patiently
from rlcm.rewards.served.wire import Encoding, WireError, decode_answer, encode_request, read_health
from rlcm.rewards.settings import OnFailure

logger = logging.getLogger(__name__)
MOST = 1_000_000
"""Of seconds, attempts and pictures, where a client is asked for them."""
REMEDIES = {
    404: "; the address is http://host:port, and what follows it is the client's matter",
    415: "; set `encoding: png`, which is sent as JSON",
}
"""What to do where a reward server refuses a request, by status."""


def _asked_for(labels: Iterable[str], rewards: Sequence[str]) -> set[str]:
    """Return the rewards that labels of an answer are of: their own, or components of them."""
    return {label if label in rewards else label.partition("/")[0] for label in labels}


class HttpReward:
    """A reward that servers started by `rlcm rewards serve` give; see `rlcm.rewards.served.wire` for the protocol.

    A batch is cut into requests of `batch_size` pictures, smaller ones if there are more servers than requests, which the
    servers take in turn and side by side.

    Args:
        address: http://host:port of the first server; a user, a password or a key stands in it as ${VARIABLE}, and is read from
            the environment.
        servers: addresses of more servers of the same rewards.
        rewards: labels of the server's rewards to ask for; left out, all of them. Several are components of this one.
        timeout: seconds that one request may take, answer included.
        retries: attempts after the first, of one request.
        backoff: seconds of the first pause between attempts; each further one is twice as long, up to 30 s.
        breaker_failures: failures in a row after which a server gets no new batches, nor requests while others are well.
        breaker_seconds: for how long.
        batch_size: pictures a request, at most.
        encoding: "uint8" and "png" send pictures of 256 levels, "float32" sends them unrounded, at four times the size.
        token_env: the environment variable that holds the servers' bearer token, if they want one.
        on_failure: "stop": a request that failed for good is an error. "skip": its pictures score NaN, which a
            `RewardMix` set to skip drops.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        *,
        address: str,
        servers: Sequence[str] = (),
        rewards: Sequence[str] | None = None,
        timeout: float = 60.0,
        retries: int = 6,
        backoff: float = 0.5,
        breaker_failures: int = 3,
        breaker_seconds: float = 30.0,
        batch_size: int = 32,
        encoding: Encoding = "uint8",
        token_env: str = "RLCM_REWARD_TOKEN",
        on_failure: OnFailure = "stop",
    ) -> None:
        for name, value in {"timeout": timeout, "breaker_failures": breaker_failures, "batch_size": batch_size}.items():
            if not 0 < value <= MOST:
                raise ValueError(f"{name}={value} must be above 0, and at most {MOST:,}.")
        for name, value in {"retries": retries, "backoff": backoff, "breaker_seconds": breaker_seconds}.items():
            if not 0 <= value <= MOST:
                raise ValueError(f"{name}={value} must be from 0 to {MOST:,}.")
        if encoding not in get_args(Encoding):
            raise ValueError(f"encoding={encoding!r} is not one of {', '.join(get_args(Encoding))}.")
        if rewards is not None and (not rewards or len(set(rewards)) < len(rewards)):
            raise ValueError(
                f"rewards={list(rewards)} must name at least one of the server's rewards, and none twice; left out, all."
            )
        urls = [url.rstrip("/") for url in (address, *servers)]
        for url in urls:
            check_address(url)
            request_address(url, "")
        self.rewards, self.timeout, self.retries, self.backoff = rewards, timeout, retries, backoff
        self.batch_size, self.encoding, self.on_failure = batch_size, encoding, on_failure
        self.served: Sequence[str] | None = None
        """What `/health` has named, once it was asked; an answer has all of it where `rewards` is left out."""
        self._first: Sequence[str] = ()
        """What the first good answer held."""
        self._lock = threading.Lock()
        self._token_env = token_env
        self.servers = Servers(urls, breaker_failures, breaker_seconds)
        self._client = Client(bearer_token(token_env), len(urls), REMEDIES)
        self._pool = ThreadPoolExecutor(len(urls), thread_name_prefix="reward-client")

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return the scores [B] of images [B, 3, h, w], or a dict of them if the servers give several.

        Raises:
            RewardError: if a request failed for good and `on_failure` is "stop", or if all failed.
        """
        size = min(self.batch_size, math.ceil(len(prompts) / len(self.servers.all)))
        parts = [slice(start, start + size) for start in range(0, len(prompts), size)]

        def ask(part: slice) -> dict[str, list[float]]:
            return self._ask(images[part], prompts[part], None if metadata is None else metadata[part])

        answers = ask_each(self._pool, self.servers, ask, parts, self.on_failure)
        good = [answer for answer in answers if not isinstance(answer, RewardError)]
        scores = {label: torch.full((len(prompts),), float("nan")) for label in good[0]}
        for part, answer in zip(parts, answers, strict=True):
            if not isinstance(answer, RewardError):
                for label, values in answer.items():
                    scores[label][part] = torch.tensor(values)
        return next(iter(scores.values())) if len(scores) == 1 else scores

    def _read(self, body: bytes, batch: int) -> dict[str, list[float]]:
        """Return the scores of an answer, which holds what was asked for, or what `/health` names, and the same every time.

        Raises:
            WireError: if it does not, so that another server is asked.
        """
        answer = decode_answer(body, batch)
        given = sorted(answer)
        expected = self.rewards or self.served
        if expected and _asked_for(given, expected) != set(expected):
            what = "was asked for" if self.rewards else "said that it has"
            raise WireError(
                f"it {what} the rewards {sorted(expected)} and gave {given}; start all servers with the same rewards."
            )
        with self._lock:  # requests are read side by side
            self._first = self._first or given
        if given != self._first:
            raise WireError(
                f"it gave the rewards {given}, and the answers before had {self._first}; start all servers with the same rewards."
            )
        return answer

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Ask before any image is made whether a server is there, takes the token and has the rewards.

        A server that is starting is waited for, as long as for an answer. One that does not say what it has (`/health`) is sent a grey
        picture, to see whether it understands requests.

        Raises:
            RewardError: if none answers, one that does would refuse, or they serve different rewards.
        """
        found: dict[str, dict[str, Any]] = {}
        for attempt in range(self.retries + 1):
            errors = []
            for server in self.servers.all:
                try:
                    found[server.url] = read_health(get(self._client, server.url, "/health", min(self.timeout, 10.0)))
                except TransientError as error:
                    errors.append(f"{server.url}: {error}")
            if found:
                break
            if attempt == 0 and self.retries:
                logger.warning("%s; waiting for it", "; ".join(errors))
            if attempt < self.retries:
                time.sleep(min(self.backoff * 2**attempt, LONGEST_PAUSE))
        else:
            raise RewardError(f"{'; '.join(errors)}. Start it with `rlcm rewards serve`, or check its address.")
        for url, health in found.items():
            if health.get("admitted") is False:
                variable = f"the environment variable {self._token_env}"
                if bearer_token(self._token_env):
                    raise RewardError(f"{url} does not take the token in {variable}; set it to the server's token.")
                raise RewardError(f"{url} wants a token; set {variable} to the server's token.")
            if not health:
                self._understood(url, prompts, metadata)
            if "rewards" in health and (missing := sorted(set(self.rewards or ()) - set(health["rewards"]))):
                raise RewardError(f"{url} has no reward {', '.join(missing)}; it serves {', '.join(health['rewards'])}.")

        served = {url: sorted(health["rewards"]) for url, health in found.items() if health.get("rewards")}
        if self.rewards is None and len(set(map(tuple, served.values()))) > 1:
            told = "; ".join(f"{url}: {', '.join(labels)}" for url, labels in served.items())
            raise RewardError(f"the servers give different rewards ({told}); name those that all of them have as `rewards`.")
        self.served = next(iter(served.values()), None)

    def _understood(self, url: str, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing if a server takes requests of this form; what its rewards say of a grey picture is no matter.

        Raises:
            RewardError: if it does not.
        """
        grey, text, entry = torch.full((1, 3, 64, 64), 0.5), list(prompts[:1]) or [""], list(metadata[:1]) or [{}]
        try:
            body, kind = encode_request(grey, text, entry, self.rewards, encoding=self.encoding)
            post(self._client, url, "/score", body, kind, self.timeout)  # once, and no server is taken for dead by it
        except RefusedError as error:
            if error.status not in (400, 413, 422):  # which may be the picture's
                raise
        except (TransientError, TypeError):
            pass

    def _ask(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None
    ) -> dict[str, list[float]]:
        try:
            body, kind = encode_request(images, prompts, metadata, self.rewards, encoding=self.encoding)
        except TypeError as error:
            raise RewardError(f"the metadata cannot be sent: {error}.") from error
        return post_patiently(
            self._client,
            self.servers,
            "/score",
            body,
            kind,
            lambda answer: self._read(answer, len(prompts)),
            timeout=self.timeout,
            retries=self.retries,
            backoff=self.backoff,
        )
