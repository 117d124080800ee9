"""Evaluations in lines of text."""

from rlcm.report.told import before_alone, before_and_after, on_the_way


def evaluation(reward, rewards, *, held_out=None, judge=None, number=0):
    return {
        "round": number,
        "images": 180,
        "reward": {"mean": reward},
        "rewards": {label: {"mean": value} for label, value in rewards.items()},
        "held_out": {label: {"mean": value} for label, value in (held_out or {}).items()},
        "judge": None if judge is None else {question: {"mean": value} for question, value in judge.items()},
    }


def test_one_reward_is_told_by_its_name_and_the_judge_by_its_question():
    before = evaluation(0.6, {"composition": 0.6}, judge={"right": 0.669, "counting": 0.5})
    after = evaluation(0.7, {"composition": 0.7}, judge={"right": 0.7, "counting": 0.6}, number=15)
    assert list(before_and_after(before, after)) == [
        "composition 0.6 -> 0.7 on 180 fixed images",
        "held-out judge, right pictures: 66.9% -> 70.0%",
        "held-out judge, right, of a number: 50.0% -> 60.0%",
    ]
    assert on_the_way(before, after) == (
        "after round 15, on 180 fixed images: reward 0.6 -> 0.7; judge, right pictures: 66.9% -> 70.0%"
    )


def test_a_mix_is_told_with_every_part_and_what_is_held_out():
    before = evaluation(1.0, {"a": 0.5, "b": 2.0}, held_out={"c": 3.0})
    after = evaluation(1.5, {"a": 1.0, "b": 2.0}, held_out={"c": 2.0}, number=3)
    assert list(before_and_after(before, after)) == [
        "reward 1 -> 1.5 on 180 fixed images, made of",
        "    a 0.5 -> 1",
        "    b 2 -> 2",
        "held out, c: 3 -> 2",
    ]
    assert on_the_way(before, after) == "after round 3, on 180 fixed images: reward 1 -> 1.5"


def test_a_part_that_was_not_there_before_has_its_value_only():
    before, after = evaluation(1.0, {"a": 1.0}), evaluation(1.5, {"a": 1.0, "b": 0.5})
    assert "    b 0.5" in list(before_and_after(before, after))


def test_a_judge_that_was_not_asked_that_before_tells_the_later_share_only():
    after = evaluation(0.7, {"a": 0.7}, judge={"right": 0.7, "counting": 0.6}, number=3)
    for judge in (None, {"right": 0.5}):
        lines = list(before_and_after(evaluation(0.6, {"a": 0.6}, judge=judge), after))
        assert lines[-1] == "held-out judge, right, of a number: 60.0%"
    assert on_the_way(evaluation(0.6, {"a": 0.6}), after).endswith("; judge, right pictures: 70.0%")


def test_an_evaluation_that_no_reward_scored_says_so():
    before, after = evaluation(0.8, {"late": 0.8}), evaluation(float("nan"), {}, number=2)
    assert list(before_and_after(before, after)) == ["reward 0.8 -> not scored on 180 fixed images"]
    assert on_the_way(before, after) == "after round 2, on 180 fixed images: reward 0.8 -> not scored"
    assert before_alone(after) == "reward not scored on 180 fixed images, before the training; none since"
    assert before_alone(before) == "late 0.8 on 180 fixed images, before the training; none since"


def test_a_sum_is_not_told_under_the_name_of_the_one_part_that_is_left():
    before, after = evaluation(0.8, {"a": 0.5, "b": 0.3}), evaluation(0.4, {"a": 0.4}, number=2)
    assert list(before_and_after(before, after)) == ["reward 0.8 -> 0.4 on 180 fixed images, made of", "    a 0.5 -> 0.4"]
