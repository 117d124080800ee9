"""The page's inputs hand on what was entered: nothing is rounded."""

import gradio as gr
import pytest

from rlcm.ui.form import fields
from rlcm.ui.tab_train import component


@pytest.mark.parametrize("key", ["run.rounds", "seed", "optimizer.lr"])
def test_a_number_is_handed_on_as_it_was_entered(key):
    field = next(field for field in fields() if field.key == key)
    with gr.Blocks():
        box = component(field, 2, 100)
    assert box.preprocess(2.5) == 2.5
    assert box.preprocess(2) == 2
