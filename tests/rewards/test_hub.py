"""Where weights come from: pinned, without code, and with a remedy where there is no network."""

import pytest
import torch

from rlcm.errors import MissingFileError, RewardError
from rlcm.rewards.learned import ClipScore
from rlcm.rewards.learned.hub import Source, read_tensors


class Evil:
    def __reduce__(self):
        return (open, ("/dev/null", "r"))


def test_code_in_weight_files_is_not_run(tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(RewardError, match="cannot be read as tensors"):
        read_tensors(tmp_path / "evil.pt")


def test_repositories_must_be_pinned():
    with pytest.raises(ValueError, match="must be pinned"):
        ClipScore(model="someone/some-clip")
    assert ClipScore(model="someone/some-clip", revision="abc123").sources == [Source("someone/some-clip", "abc123")]
    assert ClipScore().sources[0].revision == "32bd64288804d66eefd0ccbe215aa642df71cc41"


def test_without_network_the_remedy_is_named(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*arguments, **named):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(MissingFileError, match="rlcm rewards prefetch"):
        Source("someone/some-clip", "abc123").fetch()
