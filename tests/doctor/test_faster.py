"""What the doctor says of settings that would make a run faster."""

import pytest
import torch
from torch import nn

from rlcm.doctor.faster import faster
from rlcm.training.config import TrainConfig, load_config, parse_settings

UNET, TRANSFORMER = nn.Sequential(nn.Conv2d(3, 3, 3)), nn.Sequential(nn.Linear(3, 3), nn.Conv2d(3, 3, 1))
CUDA = torch.device("cuda", 0)


def settings(**changes):
    return parse_settings(TrainConfig, changes)


@pytest.mark.parametrize(
    ("network", "dtype", "changes", "named"),
    [
        (UNET, torch.bfloat16, {}, ["model.compile=true", "model.channels_last=true"]),
        (UNET, torch.bfloat16, {"run": {"rounds": 10}}, ["model.channels_last=true"]),
        (TRANSFORMER, torch.bfloat16, {}, ["model.compile=true"]),
        (TRANSFORMER, torch.float32, {"model": {"compile": True}}, ["model.tf32=true"]),
        (
            UNET,
            torch.float32,
            {"model": {"compile": True, "tf32": True}, "optimizer": {"fused": "never"}},
            ["optimizer.fused=auto"],
        ),
    ],
)
def test_it_names_what_is_left_to_try(network, dtype, changes, named, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    (found,) = faster(settings(**{"run": {"rounds": 100}, **changes}), CUDA, dtype, network)
    assert found.ok
    assert found.value.startswith(f"not tried by this configuration: {', '.join(named)} (")
    for setting in named:  # each can be typed as it stands
        key, value = setting.split("=")
        group, name = key.split(".")
        assert str(getattr(getattr(load_config(None, [setting]), group), name)).lower() == value


def test_it_is_silent_where_nothing_is_left_and_on_other_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert faster(settings(model={"compile": True}), CUDA, torch.float32, UNET) == []
    assert faster(settings(), torch.device("cpu"), torch.float32, UNET) == []
