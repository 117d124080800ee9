"""The page in a real browser: every click-path, nothing on the console, nothing asked of the network."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import rlcm
from rlcm.report.templating import render
from rlcm.rewards.taste.votes import read_votes
from rlcm.studies.compare import compare, read_methods, write_comparison
from rlcm.training.config import load_config

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]
TABS = ("Runs", "Samples", "Playground", "Teach", "Compare", "Train")


@pytest.fixture(scope="module")
def site(runs, tmp_path_factory):
    """`rlcm ui` on a copy of the runs: its address, the runs' folder, where it stands, and Gradio's folder for files."""
    base = tmp_path_factory.mktemp("site")
    shutil.copytree(runs, base / "runs")
    (base / "here").mkdir()
    surroundings = os.environ | {
        "PYTHONPATH": str(Path(rlcm.__file__).parents[1]), "GRADIO_TEMP_DIR": str(base / "gradio"), "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "rlcm", "ui", str(base / "runs"), "--port", "0"]
    with open(base / "errors", "w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=base / "here", env=surroundings
        )
    line = process.stdout.readline()
    assert line.startswith(f"{base / 'runs'}: 2 runs, at http://127.0.0.1:"), (base / "errors").read_text()
    yield line.split()[4], base
    for file in (base / "runs" / ".ui").glob("*.json"):  # what a failed test has left
        with contextlib.suppress(psutil.NoSuchProcess):
            left = psutil.Process(json.loads(file.read_text())["pid"])
            if left.create_time() == json.loads(file.read_text())["created"]:
                left.kill()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert (base / "errors").read_text() == ""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def complaints():
    """What the browser said of the page, and what it asked of others."""
    return []


@pytest.fixture(scope="module")
def page(site, browser, complaints):
    return visit(site[0], browser, complaints, 1280, 800)


def visit(address, browser, complaints, width, height, scheme="light", script=""):
    home = address.partition("?")[0]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(90_000)  # a busy machine takes its time to start a training
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda answer: complaints.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((home, "data:", "blob:", "file:")) else complaints.append(asked.url),
    )
    page.add_init_script(script)
    page.goto(address)
    return page


def go(page, name):
    page.get_by_role("tab", name=name).click()


def pictures(page, selector):
    """Return the pictures of a part of the page as arrays; all of them are inside the page."""
    sources = [image.get_attribute("src") for image in page.locator(f"{selector} img").all()]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in sources]


def test_a_run_its_pictures_its_curve_and_its_address(page, site, browser):
    page.wait_for_selector("#runs .card")
    assert page.locator("#runs .card").count() == 2
    page.locator('#runs [data-run="first"]').click()
    page.wait_for_selector("#run-stage [data-of='first']")
    assert page.url.endswith("/?run=first")
    assert page.locator("#run-tiles .tile").count() >= 3
    assert page.locator("#run-curve svg:visible").count() == 1
    page.locator("#run-curve [data-axis='1']").click()
    assert page.locator("#run-curve h3:visible").inner_text() == "Against reward queries"
    page.locator("#run-stage .turn").nth(1).click()
    shown = page.locator("#run-stage figure img:visible")
    before, after = (shown.nth(i).get_attribute("src") for i in (0, 1))
    page.locator("#run-stage [data-play]").click()  # from the beginning
    assert page.locator("#run-stage output").inner_text() == "round 1"
    page.wait_for_selector("#run-stage output:has-text('round 2')")
    assert shown.nth(1).get_attribute("src") == after
    page.locator("#run-stage [data-slider]").press("ArrowLeft")
    assert shown.nth(1).get_attribute("src") not in (before, after)
    pictures(page, "#run-stage")
    answer = page.request.get(
        page.url.partition("?")[0].rstrip("/") + page.get_by_role("link", name="Report").get_attribute("href")
    )
    assert answer.ok and "Tuning run first" in answer.text()  # noqa: PT018
    page.get_by_role("button", name="Details").click()
    page.wait_for_selector("#run-details svg")
    for name, there in (
        ("nobody", "#run-said :text('There is no run nobody here')"),
        ("first", "#run-stage [data-of='first']"),
    ):
        said = []
        other = visit(f"{site[0]}?run={name}", browser, said, 1280, 800)
        other.wait_for_selector(there)
        assert said == []
        other.close()  # what is under way then may complain


def test_samples_through_the_training(page):
    go(page, "Samples")
    page.wait_for_selector("#samples-view .sheet-of")
    assert page.locator("#samples-run input").input_value() == "first"
    number = page.locator("#samples-round input[type=number]")
    number.fill("0")
    number.press("Enter")
    page.wait_for_selector("#samples-view .lead:has-text('Round 0 of 2')")
    before = pictures(page, "#samples-view")[1]
    page.locator("#samples-view .pick").nth(1).click()
    page.wait_for_selector("#samples-view .duel")
    assert "two blue dogs" in page.locator("#samples-view .lead").inner_text()
    number.fill("2")
    number.press("Enter")
    page.wait_for_selector("#samples-view .duel figure:nth-child(2) :text('round 2')")
    first, now, *film = pictures(page, "#samples-view")
    assert (first == before).all()
    assert (now != first).any()
    assert len(film) == 3


def test_the_playground(page):
    go(page, "Runs")
    page.locator("#try").click()
    page.wait_for_selector("#play-run input")
    page.wait_for_function("document.querySelector('#play-run input').value === 'first'")
    page.wait_for_function("document.querySelector('#play-steps input[type=number]').value === '3'")  # those of the run
    page.locator("#play-prompt textarea").fill("a red cat")
    page.locator("#play-draw").click()
    page.wait_for_selector("#play-view .side")
    left, right = pictures(page, "#play-view")
    assert (left != right).any()
    assert page.locator("#play-view .number").nth(1).inner_text().startswith("brightness")
    with page.expect_download() as found:
        page.get_by_role("link", name="Download the picture").nth(1).click()
    assert found.value.suggested_filename == "a-red-cat-seed0-steps3-first-x1.png"
    with Image.open(found.value.path()) as kept:
        assert (kept.text["prompt"], kept.text["strength"], kept.text["run"]) == ("a red cat", "1.0", "first")
        assert (np.asarray(kept) == right).all()
    strength = page.locator("#play-strength input[type=number]")
    strength.fill("0")
    strength.press("Enter")
    page.locator("#play-draw").click()
    page.wait_for_selector("#play-view .side figcaption:has-text('strength 0')")
    left, right = pictures(page, "#play-view")
    assert (left == right).all()
    page.locator("#play-ideas .chip").nth(1).click()
    page.wait_for_selector("#play-view .quiet:has-text('three frogs')")


def test_teaching(page, site):
    _, base = site
    go(page, "Teach")
    page.locator("#teach-begin").click()
    page.wait_for_selector("#teach-view .choice")
    assert len(pictures(page, "#teach-view")) == 4
    asked = page.locator("#teach-view [data-question]").get_attribute("data-question")
    page.keyboard.press("1")
    page.wait_for_function(
        "asked => document.querySelector('#teach-view [data-question]').dataset.question !== asked", arg=asked
    )
    page.wait_for_selector("#teach-standing .tally:has-text('1 vote')")
    page.locator("#teach-view .choice").nth(1).click()
    page.wait_for_selector("#teach-standing .tally:has-text('2 votes')")
    page.locator("#teach-view [data-choice='undo']").click()
    page.wait_for_selector("#teach-standing .tally:has-text('1 vote')")
    assert [vote.chosen for vote in read_votes(base / "runs/taught-votes/votes.jsonl")] == [(0,)]


def test_comparing(page):
    go(page, "Compare")
    page.wait_for_selector("#compare-view .headline")
    assert page.locator("#compare-view svg").count() == 3
    assert "What each ended with" in page.locator("#compare-view").inner_text()


def test_a_phone_shows_all_tabs_and_the_result(site, browser, complaints):
    page = visit(f"{site[0]}?run=first", browser, complaints, 390, 844)
    page.wait_for_selector("#run-stage img")
    box = page.locator("#run-stage figure img:visible").nth(1).bounding_box()
    assert box["x"] + box["width"] <= 390
    assert box["y"] + box["height"] <= 844
    for name in TABS:
        go(page, name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_a_training_is_checked_started_stopped_and_resumed(page, site):
    _, base = site
    go(page, "Runs")
    page.locator("#new").click()
    page.locator("#train-start input").click()
    page.get_by_role("option", name="The run first").click()
    for key, value in (("rollout-batch_size", "6"), ("optimizer-lr", "0.05"), ("run-rounds", "2"), ("seed", "0")):
        page.wait_for_function(f"document.querySelector('#set-{key} input').value === '{value}'")
    page.wait_for_timeout(300)  # what was entered while the form is being filled would be overwritten
    for title in page.get_by_role("button", name="More: ").all():
        title.click()  # what has been looked at is not changed by it
    rate = page.locator("#set-optimizer-lr input")
    rate.fill("5")
    page.locator("#train-check").click()
    page.wait_for_selector("#train-said .notice.error:has-text('less than or equal to 1')")
    page.wait_for_selector("#set-optimizer-lr[data-invalid]")
    rate.fill("0.0001")
    page.locator("#set-run-rounds input").fill("100000")
    page.locator("#set-name input, #set-name textarea").first.fill("mine")
    page.locator("#train-go").click()
    page.wait_for_selector("#train-said .notice.done:has-text('mine is starting')")
    asked, copied = (load_config(base / "runs" / file) for file in (".ui/mine.config.yaml", "first/config.yaml"))
    told = {"name": "mine", "output": str(base / "runs"), "run": copied.run.model_copy(update={"rounds": 100_000})}
    assert asked == copied.model_copy(update=told | {"optimizer": copied.optimizer.model_copy(update={"lr": 1e-4})})
    page.wait_for_selector("#train-log .log:has-text('round ')")
    go(page, "Runs")
    page.wait_for_selector('#runs [data-run="mine"] .state.training')
    page.wait_for_selector("#run-head .progress")
    page.locator("#stop").click()
    page.wait_for_selector("#run-head .notice.done:has-text('It will stop')")
    page.wait_for_selector('#runs [data-run="mine"] .state.stopped')
    rounds = len((base / "runs/mine/metrics.jsonl").read_text().splitlines())
    assert (base / f"runs/mine/checkpoint-{rounds:06d}").is_dir()
    page.locator("#resume").click()
    page.wait_for_selector('#runs [data-run="mine"] .state.training')
    wait_for(lambda: len((base / "runs/mine/metrics.jsonl").read_text().splitlines()) > rounds)
    page.locator("#stop").click()
    page.wait_for_selector('#runs [data-run="mine"] .state.stopped')
    assert "going on after round" in (base / "runs/.ui/mine.log").read_text()


def test_a_check_finds_what_the_start_would_and_a_failed_training_stays_listed(page, site):
    _, base = site
    go(page, "Train")
    page.locator("#set-name input, #set-name textarea").first.fill("broken")
    page.locator("#set-run-rounds input").fill("2")
    page.locator("#train-check").click()
    page.wait_for_selector("#train-said .notice.done:has-text('This can start')")
    rewards = page.locator("#set-rewards input")
    rewards.fill("nothing.py:score")
    rewards.press("Enter")
    page.wait_for_selector("#weight-1:has-text('Weight of nothing.py:score')")
    page.locator("#train-check").click()
    page.wait_for_selector("#train-said .notice.error:has-text('there is no file nothing.py')")
    page.locator("#train-go").click()
    page.wait_for_selector("#train-log .notice.error:has-text('there is no file nothing.py')")
    go(page, "Runs")
    page.wait_for_selector('#runs [data-run="broken"] .state.failed')
    page.locator('#runs [data-run="broken"]').click()
    page.wait_for_selector("#run-head .notice.error:has-text('there is no file nothing.py')")
    assert "there is no file nothing.py" in page.locator('#runs [data-run="broken"] .failure').inner_text()
    assert str(base / "runs" / ".ui") in page.locator("#run-head .notice.note").inner_text()
    page.locator("#retry").click()
    wait_for(lambda: (base / "runs/.ui/broken.log").read_text().count("error: ") == 2)
    page.locator("#dismiss").click()
    page.wait_for_selector('#runs [data-run="broken"]', state="detached")
    page.locator('#runs [data-run="first"]').click()


def test_the_answer_to_an_older_check_gives_way(site, browser):
    page = visit(site[0], browser, [], 1280, 800)
    go(page, "Train")
    page.locator("#train-check").click()  # of the default, on the built-in model
    page.wait_for_selector("#train-said .notice.done:has-text('This can start')")
    wait_for(trials)  # a round of it is being tried, while the form becomes another one
    page.locator("#set-rollout-batch_size input").fill("0")
    page.locator("#train-check").click()
    page.wait_for_selector("#train-said .notice.error:has-text('greater than or equal to 1')")
    wait_for(lambda: not trials())
    page.wait_for_timeout(2000)
    assert "greater than or equal to 1" in page.locator("#train-said").inner_text(), "the older answer took its place"
    page.close()


def test_a_bad_neighbour_is_named_beside_the_others(site, browser):
    address, base = site
    (base / "runs/loop").symlink_to("loop")
    os.mkdir(os.fsencode(base / "runs") + b"/odd\xff")
    with open(os.fsencode(base / "runs") + b"/odd\xff/config.yaml", "w"):
        pass
    complaints = []
    page = visit(address, browser, complaints, 1280, 800)
    page.wait_for_selector("#runs .notice:has-text('Not shown: loop'):has-text('a link that leads back to itself')")
    page.wait_for_selector("#runs .notice:has-text('Not shown: odd\\\\xff')")
    assert page.locator("#runs .card").count() == 3
    assert complaints == []  # what is under way when one leaves the page may complain
    page.close()


def test_a_page_goes_on_where_the_end_of_a_stream_comes_late(site, browser):
    address, base = site
    page = visit(address, browser, [], 1280, 800, script=(Path(__file__).parent / "late.js").read_text())
    page.wait_for_timeout(15_000)  # without anybody's touch
    shutil.copytree(base / "runs/first", base / "runs/later")
    page.wait_for_selector('#runs [data-run="later"]', timeout=30_000)
    shutil.rmtree(base / "runs/later")
    page.wait_for_selector('#runs [data-run="later"]', state="detached", timeout=30_000)
    page.close()


def contrast(page):
    found = page.evaluate((Path(__file__).parent / "contrast.js").read_text())
    assert found["looked"] > 3
    return found["found"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_where_the_system_is_light_or_dark(site, browser, scheme, tmp_path):
    address, base = site
    complaints = []
    page = visit(address, browser, complaints, 1280, 800, scheme)
    page.wait_for_selector("#runs .card")
    for name, ready in zip(
        TABS,
        ("#run-curve svg", "#samples-view img", "#play-view .empty", "#teach-view .empty", "#compare-view svg", "#train-go"),
        strict=True,
    ):
        go(page, name)
        page.wait_for_selector(ready)
        for title in page.get_by_role("button", name="More: ").all() if name == "Train" else ():
            title.click()
        page.wait_for_timeout(400)  # colours fade
        assert contrast(page) == [], name
    assert complaints == []  # what is under way when one leaves the page may complain
    (tmp_path / "login.html").write_text(render("ui/templates/login.html.jinja", wrong="That is not the password."))
    methods, metric, warnings = read_methods([base / "runs/first", base / "runs/second"])
    write_comparison(methods, metric, warnings, compare(methods), tmp_path / "comparison.html")
    for file in (tmp_path / "login.html", tmp_path / "comparison.html", base / "runs/first/report.html"):
        page.goto(file.as_uri())
        assert contrast(page) == [], file.name
    page.close()


def trials():
    """Return the processes that try a round for a check."""
    return [one for one in psutil.process_iter(["cmdline"]) if any("rlcm-trial-" in word for word in one.info["cmdline"] or ())]


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nothing_was_complained_of_and_nothing_left(complaints, site):
    _, base = site
    assert complaints == []
    assert not (base / "gradio").exists() or not any(path.is_file() for path in (base / "gradio").rglob("*"))
    assert list((base / "here").iterdir()) == []
