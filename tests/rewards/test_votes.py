"""votes.jsonl: nothing is lost, nothing counts twice, and what is no vote is named."""

import json
import multiprocessing
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlcm.errors import ConfigError, MissingFileError, RunDirectoryError, UsageError
from rlcm.rewards.image.pixels import read_picture, to_uint8
from rlcm.rewards.taste.votes import VotesFile, read_votes

FOUR = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def file(tmp_path):
    return VotesFile(tmp_path / "mine" / "votes.jsonl")


def test_a_vote_comes_back_with_its_pictures_bit_for_bit(file):
    assert file.votes() == []
    first = file.add('a "fox"\n', FOUR, [2], voter="ada")
    second = file.add("a cat", FOUR[:2], [])
    third = file.add("a cat", FOUR[1:], [2, 0])
    one, two, three = file.votes()
    assert [vote.id for vote in (one, two, three)] == [first, second, third]
    assert (one.prompt, one.chosen, one.voter) == ('a "fox"\n', (2,), "ada")
    assert (two.chosen, three.chosen) == ((), (0, 2))
    for vote, images in ((one, FOUR), (two, FOUR[:2]), (three, FOUR[1:])):
        assert np.array_equal(np.stack([read_picture(picture) for picture in vote.pictures]), to_uint8(images))
    assert len(list((file.path.parent / "pictures").iterdir())) == 4, "one file a picture, however often it is shown"


def test_a_vote_is_taken_back_and_a_question_answered_once(file):
    asked = file.add("a", FOUR, [1], id="question")
    with pytest.raises(UsageError, match="this question was answered before"):
        file.add("a", FOUR, [2], id="question")
    file.undo(asked)
    assert file.votes() == []
    file.undo("of nobody")
    file.add("b", FOUR, [0])
    assert [vote.prompt for vote in file.votes()] == ["b"]
    assert len(file.path.read_text().splitlines()) == 4, "lines stay"


def test_an_answer_that_was_taken_back_can_be_given_again(file):
    file.undo(file.add("a", FOUR, [1], id="question"))
    file.add("a", FOUR, [2], id="question")
    assert [vote.chosen for vote in file.votes()] == [(2,)]


def test_several_files_add_up_and_a_vote_in_two_of_them_counts_once(tmp_path, file):
    file.add("a", FOUR, [1])
    other = VotesFile(tmp_path / "votes.jsonl")
    other.add("b", FOUR, [0])
    copy = tmp_path / "mine" / "copy.jsonl"
    copy.write_bytes(file.path.read_bytes())
    assert [vote.prompt for vote in read_votes(file.path, other.path, copy)] == ["a", "b"]


def test_what_a_crash_left_is_passed_over_and_the_next_vote_is_whole(file):
    file.add("a", FOUR, [1])
    with open(file.path, "ab") as opened:
        opened.write(b'{"id": "half", "prom')
    assert [vote.prompt for vote in file.votes()] == ["a"]
    file.add("b", FOUR, [1])
    assert [vote.prompt for vote in file.votes()] == ["a", "b"]
    assert len(file.path.read_bytes().splitlines()) == 2
    assert file.path.with_name("votes.jsonl.torn").read_bytes() == b'{"id": "half", "prom\n', "it is put aside, and not lost"


def test_another_encoding_is_named(file):
    file.path.parent.mkdir(parents=True, exist_ok=True)
    file.path.write_text('{"undo": "nobody"}\n', encoding="utf-16")
    with pytest.raises(ConfigError, match=r"is in UTF-16; save it as UTF-8"):
        read_votes(file.path)


def test_a_last_line_that_is_whole_is_no_crash(file):
    for name in ("a", "b", "c"):
        file.add(name, FOUR, [1])
    lines = file.path.read_bytes().splitlines()
    file.path.write_bytes(b"\n".join([lines[0], lines[1], b'{"undo": "nobody"}']))  # without a line feed
    file.add("d", FOUR, [1])
    assert [vote.prompt for vote in file.votes()] == ["a", "b", "d"]
    file.path.write_bytes(lines[0] + b"\n" + lines[1] + lines[2])  # two votes in one line, by hand
    with pytest.raises(ConfigError, match=r"votes\.jsonl, line 2 is no JSON.*; correct or delete the line"):
        file.votes()
    file.path.write_bytes(lines[0] + b"\n{broken}\n" + lines[2] + b"\n")
    with pytest.raises(ConfigError, match=r"votes\.jsonl, line 2 is no JSON"):
        file.votes()


@pytest.mark.parametrize("chosen", [[1.0], "0", 5, None, [None]])
def test_places_that_are_none(file, chosen):
    with pytest.raises(UsageError, match="give the places of the best pictures"):
        file.add("a", FOUR, chosen)
    assert not file.path.exists()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (FOUR[0], "images=[3, 8, 8]: "),
        (FOUR[:, :1], "images=[4, 1, 8, 8]: "),
        (FOUR[:0], "images=[0, 3, 8, 8]: "),
        (FOUR.tolist(), "images=list: "),
        (FOUR * float("nan"), "not finite"),
        (FOUR * 255, "such as images / 255."),
        ((FOUR * 255).to(torch.uint8), "images are uint8: "),
        (FOUR * 2 - 1, "such as images / 2 + 0.5."),
        (FOUR - 3, "such as images.clamp(0, 1)."),
        (FOUR * 1.1, "such as images.clamp(0, 1)."),
        (FOUR * 1.01 - 0.01, "such as images.clamp(0, 1)."),
    ],
)
def test_pictures_that_are_none(file, images, said):
    with pytest.raises(
        UsageError, match=r"give the pictures of a question as a float tensor \[K, 3, h, w\] in \[0, 1\]"
    ) as refused:
        file.add("a", images, [0])
    assert said in str(refused.value)
    assert not file.path.exists()


def test_rounding_may_go_a_little_beyond(file):
    file.add("a", FOUR * 1.0009 - 1e-4, [0])
    assert len(file.votes()) == 1


@pytest.mark.parametrize("prompt", ["", " \n", None])
def test_a_vote_is_on_pictures_of_a_prompt(file, prompt):
    with pytest.raises(UsageError, match="is no text; give the text that the pictures were drawn for"):
        file.add(prompt, FOUR, [0])
    assert not file.path.exists()


def test_a_line_that_is_no_object_is_named(file):
    file.add("a", FOUR, [0])
    file.path.write_text("[1]\n" + file.path.read_text())
    with pytest.raises(ConfigError, match=r"line 1 is no vote: it: write an object, .*; correct or delete the line"):
        file.votes()


GOOD = {"id": "x", "prompt": "a", "pictures": ["a.png", "b.png"], "chosen": [0]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": [2]}, "must be places of the 2 pictures, from 0"),
        ({"chosen": [-1]}, "must be places"),
        ({"chosen": [0, 0]}, "each once"),
        ({"chosen": True}, "chosen"),
        ({"chosen": None}, "chosen=null: must be the places of pictures from 0, as whole numbers without quotes"),
        ({"chosen": [True, False]}, "chosen=[true, false]: must be the places of pictures"),
        ({"chosen": [True]}, "whole numbers"),
        ({"chosen": ["1"]}, 'chosen=["1"]: must be the places'),
        ({"chosen": "1"}, "whole numbers"),
        ({"chosen": [1.0]}, "whole numbers"),
        ({"chosen": {"0": 1}}, "whole numbers"),
        ({"undo": 5}, "undo=5"),
        ({"undo": ["x"]}, "undo"),
        ({"pictures": ["a.png"]}, "pictures"),
        ({"pictures": ["a.png"] * 10}, "pictures"),
        ({"prompt": 3}, "prompt"),
        ({"id": ""}, "id"),
    ],
)
def test_lines_that_are_no_votes_are_named(tmp_path, change, said):
    file = tmp_path / "v.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"id": "y"} | change) + "\n")
    with pytest.raises(ConfigError, match="line 2 is no vote") as caught:
        read_votes(file)
    assert said in str(caught.value)


def test_a_number_alone_is_a_choice_and_more_may_stand_in_a_line(tmp_path):
    file = tmp_path / "v.jsonl"
    file.write_text(json.dumps(GOOD | {"chosen": 1, "seed": 7}))
    assert read_votes(file)[0].chosen == (1,)


def test_a_line_whose_undo_is_no_id_does_not_keep_votes_from_being_added(file):
    file.add("a", FOUR, [1])
    with open(file.path, "ab") as opened:
        opened.write(b'{"undo": ["x"]}\n{"id": {}}\n')
    file.add("b", FOUR, np.array([1]))  # the whole numbers of NumPy are whole numbers
    assert json.loads(file.path.read_text().splitlines()[-1])["chosen"] == [1]


def test_files_that_are_not_there_or_cannot_be_read(tmp_path):
    with pytest.raises(MissingFileError, match="is not there; give the votes"):
        read_votes(tmp_path / "no.jsonl")
    with pytest.raises(ConfigError, match="it is a folder"):
        read_votes(tmp_path)


@pytest.mark.parametrize("chosen", [[4], [-1], [1, 1]])
def test_what_is_no_vote_is_not_written(file, chosen):
    with pytest.raises(UsageError, match="this is no vote"):
        file.add("a", FOUR, chosen)
    assert not file.path.exists()


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/dev/full"), reason="no full disk here")
def test_a_vote_that_cannot_be_written_does_not_count(file, monkeypatch):
    file.add("a", FOUR, [1])
    before = file.path.read_bytes()
    monkeypatch.setattr("rlcm.rewards.taste.votes.os.write", lambda descriptor, data: os.pwrite(descriptor, data[:5], 0) and 5)
    with pytest.raises(RunDirectoryError, match="No space left"):
        file.add("b", FOUR, [1])
    monkeypatch.undo()
    assert file.path.read_bytes()[: len(before)] == before
    assert [vote.prompt for vote in file.votes()] == ["a"]


def _vote_often(path, name):
    votes = VotesFile(path)
    for number in range(20):
        votes.add(f"{name} {number}", FOUR[:2], [0])


def test_two_processes_vote_at_once(file):
    file.path.parent.mkdir()
    context = multiprocessing.get_context("fork")
    voters = [context.Process(target=_vote_often, args=(file.path, name)) for name in "ab"]
    for voter in voters:
        voter.start()
    for voter in voters:
        voter.join()
    found = [vote.prompt for vote in file.votes()]
    assert sorted(found) == sorted(f"{name} {number}" for name in "ab" for number in range(20))
    assert [prompt for prompt in found if prompt[0] == "a"] == [f"a {number}" for number in range(20)]


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_whatever_stands_in_a_file_is_read_or_refused_in_words(tmp_path_factory, lines):
    file = tmp_path_factory.mktemp("votes") / "v.jsonl"
    file.write_bytes(b"\n".join(lines))
    try:
        found = read_votes(file)
    except ConfigError as error:
        found = str(error)
    assert found == [] or "correct or delete the line" in found or "save it as UTF-8" in found


def _line(id, **changes):
    return json.dumps({"id": id, "prompt": "a fox", "pictures": ["a.png", "b.png"], "chosen": [0]} | changes)


@pytest.mark.parametrize("change", [{"chosen": [1]}, {"chosen": []}, {"prompt": "a dog"}, {"pictures": ["a.png", "c.png"]}])
def test_two_lines_that_answer_one_question_differently_are_named(tmp_path, change):
    file = tmp_path / "votes.jsonl"
    file.write_text("\n".join([_line("1"), _line("2"), _line("1", **change)]) + "\n")
    with pytest.raises(
        ConfigError, match=rf"{file}, line 1, and {file}, line 3, answer the question '1' differently; delete one"
    ):
        read_votes(file)
    other = tmp_path / "other.jsonl"
    file.write_text(_line("1") + "\n")
    other.write_text(_line("1", **change) + "\n")
    with pytest.raises(ConfigError, match=rf"{file}, line 1, and {other}, line 1, answer"):
        read_votes(file, other)


def test_a_line_that_stands_twice_or_was_taken_back_contradicts_nothing(tmp_path):
    file, undo = tmp_path / "votes.jsonl", json.dumps({"undo": "1"})
    for lines, chosen in (
        ([_line("1"), _line("1", time="later", voter="ada")], [(0,)]),
        ([_line("1", chosen=[0, 1]), _line("1", chosen=[1, 0])], [(0, 1)]),
        ([_line("1"), undo, _line("1", chosen=[1])], [(1,)]),
        ([_line("1"), _line("1", chosen=[1]), undo], []),
        ([_line("1"), _line("1", chosen=[1]), undo, _line("1", chosen=[1])], [(1,)]),
    ):
        file.write_text("\n".join(lines) + "\n")
        assert [vote.chosen for vote in read_votes(file)] == chosen
