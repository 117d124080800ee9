"""Who may ask the page, for what: nothing outside the folder of runs is served, and no one else's page can ask."""

import asyncio
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from rlcm.cli import commands as cli
from rlcm.ui import server
from rlcm.ui.folder import RunsFolder
from rlcm.ui.page import create_app
from rlcm.ui.server import COOKIE, address, check_host, file_address, listen

SECRET = "the password is hunter2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs beside a secret, and links that lead to it."""
    base = tmp_path_factory.mktemp("base")
    (base / "secret.txt").write_text(SECRET)
    run = base / "runs" / "a"
    (run / "final").mkdir(parents=True)
    (run / "config.yaml").write_text("name: a\n")
    (run / "report.html").write_text("<p>report</p>")
    (run / "final" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    (run / ".hidden").write_text(SECRET)
    (base / "runs" / ".ui").mkdir()
    (base / "runs" / ".ui" / "a.log").write_text(SECRET)
    leak = base / "runs" / "leak"
    leak.mkdir()
    (leak / "config.yaml").write_text("name: leak\n")
    (leak / "report.html").symlink_to(base / "secret.txt")
    (base / "runs" / "out").symlink_to(base)
    return base / "runs"


@pytest.fixture(scope="module")
def app(folder):
    return create_app(RunsFolder(folder), "127.0.0.1", None)


@pytest.fixture
def page(app):
    return TestClient(app, base_url="http://127.0.0.1:7860")


def ask(app, path, raw=None, headers=((b"host", b"127.0.0.1:7860"),)):
    """Return the status and the body of a GET whose path nobody has tidied on its way."""
    return asyncio.run(asked(app, path, raw=raw, headers=headers))


async def asked(app, path, raw=None, headers=((b"host", b"127.0.0.1:7860"),), method="GET", body=b"", client="127.0.0.1"):
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": (raw or path).encode(), "query_string": b"", "scheme": "http",
        "headers": list(headers), "http_version": "1.1", "server": ("127.0.0.1", 7860), "client": (client, 1),
        "root_path": "",
    }  # fmt: skip
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_the_page_and_files_of_runs_are_served(page):
    answer = page.get("/")
    assert answer.status_code == 200
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    report = page.get("/files/a/report.html")
    assert report.text == "<p>report</p>"
    assert "sandbox" in report.headers["content-security-policy"]
    assert report.headers["x-content-type-options"] == "nosniff"
    weights = page.get(file_address("a", "final/pytorch_lora_weights.safetensors"))
    assert weights.content == b"weights"
    assert weights.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    [
        "/files/a/../../secret.txt", "/files/../secret.txt", "/files/a//etc/passwd", "/files//etc/passwd", "/files/a/",
        "/files/leak/report.html", "/files/leak/config.yaml", "/files/out/secret.txt", "/files/a/.hidden", "/files/.ui/a.log",
        "/files/a/..\\..\\secret.txt", "/files/a/final", "/files/none/config.yaml", "/files/a/config.yaml/",
        "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/proxy=http://example.com/", "/file=/etc/passwd",
        "/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/stream/a/b/c/playlist-file", "/monitoring", "/docs",
        "/gradio_api/openapi.json", "/gradio_api/runs", "/static/../config.py", "/assets/../../config.py", "/openapi.json",
    ],
)  # fmt: skip
def test_nothing_else_is(app, path):
    status, body = ask(app, path)
    assert status in (403, 404)
    assert SECRET.encode() not in body


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("/files/a/../../secret.txt", "/files/a/%2e%2e/%2e%2e/secret.txt"),
        ("/files/a/../../secret.txt", "/files/a/..%2f..%2fsecret.txt"),
        ("/files/a/../../secret.txt", "/files/a%2F..%2F..%2Fsecret.txt"),
        ("/files/a/%2e%2e/secret.txt", "/files/a/%252e%252e/secret.txt"),
        ("/files/a/..\\secret.txt", "/files/a/..%5Csecret.txt"),
    ],
)
def test_nor_by_other_spellings(app, path, raw):
    status, body = ask(app, path, raw)
    assert status == 404
    assert SECRET.encode() not in body


def test_uploads_have_nowhere_to_go(page):
    assert page.post("/gradio_api/upload", files={"files": ("x.txt", b"x")}).status_code == 404
    assert page.post("/gradio_api/component_server", json={}).status_code == 404


def test_other_sites_cannot_ask(page):
    assert page.get("/", headers={"host": "evil.example:7860"}).status_code == 403
    assert page.get("/", headers={"host": "localhost:7860"}).status_code == 200
    join = {"json": {"data": [], "fn_index": 0, "session_hash": "x"}}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999"):
        assert page.post("/gradio_api/queue/join", headers={"origin": origin}, **join).status_code == 403
    assert page.post("/gradio_api/queue/join", headers={"origin": "http://127.0.0.1:7860"}, **join).status_code != 403


def test_a_client_that_leaves_within_its_password_is_no_error_of_the_page(folder):
    app = create_app(RunsFolder(folder), "0.0.0.0", "open sesame")
    arriving = [{"type": "http.request", "body": b"passw", "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return arriving.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/login", "raw_path": b"/login", "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"192.0.2.7:7860")], "client": ("192.0.2.9", 1), "server": ("192.0.2.7", 7860), "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 400


def test_a_password_guards_everything(folder, monkeypatch):
    monkeypatch.setattr(server, "PAUSE", 0.01)
    app = create_app(RunsFolder(folder), "0.0.0.0", "open sesame")
    page = TestClient(app, base_url="http://192.0.2.7:7860", follow_redirects=False)
    assert page.get("/").headers["location"] == "/login"
    for path in ("/config", "/files/a/report.html", "/gradio_api/info", "/theme.css"):
        assert page.get(path).status_code == 401
    assert page.post("/gradio_api/queue/join", json={}).status_code == 401
    assert "Password" in page.get("/login").text
    assert page.post("/login", data={"password": "wrong"}).status_code == 401
    assert page.post("/login", data={"password": "x" * 20_000}).status_code == 413
    answer = page.post("/login", data={"password": "open sesame"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=strict" in answer.headers["set-cookie"]
    assert page.get("/files/a/report.html").status_code == 200
    page.cookies.set(COOKIE, "guessed")
    assert page.get("/config", headers={"cookie": f"{COOKIE}=guessed"}).status_code == 401


def test_who_comes_by_the_address_of_a_run_is_there_after_the_password(folder):
    page = TestClient(create_app(RunsFolder(folder), "0.0.0.0", "x"), base_url="http://192.0.2.7:7860", follow_redirects=False)
    way = page.get("/", params={"run": "a b&é"}).headers["location"]
    assert way == "/login?run=a+b%26%C3%A9"
    assert page.post(way, data={"password": "x"}).headers["location"] == f"/{way.removeprefix('/login')}"
    assert page.get("/", params={"evil": "//elsewhere"}).status_code == 200


HOSTS = ["[::1", "a b", "127.0.0.1:99999", "127.0.0.1:x", "", "user@127.0.0.1", "127.0.0.1/x", "[zz]", "a\xff"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_malformed_host_is_the_askers_fault(app, host):
    assert ask(app, "/", headers=[(b"host", host.encode("latin-1"))])[0] == 400


def test_no_host_and_two_of_them_are_malformed_too(app):
    own = (b"host", b"127.0.0.1:7860")
    assert ask(app, "/", headers=[])[0] == 400
    assert ask(app, "/", headers=[own, own])[0] == 400
    assert ask(app, "/", headers=[own, (b"content-length", b"-1")])[0] == 400
    assert ask(app, "/", headers=[own, (b"origin", b"http://[")])[0] == 403
    assert ask(app, "/", headers=[(b"host", b"[::1]:7860")])[0] == 200
    assert ask(app, "/", headers=[(b"host", b"LOCALHOST:7860"), (b"origin", b"http://localhost:7860")])[0] == 200


def test_bodies_longer_than_any_form_are_refused(page):
    assert page.post("/gradio_api/queue/join", content=b"x" * 5_000_000).status_code == 413
    pieces = (b"x" * 1_000_000 for _ in range(6))  # whose length is not said beforehand
    assert page.post("/gradio_api/queue/join", content=pieces, headers={"content-type": "application/json"}).status_code in (
        400,
        413,
    )


def test_wrong_passwords_lock_nobody_out(folder, monkeypatch):
    monkeypatch.setattr(server, "PAUSE", 0.3)
    app = create_app(RunsFolder(folder), "0.0.0.0", "öpen sesame")

    def answer(password, client):
        return asked(app, "/login", method="POST", body=f"password={password}".encode(), client=client)

    async def crowd():
        wrong = [asyncio.create_task(answer("wrong%ff", "192.0.2.1")) for _ in range(server.PENDING + 5)]
        await asyncio.sleep(0.05)
        right = await answer("%C3%B6pen+sesame", "192.0.2.2")
        return right, [status for status, _ in await asyncio.gather(*wrong)], await answer("%C3%B6pen+sesame", "192.0.2.1")

    (other, _), refused, (same, _) = asyncio.run(crowd())
    assert (other, same) == (303, 303)
    assert sorted(refused) == [401] * server.PENDING + [429] * 5
    assert not app._pending


def test_without_a_password_there_is_no_way_in_to_lose(page):
    assert page.get("/login", follow_redirects=False).headers["location"] == "/"


def test_other_hosts_need_a_password(tmp_path):
    found = CliRunner().invoke(cli.main, ["ui", str(tmp_path), "--host", "0.0.0.0"], env={"RLCM_UI_PASSWORD": ""})
    assert found.exit_code == 2
    assert "set the environment variable RLCM_UI_PASSWORD" in found.output
    found = CliRunner().invoke(cli.main, ["ui", str(tmp_path), "--host", "0.0.0.0"], env={"RLCM_UI_PASSWORD": "  "})
    assert (found.exit_code, "RLCM_UI_PASSWORD holds nothing but spaces; set another" in found.output) == (2, True)
    check_host("0.0.0.0", "secret", "X")
    check_host("127.0.0.1", None, "X")


def test_a_port_that_is_taken_and_a_folder_that_is_none(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address(taken) == f"http://127.0.0.1:{port}"
        taken.listen()
        found = CliRunner().invoke(cli.main, ["ui", str(tmp_path), "--port", str(port)])
    assert found.exit_code == 2
    assert "choose another, or 0" in found.output
    (tmp_path / "file").write_text("")
    assert "is a file" in CliRunner().invoke(cli.main, ["ui", str(tmp_path / "file")]).output


def test_addresses_of_all_interfaces_are_those_of_this_machine():
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        assert address(listener).startswith("http://127.0.0.1:")


def test_without_gradio_the_remedy_is_named(tmp_path):
    code = "import sys; sys.modules['gradio'] = None; from rlcm.cli.commands import main; main()"
    found = subprocess.run([sys.executable, "-c", code, "ui", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert "the page needs the package gradio; install it with: pip install " in found.stderr
