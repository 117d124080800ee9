"""What commands print in terminals of 80 and of 120 columns, as pictures for the docs.

python benchmarks/terminal_pictures.py          needs playwright and a Chromium
"""

from __future__ import annotations

import html
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared.browser import started_browser
from benchmarks.shared.command import parser
from benchmarks.shared.places import IMAGES

SHOWN = {80: ("--help", "settings leash"), 120: ("rewards list", "settings diversity")}
"""What is typed after `rlcm`, by columns."""
PAGE = """<style>
  body {{ margin: 0; padding: 18px; background: #f7f8f9; display: inline-block; }}
  pre {{ margin: 0; padding: 18px 22px; width: {columns}ch; font: 14px/1.45 'DejaVu Sans Mono', monospace; color: #1d2126;
        background: #fff; border: 1px solid #e1e5e9; border-radius: 12px; }}
  b {{ color: #1f5fbf; }}
</style><pre>{text}</pre>"""


def main() -> None:
    """Write a picture for each width."""
    parser(__doc__).parse_args()
    with started_browser() as browser, tempfile.TemporaryDirectory() as folder:
        for columns, commands in SHOWN.items():
            page = browser.new_page(viewport={"width": 1400, "height": 800}, device_scale_factor=1.5)
            shown = (f"<b>$ rlcm {command}</b>\n{html.escape(printed(command, columns, folder))}" for command in commands)
            page.set_content(PAGE.format(columns=columns, text="\n".join(shown)))
            page.locator("body").screenshot(path=IMAGES / f"terminal-{columns}.png")


def printed(command: str, columns: int, folder: str) -> str:
    """Return what a command prints in a terminal of so many columns."""
    done = subprocess.run(
        [sys.executable, "-m", "rlcm", *command.split()],
        cwd=folder,
        env=os.environ | {"COLUMNS": str(columns)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    main()
