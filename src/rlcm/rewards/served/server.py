"""The server of rewards: FastAPI and uvicorn around a `RewardMix`. See `rlcm.rewards.served.wire` for what travels."""

from __future__ import annotations

import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import anyio
import anyio.to_thread
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

from rlcm._version import __version__
from rlcm.addresses import open_port
from rlcm.errors import RewardError
from rlcm.rewards.composition import RewardMix
from rlcm.rewards.served.arriving import Gone, Held, PromptHeads, busy, read_body, turn_of
from rlcm.rewards.served.client import FAILED
from rlcm.rewards.served.wire import JSON, NPZ, Limits, PngRequest, ScoreAnswer, WireError, decode_request
from rlcm.settings import Settings

logger = logging.getLogger(__name__)
BACKLOG = 2048
"""Callers who may wait for the server to take them in."""


class ServerSettings(Settings):
    """Where a reward server listens, and what it refuses."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every network the machine is in, and should have a token."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 lets the system choose a free one."""
    max_mebibytes: int = Field(default=64, ge=1, le=4096)
    """Largest body of a request, and its pictures as fp32 tensors at most four times that, MiB."""
    max_images: int = Field(default=256, ge=1)
    """Most pictures of a request."""
    max_side: int = Field(default=4096, ge=1)
    """Longest side of a picture, pixels."""
    max_waiting: int = Field(default=128, ge=0)
    """Requests that may wait for their turn; further ones are told to come back later (503)."""
    workers: int = Field(default=1, ge=1, le=1024)
    """Requests scored at the same time; rewards must be safe to call from that many threads."""
    max_mebibytes_together: int = Field(default=512, ge=1)
    """All bodies that are in memory at a time, arriving ones among them, MiB; clients beyond that are told to come back later
    (503). It is at least `max_mebibytes`."""
    header_timeout: float = Field(default=10.0, gt=0)
    """Seconds within which the head of a request must have arrived; a connection that sends none for so long is closed."""
    body_timeout: float = Field(default=60.0, gt=0)
    """Seconds within which the whole body must have arrived."""
    stop_timeout: int = Field(default=60, ge=1)
    """Seconds that requests under way are given when the server is told to stop."""


class Problem(BaseModel):
    """Why a request was not answered with scores."""

    detail: str


class Health(BaseModel):
    """That the server is up, and what it serves."""

    status: str
    version: str
    rewards: list[str]
    admitted: bool
    """Whether the token of this request, or none, lets it score."""


class Meter:
    """What /metrics reports, in the text format of Prometheus."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.images = 0
        self.seconds = 0.0
        self.failures = 0
        self.waiting = 0
        self.running = 0

    def text(self) -> str:
        """Return all metrics."""
        rows: list[tuple[str, str, str, float]] = [
            ("images_total", "counter", "Pictures scored.", self.images),
            ("seconds_total", "counter", "Time spent in the rewards.", self.seconds),
            ("failures_total", "counter", "Requests in which a reward failed.", self.failures),
            ("waiting", "gauge", "Requests that wait for their turn.", self.waiting),
            ("running", "gauge", "Requests being scored.", self.running),
        ]
        lines = ["# HELP rlcm_reward_requests_total Score requests by status.", "# TYPE rlcm_reward_requests_total counter"]
        lines += [f'rlcm_reward_requests_total{{status="{code}"}} {n}' for code, n in sorted(self.requests.items())]
        for name, kind, help_text, value in rows:
            lines += [
                f"# HELP rlcm_reward_{name} {help_text}",
                f"# TYPE rlcm_reward_{name} {kind}",
                f"rlcm_reward_{name} {value}",
            ]
        return "\n".join(lines) + "\n"


def create_app(mix: RewardMix, settings: ServerSettings, token: str | None = None) -> FastAPI:
    """Return the web application that scores pictures by the rewards of a mix (their raw values; clients weigh them).

    Args:
        token: the bearer token that clients must show; None lets everyone in.
    """
    meter = Meter()
    turn = anyio.CapacityLimiter(settings.workers)
    longest = settings.max_mebibytes * 2**20
    held = Held(max(settings.max_mebibytes_together * 2**20, longest))
    limits = Limits(images=settings.max_images, side=settings.max_side, bytes=4 * longest)
    labels = [part.label for part in mix.parts]

    def admitted(shown: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> bool:
        return not token or (shown is not None and hmac.compare_digest(shown.credentials.encode(), token.encode()))

    def check_token(may: bool = Depends(admitted)) -> None:
        if not may:
            raise HTTPException(401, "the bearer token is missing or wrong.", {"WWW-Authenticate": "Bearer"})

    guards, refusals = ([Depends(check_token)], (401,)) if token else ([], ())

    app = FastAPI(
        title="rlcm rewards",
        version=__version__,
        description="Scores pictures for their prompts: " + ", ".join(labels) + ".",
    )

    @app.get("/health")
    async def health(may: bool = Depends(admitted)) -> Health:
        """Say that the server is up, what it serves, and whether it would score for this caller."""
        return Health(status="ok", version=__version__, rewards=labels, admitted=may)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=guards, responses=_problems(*refusals))
    async def metrics() -> str:
        """Report counters in the text format of Prometheus."""
        return meter.text()

    codes = (400, 408, 413, 415, 422, 500, 503, *refusals)

    @app.post("/score", dependencies=guards, responses=_problems(*codes), openapi_extra=_request_body())
    async def score(request: Request) -> ScoreAnswer:
        """Score pictures for their prompts."""
        try:
            answer = await answer_request(request)
        except HTTPException as error:
            meter.requests[error.status_code] += 1
            raise
        meter.requests[200] += 1
        return answer

    async def answer_request(request: Request) -> ScoreAnswer:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (NPZ, JSON):
            raise HTTPException(415, f"the content type must be {NPZ} or {JSON}, not {kind!r}.")
        if (packed := request.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            raise HTTPException(415, f"the content encoding {packed!r} is not read; send the body as it is.")
        with held.part() as part:
            body = await read_body(request, longest, settings.body_timeout, part)
            if meter.waiting > settings.max_waiting:
                raise busy(f"{meter.waiting} requests are waiting")
            meter.waiting += 1
            try:
                await turn_of(request, turn)
            except Gone as error:
                raise HTTPException(400, "the client has left before its turn.") from error
            finally:
                meter.waiting -= 1
            return await answer_body(body, kind)

    async def answer_body(body: bytes, kind: str) -> ScoreAnswer:
        meter.running += 1
        started = time.perf_counter()
        try:
            found = await anyio.to_thread.run_sync(_try, mix, body, kind, limits)
        finally:
            turn.release()
            meter.running -= 1
            meter.seconds += time.perf_counter() - started
        if isinstance(found, HTTPException):
            meter.failures += found.status_code == 500
            raise found
        answer, count = found
        meter.images += count
        return answer

    return app


def serve(mix: RewardMix, settings: ServerSettings, token: str | None = None, ready: Callable[[str], None] = print) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished first.

    Args:
        ready: called with one line that holds the address, once the port is open.

    Raises:
        UsageError: if the port cannot be opened.
    """
    named = f"--port={settings.port} at --host={settings.host}"
    listener = open_port(settings.host, settings.port, named, BACKLOG)
    if not token and not settings.host.startswith(("127.", "localhost", "::1")):
        logger.warning("everyone who reaches %s can use this server; set a token.", settings.host)
    config = uvicorn.Config(
        create_app(mix, settings, token),
        log_level="warning",
        timeout_graceful_shutdown=settings.stop_timeout,
        backlog=BACKLOG,
        http=type("Heads", (PromptHeads,), {"header_timeout": settings.header_timeout}),
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    labels = ", ".join(part.label for part in mix.parts)
    ready(f"serving {labels} at http://{host}:{listener.getsockname()[1]}")
    uvicorn.Server(config).run(sockets=[listener])  # raises the signal anew once everything is closed


def _try(mix: RewardMix, body: bytes, kind: str, limits: Limits) -> tuple[ScoreAnswer, int] | HTTPException:
    """Return the answer, or why there is none: an error that left this thread would keep the body in memory."""
    try:
        return _score(mix, body, kind, limits)
    except WireError as error:
        return HTTPException(422, str(error))
    except RewardError as error:
        logger.error("%s", error)
        return HTTPException(500, str(error), {FAILED: "1"})


def _score(mix: RewardMix, body: bytes, kind: str, limits: Limits) -> tuple[ScoreAnswer, int]:
    images, request = decode_request(body, kind, limits)
    wanted = [part for part in mix.parts if request.rewards is None or part.label in request.rewards]
    unknown = sorted(set(request.rewards or ()) - {part.label for part in wanted})
    if unknown:
        raise WireError(f"rewards: there is no {', '.join(unknown)}; served are {', '.join(part.label for part in mix.parts)}.")
    # Failures always stop here: what to do about them is the client's setting.
    raw = RewardMix([part._replace(on_failure="stop") for part in wanted]).score(images, request.prompts, request.metadata)
    return ScoreAnswer(scores={label: values.tolist() for label, values in raw.parts.items()}), len(images)


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem} for code in codes}


def _request_body() -> dict[str, Any]:
    schema = PngRequest.model_json_schema()
    archive = {
        "type": "string",
        "format": "binary",
        "description": "NumPy archive of `images` [B, 3, h, w] (uint8, or float32 in [0, 1]) and `request`, the bytes (uint8) "
        "of the JSON object without its `images`.",
    }
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}, NPZ: {"schema": archive}}}}
