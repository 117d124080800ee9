"""The page's inputs hand on what was entered: nothing is rounded, and what was taken away is None."""

import gradio as gr
import pytest

from rlcm.ui.form import fields
from rlcm.ui.inputs import Slider
from rlcm.ui.tab_train import component


def test_a_slider_without_a_number_has_none():
    with gr.Blocks():
        slider = Slider(minimum=1, maximum=8, step=1, value=4)
    assert slider.get_block_name() == "slider"
    assert slider.preprocess(None) is None
    assert slider.preprocess(3) == 3
    with pytest.raises(gr.Error):
        slider.preprocess(9)


@pytest.mark.parametrize("key", ["run.rounds", "seed", "optimizer.lr"])
def test_a_number_is_handed_on_as_it_was_entered(key):
    field = next(field for field in fields() if field.key == key)
    with gr.Blocks():
        box = component(field, 2, 100)
    assert box.preprocess(2.5) == 2.5
    assert box.preprocess(2) == 2
