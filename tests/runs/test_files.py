"""Files that anybody may have put there: no pipe is waited for, nothing is read without a bound, errors are of one kind."""

import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcm.errors import UnreadableFileError
from rlcm.runs.files import DEEPEST, below, open_file, parse_yaml, plain, printable, read_bytes, read_end, read_json, read_text


def make(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.relpath(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link that leads back to itself":
        path.symlink_to(path.name)
    else:
        path.symlink_to("nothing of that name")


@pytest.mark.parametrize(
    "kind", ["pipe", "folder", "socket", "device", "link that leads back to itself", "link that leads nowhere"]
)
def test_what_is_no_file_is_said_and_not_waited_for(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    make(kind, tmp_path / "x")
    for read in (read_bytes, read_text, read_json, open_file):
        with pytest.raises(UnreadableFileError, match=f"x cannot be read: it is a {kind}"):
            read(tmp_path / "x")


def test_a_file_and_a_link_to_one_are_read(tmp_path):
    (tmp_path / "x").write_text('{"a": "\N{SNOWMAN}"}')
    (tmp_path / "link").symlink_to("x")
    assert read_json(tmp_path / "x") == read_json(tmp_path / "link") == {"a": "\N{SNOWMAN}"}
    with pytest.raises(UnreadableFileError, match="it is a link"):
        open_file(tmp_path / "link", follow=False)


def test_a_file_longer_than_it_may_be(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(2**31)
    with pytest.raises(UnreadableFileError, match="it is longer than 64 MB"):
        read_text(tmp_path / "x")
    assert len(read_end(tmp_path / "x", 1000)) <= 1000
    (tmp_path / "x").write_bytes(b"a" * 10)
    assert read_bytes(tmp_path / "x", 10) == b"a" * 10


@pytest.mark.parametrize("name", ["x" * 300, "x\0"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        read_text(tmp_path / name)


def test_what_is_no_text_says_where(tmp_path):
    (tmp_path / "x").write_bytes(b"ab\xff")
    with pytest.raises(UnreadableFileError, match="byte 3 is no UTF-8"):
        read_text(tmp_path / "x")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_text_in_another_encoding_that_says_so_is_read(tmp_path, encoding):
    (tmp_path / "x").write_bytes("föx: 1".encode(encoding))
    assert read_text(tmp_path / "x") == "föx: 1"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, f"{'[' * (DEEPEST + 2)}{']' * (DEEPEST + 2)}", "9" * 5000])
def test_damaged_json(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(UnreadableFileError, match="it is damaged"):
        read_json(tmp_path / "x")


@pytest.mark.parametrize(
    "text",
    ["!!int ''", "a: [1", "&a [*a]", "[" * 300, "a: 0x" + "f" * 1000, "!!python/object:os.system x", "\0"],
)
def test_yaml_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(text)


def test_yaml_that_repeats_itself_is_counted_as_it_would_be_written():
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
    with pytest.raises(ValueError, match=r"unfold|too much"):
        parse_yaml(bomb)
    assert parse_yaml("a: &a [1]\nb: *a\n") == {"a": [1], "b": [1]}


def test_plain_values_can_be_written():
    assert plain(json.loads('"\\ud83d\\ude00 \\ud800"')) == "\N{GRINNING FACE} ?"
    assert parse_yaml("1: 2001-01-01\n") == {"1": "2001-01-01"}


@settings(deadline=None)
@given(st.text() | st.sampled_from(["!!", "&a", "*a", "{", "- "]).flatmap(lambda head: st.text(max_size=20).map(head.__add__)))
def test_any_yaml_is_a_plain_value_or_a_value_error(text):
    try:
        found = parse_yaml(text)
    except ValueError:
        return
    json.dumps(found, ensure_ascii=False).encode()


def test_names_as_they_can_be_printed():
    assert printable(os.fsdecode(b"run\xff")) == "run\\xff"
    assert printable("a\nb") == "a\\x0ab"
    assert printable("Läufe \N{GRINNING FACE}") == "Läufe \N{GRINNING FACE}"


def test_below_a_folder_no_link_is_followed_and_no_depth_too_deep(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/file").write_text("")
    here = os.getcwd()
    os.chdir(tmp_path / "a")
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        names = [entry.name for entry in below(tmp_path)]
        while not os.path.samefile(".", tmp_path / "a"):  # nobody else can delete folders as deep as these
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.chdir(here)
    assert names[:4] == ["a", "d", "file", "up"]
    assert names.count("file") == 1
