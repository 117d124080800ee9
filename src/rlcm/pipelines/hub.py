"""Single files of the Hugging Face Hub, and what to say where they cannot be had."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from huggingface_hub import hf_hub_download, is_offline_mode, list_repo_files, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from rlcm.errors import MissingFileError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""The form of a repository's name."""
logger = logging.getLogger(__name__)
_told: set[str] = set()
_COMMIT = re.compile(r"[0-9a-f]{40}")


def download(path: str, name: str, revision: str | None, setting: str, *, local_files_only: bool) -> Path:
    """Return a file of the Hub, from its cache or the network.

    Raises:
        EntryNotFoundError: if the repository is there, the file is not.
        MissingFileError: if it cannot be had for another reason.
    """
    try:
        offline = local_files_only or is_offline_mode()
        if not offline and path not in _told and try_to_load_from_cache(path, name, revision=revision) is None:
            _told.add(path)  # without a network, or with a slow one, nothing else is seen for a while
            logger.warning("asking the Hugging Face Hub for %s, which is no folder in the working directory", path)
        return Path(hf_hub_download(path, name, revision=revision, local_files_only=local_files_only))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise MissingFileError(hub_message(path, error, setting)) from error
        raise
    # The hub client raises errors of huggingface_hub, httpx or requests, and OSError, depending on its version.
    except Exception as error:
        raise MissingFileError(hub_message(path, error, setting)) from error


def files_on_hub(path: str, revision: str | None, setting: str) -> list[str]:
    """Return the names of the files of a repository.

    Raises:
        MissingFileError: if it cannot be asked.
    """
    try:
        return list(list_repo_files(path, revision=revision))
    except Exception as error:  # as in `download`
        raise MissingFileError(hub_message(path, error, setting)) from error


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which always names the same files."""
    return bool(revision and _COMMIT.fullmatch(revision))


def hub_message(path: str, error: BaseException, setting: str = "model.path") -> str:
    """Return what to say where something cannot be had from the Hub."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{setting}={path!r} is no folder in the working directory and cannot be had from the Hugging Face Hub "
        f"({type(error).__name__}: {reason}). For a folder, correct the path; for the Hub, check the id, the revision, the network, "
        "and access to gated models (`hf auth login`), or download it once and give its folder."
    )
