"""Where learned rewards take their weights from: a local folder or file, or a pinned revision on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlcm.errors import MissingFileError, RewardError
from rlcm.paths import existing
from rlcm.runs import digests
from rlcm.runs.weights import read_weights, require_finite

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What a transformers model needs, in repositories that hold safetensors."""
TOKENIZER_FILES = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class Source:
    """One folder or file of weights."""

    place: str
    """A local path, or a repository on the Hub."""
    revision: str | None = None
    """Commit in the repository; may be left out where `sha256` pins the content."""
    files: tuple[str, ...] = MODEL_FILES
    """What to download: patterns. A single name without a star means this file, not the folder."""
    sha256: str | None = None
    """Checksum of the single file."""

    def __post_init__(self) -> None:
        if not self.is_local and self.revision is None and self.sha256 is None:
            raise ValueError(
                f"{self.place} is not a local path, so it is taken for a repository on the Hub, and these must be pinned; "
                "give `revision`, the commit's hash, or correct the path."
            )

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be downloaded."""
        return self._path() is not None

    def fetch(self) -> Path:
        """Return the local folder or file, downloaded first if it is neither local nor in the Hub's cache.

        Raises:
            MissingFileError: if it can neither be found nor downloaded.
            RewardError: if the checksum is wrong.
        """
        path = self._path() or self._download()
        single = self._single()
        if single and path.is_dir():
            path = path / single
            if not path.is_file():
                raise MissingFileError(f"{path} is missing; put it there, or leave the path out to download it.")
        if self.sha256 and path.is_file():
            found = digests.sha256(path)
            if found != self.sha256:
                raise RewardError(
                    f"{path} has the sha256 {found}, not {self.sha256}: it is damaged or another file; delete it and fetch it again, "
                    "or set `sha256` to null if it is the one you want."
                )
        return path

    def _path(self) -> Path | None:
        return existing(self.place, "rewards")

    def _single(self) -> str | None:
        return self.files[0] if len(self.files) == 1 and "*" not in self.files[0] else None

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            return Path(snapshot_download(self.place, revision=self.revision, allow_patterns=list(self.files)))
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
            raise MissingFileError(
                f"{self.place} at revision {self.revision or 'main'} is not in the Hub's cache and cannot be downloaded "
                f"({type(error).__name__}); on a machine with network run `rlcm rewards prefetch CONFIG`, or name a local folder."
            ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a PyTorch file read with weights only.

    Raises:
        WeightsError: if a .safetensors file is damaged or empty.
        RewardError: if the file is not such a file.
    """
    if path.suffix.lower() == ".safetensors":
        return read_weights(path)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RewardError(f"{path} cannot be read as tensors ({type(error).__name__}: {error}).") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RewardError(f"{path} does not hold a dict of tensors.")
    require_finite(state.items(), str(path))
    return {str(name).removeprefix("module."): value for name, value in state.items()}
