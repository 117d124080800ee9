"""Servers that take turns, asked patiently: pauses between attempts, and no more requests for one that keeps failing."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from rlcm.errors import RewardError
from rlcm.rewards.served.client import Client, RewardFailedError, TransientError, post
from rlcm.rewards.served.wire import WireError
from rlcm.rewards.settings import OnFailure

logger = logging.getLogger(__name__)
R = TypeVar("R")
T = TypeVar("T")

LONGEST_PAUSE = 30.0
"""Seconds between two attempts, at most."""


@dataclass(slots=True)
class Server:
    """One server, and what is known of its health."""

    url: str
    failures: int = 0
    """Failures since the last success."""
    closed_until: float = 0.0
    """Monotonic time before which no request is sent there while another server is well."""


class Servers:
    """Servers that take turns; one that keeps failing is left alone for a while (a circuit breaker).

    After `breaker_failures` failures in a row a server gets no requests for `breaker_seconds`; then one trial request
    decides. While all are left alone, the one whose time ends first is tried.
    """

    def __init__(self, urls: Sequence[str], breaker_failures: int, breaker_seconds: float) -> None:
        self.all = [Server(url) for url in urls]
        self._breaker_failures = breaker_failures
        self._breaker_seconds = breaker_seconds
        self._turn = count()
        self._lock = threading.Lock()
        self._gave_up = False
        self._told: set[str] = set()

    def next(self) -> Server:
        """Return the server whose turn it is."""
        with self._lock:
            now, turn = time.monotonic(), next(self._turn)
            order = [self.all[(turn + i) % len(self.all)] for i in range(len(self.all))]
            server = next((s for s in order if s.closed_until <= now), None) or min(order, key=lambda s: s.closed_until)
            if server.failures >= self._breaker_failures:
                server.closed_until = now + self._breaker_seconds  # others wait for the outcome of this trial
            return server

    def succeeded(self, server: Server) -> None:
        """Note a success."""
        with self._lock:
            server.failures, server.closed_until, self._gave_up = 0, 0.0, False

    def failed(self, server: Server) -> None:
        """Note a failure."""
        with self._lock:
            server.failures += 1
            if server.failures >= self._breaker_failures:
                server.closed_until = time.monotonic() + self._breaker_seconds

    def gave_up(self) -> None:
        """Note that a request went through all its attempts in vain."""
        with self._lock:
            self._gave_up = True

    def is_news(self, text: str) -> bool:
        """Return whether a text is asked about for the first time."""
        with self._lock:
            is_new = text not in self._told
            self._told.add(text)
            return is_new

    def all_dead(self) -> bool:
        """Return whether every server is being left alone, and a request failed for good since the last success."""
        with self._lock:
            return self._gave_up and all(server.closed_until > time.monotonic() for server in self.all)


def post_patiently(
    client: Client,
    servers: Servers,
    path: str,
    body: bytes,
    content_type: str,
    read: Callable[[bytes], T],
    *,
    timeout: float,
    retries: int,
    backoff: float,
) -> T:
    """Return what `read` makes of the first good answer of servers that take turns.

    Connection errors, slow answers, 408, 429, 5xx and answers that `read` refuses by a WireError are tried again, once every
    server has had its turn after a pause of backoff * 2^n seconds, jittered by half, or as long as the server asks for. Where it is
    the reward that failed, the next server is asked once, and no server is taken for dead.

    Raises:
        RewardError: if a server refuses the request (other 4xx), or the last attempt failed.
    """
    text, refused, remedy = "", 0, ""
    for attempt in range(retries + 1):
        server = servers.next()
        pause, level = 0.0, logging.INFO
        try:
            answer = read(post(client, server.url, path, body, content_type, timeout))
        except RewardFailedError as error:
            servers.succeeded(server)
            refused += 1
            text = f"{server.url}: {error}"
            if refused == 2 or attempt == retries:
                raise RewardError(text) from error
        except (TransientError, WireError) as error:
            servers.failed(server)
            text = f"{server.url}: {error}".removesuffix(".")
            answered = isinstance(error, WireError)
            if answered and servers.is_news(text):  # the others may go on without that server
                level = logging.WARNING
            remedy = "Check what answers at this address." if answered else "Check that the server is running, and its address."
            pause = error.retry_after if isinstance(error, TransientError) else 0.0
        else:
            servers.succeeded(server)
            return answer
        if attempt == retries:
            break
        if (attempt + 1) % len(servers.all) == 0:
            # Python's own generator: the run's noise must not depend on the weather of the network.
            pause = max(pause, backoff * 2 ** (attempt // len(servers.all)) * random.uniform(0.5, 1.5))
        logger.log(level, "%s; attempt %d of %d", text, attempt + 1, retries + 1)
        time.sleep(min(pause, LONGEST_PAUSE))
    servers.gave_up()
    attempts = f"{retries + 1} attempt{'s' * (retries > 0)}"
    raise RewardError(f"{text}; gave up after {attempts}. {remedy}")


def ask_each(
    pool: Executor, servers: Servers, ask: Callable[[R], T], requests: Sequence[R], on_failure: OnFailure
) -> list[T | RewardError]:
    """Return the answer to each request, or the error of one that failed for good, having asked side by side.

    Once a request has failed for good, those that wait for their turn are not sent any more if the failure stops the run
    anyway, or if all servers are dead: each of them would go through all its attempts in vain.

    Raises:
        RewardError: if a request failed for good and `on_failure` is "stop"; if all failed; or, without an attempt, if all
            servers are dead since an earlier batch.
    """
    if servers.all_dead():
        raise RewardError(f"{', '.join(s.url for s in servers.all)} failed lately, and no attempt is due yet.")
    failed: list[RewardError] = []

    def attempt(request: R) -> T | RewardError:
        if failed and (on_failure == "stop" or servers.all_dead()):
            return failed[0]
        try:
            return ask(request)
        except RewardError as error:
            failed.append(error)
            return error

    answers = list(pool.map(attempt, requests))
    if failed and (on_failure == "stop" or all(isinstance(answer, RewardError) for answer in answers)):
        raise failed[0]
    for error in failed:
        logger.warning("%s", error)
    return answers
