"""The package's templates: pages, model cards; and texts as they stand in Markdown."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import jinja2

from rlcm.runs.files import writable

_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# What marks something anywhere in a line: an underscore does not between letters, an ampersand only before an entity.
_MARKS = re.compile(r"[\\`*\[\]<>|~$]|&(?=#?\w+;)|(?<![^\W_])_+|_+(?![^\W_])")
_AT_THE_START = re.compile(r"(?P<number>\d{1,9})(?=[.)](?:\s|$))|(?=[-+](?:\s|$)|#{1,6}(?:\s|$)|--+|=+)")


def plain_text(value: Any) -> str:
    """Return a text on one line of Markdown that shows it as it is: no markup, no HTML, no further cell of a table."""
    text = " ".join(str(value).split())
    text = _MARKS.sub(lambda found: "".join(_ENTITIES.get(one, f"\\{one}") for one in found[0]), text)
    found = _AT_THE_START.match(text)
    return text if found is None else f"{text[: found.end()]}\\{text[found.end() :]}"


def code_span(value: Any, *, in_table: bool = False) -> str:
    """Return a text as code within a line of Markdown; nothing for an empty one.

    Args:
        in_table: whether it stands in a table, whose cells are cut first.
    """
    text = " ".join(str(value).split())
    if not text:
        return ""
    longest = max((len(list(run)) for one, run in groupby(text) if one == "`"), default=0)
    fence, space = "`" * (longest + 1), " " * ("`" in (text[0], text[-1]))
    return fence + space + (text.replace("|", r"\|") if in_table else text) + space + fence


def render(template: str, **values: Any) -> str:
    """Return a template of the package, filled in.

    In a template of HTML all texts are escaped. One of Markdown passes those that it did not write itself through the filters
    `text` and `code`: `plain_text` and `code_span`.

    Args:
        template: its path in the package, such as report/templates/report.html.jinja.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlcm", ""),
        autoescape=".html" in template,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": plain_text, "code": code_span}
    return writable(environment.get_template(template).render(values))
