"""The picture of the documentation's site: its front page in light and in dark, side by side.

    python benchmarks/site_pictures.py          needs mkdocs, playwright and a Chromium

Builds the site into a temporary folder and writes docs/images/site.png.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image
from playwright.sync_api import Browser

from benchmarks.shared.browser import started_browser
from benchmarks.shared.command import parser
from benchmarks.shared.places import IMAGES, ROOT

SIZE = (1000, 900)
GAP = 12


def shown(browser: Browser, front: Path, scheme: Literal["light", "dark"], to: Path) -> Image.Image:
    """Return the front page as a reader sees it whose system is light, or dark."""
    page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme=scheme)
    page.goto(front.as_uri())
    page.wait_for_load_state("networkidle")
    page.screenshot(path=to)
    page.close()
    return Image.open(to).convert("RGB")


def main() -> None:
    """Build the site and take the picture."""
    parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "site")
        subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(built)],
            cwd=ROOT,
            check=True,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        )
        with started_browser() as browser:
            both = [shown(browser, built / "index.html", scheme, Path(folder, "shot.png")) for scheme in ("light", "dark")]
    picture = Image.new("RGB", (2 * SIZE[0] + GAP, SIZE[1]), "white")
    for number, one in enumerate(both):
        picture.paste(one, (number * (SIZE[0] + GAP), 0))
    picture.quantize(128).save(IMAGES / "site.png", optimize=True)


if __name__ == "__main__":
    main()
