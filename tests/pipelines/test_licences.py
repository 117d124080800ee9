"""What a model's licence restricts is said once, and nothing is said where it is not known."""

import pytest
from tiny_runs import Listener, brightness, lcm_pipeline, tiny_config

from rlcm.doctor import diagnose
from rlcm.pipelines import LoraSettings, ModelSettings, restrictions
from rlcm.pipelines.licences import RESTRICTED
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.trainer import Trainer

OPEN = [
    *("builtin", "builtin-teacher", "Qwen/Qwen-Image", "black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.1-schnell"),
    *("stabilityai/stable-diffusion-xl-base-1.0", "ByteDance/Hyper-SD", "someone/sdxl-turbo", "sdxl-turbo"),
]


@pytest.mark.parametrize("name", RESTRICTED)
def test_each_is_said_in_a_sentence(name):
    (note,) = restrictions(ModelSettings(path=name))
    assert note.startswith(f"licence: {name} is under ")
    assert RESTRICTED[name] in note
    assert note.endswith("its page on the Hub counts")
    (shouted,) = restrictions(ModelSettings(path=name.upper()))  # the Hub finds it so, too
    assert RESTRICTED[name] in shouted


def test_what_they_say():
    def said(path, **model):
        return " ".join(restrictions(ModelSettings(path=path, **model)))

    assert "no commercial use" in said("black-forest-labs/FLUX.2-klein-9B")
    assert "no commercial use" in said("black-forest-labs/FLUX.1-dev")
    assert "yearly revenue of one million" in said("stabilityai/sdxl-turbo")
    assert [said(path) for path in OPEN] == [""] * len(OPEN)


def test_a_lora_has_a_licence_of_its_own():
    base, lora = "stabilityai/stable-diffusion-xl-base-1.0", LoraSettings(path="tianweiy/DMD2")
    assert ["tianweiy/DMD2" in note for note in restrictions(ModelSettings(path=base, loras=(lora,)))] == [True]
    both = restrictions(ModelSettings(path="stabilityai/sdxl-turbo", loras=(lora, lora)))
    assert [note.split()[1] for note in both] == ["stabilityai/sdxl-turbo", "tianweiy/DMD2"]


def test_a_folder_of_that_name_may_hold_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stabilityai/sdxl-turbo").mkdir(parents=True)
    assert restrictions(ModelSettings(path="stabilityai/sdxl-turbo")) == []
    assert restrictions(ModelSettings(path=str(tmp_path / "stabilityai/sdxl-turbo"))) == []


@pytest.mark.parametrize(("name", "times"), [("stabilityai/sdxl-turbo", 1), ("someone/else", 0), (None, 0)])
def test_a_run_says_it_once(name, times, tmp_path):
    pipeline = lcm_pipeline()
    if name is not None:
        pipeline.register_to_config(_name_or_path=name)
    watcher = Listener()
    config = tiny_config(tmp_path, run={"rounds": 1}, prompts=["a cat", "a dog"], evaluation={"images": 2})
    # A model that was passed stands in place of the one that the settings name.
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": "stabilityai/sd-turbo"})})
    Trainer(config, model=pipeline, rewards=[brightness], watcher=watcher).train()
    assert [note.split()[1] for note in watcher.notes if note.startswith("licence: ")] == [name] * times


def test_the_doctor_says_it_before_anything_is_loaded():
    values = {"model": {"path": "stabilityai/sdxl-turbo", "local_files_only": True, "device": "cpu", "precision": "fp32"}}
    diagnosis = diagnose(parse_settings(TrainConfig, values), rewards=[brightness])
    (found,) = [finding for finding in diagnosis.findings if finding.name == "licence"]
    assert found.ok
    assert found.value.startswith("stabilityai/sdxl-turbo is under the Stability AI Community Licence")
    assert not diagnosis.ok, "the model is not there"
