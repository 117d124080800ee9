"""What stands between the network and the page: who may ask, for what, and files of runs alone."""

from __future__ import annotations

import contextlib
import hmac
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response

from rlcm.errors import MissingFileError, UsageError
from rlcm.report.templating import render
from rlcm.ui.folder import RunsFolder

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "rlcm_ui"
OPEN = re.compile(r"/(login|favicon\.ico)")
"""What needs no password."""
ASKED = re.compile(
    r"/|/login|/files/[^/]+/.+|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/assets/.+|/static/.+|"
    r"/gradio_api/(info|startup-events|queue/(join|data)|heartbeat/\w+|cancel|reset|run/\w+|call/\w+(/\w+)?|theme\.css|app_id)/?"
)
"""All that the page asks for; Gradio's other routes, those for files and uploads among them, do not exist here."""
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
OF_FILES = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; sandbox allow-downloads"
"""A run's own pages may look as they like, and do nothing."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
KINDS = {
    ".html": "text/html; charset=utf-8", ".png": "image/png", ".json": "application/json", ".yaml": "text/plain; charset=utf-8",
    ".jsonl": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8",
}  # fmt: skip
"""Files that a browser shows; it is given the others to keep."""


class Guard:
    """Lets through what the page needs, from those who may ask for it.

    Args:
        app: what answers.
        host: the address that is listened at. At one of this machine's own, only names of this machine are answered to, so that
            no page of another site reaches it by a name that it makes point here.
        password: that visitors must give; None lets everyone in.
    """

    def __init__(self, app: App, host: str, password: str | None) -> None:
        self.app, self.password = app, password
        self.hosts = LOOPBACK if host in LOOPBACK else None
        self._sessions: set[str] = set()
        self._wait = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = await self._answer(request)
        policy = OF_FILES if scope["path"].startswith("/files/") else POLICY
        added = HEADERS | {"content-security-policy": policy}

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = dict(message)
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
            await send(message)

        await (answer or self.app)(scope, receive, with_headers)

    async def _answer(self, request: Request) -> Response | None:
        """Return an answer in place of the page's: a refusal, or the way in; None lets the request through."""
        host = request.headers.get("host", "")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return PlainTextResponse("This page answers to the names of this machine only.\n", 403)
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("Pages of other sites may not ask here.\n", 403)
        path = request.scope["path"]
        raw = request.scope.get("raw_path", b"").decode("latin-1").lower()
        if ".." in path or "\\" in path or "%2e" in raw or "%2f" in raw or "%5c" in raw or not ASKED.fullmatch(path):
            return PlainTextResponse("There is nothing here.\n", 404)
        if self.password is None:
            return RedirectResponse("/", 303) if path == "/login" else None
        if path == "/login":
            return await self._login(request)
        if OPEN.fullmatch(path) or request.cookies.get(COOKIE) in self._sessions:
            return None
        if path == "/" and request.method == "GET":
            return RedirectResponse("/login", 303)
        return PlainTextResponse("A password is needed: open the page anew.\n", 401)

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(render("ui/templates/login.html.jinja", wrong=""))
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > 10_000:
                return PlainTextResponse("That is too long for a password.\n", 413)
        given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
        if time.monotonic() < self._wait:
            return HTMLResponse(render("ui/templates/login.html.jinja", wrong="Too many tries; wait a second."), 429)
        if not hmac.compare_digest(given.encode(), str(self.password).encode()):
            self._wait = time.monotonic() + 1.0
            return HTMLResponse(render("ui/templates/login.html.jinja", wrong="That is not the password."), 401)
        session = secrets.token_urlsafe(32)
        self._sessions.add(session)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, session, httponly=True, samesite="strict")
        return answer


def add_files(app: FastAPI, runs: RunsFolder) -> None:
    """Let an application serve the files of runs, and no others, at /files/RUN/FILE."""

    @app.get("/files/{name}/{inside:path}")
    async def file(name: str, inside: str) -> Response:
        try:
            found = await run_in_threadpool(runs.file, name, inside)
        except MissingFileError as error:
            return PlainTextResponse(f"{error}\n", 404)
        kind = KINDS.get(found.suffix)
        kept = {} if kind else {"content-disposition": f"attachment; filename*=utf-8''{quote(found.name)}"}
        return FileResponse(found, media_type=kind or "application/octet-stream", headers={"cache-control": "no-cache", **kept})


def file_address(name: str, inside: str) -> str:
    """Return the address of a run's file on the page's server."""
    return f"/files/{quote(name)}/{quote(inside)}"


def check_host(host: str, password: str | None, variable: str) -> None:
    """Refuse to listen where others can reach the page without a password: it starts runs, which execute code.

    Raises:
        UsageError: if the host is another than this machine's own and there is no password.
    """
    if host not in LOOPBACK and not password:
        raise UsageError(
            f"--host {host}: whoever reaches the page can start runs, which execute code on this machine, so it needs a password "
            f"there: set the environment variable {variable}, or leave --host out for this machine alone."
        )


def listen(host: str, port: int) -> socket.socket:
    """Return an open port.

    Raises:
        UsageError: if it cannot be opened.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"--port {port} at --host {host} cannot be opened ({error.strerror}); choose another, or 0."
        ) from error
    return listener


def serve(app: App, listener: socket.socket) -> None:
    """Answer until told to stop."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):  # raised anew once everything is closed
        uvicorn.Server(config).run(sockets=[listener])


def address(listener: socket.socket) -> str:
    """Return where a browser finds what listens there."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
