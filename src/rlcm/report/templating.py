"""The package's templates: pages, model cards."""

from __future__ import annotations

from typing import Any

import jinja2

from rlcm.runs.files import writable


def render(template: str, **values: Any) -> str:
    """Return a template of the package, filled in; in a template of HTML all texts are escaped.

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
    return writable(environment.get_template(template).render(values))
