"""A Chromium for pictures and clicks, and a page of `rlcm ui` for it to open."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright


@contextmanager
def started_browser() -> Iterator[Browser]:
    """Start the machine's Chromium and close it in the end."""
    path = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def served_runs(folder: Path) -> Iterator[str]:
    """Start `rlcm ui` on a folder of runs, yield its address, and end it as Ctrl-C does."""
    command = [sys.executable, "-m", "rlcm", "ui", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def opened(browser: Browser, address: str) -> Page:
    """Open the page of `rlcm ui` and wait for its runs."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.wait_for_selector("#runs .card")
    return page
