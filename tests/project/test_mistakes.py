"""The likeliest mistakes end with the message of docs/mistakes.md, and with no traceback.

After a change of messages: python benchmarks/mistakes.py --write
"""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "mistakes.py"
SPEC = importlib.util.spec_from_file_location("mistakes", FILE)
mistakes = sys.modules["mistakes"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mistakes)


@pytest.fixture(scope="module")
def place():
    with mistakes.workplace():
        yield


@pytest.fixture(scope="module")
def lines():
    return mistakes.PAGE.read_text(encoding="utf-8").splitlines()


def test_there_are_twenty_and_no_two_the_same():
    typed = [mistake.typed for mistake in mistakes.MISTAKES]
    assert len(typed) >= 20
    assert len(set(typed)) == len(typed)


@pytest.mark.parametrize("mistake", mistakes.MISTAKES, ids=lambda mistake: mistake.what)
@pytest.mark.usefixtures("place")
def test_what_is_printed_is_on_the_page(mistake, lines):
    assert mistakes.row(mistake, mistakes.printed(mistake)) in lines


def test_the_rest_of_the_page_is_what_the_script_writes(lines):
    marks = {mistake.typed: f"printed {number}" for number, mistake in enumerate(mistakes.MISTAKES)}
    rows = {mistakes.row(mistake, marks[mistake.typed]): mistake for mistake in mistakes.MISTAKES}
    for found, written in zip(lines, mistakes.page(marks).splitlines(), strict=True):
        if written in rows:
            assert found.startswith(mistakes.row(rows[written], "").removesuffix(" |"))
        else:
            assert found == written
