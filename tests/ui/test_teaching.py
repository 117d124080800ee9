"""Teaching without a page: votes are kept and learnt from, the training runs beside them, and all of it goes on after a restart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlcm.errors import ConfigError, MissingFileError, UsageError
from rlcm.rewards.taste.votes import read_votes
from rlcm.training.config import load_config, parse_settings
from rlcm.training.prompts import load_prompts
from rlcm.ui import teaching
from rlcm.ui.jobs import Job
from rlcm.ui.tab_teach import Teachings
from rlcm.ui.teaching import KEPT, SHOWN, VOTES_A_TRAINING, Teaching

PROMPTS = ("a fox", "a red car", "two cats")


class Trainings:
    """The page's jobs, without processes: a training that was started goes on until `end`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started, self.going = folder, [], False

    def start(self, config):
        self.started.append(config.run.rounds)
        (self.folder / config.name).mkdir(parents=True)
        (self.folder / config.name / "config.yaml").write_text(config.dump())
        self.going = True

    def resume(self, name, *changes):
        self.started.append((name, *changes))
        self.going = True

    def state(self, name):
        return Job(name, self.going)

    def failure(self, name):
        return ""


@pytest.fixture(scope="module")
def teaching_once(tmp_path_factory):
    jobs = Trainings(tmp_path_factory.mktemp("runs"))
    return Teaching(jobs, "mine", PROMPTS)


def red(question):
    return int((question.images[:, 0] - question.images[:, 2]).mean((1, 2)).argmax())


def test_votes_are_on_the_disk_and_start_trainings_without_waiting_for_them(tmp_path, monkeypatch):
    jobs = Trainings(tmp_path)
    one = Teaching(jobs, "mine", PROMPTS)
    for count in range(1, VOTES_A_TRAINING + 1):
        question = one.ask()
        assert question.prompt in PROMPTS
        assert question.images.shape == (SHOWN, 3, 64, 64)
        assert one.train() is None
        one.vote(question.id, [red(question)])
        assert len(read_votes(tmp_path / "mine-votes" / "votes.jsonl")) == count
        one.prepare()
    assert one.train() == "mine"
    assert jobs.started == [teaching.ROUNDS_A_TRAINING]
    config = load_config(tmp_path / "mine" / "config.yaml")
    assert config.rewards[0].name == "taste"
    assert config.rewards[0].args == {"votes": str((tmp_path / "mine-votes" / "votes.jsonl").absolute())}
    assert config.prompts == PROMPTS

    for _ in range(VOTES_A_TRAINING):  # while the training goes on
        question = one.ask()
        one.vote(question.id, [red(question)])
    assert one.train() is None
    jobs.going = False
    assert one.train() == "mine"
    assert jobs.started[-1] == ("mine", f"run.rounds={teaching.ROUNDS_A_TRAINING}")  # this stand-in trains no rounds
    standing = one.standing()
    assert standing.votes == 2 * VOTES_A_TRAINING
    assert standing.training
    assert 0 < standing.guessed <= standing.asked
    assert standing.compared == []

    again = Teaching(jobs, "mine")  # the page was closed
    assert again.prompts == PROMPTS
    assert again.standing().votes == 2 * VOTES_A_TRAINING
    question = one.ask()
    with pytest.raises(UsageError, match="no longer there"):
        again.vote(question.id, [0])


def test_a_vote_is_taken_back_and_counts_once(teaching_once):
    before = teaching_once.standing().votes
    question = teaching_once.ask()
    teaching_once.vote(question.id, [])
    with pytest.raises(UsageError, match="no longer there"):
        teaching_once.vote(question.id, [1])
    assert teaching_once.standing().votes == before + 1
    assert teaching_once.undo()
    assert teaching_once.standing().votes == before
    assert teaching_once.votes.votes() == []
    assert not teaching_once.undo()


def test_a_second_window_cannot_answer_the_same_question(teaching_once):
    question = teaching_once.ask()
    teaching_once.vote(question.id, [2])
    teaching_once._asked[question.id] = question  # as another page, with a memory of its own, would have it
    with pytest.raises(UsageError, match="answered before"):
        teaching_once.vote(question.id, [3])
    assert [vote.chosen for vote in teaching_once.votes.votes()] == [(2,)]


def test_old_questions_are_forgotten(teaching_once, monkeypatch):
    monkeypatch.setattr(teaching, "KEPT", 2)
    questions = [teaching_once.ask() for _ in range(4)]
    assert KEPT > 2
    with pytest.raises(UsageError, match="Here are new ones"):
        teaching_once.vote(questions[0].id, [0])
    teaching_once.vote(questions[3].id, [0])


@pytest.mark.parametrize(("choice", "drawn"), [("active", [1, 3, 3, 1, 3, 3]), ("random", [1] * 6)])
def test_now_and_then_any_question_is_asked_and_always_where_that_is_the_choice(tmp_path, monkeypatch, choice, drawn):
    one = Teaching(Trainings(tmp_path), "mine", PROMPTS, choice=choice)
    monkeypatch.setattr(one, "_taste", SimpleNamespace(information=lambda sets: torch.zeros(len(sets))))
    counts = []
    noise = lambda model, prompts, seeds: counts.append(len(seeds)) or torch.rand(len(seeds), 3, 64, 64)  # noqa: E731
    monkeypatch.setattr(one, "_pictures", noise)
    questions = [one.ask() for _ in range(6)]
    assert [count / SHOWN for count in counts] == drawn
    assert {question.images.shape for question in questions} == {(SHOWN, 3, 64, 64)}
    assert {len(question.features) for question in questions} == {SHOWN}


def test_how_often_and_how_long_it_trains_is_the_callers_choice(tmp_path):
    jobs = Trainings(tmp_path)
    one = Teaching(jobs, "mine", PROMPTS, votes_a_training=2, rounds_a_training=3)
    for _ in range(2):
        assert one.train() is None
        question = one.ask()
        one.vote(question.id, [red(question)])
    assert one.train() == "mine"
    assert jobs.started == [3]
    assert load_config(tmp_path / "mine" / "config.yaml").run.save_every == 3


@pytest.mark.parametrize(
    ("prompts", "rewards", "how"),
    [
        (["a fox", "two cats"], ["taste", "composition"], "gdpo"),
        ("world-unseen", ["taste", "composition"], "gdpo"),
        (["a fox", "a camel at dawn"], ["taste"], "sum"),  # which the detector does not know
    ],
)
def test_what_was_asked_stays_a_reward_where_it_is_known(tmp_path, prompts, rewards, how):
    jobs = Trainings(tmp_path)
    one = Teaching(jobs, "mine", prompts)
    assert [reward.name for reward in one.config.rewards] == rewards
    assert one.config.algorithm.multi_reward == how
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text(one.config.dump())
    assert Teaching(jobs, "mine").config == one.config  # and goes on as it was


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", "x" * 121])
def test_a_name_stays_in_the_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="name"):
        Teaching(Trainings(tmp_path / "runs"), name, PROMPTS)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_learns_from_something_else_is_not_taken_over(tmp_path):
    config = parse_settings(type(load_config()), {"name": "other", "output": str(tmp_path)})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text(config.dump())
    with pytest.raises(UsageError, match="does not learn from votes"):
        Teaching(Trainings(tmp_path), "other", PROMPTS)


def test_wrong_prompts_are_told_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"no prompts|at least one"):
        Teaching(Trainings(tmp_path), "none", [])


def test_the_taste_asks_what_it_does_not_know(teaching_once):
    torch.manual_seed(0)
    while len(teaching_once._ballots) < 6:
        question = teaching_once.ask()
        teaching_once.vote(question.id, [red(question)])
        teaching_once.prepare()
    assert teaching_once._taste is not None
    sets = [teaching_once._draw() for _ in range(3)]
    told = teaching_once._taste.information(torch.stack([one.features for one in sets]))
    assert (told >= -1e-9).all()


@pytest.mark.parametrize(("typed", "prompts"), [(" [a boat, 'two cats'] ", ("a boat", "two cats")), ("world-objects", None)])
def test_the_pages_prompts_are_read_like_the_setting(tmp_path, typed, prompts):
    taught = Teachings(SimpleNamespace(jobs=Trainings(tmp_path))).of("mine", typed)
    assert taught.prompts == (load_prompts("world-objects").prompts if prompts is None else prompts)


def test_other_prompts_are_taken_until_there_is_an_answer_and_then_refused_in_words(tmp_path):
    teachings = Teachings(SimpleNamespace(jobs=Trainings(tmp_path)))
    assert teachings.begin("own", "[a fox]")[1] == ""
    taught, said = teachings.begin("own", "[a boat, a fox]")
    assert (taught.prompts, said) == (("a boat", "a fox"), "")
    assert teachings.of("own", "world") is taught
    taught.vote(taught.ask().id, [0])
    again, said = teachings.begin("own", "[a zebra]")
    assert again is taught
    assert said == "It goes on with the prompts that it began with, such as 'a boat'. For others choose another name."
    assert teachings.begin("own", "[a boat, a fox]") == (taught, "")
    with pytest.raises(ConfigError, match="is empty"):
        teachings.begin("own", "['']")
    with pytest.raises(MissingFileError, match=r"Write prompts of your own in brackets: \[a fox, a boat\]"):
        teachings.begin("own", "a fox")
