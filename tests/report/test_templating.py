"""Texts in Markdown: what a reader of Markdown shows of them is what they are, with nothing more in it."""

import html

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlcm.report.templating import code_span, plain_text

pytest.importorskip("markdown_it")
from markdown_it import MarkdownIt

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
TEXTS = st.one_of(
    st.text(st.sampled_from("ab1 _*`~<>[]()|\\#+-=.!&;:/\"'$\n\t"), max_size=30),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
)
EXAMPLES = (
    "<script>alert(1)</script>",
    "a | b",
    "one\n\n# two",
    "`x` and ``y",
    "&lt; R&D &copy",
    "![](http://a.b/c.png) [x](javascript:alert)",
    "__init__ *x* ~~y~~",
    "1. first",
    "- item",
    "---",
    "- - -",
    "===",
    "back\\slash\\",
)


def shown(text):
    return html.escape(" ".join(text.split()), quote=True).replace("&#x27;", "'")


def row(cell):
    """Return the only row of a table in which a text stands, as a reader of Markdown shows its cells."""
    page = READER.render(f"| {cell} | end |\n|---|---|\n| {cell} | end |\n")
    assert page.startswith("<table>")
    assert page.count("<tr>") == 2
    return page.partition("<tbody>")[2].partition("<td>")[2].partition("</tbody>")[0]


@given(TEXTS)
@example("jpeg_compressibility 3 < 4")
def test_a_text_is_shown_as_it_is(text):
    wanted = f"<p>{shown(text)}</p>\n" if text.split() else ""
    assert READER.render(plain_text(text)) == wanted
    assert row(plain_text(text)) == f"{shown(text)}</td>\n<td>end</td>\n</tr>\n"


@given(TEXTS)
def test_code_is_shown_as_it_is(text):
    wanted = f"<code>{shown(text)}</code>" if text.split() else ""
    assert READER.render(code_span(text)) == (f"<p>{wanted}</p>\n" if wanted else "")
    assert row(code_span(text, in_table=True)) == f"{wanted}</td>\n<td>end</td>\n</tr>\n"


@pytest.mark.parametrize("text", EXAMPLES)
def test_markup_is_shown_and_not_done(text):
    test_a_text_is_shown_as_it_is.hypothesis.inner_test(text)
    test_code_is_shown_as_it_is.hypothesis.inner_test(text)


@pytest.mark.parametrize("text", ["JPEG size, 1.65 → 1.14 kB (+5 %)", "jpeg_compressibility", "R&D at 3 a.m.!", "-0.5", "+5 %"])
def test_ordinary_words_stay_readable_in_the_file_itself(text):
    assert plain_text(text) == text
