"""Prompt sets, files with mistakes in them, and the dealing of prompts."""

import itertools
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlcm.errors import ConfigError, MissingFileError
from rlcm.training.build import checked
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.prompts import BUILT_IN, LARGEST, PromptSet, deal, given_prompts, load_prompts, mistakable


def test_prompts_of_a_list_that_have_the_name_of_a_set_or_a_file_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("a fox\n")
    assert mistakable(["world", "a fox", "mine.txt", "other.txt", "x" * 5000]) == [
        "prompts: 'world' is taken as a prompt, and is also the name of a built-in set; for that write prompts=world",
        "prompts: 'mine.txt' is taken as a prompt, and is also the name of a file; for that write prompts=mine.txt",
    ]
    assert mistakable("world") == mistakable(None) == mistakable(["a fox"]) == []
    notes = checked(load_config(None, ["prompts=[a fox, world]", "rewards=[sharpness]", "evaluation.prompts=[mine.txt]"])).notes
    assert [note.partition(":")[0] for note in notes] == ["prompts", "evaluation.prompts"]


def test_built_in_sets():
    sizes = {name: len(load_prompts(name)) for name in BUILT_IN}
    world = {"world": 187, "world-unseen": 135, "world-objects": 20, "world-held-out": 120}
    assert sizes == {**world, "animals": 45, "animals-bare": 45}
    assert "a fox" in load_prompts("animals").prompts
    assert load_prompts("animals-bare").prompts[:2] == ("cat", "dog")
    assert {"a fox", "an owl", "a star"} <= set(load_prompts("world-objects").prompts)
    for name in BUILT_IN:
        found = load_prompts(name)
        assert len(set(found.prompts)) == len(found.metadata) == sizes[name]
        # The world's prompts say what they ask for, as GenEval's do; the papers' animals have nothing beside them.
        asked = {"tag", "include", "exclude"} if name in world else set()
        assert all(set(entry) == asked for entry in found.metadata)


def test_what_is_trained_on_is_apart_from_what_is_tested_with():
    trained, unseen, held_out = (set(load_prompts(name).prompts) for name in ("world", "world-unseen", "world-held-out"))
    assert not trained & unseen
    assert not (trained | unseen) & held_out
    assert TrainConfig().prompts == "world"


def test_a_list_and_a_text_file(tmp_path):
    assert load_prompts(["a fox", "a bee"]).metadata == ({}, {})
    (tmp_path / "p.txt").write_text("a fox\n\n  ein Häschen \n", encoding="utf-8")
    assert load_prompts(str(tmp_path / "p.txt")).prompts == ("a fox", "ein Häschen")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_mark_that_windows_puts_before_a_file_is_no_part_of_a_prompt(tmp_path, encoding, end):
    (tmp_path / "p.txt").write_bytes(end.join(["a fox", "ein Häschen", ""]).encode(encoding))
    assert load_prompts(str(tmp_path / "p.txt")).prompts == ("a fox", "ein Häschen")
    (tmp_path / "p.jsonl").write_bytes(end.join(['{"prompt": "a fox", "legs": 4}', ""]).encode(encoding))
    found = load_prompts(str(tmp_path / "p.jsonl"))
    assert (found.prompts, found.metadata) == (("a fox",), ({"legs": 4},))


def test_marks_inside_a_file_of_joined_files(tmp_path):
    (tmp_path / "p.txt").write_bytes("a fox\n".encode("utf-8-sig") * 2)
    assert load_prompts(str(tmp_path / "p.txt")).prompts == ("a fox", "a fox")


def test_json_lines_carry_metadata(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a fox", "legs": 4}\n\n{"prompt": "a bee", "tags": ["x"]}\n')
    found = load_prompts(str(tmp_path / "p.jsonl"))
    assert found.prompts == ("a fox", "a bee")
    assert found.metadata == ({"legs": 4}, {"tags": ["x"]})


def test_the_metadata_of_geneval_loads_as_it_is_published(tmp_path):
    lines = [
        '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
        '{"tag": "counting", "include": [{"class": "clock", "count": 3}], "exclude": [{"class": "clock", "count": 4}], '
        '"prompt": "a photo of three clocks"}',
    ]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    found = load_prompts(str(tmp_path / "evaluation_metadata.jsonl"))
    assert found.prompts == ("a photo of a bench", "a photo of three clocks")
    assert found.metadata[1] == {
        "tag": "counting",
        "include": [{"class": "clock", "count": 3}],
        "exclude": [{"class": "clock", "count": 4}],
    }


def test_json_is_a_list_of_texts_or_objects(tmp_path):
    (tmp_path / "p.json").write_text('["a red fox",\n {"prompt": "a bee", "legs": 6}, "a blue dog"]')
    found = load_prompts(str(tmp_path / "p.json"))
    assert found.prompts == ("a red fox", "a bee", "a blue dog")
    assert found.metadata == ({}, {"legs": 6}, {})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.TXT", "a fox\na bee\n"),
        ("P.Txt", "a fox\na bee"),
        ("prompts", "a fox\na bee"),
        ("p.JSONL", '{"prompt": "a fox"}\n"a bee"'),
        ("p.ndjson", '{"prompt": "a fox"}\n{"prompt": "a bee"}'),
        ("p.Json", '["a fox", "a bee"]'),
        ("two.dots.txt", "a fox\ra bee"),
        ("p.txt", "\n\n  a fox\n\ta bee  \n\n"),
    ],
)
def test_endings_in_any_case(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert load_prompts(str(tmp_path / name)).prompts == ("a fox", "a bee")
    assert load_prompts(tmp_path / name).prompts == ("a fox", "a bee")


@pytest.mark.parametrize("inside", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_lines_end_at_line_feeds_alone(tmp_path, inside):
    prompt = f"a fox{inside}by night"
    (tmp_path / "p.txt").write_text(f"{prompt}\na bee\n", encoding="utf-8")
    assert load_prompts(str(tmp_path / "p.txt")).prompts == (prompt, "a bee")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load_prompts(str(tmp_path / "p.jsonl")).prompts == (prompt,)


def test_texts_that_only_look_like_something_else_are_prompts(tmp_path):
    texts = [
        "[draft] a fox",
        "{a fox}",
        '"a fox"',
        "a fox, 4k # best",
        "a fox: red",
        "- a fox",
        "1e5",
        "null",
        "<3 a fox",
        "prompt, fast",
    ]
    (tmp_path / "p.txt").write_text("\n".join(texts))
    assert load_prompts(str(tmp_path / "p.txt")).prompts == tuple(texts)
    tags = ["a comic, prompt, pencil", "a fox, red, pencil"]
    (tmp_path / "p.txt").write_text("\n".join(tags))
    assert load_prompts(str(tmp_path / "p.txt")).prompts == tuple(tags)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "has no prompts"),
        ("p.txt", b"\xff\xfe\x00", r"not a text file in UTF-8 \(line 1: .*save it as UTF-8"),
        ("p.txt", "a fox\nein H\xe4schen".encode("latin-1"), r"not a text file in UTF-8 \(line 2"),
        ("p.txt", "a fox".encode("utf-16-le"), "NUL bytes"),
        ("p", b"\x7fELF\x00\x00", "NUL bytes"),
        ("p.txt", b'["a red fox",\n "a blue dog"]', r"holds JSON; let its name end in \.json"),
        ("p", b'{"prompt": "a"}\n{"prompt": "b"}', r"holds JSON; .*\.jsonl"),
        ("p.txt", b'[\n  {"prompt": "a fox"},\n', "holds JSON"),  # cut short
        ("p.txt", b'{"prompt": "a"},\n{"prompt": "b"},', "holds JSON"),
        ("p.txt", b'a fox\n{"prompt": "b",}', "holds JSON"),
        ("p.txt", b"['a fox', 'a dog']", "holds JSON"),
        ("p.txt", b'"a fox",\n"a dog"', "holds JSON"),
        ("p.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "pointer of Git LFS.*`git lfs pull`"),
        ("p.txt", b"<!DOCTYPE html>\n<html>\n<p>a fox", "web page or XML; save its text"),
        ("p.txt", b"{\\rtf1\\ansi a fox}", r"word processor \(RTF\)"),
        ("p", b"prompt,count\na fox,1\nthree frogs,3\n", "table with the columns prompt, count. Save its column"),
        ("p.txt", b"prompt\tseed\na fox\t\nb\t1\n", "table with the columns prompt, seed"),
        ("p.txt", b"id;caption\n1;a fox, red\n", "table with the columns id, caption"),
        ("p.txt", b'<?xml version="1.0"?>\n<a/>', "web page or XML"),
        ("p.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "pointer of Git LFS"),
        ("p.json", b"<!DOCTYPE html>\n<html>", "web page or XML"),
        ("p.jsonl", b'{"prompt": "a"}\n<<<<<<< HEAD\n{"prompt": "b"}\n=======\n>>>>>>> x\n', "conflict of Git"),
        ("p.txt", b"a fox\n<<<<<<< HEAD\na dog\n=======\na cat\n>>>>>>> other\n", "both sides of a conflict of Git"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}', r"line 2: .*is not like"),
        ("p.jsonl", b'{"prompt": 3}', r"line 1: .*must be a text"),
        ("p.jsonl", b"[1]", "line 1"),
        ("p.jsonl", b"a fox", "line 1"),
        ("p.jsonl", b'["a fox",\n"a bee"]', "line 1"),
        ("p.jsonl", b'{"prompt": " "}', "prompt 1 of .* is empty"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', r"line 1: .*'prompt' stands twice"),
        ("p.jsonl", b'{"prompt": "\\ud800"}', "half a character"),
        ("p.jsonl", b'{"prompt": "a\\u0000b"}', "NUL character"),
        ("p.jsonl", b"[" * 100_000, "nested too deep"),
        ("p.jsonl", b"", "has no prompts"),
        ("p.json", b"[]", "has no prompts"),
        ("p.json", b"", "is no JSON"),
        ("p.json", b'{"prompts": ["a"]}', "holds an object with prompts; put the list"),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}', r"JSON lines; let its name end in \.jsonl"),
        ("p.json", b'["a", 3]', r"entry 2: 3 is not like"),
        ("p.json", b'["a", ""]', "prompt 2 of .* is empty"),
        ("p.json", b'["a", ', "is no JSON"),
        ("p.csv", b"prompt\na fox", r"\.csv is no kind of file that prompts are read from.*Save its column of prompts"),
        ("p.TSV", b"prompt\na fox", r"\.TSV is no kind.*Save its column"),
        ("p.yaml", b"- a fox", r"\.yaml is no kind.*under `prompts:`"),
        ("p.parquet", b"PAR1", r"\.parquet is no kind.*Save its column"),
        ("p.txt.gz", b"\x1f\x8b", r"\.gz is no kind.*Unpack it"),
        ("p.v2", b"a fox", r"\.v2 is no kind.*rename it to p\.v2\.txt"),
    ],
)
def test_files_with_mistakes(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_prompts(str(tmp_path / name))


def test_a_file_that_memory_cannot_hold_is_not_read(tmp_path):
    with open(tmp_path / "p.txt", "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(ConfigError, match="more than 256 MiB"):
        load_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize("source", ["animal", "nowhere.txt", "a prompt " * 60, "nul\0", "", "a red fox, studio light"])
def test_what_is_neither_set_nor_file(source):
    with pytest.raises(MissingFileError, match="neither a file nor a built-in set"):
        load_prompts(source)


def test_a_folder_and_a_name_nearby_are_told(tmp_path):
    (tmp_path / "my prompts.txt").write_text("a fox")
    with pytest.raises(
        MissingFileError, match=r"is a folder; give a file in it: such as evaluation\.prompts='.*my prompts\.txt'"
    ):
        load_prompts(str(tmp_path), "evaluation.prompts")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="is a folder; give a file in it: none there"):
        load_prompts(str(tmp_path / "empty"))
    with pytest.raises(MissingFileError, match=r"Did you mean prompts='.*my prompts\.txt'"):
        load_prompts(f"{tmp_path}/my promps.txt")
    with pytest.raises(MissingFileError, match=r"Did you mean prompts=world-held-out\?"):
        load_prompts("world-heldout")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the list has no prompts"),
        (["a fox", ""], "prompt 2 of the list is empty"),
        (["a fox", 3], "entry 2: 3 is not a text"),
        (["a fox", None], "entry 2: None is not a text"),
        ({"a fox"}, "prompts is a set, which has no order; give a list"),
        ({"a fox": 1}, "prompts is a dict"),
        (b"a fox", "prompts is a bytes"),
        (3, "prompts is a int"),
        (iter(["a fox"]), "prompts is a list_iterator"),
        (itertools.cycle(["a fox"]), r"prompts is a cycle; give a list.*islice"),
        (itertools.repeat("a fox"), "prompts is a repeat"),
    ],
)
def test_what_is_no_list_of_prompts(source, message):
    with pytest.raises(ConfigError, match=message):
        load_prompts(source)


def test_an_endless_iterator_is_refused_by_every_setting_that_takes_a_list():
    for values in (
        {"prompts": itertools.cycle(["a"])},
        {"evaluation": {"prompts": itertools.count()}},
        {"rewards": itertools.cycle("a")},
    ):
        with pytest.raises(ConfigError, match="input should be a list"):
            TrainConfig(**values)
    assert TrainConfig(prompts=list(itertools.islice(itertools.cycle(["a", "b"]), 3))).prompts == ("a", "b", "a")


def test_prompts_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a fox", "legs": 4}\n')
    (tmp_path / "plain").write_text("a bee\n")
    (tmp_path / "fox").mkdir()
    assert given_prompts(["p.jsonl"]).metadata == ({"legs": 4},)
    assert given_prompts(["a fox", "p.jsonl"]).prompts == ("a fox", "a fox")
    assert given_prompts(["plain"]).prompts == ("a bee",)
    assert given_prompts(["plain", "fox"]).prompts == ("plain", "fox")
    assert given_prompts(["fox"]).prompts == ("fox",)  # a text, though there is a folder of that name
    assert given_prompts(["animals-bare"]).prompts[:2] == ("cat", "dog")
    assert given_prompts(["a fox. Night"]).prompts == ("a fox. Night",)
    assert given_prompts([]).prompts == ()
    for text in ("nowhere.txt", "p.csv", "./fox"):
        with pytest.raises(MissingFileError, match=f"--prompts='{text}'"):
            given_prompts([text])


WORDS = (
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0\ufeff"), min_size=1, max_size=12)
    .map(str.strip)
    .filter(bool)
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(WORDS, min_size=1, max_size=4),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_prompts_come_back_as_they_were_written(tmp_path_factory, prompts, encoding, end, ascii_only):
    folder = tmp_path_factory.getbasetemp()
    rows = [{"n": number, "prompt": prompt} for number, prompt in enumerate(prompts)]
    texts = {
        "roundtrip.TXT": end.join(["a fox", *prompts, ""]),
        "roundtrip.jsonl": end.join([json.dumps(row, ensure_ascii=ascii_only) for row in rows] + [""]),
        "roundtrip.json": json.dumps(rows, ensure_ascii=ascii_only, indent=1),
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode(encoding))
        found = load_prompts(folder / name)
        if name.endswith("TXT"):
            assert found.prompts == ("a fox", *prompts)
        else:
            assert found == PromptSet(tuple(prompts), tuple({"n": number} for number in range(len(prompts))))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=40), st.sampled_from(["", ".txt", ".json", ".jsonl", ".csv", ".x"]))
def test_any_bytes_are_prompts_or_refused(tmp_path_factory, content, ending):
    file = tmp_path_factory.getbasetemp() / f"anything{ending}"
    file.write_bytes(content)
    try:
        found = load_prompts(file)
    except ConfigError as error:
        found = error
    if isinstance(found, PromptSet):
        assert ending in ("", ".txt", ".json", ".jsonl")
        assert all(prompt.strip() and "\0" not in prompt for prompt in found.prompts)
    assert isinstance(found, PromptSet) or f"anything{ending}" in str(found)


def test_prompts_are_dealt_in_whole_shuffled_passes():
    rounds = [deal(4, 6, seed=3, first_pass=4 * number) for number in range(6)]
    assert [len(part) for part in rounds] == [4] * 6
    together = torch.cat(rounds)
    assert torch.equal(together, deal(24, 6, seed=3, first_pass=0))  # rounds go on where the last one ended
    passes = together.view(4, 6)
    for one in passes:
        assert sorted(one.tolist()) == list(range(6))
    assert len({tuple(one.tolist()) for one in passes}) > 1
    assert not torch.equal(together, deal(24, 6, seed=4, first_pass=0))


def test_more_groups_than_prompts_come_equally_often():
    assert torch.bincount(deal(45, 3, seed=0, first_pass=0)).tolist() == [15, 15, 15]


def test_lines_that_only_look_like_json_are_prompts(tmp_path):
    lines = ["[fox]", "{a|b}", "1984", "null", '"OPEN"', "a fox, a dog,", "('x')", '"OPEN", says the sign']
    (tmp_path / "p.txt").write_text("\n".join(lines))
    assert load_prompts(tmp_path / "p.txt").prompts == tuple(lines)
    (tmp_path / "q.txt").write_text('"OPEN"\n"CLOSED"')
    assert load_prompts(tmp_path / "q.txt").prompts == ('"OPEN"', '"CLOSED"')


@pytest.mark.parametrize("source", ["“a fox”", "'a fox'", '"a fox"', "‘a fox’"])
def test_quotes_around_a_prompt_are_named(source):
    with pytest.raises(
        MissingFileError, match=r"Its quotes, . and ., are part of it; without them the prompt is prompts='\[a fox\]'"
    ):
        load_prompts(source)
