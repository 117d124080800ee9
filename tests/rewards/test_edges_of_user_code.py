"""What users' rewards do to the process, and its neighbours to them: found by the fourth attack."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from rlcm.addresses import without_secrets
from rlcm.errors import ConfigError, RewardError
from rlcm.processes.signals import Ending
from rlcm.rewards import RewardSettings, build_rewards
from rlcm.rewards.given import mix_of
from rlcm.rewards.imported import clean_up, is_installed
from rlcm.rewards.sources import own_files

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def darkness_of(picture):
    return -float(picture.mean())


def with_pool(images, prompts):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(darkness_of, list(images.numpy()))


def sleep():
    time.sleep(60)


@fork
def test_a_pool_of_a_reward_ends_and_tells_nobody_of_a_signal(images, prompts, recwarn):
    with Ending() as ending:
        scores = mix_of(with_pool)(images, prompts)
        time.sleep(0.2)  # in which a byte of a worker's would arrive
    assert ending.ended is None
    torch.testing.assert_close(scores.total, -images.mean((1, 2, 3)))
    assert not multiprocessing.active_children()


def test_a_process_that_a_reward_starts_anew_finds_the_rewards_file_and_its_neighbours(tmp_path, images, prompts):
    """As pools do on macOS and Windows. A worker that cannot read its task is replaced for good, and nobody gets an answer."""
    (tmp_path / "pooled_beside.py").write_text("def darkness_of(picture):\n    return -float(picture.mean())\n")
    (tmp_path / "pooled.py").write_text(
        "import multiprocessing, pooled_beside\n"
        "def work(picture):\n    return pooled_beside.darkness_of(picture)\n"
        "def pooled(images, prompts):\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        return pool.map(work, list(images.numpy()))\n"
    )
    mix = build_rewards([RewardSettings(name=f"{tmp_path / 'pooled.py'}:pooled", timeout_seconds=120)])
    torch.testing.assert_close(mix(images, prompts).total, -images.mean((1, 2, 3)))
    found = [Path(folder) for folder in sys.path if "rlcm-rewards-" in folder]
    assert len(found) == 1, "one folder for all rewards of a process"
    if (copy := getattr(os, "fork", lambda: 1)()) == 0:
        clean_up()  # as at the end of a copy of this process
        os._exit(0)
    os.waitpid(copy, 0)
    assert found[0].is_dir()


@fork
def test_a_worker_does_with_signals_what_it_would_do_without_us():
    with Ending() as ending:
        worker = multiprocessing.get_context("fork").Process(target=sleep)
        worker.start()
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == -signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == ending._take, "of the parent nothing has changed"
    assert ending.ended is None


@pytest.mark.parametrize("letter", ["x", "x.", "x-", "_", "1", "a:", "?", "?key", ":/", "&a=", "@", "a:/b", "x;"])
def test_long_words_are_looked_through_in_no_time(letter):
    text = letter * (400_000 // len(letter))
    began = time.process_time()
    without_secrets(text)
    assert time.process_time() - began < 5, "linear in its length: hours otherwise"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("_http://me:pw@host", "_http://***@host"),
        ("9http://me@host and postgres://me:pw@host/x", "9http://***@host and postgres://***@host/x"),
        ("x" * 500 + "://me:pw@host", "x" * 500 + "://***@host"),
        ("see ://me@host", "see ://me@host"),
        ("http://h?" + "a" * 300 + "key=pw&v=1", "http://h?" + "a" * 300 + "key=***&v=1"),
        ("http://h?sig=pw;passwd=b", "http://h?sig=***;passwd=***"),
        ("http://h?design=pw", "http://h?design=pw"),
    ],
)
def test_secrets_are_found_wherever_words_begin(text, shown):
    assert without_secrets(text) == shown


def test_a_long_error_is_cut(images, prompts):
    def fails(images, prompts):
        raise ValueError("x" * 1_000_000)

    with pytest.raises(RewardError) as caught:
        mix_of(fails)(images, prompts)
    assert len(str(caught.value)) < 4000
    assert "ValueError: xxx" in str(caught.value)


def neighbours(folder, sign):
    folder.mkdir()
    (folder / "mine.py").write_text(
        "import neighbour_of_mine\n\ndef f(images, prompts):\n    return neighbour_of_mine.of(images)\n"
    )
    (folder / "neighbour_of_mine.py").write_text(f"def of(images):\n    return {sign}images.mean((1, 2, 3))\n")
    return RewardSettings(name=f"{folder}/mine.py:f", label=folder.name)


def test_a_reward_imports_the_file_beside_it_and_never_another_of_its_name(tmp_path, images, prompts):
    first, second = neighbours(tmp_path / "a", ""), neighbours(tmp_path / "b", "-")
    scores = build_rewards([first])(images, prompts)
    torch.testing.assert_close(scores.total, images.mean((1, 2, 3)))
    torch.testing.assert_close(build_rewards([second])(images, prompts).total, -images.mean((1, 2, 3)))
    torch.testing.assert_close(build_rewards([first])(images, prompts).total, images.mean((1, 2, 3)))
    with pytest.raises(ConfigError, match=r"imports neighbour_of_mine.*another module of this name.*Rename"):
        build_rewards([first, second])


def test_a_neighbour_with_the_name_of_something_installed_is_told(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\n\ndef f(images, prompts):\n    return images.mean((1, 2, 3))\n")
    (tmp_path / "torch.py").write_text("")
    with pytest.raises(ConfigError, match=r"imports torch, which is .*but Python has another module of this name"):
        build_rewards([RewardSettings(name=f"{tmp_path}/mine.py:f", label="f")])
    assert sys.modules["torch"] is torch


def test_a_folder_of_a_like_name_is_the_users_own(tmp_path):
    folder = tmp_path / f"python{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir()
    (folder / "mine.py").write_text("def f(images, prompts):\n    return images.mean((1, 2, 3))\n")
    build_rewards([RewardSettings(name=f"{folder}/mine.py:f", label="f")])
    assert list(own_files(f"{folder}/mine.py:f")) == ["mine.py"]
    assert is_installed(Path(multiprocessing.__file__))
    assert is_installed(Path(torch.__file__))
