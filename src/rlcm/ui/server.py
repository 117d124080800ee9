"""What stands between the network and the page: who may ask, for what, and files of runs alone."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response

from rlcm.addresses import open_port
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
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
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
LONGEST = 4_000_000
"""Bytes of a request's body: a filled form has some thousand."""
LOGIN_LONGEST = 10_000
PAUSE = 1.0
"""Seconds after which a wrong password is answered."""
PENDING = 16
"""Wrong passwords of one client that wait for their answer, after which more of its tries are refused without a look."""


class _TooLong(Exception):
    """The body of a request is longer than any that the page sends."""


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
        self._pending: Counter[str] = Counter()

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

        if answer is not None:
            await answer(scope, receive, with_headers)
            return
        began = False
        length = 0

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal began
            began = True
            await with_headers(message)

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > LONGEST:
                raise _TooLong
            return message

        try:
            await self.app(scope, bounded, noted)
        except _TooLong:
            if not began:
                await _refusal(413, "That is too long.")(scope, receive, with_headers)

    async def _answer(self, request: Request) -> Response | None:
        """Return an answer in place of the page's: a refusal, or the way in; None lets the request through."""
        hosts, lengths = request.headers.getlist("host"), request.headers.getlist("content-length")
        host = hosts[0] if len(hosts) == 1 else ""
        name = _host_name(host)
        if not name:
            return _refusal(400, "The name of the machine that was asked for (Host) is missing or malformed.")
        if len(lengths) > 1 or not all(re.fullmatch(r"[0-9]{1,15}", text) for text in lengths):
            return _refusal(400, "The length of what was sent (Content-Length) is malformed.")
        if any(int(text) > LONGEST for text in lengths):
            return _refusal(413, "That is too long.")
        if self.hosts is not None and name not in self.hosts:
            return _refusal(403, "This page answers to the names of this machine only.")
        if any(_place(origin) != host.lower() for origin in request.headers.getlist("origin")):
            return _refusal(403, "Pages of other sites may not ask here.")
        path = request.scope["path"]
        raw = request.scope.get("raw_path", b"").decode("latin-1").lower()
        if ".." in path or "\\" in path or "%2e" in raw or "%2f" in raw or "%5c" in raw or not ASKED.fullmatch(path):
            return _refusal(404, "There is nothing here.")
        if self.password is None:
            return RedirectResponse("/", 303) if path == "/login" else None
        if path == "/login":
            return await self._login(request)
        if OPEN.fullmatch(path) or request.cookies.get(COOKIE) in self._sessions:
            return None
        if path == "/" and request.method == "GET":
            return RedirectResponse(f"/login{_run_of(request)}", 303)
        return _refusal(401, "A password is needed: open the page again.")

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return _login_page("", 200)
        body = b""
        try:
            async for part in request.stream():
                body += part
                if len(body) > LOGIN_LONGEST:
                    return _refusal(413, "That is too long for a password.")
        except ClientDisconnect:  # nobody is there to be answered
            return _refusal(400, "The connection was closed within the password.")
        client = request.client.host if request.client else ""
        if self._pending[client] >= PENDING:
            return _login_page("Too many tries at once; wait a second.", 429)
        given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
        # Nobody's tries shut out another, nor the right password: a wrong one only has to wait, a few of a client at a time.
        if not hmac.compare_digest(given.encode("utf-8", "replace"), str(self.password).encode("utf-8", "surrogateescape")):
            self._pending[client] += 1
            try:
                await asyncio.sleep(PAUSE)
            finally:
                self._pending[client] -= 1
                self._pending += Counter()  # those without any are forgotten
            return _login_page("That is not the password.", 401)
        session = secrets.token_urlsafe(32)
        self._sessions.add(session)
        answer = RedirectResponse(f"/{_run_of(request)}", 303)
        answer.set_cookie(COOKIE, session, httponly=True, samesite="strict")
        return answer


def _run_of(request: Request) -> str:
    """Return the part of an address that asks for a run, as the request has it."""
    run = request.query_params.get("run")
    return "" if run is None else f"?{urlencode({'run': run})}"


def _login_page(wrong: str, status: int) -> Response:
    return HTMLResponse(render("ui/templates/login.html.jinja", wrong=wrong), status)


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)


def _host_name(host: str) -> str | None:
    """Return the name or address in a Host header, without a port; None where it is malformed."""
    found = HOST.fullmatch(host)
    return found[1].strip("[]").lower() if found and int(found[2] or 0) < 65_536 else None


def _place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


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


def run_address(name: str) -> str:
    """Return the address of the page that opens on a run."""
    return f"?run={quote(name, safe='')}"


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
    return open_port(host, port, f"--port {port} at --host {host}")


def serve(app: App, listener: socket.socket) -> None:
    """Answer until told to stop."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    # Pages that are open keep a request waiting; that these are cut off in the end is no error.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    server.run(sockets=[listener])  # raises the signal again once everything is closed


def address(listener: socket.socket) -> str:
    """Return where a browser finds what listens there."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
