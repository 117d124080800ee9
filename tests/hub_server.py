"""A local stand-in for the Hugging Face Hub: the part of its API through which a folder is uploaded and read again."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_only-for-tests"
COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Keeps repositories in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.may_write = True

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.large[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self._path()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if not self.server.may_write:
            return self._answer({"error": "You don't have the rights to create a model under this namespace."}, 403)
        if path.endswith("/commit/main"):
            name = self._repository(path)
            self.server.commit(name, [json.loads(line) for line in body.splitlines() if line.strip()])
            url = f"{self.server.address}/{name}/commit/{COMMIT}"
            return self._answer({"success": True, "commitOid": COMMIT, "commitUrl": url})
        asked = json.loads(body)
        if path == "/api/repos/create":
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            self.server.repositories.setdefault(name, {})
            return self._answer({"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            modes = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": f["path"],
                    "uploadMode": modes[f["path"].endswith((".safetensors", ".png"))],
                    "shouldIgnore": False,
                }
                for f in asked["files"]
            ]
            return self._answer({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/large/{o['oid']}", "header": {}}}}
                for o in asked["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        return self._answer({"error": f"there is no {path}"}, 404)

    def do_PUT(self) -> None:
        data, name = self.rfile.read(int(self.headers["Content-Length"])), self._path().rsplit("/", 1)[1]
        assert hashlib.sha256(data).hexdigest() == name
        self.server.large[name] = data
        self._answer({})

    def do_GET(self) -> None:
        path = self._path()
        if "/resolve/" in path:
            name, _, rest = path.removeprefix("/").partition("/resolve/")
            return self._file(self.server.repositories.get(name, {}).get(rest.split("/", 1)[1]))
        name = self._repository(path)
        if name not in self.server.repositories:
            return self._answer({"error": "Repository not found"}, 404)
        files = [{"rfilename": file} for file in self.server.repositories[name]]
        return self._answer({"id": name, "sha": COMMIT, "siblings": files})

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _path(self) -> str:
        path = self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        return path

    @staticmethod
    def _repository(path: str) -> str:
        return "/".join(path.removeprefix("/api/models/").split("/")[:2])

    def _file(self, data: bytes | None) -> None:
        if data is None:
            return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        self._send(data, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub of its own while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
