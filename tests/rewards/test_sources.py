"""Which code a user's reward is made of."""

import functools

import pytest

from rlcm.rewards.build import build_reward
from rlcm.rewards.settings import RewardSettings
from rlcm.rewards.sources import own_files, own_text


def written(folder, **files):
    for name, text in files.items():
        place = folder / f"{name.replace('__in__', '/')}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


def test_a_file_and_those_beside_it_that_it_imports_even_in_a_circle(tmp_path):
    written(
        tmp_path,
        reward="import os, torch\nimport near\ndef f(images, prompts):\n    from pack.inner import g\n    return g(images)\n",
        near="import reward\n",
        pack__in____init__="",
        pack__in__inner="from . import deep\nfrom .. import other\n",
        pack__in__deep="from .missing import *\n",
        other="",
        unused="",
        broken="def (",
    )
    found = own_files(f"{tmp_path / 'reward.py'}:f")
    assert next(iter(found)) == "reward.py"
    assert set(found) == {"reward.py", "near.py", "pack/__init__.py", "pack/inner.py", "pack/deep.py", "other.py"}
    assert set(own_files(f"{tmp_path / 'broken.py'}:f")) == {"broken.py"}


def test_a_module_counts_from_its_outermost_package(tmp_path, monkeypatch):
    written(tmp_path, outer__in____init__="", outer__in__sub__in____init__="", outer__in__sub__in__r="from outer import more\n")
    written(tmp_path, outer__in__more="")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("outer.sub.r")
    assert set(own_files("outer.sub.r:f")) == {"outer/sub/r.py", "outer/__init__.py", "outer/more.py"}


@pytest.mark.parametrize(
    "place", ["jpeg_compressibility", "rlcm.rewards.image:Sharpness", "torch.nn:Identity", "nowhere.py:f", "x:y"]
)
def test_what_is_installed_or_not_there_has_no_files(place):
    assert own_files(place) == {}


class Judge:
    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


def scored(images, prompts, scale=1):
    return images.mean((1, 2, 3)) * scale


def test_the_text_of_functions_classes_and_what_is_bound(monkeypatch):
    assert own_text(scored) == own_text(functools.partial(functools.partial(scored, scale=2))) != own_text(Judge)
    assert "return images.mean((1, 2, 3)) * scale" in own_text(scored)
    assert own_text(Judge()) == own_text(Judge)
    wrapped = functools.wraps(scored)(lambda *values: scored(*values))
    assert own_text(wrapped) == own_text(scored)
    assert own_text(build_reward(RewardSettings(name="sharpness"))) is None
    assert own_text(len) is None
    assert own_text(eval("lambda images, prompts: 1")) is None


def test_modules_that_are_imported_by_their_names(tmp_path):
    written(
        tmp_path,
        reward="import importlib\nnear = importlib.import_module('near')\nother = __import__('other')\nimportlib.import_module(f())\n",
        near="",
        other="",
        unused="",
    )
    assert set(own_files(f"{tmp_path / 'reward.py'}:f")) == {"reward.py", "near.py", "other.py"}
