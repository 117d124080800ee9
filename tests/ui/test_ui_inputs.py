"""The page's inputs hand on what was entered: nothing is rounded."""

from types import SimpleNamespace

import gradio as gr
import pytest

from rlcm.errors import MissingFileError
from rlcm.training.config import TrainConfig
from rlcm.ui.folder import RunsFolder
from rlcm.ui.form import fields
from rlcm.ui.tab_train import _config_of, component


@pytest.mark.parametrize("key", ["run.rounds", "seed", "optimizer.lr"])
def test_a_number_is_handed_on_as_it_was_entered(key):
    field = next(field for field in fields() if field.key == key)
    with gr.Blocks():
        box = component(field, 2, 100)
    assert box.preprocess(2.5) == 2.5
    assert box.preprocess(2) == 2


def test_a_run_that_is_gone_is_no_start(tmp_path):
    desk = SimpleNamespace(runs=RunsFolder(tmp_path))
    with pytest.raises(MissingFileError, match=r"there is no run 'gone' in .*; choose one of the list"):
        _config_of(desk, "gone")
    assert _config_of(desk, "*default") == TrainConfig()
