"""Former names of modules: they import the very modules of today."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from rlcm._moved import MOVED


@pytest.mark.parametrize(("former", "present"), MOVED.items())
def test_a_former_name_is_the_module_of_today(former, present):
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=f"{former} is now {present}"):
        module = importlib.import_module(former)
    assert module is importlib.import_module(present)
    assert module.__spec__.name == module.__name__ == present


def test_every_form_of_import_takes_a_former_name():
    code = (
        "import rlcm.study.draw, rlcm.studies.evaluation.draw\n"
        "from rlcm import advantages, losses\n"
        "from rlcm.evaluate import EvaluationSettings\n"
        "from rlcm.policy import AdapterSettings, Policy\n"
        "from rlcm.doctor import diagnose\n"
        "import rlcm.learning.losses\n"
        "assert rlcm.study.draw is rlcm.studies.evaluation.draw and losses is rlcm.learning.losses\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["rlcm.nonsense", "rlcm.study.nonsense", "rlcm.gaussian.nonsense"])
def test_a_name_that_never_was_is_still_an_error(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
