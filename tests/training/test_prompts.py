"""Prompt sets, files with mistakes in them, and the dealing of prompts."""

import pytest
import torch

from rlcm.errors import ConfigError, MissingFileError
from rlcm.training.prompts import BUILT_IN, deal, load_prompts


def test_built_in_sets():
    sizes = {name: len(load_prompts(name)) for name in BUILT_IN}
    assert sizes == {"animals": 45, "animals-bare": 45, "scenes": 405, "scenes-held-out": 45}
    assert "a fox" in load_prompts("animals").prompts
    assert load_prompts("animals-bare").prompts[:2] == ("cat", "dog")
    assert not set(load_prompts("scenes").prompts) & set(load_prompts("scenes-held-out").prompts)
    for name in BUILT_IN:
        assert len(set(load_prompts(name).prompts)) == sizes[name]


def test_a_list_and_a_text_file(tmp_path):
    assert load_prompts(["a fox", "a bee"]).metadata == ({}, {})
    (tmp_path / "p.txt").write_text("a fox\n\n  ein Häschen \n", encoding="utf-8")
    assert load_prompts(str(tmp_path / "p.txt")).prompts == ("a fox", "ein Häschen")


def test_the_mark_that_windows_puts_before_a_file_is_no_part_of_a_prompt(tmp_path):
    (tmp_path / "p.txt").write_text("a fox\na bee\n", encoding="utf-8-sig")
    assert load_prompts(str(tmp_path / "p.txt")).prompts == ("a fox", "a bee")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a fox", "legs": 4}\n', encoding="utf-8-sig")
    found = load_prompts(str(tmp_path / "p.jsonl"))
    assert (found.prompts, found.metadata) == (("a fox",), ({"legs": 4},))


def test_json_lines_carry_metadata(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a fox", "legs": 4}\n\n{"prompt": "a bee", "tags": ["x"]}\n')
    found = load_prompts(str(tmp_path / "p.jsonl"))
    assert found.prompts == ("a fox", "a bee")
    assert found.metadata == ({"legs": 4}, {"tags": ["x"]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "has no prompts"),
        ("p.txt", b"\xff\xfe\x00", "not a text file in UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}', r"line 2: .*is not like"),
        ("p.jsonl", b'{"prompt": 3}', r"line 1: .*not a string"),
        ("p.jsonl", b"[1]", "line 1"),
        ("p.jsonl", b"a fox", "line 1"),
        ("p.jsonl", b'{"prompt": " "}', "empty"),
        ("p.jsonl", b"", "has no prompts"),
    ],
)
def test_files_with_mistakes(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_prompts(str(tmp_path / name))


@pytest.mark.parametrize("source", ["animal", "nowhere.txt", "a prompt " * 60, "nul\0", "."])
def test_what_is_neither_set_nor_file(source):
    with pytest.raises(MissingFileError, match="neither a file nor a built-in set"):
        load_prompts(source)


@pytest.mark.parametrize("source", [[], ["a fox", ""]])
def test_lists_without_prompts(source):
    with pytest.raises(ConfigError, match="has no prompts, or an empty one"):
        load_prompts(source)


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
