"""Time, size and memory of exchanges: a client waits no longer than it says, a server takes no more than it says."""

import asyncio
import contextlib
import gc
import http.client
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

from rlcm.errors import RewardError
from rlcm.rewards import RewardMix
from rlcm.rewards.served import client
from rlcm.rewards.served.arriving import Held, PromptHeads
from rlcm.rewards.served.client import Client, TransientError, post
from rlcm.rewards.served.http import HttpReward
from rlcm.rewards.served.server import ServerSettings, create_app
from rlcm.rewards.served.wire import NPZ, encode_request

IMAGES, PROMPTS = torch.rand(2, 3, 4, 4), ["a", "b"]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def answering(parts, pause):
    """Give the address of a server that answers every connection with the parts, slowly, again and again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with contextlib.suppress(OSError), connection:
                        connection.recv(2**16)
                        for part in parts:
                            connection.sendall(part)
                            time.sleep(pause)

        threading.Thread(target=work, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def many(part, count=200):
    return [part] * count


@pytest.mark.parametrize(
    "parts",
    [
        many(b"", 50),  # says nothing
        [b"HTTP/1.1 200 OK\r\n", *many(b"X-A: 1\r\n")],  # head after head
        [HEAD + b"\r\n", *many(b" ")],  # a body that never ends
        [HEAD + b"Content-Length: 500\r\n\r\n", *many(b" ")],
        many(b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_the_timeout_bounds_the_whole_answer(parts):
    with answering(parts, 0.05) as address:
        started = time.monotonic()
        with pytest.raises(TransientError, match=r"no whole answer within 0\.4 s"):
            post(Client(None, 1), address, "/score", b"x", NPZ, 0.4)
        assert time.monotonic() - started < 2


LONG_HEAD = [b"HTTP/1.1 200 OK\r\n", *many(b"X-A: " + b"a" * 9999 + b"\r\n", 40)]


@pytest.mark.parametrize("parts", [[HEAD + b"\r\n", *many(b" " * 2**20, 20)], LONG_HEAD])
def test_an_answer_without_end_is_broken_off(parts):
    with answering(parts, 0) as address, pytest.raises(TransientError):
        post(Client(None, 1), address, "/score", b"x", NPZ, 30)


def test_an_error_names_the_variable_and_not_the_secret(monkeypatch):
    monkeypatch.setenv("MY_LOGIN", "me:hunter2")
    with answering([b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"], 0) as address:
        reward = HttpReward(address=address.replace("//", "//${MY_LOGIN}@"), retries=0)
        with pytest.raises(RewardError, match=r"\$\{MY_LOGIN\}@127\.0\.0\.1.*403") as refused:
            reward(IMAGES, PROMPTS)
    assert "hunter2" not in str(refused.value)


class Slow:
    """A reward that waits until it may answer, and counts its calls."""

    def __init__(self):
        self.calls, self.may = 0, threading.Event()

    def __call__(self, images, prompts):
        self.calls += 1
        self.may.wait(20)
        return images.mean((1, 2, 3))


@contextlib.contextmanager
def serving(reward, **settings):
    """Give the port of a server in this process."""
    settings = ServerSettings(max_mebibytes=1, **settings)
    heads = type("Heads", (PromptHeads,), {"header_timeout": settings.header_timeout})
    app = create_app(RewardMix([("slow", reward)]), settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", http=heads))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def send(port, body=None, length=None):
    """Return a connection that has sent a request; its body may be shorter than announced."""
    body = encode_request(IMAGES, PROMPTS)[0] if body is None else body
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {NPZ}\r\nContent-Length: {length or len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def served_at(port):
    """Return the connections that the server holds."""
    found = psutil.Process().net_connections("tcp")
    return [one for one in found if one.laddr.port == port and one.status not in ("LISTEN", "TIME_WAIT")]


def status(connection):
    connection.settimeout(20)
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.headers, answer.read()


@pytest.mark.parametrize("sent", [b"", b"POST /sco", b"POST /score HTTP/1.1\r\nHost: x\r\nX-Long: "])
def test_half_a_head_is_not_waited_for(sent):
    with serving(Slow(), header_timeout=0.3) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        connection.settimeout(10)
        started = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - started < 3


def test_a_request_that_takes_longer_than_its_head_may_is_answered_and_so_is_the_next():
    reward = Slow()
    with serving(reward, header_timeout=0.3) as port:
        threading.Timer(0.8, reward.may.set).start()
        connection = send(port)
        assert status(connection)[0] == 200
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(connection)[0] == 200
        connection.close()


def test_work_of_clients_that_left_is_not_begun():
    reward = Slow()
    with serving(reward) as port:
        first = send(port)
        while not reward.calls:
            time.sleep(0.01)
        for _ in range(5):
            send(port).close()
        last = send(port)
        while len(served_at(port)) != 2:  # those that left are seen to have left, and the last is there
            time.sleep(0.01)
        time.sleep(0.3)  # it has been read
        reward.may.set()
        assert status(first)[0] == status(last)[0] == 200
        assert reward.calls == 2
        first.close()
        last.close()


def test_all_bodies_together_are_bounded():
    half = b"\0" * (600 * 2**10)
    with serving(Slow(), max_mebibytes_together=1, body_timeout=20) as port:
        slow = [send(port, half, length=900 * 2**10)]
        time.sleep(0.3)
        late = send(port, half)
        code, headers, body = status(late)
        assert (code, headers["Retry-After"]) == (503, "1")
        assert b"come back later" in body
        slow[0].close()
        time.sleep(0.3)
        again = send(port, half)  # what the other held is free
        assert status(again)[0] == 422
        late.close()
        again.close()


def test_what_a_body_holds_is_given_back():
    held = Held(10)
    with held.part() as first, held.part() as second:
        assert first.add(b"123456")
        assert not second.add(b"12345")
        assert second.add(b"1234")
        assert held.bytes == 10
        first.drop()
        assert held.bytes == 4
    assert held.bytes == 0


def test_a_refused_body_is_not_kept_in_memory():
    app = create_app(RewardMix([("slow", Slow())]), ServerSettings(), None)
    body = b'{"images": ["' + b"A" * (4 * 2**20) + b'"], "prompts": ["a"]}'
    gc.disable()
    tracemalloc.start()
    try:
        with TestClient(app) as client:
            for _ in range(6):
                answer = client.post("/score", content=body, headers={"content-type": "application/json"})
                assert answer.status_code == 422
            assert tracemalloc.get_traced_memory()[0] < 10 * 2**20
    finally:
        tracemalloc.stop()
        gc.enable()


def test_threads_that_ask_first_all_at_once_get_one_loop(monkeypatch):
    monkeypatch.setattr(client, "_LOOPS", {})
    real, made = asyncio.new_event_loop, []

    def slowly():
        loop = real()
        made.append(loop)
        time.sleep(0.05)  # so that all of them are here before one is done
        return loop

    monkeypatch.setattr(client.asyncio, "new_event_loop", slowly)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(client._loop, [1] * 8))
    assert len(made) > 1
    assert len(found) == 1
    assert all(loop.is_closed() for loop in made if loop not in found)
    (loop,) = found
    assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "heard"), loop).result(10) == "heard"
    loop.call_soon_threadsafe(loop.stop)
