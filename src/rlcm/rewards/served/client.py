"""One exchange with a server, bounded in time and size from its first byte to its last."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Mapping
from urllib.parse import urljoin

import httpx

from rlcm.addresses import request_address, without_secrets
from rlcm.errors import RewardError

logging.getLogger("httpx").setLevel(logging.WARNING)  # below, it writes every request's address, with what is secret in it

LONGEST_ANSWER = 16 * 2**20
"""Bytes; an answer for 256 pictures takes about 5 kB a reward."""


class TransientError(Exception):
    """An attempt failed in a way that another one may not."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class RefusedError(RewardError):
    """A server refused a request, and would again."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class RewardFailedError(TransientError):
    """The server is well, and its reward failed on these pictures."""


REMEDIES = {
    401: "; set the environment variable that `token_env` names to the server's token",
    413: "; lower `batch_size`",
}
"""Ends of the error where a server refuses a request, by status, whatever it serves."""
FAILED = "X-Reward-Failed"
"""Header of an answer 500 where it is the reward that failed, and not the server."""


def get(client: Client, address: str, path: str, timeout: float) -> bytes | None:
    """Return the body of one answer; None where the server has no such page.

    Raises:
        ConfigError: if a variable is not set.
        TransientError: if the connection or the server failed.
    """
    status, _, found = _exchange(client, "GET", request_address(address, path), timeout)
    if status in (500, 502, 503, 504):
        raise TransientError(f"status {status}")
    return found if status == 200 else None


def post(client: Client, address: str, path: str, body: bytes, content_type: str, timeout: float) -> bytes:
    """Return the body of one answer; `timeout` bounds the whole exchange, from the connection to the answer's last byte.

    Args:
        address: of the server, with `${VARIABLE}` where it has a secret.
        path: what follows it.

    Raises:
        ConfigError: if a variable is not set.
        TransientError: if the connection or the server failed; its child `RewardFailedError`, if the reward did.
        RefusedError: if the server refused the request.
    """
    status, headers, found = _exchange(client, "POST", request_address(address, path), timeout, body, content_type)
    if status == 200:
        return found
    said = found[:300].decode(errors="replace").strip()
    text = f"status {status}: {said}" if said else f"status {status}"
    if 300 <= status < 400 and (elsewhere := headers.get("Location")):
        raise RefusedError(
            f"{address} redirects to {without_secrets(urljoin(address, elsewhere[:300]))}; give the address that answers itself",
            status,
        )
    if status == 500 and FAILED in headers:
        raise RewardFailedError(_detail(found))
    if status in (408, 429) or status >= 500:
        wait = headers.get("Retry-After", "")
        raise TransientError(text, float(wait) if wait.isdecimal() else 0.0)
    raise RefusedError(f"{address} refused the request with {text}{client.remedies.get(status, '')}", status)


def _exchange(
    client: Client, method: str, url: str, timeout: float, body: bytes | None = None, content_type: str | None = None
) -> tuple[int, httpx.Headers, bytes]:
    try:
        return client.ask(method, url, timeout, body, content_type)
    except asyncio.TimeoutError as error:
        raise TransientError(f"no whole answer within {timeout:g} s") from error
    except httpx.RequestError as error:
        raise TransientError(without_secrets(f"{type(error).__name__}: {error}")) from error


def _detail(answer: bytes) -> str:
    """Return what a server of ours says went wrong."""
    try:
        return str(json.loads(answer)["detail"])[:1000]
    except (ValueError, LookupError, TypeError, RecursionError):
        return answer[:300].decode(errors="replace")


_LOOPS: dict[int, asyncio.AbstractEventLoop] = {}


def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of all clients of a process, in a thread of its own.

    Several threads may ask for it first, and only one loop may come of it: a client's connections belong to one. `setdefault`
    decides in one step, without a lock that a fork could leave locked.
    """
    if process not in _LOOPS:
        made = asyncio.new_event_loop()
        if _LOOPS.setdefault(process, made) is made:
            threading.Thread(target=made.run_forever, name="reward-client-io", daemon=True).start()
        else:
            made.close()
    return _LOOPS[process]


class Client:
    """Asks from any thread, keeps its connections, follows no redirects and asks for plain answers.

    It is asynchronous inside, since only so an exchange can be broken off at any point: a server that sends a byte of its headers
    now and then never lets a blocking read run out of time.

    Args:
        token: the bearer token of the servers, if they want one.
        connections: at most so many at a time.
        remedies: further ends of the error where a server refuses a request, by status.
    """

    def __init__(self, token: str | None, connections: int, remedies: Mapping[int, str] | None = None) -> None:
        self.remedies = {**REMEDIES, **(remedies or {})}
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.AsyncClient(headers=headers, limits=limits, timeout=None)

    def ask(
        self, method: str, url: str, timeout: float, body: bytes | None = None, content_type: str | None = None
    ) -> tuple[int, httpx.Headers, bytes]:
        """Return status, headers and body of one answer.

        Raises:
            TransientError: if the answer is too long.
            asyncio.TimeoutError: if it was not whole after `timeout` seconds.
            httpx.RequestError: if the connection failed.
        """
        exchange = asyncio.wait_for(self._ask(method, url, body, content_type), timeout)
        return asyncio.run_coroutine_threadsafe(exchange, _loop(os.getpid())).result()

    async def _ask(
        self, method: str, url: str, body: bytes | None, content_type: str | None
    ) -> tuple[int, httpx.Headers, bytes]:
        headers = {"Content-Type": content_type} if content_type else {}
        async with self._client.stream(method, url, content=body, headers=headers) as response:
            found = bytearray()
            async for chunk in response.aiter_raw():
                found += chunk
                if len(found) > LONGEST_ANSWER:
                    raise TransientError(f"the answer exceeds {LONGEST_ANSWER} bytes")
        return response.status_code, response.headers, bytes(found)
