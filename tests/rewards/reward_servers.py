"""Reward servers in processes of their own, and a proxy that spoils their answers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from rlcm.rewards.served.client import FAILED

TOKEN = "a-token-for-tests"
START = """
import os, sys
from rlcm.rewards import RewardSettings, build_rewards
from rlcm.rewards.served.server import ServerSettings, serve
rewards = build_rewards([RewardSettings(name=name) for name in sys.argv[2:]])
settings = ServerSettings(port=int(sys.argv[1]), max_mebibytes=8, max_images=64)
serve(rewards, settings, os.environ["TOKEN"], ready=lambda line: print(line, flush=True))
"""


class ServerProcess:
    """A reward server in a process of its own.

    Args:
        command: arguments of Python, the port among them.
        environment: more variables.
    """

    def __init__(self, *command, **environment):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
        command = [sys.executable, *map(str, command)]
        self.process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert "serving" in line, self.process.stderr.read()
        self.url = line.split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()

    def stop(self, number=signal.SIGKILL):
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


def small_server(*rewards, port=0):
    """Return a server with a token that takes 8 MiB and 64 pictures at most."""
    return ServerProcess("-c", START, port, *rewards, TOKEN=TOKEN)


def command_server(*rewards, port=0):
    """Return the server that `rlcm rewards serve` starts, without a token."""
    named = [word for reward in rewards for word in ("--rewards", reward)]
    return ServerProcess("-m", "rlcm", "rewards", "serve", *named, "--port", port, RLCM_REWARD_TOKEN="")


class Proxy:
    """Stands between client and server and does to the answers what `faults` says, one entry a request; then nothing."""

    def __init__(self, target, faults=()):
        self.faults, self.requests, self.lock = list(faults), 0, threading.Lock()
        self.client = httpx.Client(verify=False)  # no certificates to load: the target is this machine
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with proxy.lock:
                    proxy.requests += 1
                    fault = proxy.faults.pop(0) if proxy.faults else None
                headers = {k: self.headers[k] for k in ("Content-Type", "Authorization") if k in self.headers}
                answer = proxy.client.post(target + self.path, content=body, headers=headers, timeout=30)
                proxy.answer(self, fault, answer)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, handler, fault, answer):
        status, body = answer.status_code, answer.content
        scores = answer.json().get("scores", {}) if status == 200 else {}
        if fault == "error":
            status, body = 500, b"Internal Server Error"
        elif fault == "busy":
            status, body = 503, b"{}"
        elif fault == "malformed":
            body = b'{"scores": [[['
        elif fault == "page":
            body = b"<html>gateway</html>"
        elif fault == "nan":
            body = json.dumps({"scores": {k: [float("nan")] * len(v) for k, v in scores.items()}}).encode()
        elif fault == "short":
            body = json.dumps({"scores": {k: v[:-1] for k, v in scores.items()}}).encode()
        elif fault == "huge":
            body = b" " * (17 * 2**20)
        elif fault == "slow":
            handler.connection.settimeout(10)
            handler.rfile.read(1)  # until the client leaves
            return
        elif fault == "reset":
            handler.close_connection = True
            return
        with contextlib.suppress(OSError):  # the client has left
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body)))
            if fault is None and FAILED in answer.headers:
                handler.send_header(FAILED, answer.headers[FAILED])
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2] if fault == "truncated" else body)
        if fault == "truncated":
            handler.close_connection = True

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.client.close()
