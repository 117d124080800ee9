"""How requests arrive at a reward server: heads in time, bodies within limits, and each at its turn while its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import h11
from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol


class Gone(Exception):
    """A client has left before its work was begun."""


class Held:
    """The bytes of all bodies in memory."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    @contextmanager
    def part(self) -> Iterator[Part]:
        """Hold the bytes of one body, until the block ends."""
        part = Part(self)
        try:
            yield part
        finally:
            part.drop()


class Part:
    """The bytes of one body, counted among those of all."""

    def __init__(self, held: Held) -> None:
        self._held, self._bytes, self._found = held, 0, bytearray()

    def add(self, chunk: bytes) -> bool:
        """Keep a chunk and return True, or drop everything and return False, where all bodies together would be too large."""
        if self._held.bytes + len(chunk) > self._held.most:
            self.drop()
            return False
        self._held.bytes += len(chunk)
        self._bytes += len(chunk)
        self._found += chunk
        return True

    def take(self) -> bytes:
        """Return all of it, which goes on being counted."""
        found, self._found = bytes(self._found), bytearray()
        return found

    def drop(self) -> None:
        """Keep nothing."""
        self._held.bytes -= self._bytes
        self._bytes, self._found = 0, bytearray()


async def read_body(request: Request, longest: int, timeout: float, part: Part) -> bytes:
    """Return the body; one that is not kept, being too long, is read to its end, or four times the limit, and thrown away.

    A connection closed on a client that is still sending would look to it like a crash, not like the answer 413 or 503.
    """
    announced = request.headers.get("content-length", "0")
    size = 0
    too_long = len(announced) > 18 or (announced.isdecimal() and int(announced) > longest)
    too_many = False
    try:
        with anyio.move_on_after(timeout) as scope:
            async for chunk in request.stream():
                size += len(chunk)
                too_long = too_long or size > longest
                if too_long:
                    part.drop()
                    if size > 4 * longest:
                        break
                elif not too_many:
                    too_many = not part.add(chunk)
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection was closed within the body.") from error
    if scope.cancelled_caught:
        raise HTTPException(408, f"the body was not complete after {timeout:g} s.")
    if too_long:
        raise HTTPException(413, f"the body exceeds {longest} bytes; send fewer pictures at once.")
    if too_many:
        raise busy("the bodies of other requests fill the memory that they may take")
    return part.take()


def busy(why: str) -> HTTPException:
    """Return the answer to a client that should ask again a little later; `why` says what is too much."""
    return HTTPException(503, f"{why}; come back later.", {"Retry-After": "1"})


async def turn_of(request: Request, turn: anyio.CapacityLimiter) -> None:
    """Wait for a turn.

    Raises:
        Gone: if the client leaves meanwhile.
    """
    has_turn = False
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await anyio.lowlevel.checkpoint()  # so that one who has left already is seen
        await turn.acquire()
        has_turn = True
        group.cancel_scope.cancel()
    if not has_turn:
        raise Gone


class PromptHeads(H11Protocol):
    """HTTP as uvicorn speaks it, for clients that send the head of a request within `header_timeout` seconds."""

    header_timeout = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes in, and wait for the rest of a head where there is half of one."""
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
