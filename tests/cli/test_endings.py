"""How commands end: by signals at any moment, with readers that leave, on full disks, in terminals that know few characters."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from PIL import Image

import rlcm
from rlcm.cli.kinds import Group, WithExample
from rlcm.cli.work.sample import write_each

COMMAND = """
import signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import click
from rlcm.cli.kinds import Group

@click.group(cls=Group)
def main():
    '''A program.

    Example:  rlcm x
    '''

@main.command()
@click.argument("what")
def do(what):
    '''Do it.

    Example:  rlcm do it
    '''
    if what == "print":
        for n in range(20000):
            click.echo(f"line {n} \\u2192 \\U0001f98a")
        print("stderr", file=sys.stderr)
    if what == "short":
        print("\\u2192 \\udcff", flush=True)
    if what == "closed":  # by a reward of the user's
        with sys.stdout:
            print("theirs")
        print("ours")
    if what == "fails":
        from rlcm.errors import ConfigError
        raise ConfigError("lr=0 cannot be")
    if what in ("wait", "spoilt", "swallow", "hang", "worker"):
        print("ready", flush=True)
    if what == "wait":
        time.sleep(30)
    if what == "spoilt":  # what an extension module makes of it
        try:
            time.sleep(30)
        except BaseException as error:
            raise ImportError("initialisation failed") from error
    if what == "swallow":
        try:
            time.sleep(30)
        except BaseException:
            time.sleep(30)
    if what == "worker":
        with ThreadPoolExecutor(1) as pool:
            pool.submit(time.sleep, 30).result()
    if what == "hang":  # inside a library that lets no Python run in this thread
        import ctypes
        mutex = ctypes.create_string_buffer(128)
        for _ in range(2):  # the second waits for the first for ever
            ctypes.CDLL(None).pthread_mutex_lock(mutex)

import rlcm.processes.signals as signals
signals.GRACE_SECONDS = 0.5
main(prog_name="rlcm")
"""
STARTED = []
SOURCE = str(Path(rlcm.__file__).parents[1])


def start(*arguments, program=("-c", COMMAND), stdout=subprocess.PIPE, before=None, **environment):
    surroundings = os.environ | {"PYTHONPATH": SOURCE, "LANG": "C.UTF-8"} | environment
    STARTED.append(
        subprocess.Popen(
            [sys.executable, *program, *arguments], stdout=stdout, stderr=subprocess.PIPE, env=surroundings, preexec_fn=before
        )
    )
    return STARTED[-1]


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


def ended(process, timeout=20):
    out, error = process.communicate(timeout=timeout)
    return process.returncode, (out or b"").decode(errors="replace"), error.decode(errors="replace")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("what", ["wait", "spoilt"])
def test_a_signal_ends_a_command_with_one_line_and_the_usual_code(what, number):
    process = start("do", what)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    code, _, error = ended(process)
    assert code == 128 + number
    assert re.fullmatch(r"stopped by [^\n]+\n", error)


@pytest.mark.parametrize(("what", "signals"), [("swallow", 1), ("worker", 1), ("hang", 2), ("worker", 2)])
def test_what_does_not_end_in_time_is_ended(what, signals):
    process = start("do", what)
    assert process.stdout.readline() == b"ready\n"
    started = time.monotonic()
    for _ in range(signals):
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    code, _, error = ended(process)
    assert code == 143
    assert "stopped by SIGTERM" in error
    assert "Traceback" not in error
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_server_that_is_told_to_end_has_done_what_it_should(number):
    process = start("rewards", "serve", "--rewards", "brightness", "--port", "0", program=("-m", "rlcm"))
    said = process.stdout.readline().decode()
    assert said.startswith("serving brightness at http://127.0.0.1:")
    with socket.create_connection(("127.0.0.1", int(said.rpartition(":")[2])), timeout=20) as caller:
        caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert caller.recv(4) == b"HTTP"
    process.send_signal(number)
    assert ended(process) == (0, "", "")


def test_a_signal_that_is_ignored_stays_so():
    process = start("do", "wait", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # as nohup does
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143


def test_a_reader_that_leaves_is_no_error():
    process = start("do", "print")
    assert process.stdout.readline().startswith(b"line 0")
    process.stdout.close()
    process.stdout = None
    code, _, error = ended(process)
    assert (code, error) == (0, "stderr\n")


def test_what_a_users_code_closes_is_still_written_to():
    assert ended(start("do", "closed")) == (0, "theirs\nours\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said_in_one_paragraph():
    with open("/dev/full", "wb") as full:
        code, _, error = ended(start("do", "print", stdout=full))
    assert code == 1
    assert re.fullmatch(r"stderr\nerror: standard output could not be written \(No space left on device\)[^\n]+\n", error)


def test_closed_streams_are_no_error():
    for closed in (1, 2):
        code, _, error = ended(start("do", "print", before=lambda number=closed: os.close(number)))
        assert code == 0
        assert "Traceback" not in error
    assert ended(start("do", "fails", before=lambda: os.close(2)))[0] == 2


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONUNBUFFERED": "1"}]
)
def test_characters_that_cannot_be_shown_are_written_out(environment):
    code, out, error = ended(start("do", "short", **environment))
    assert (code, error) == (0, "")
    assert "\\udcff" in out
    assert ("\\u2192" in out) == ("PYTHONIOENCODING" in environment)


def test_errors_keep_their_codes():
    assert ended(start("do", "fails"))[::2] == (2, "error: lr=0 cannot be\n")


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_working_directory_that_is_gone_is_told_so(tmp_path, made_anew):
    gone = tmp_path / "my work"
    lines = ["mkdir 'my work'", "cd 'my work'", f"rmdir {str(gone)!r}", f"mkdir {str(gone)!r}" if made_anew else ":"]
    lines.append(f"{sys.executable} -m rlcm sample builtin --n 1; echo code $?; {sys.executable} -m rlcm --version")
    environment = os.environ | {"PYTHONPATH": str(Path(rlcm.__file__).parents[1])}
    found = subprocess.run(
        ["bash", "-c", "; ".join(lines)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    said = " ".join(found.stderr.split())
    assert f"error: the working directory '{gone}' is not there any more" in said
    remedy = f"enter it again with `cd '{gone}'`" if made_anew else "such as by `cd ~`"
    assert remedy in said
    assert "Traceback" not in said
    assert found.stdout.split("\n")[0] == "code 2"
    assert f"version {rlcm.__version__}" in found.stdout


def test_pictures_of_before_outlive_a_full_disk(tmp_path, monkeypatch):
    picture = Image.new("RGB", (8, 8), "red")
    write_each([picture], ["a fox"], 0, 1, tmp_path)
    before = (tmp_path / "a-fox-seed-0.png").read_bytes()

    def full(self, path, *_, **__):
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_each([picture, picture], ["a fox", "an owl"], 0, 1, tmp_path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a-fox-seed-0.png", before)]


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch, capsys):
    shut = tmp_path / "shut"
    shut.mkdir()

    @click.command(cls=WithExample)
    def look():
        """Look.

        Example:  rlcm look
        """
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(shut / "a.png"))

    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut and allowed(path, mode))
    with pytest.raises(SystemExit) as ended:
        Group("main", help="A program.\n\nExample:  rlcm x", commands={"look": look}).main(["look"])
    assert ended.value.code == 1
    said = f"error: {shut / 'a.png'}: Permission denied; the folder {shut} may not be entered by you; let its owner allow it, or choose"
    assert said in capsys.readouterr().err
