"""The pages in a real browser, where there is one: nothing on the console, and nothing asked of the network."""

import shutil
import subprocess

import pytest
from compared_runs import write_run

from rlcm.report import write_report
from rlcm.studies.compare import compare, read_methods, write_comparison

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]


def console(page):
    """Return what a page writes on the browser's console."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    found = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert "</html>" in found.stdout
    return [line for line in found.stderr.splitlines() if "CONSOLE" in line or "net::ERR" in line]


def test_the_check_sees_a_request_that_a_page_forbids(tmp_path):
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    page = tmp_path / "page.html"
    page.write_text(f'<!DOCTYPE html><html><head>{policy}</head><body><img src="https://example.com/x.png"></body></html>')
    assert console(page)


def test_pages_are_silent(tmp_path):
    runs = [write_run(tmp_path, f"{name}-0", [(0, 0, -3.0), (10, 100, -2.0)], steps=n) for name, n in (("a", 4), ("b", 50))]
    methods, metric, warnings = read_methods(runs)
    assert console(write_comparison(methods, metric, warnings, compare(methods), tmp_path / "comparison.html")) == []
    assert console(write_report(runs[0])) == []
