"""A folder with two short runs of a tiny model, made once."""

import pytest
from tiny_runs import lcm_pipeline, tiny_config

from rlcm.training.trainer import Trainer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    lcm_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def runs(tiny_model, tmp_path_factory):
    """The folder of the runs `first` and `second`, which differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second")):
        config = tiny_config(
            folder,
            name=name,
            seed=seed,
            model={"path": str(tiny_model)},
            rewards=["brightness"],
            prompts=["a red cat", "two blue dogs"],
            optimizer={"lr": 0.05},
            evaluation={"images": 4, "every": 1},
        )
        Trainer(config).train()
    return folder
