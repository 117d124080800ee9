"""What is optional is installed by the packages that it stands for."""

import re
from importlib import metadata

import pytest

from rlcm.extras import to_install


@pytest.mark.parametrize("extra", ["ui", "serve", "remote", "quant", "imscore", "owl", "ocr", "wandb", "trackio", "swanlab"])
def test_the_packages_of_an_extra(extra):
    command = to_install(extra)
    wanted = re.findall(r"'([\w.-]+)[^']*'", command)
    assert command.startswith("pip install '")
    assert wanted
    assert {f"{name}" for name in wanted} <= {re.split(r"[<>=;\[ ]", text)[0] for text in metadata.requires("rlcm")}


def test_from_a_clone_that_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("rlcm.extras.metadata.requires", missing)
    assert to_install("ui") == "pip install -c constraints.txt -e '.[ui]'"
