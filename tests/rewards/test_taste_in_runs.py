"""Training on votes: a run that is killed goes on to the same weights, and with votes that came since to others."""

import shutil

import pytest
import torch
from tiny_runs import PROMPTS, Listener, lcm_pipeline, tiny_config

from rlcm.rewards.taste.votes import VotesFile
from rlcm.training import keeping
from rlcm.training.trainer import Trainer

LORA = "final/pytorch_lora_weights.safetensors"


@pytest.fixture
def votes(tmp_path):
    """Ten votes for the brightest of three pictures."""
    file = VotesFile(tmp_path / "taste" / "votes.jsonl")
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        shown = torch.rand(3, 1, 1, 1, generator=generator).expand(3, 3, 16, 16).contiguous()
        file.add("a picture", shown, [int(shown.mean((1, 2, 3)).argmax())])
    return file


def trainer(folder, votes, watcher=None):
    config = tiny_config(
        folder, rewards=[{"name": "taste", "args": {"votes": str(votes.path)}}], run={"rounds": 4, "save_every": 2}
    )
    return Trainer(config, model=lcm_pipeline(), prompts=PROMPTS, watcher=watcher)


def test_a_run_that_was_killed_goes_on_to_the_same_weights_and_with_more_votes_to_others(tmp_path, votes, monkeypatch):
    monkeypatch.setattr(keeping, "write_report", lambda folder: folder / "report.html")
    undisturbed = tmp_path / "a" / "run"
    # What lies on the disk in the middle of the third round is what kill -9 leaves there.
    killed = [tmp_path / name / "run" for name in "bc"]
    watcher = Listener(3, lambda: [shutil.copytree(undisturbed, copy) for copy in killed])
    assert trainer(tmp_path / "a", votes, watcher).train() == undisturbed
    wanted = (undisturbed / LORA).read_bytes()
    assert not (killed[0] / LORA).exists()

    Trainer.resume(killed[0], model=lcm_pipeline(), prompts=PROMPTS).train()
    assert (killed[0] / LORA).read_bytes() == wanted

    shown = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    votes.add("a picture", shown, [int(shown.mean((1, 2, 3)).argmin())])
    Trainer.resume(killed[1], model=lcm_pipeline(), prompts=PROMPTS).train()
    assert (killed[1] / LORA).read_bytes() != wanted
