"""A finished run on the Hugging Face Hub: `rlcm push`. One part writes a folder, the other uploads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from rlcm._version import __version__
from rlcm.addresses import without_secrets
from rlcm.errors import MissingFileError, RLCMError, UnreadableFileError, UsageError
from rlcm.paths import command
from rlcm.pipelines.described import local_folder, pipeline_class
from rlcm.pipelines.settings import BUILTIN
from rlcm.policy.adapter import read_lora
from rlcm.report import before_after_picture, curve_picture, read_run
from rlcm.report.run import STUDY
from rlcm.runs.files import read_json
from rlcm.runs.own_folder import OwnFolder
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_bytes
from rlcm.sharing.hub_card import card
from rlcm.sharing.tuned import tuned_lora
from rlcm.training.config import TrainConfig
from rlcm.training.final import WEIGHTS_NAME, finished_run
from rlcm.training.usage import WITHOUT_LOADER

NAMES = ("README.md", WEIGHTS_NAME, "config.yaml", "eval.json", STUDY, "before-after.png", "curve.png")
"""What the folder of a repository may hold."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A folder as it will be on the Hub."""

    repo: str
    folder: Path
    files: list[str]
    """What is uploaded of the folder, and nothing else."""
    notes: list[str]
    """What somebody who publishes it may want to know first."""


def prepare(
    run: Path, repo: str, output: Path | None = None, *, base_model: str | None = None, licence: str | None = None
) -> Upload:
    """Write the folder of a repository: model card, LoRA, configuration, evaluations, pictures. Touches no network.

    Args:
        run: the folder of a finished run.
        repo: `user/name` on the Hub.
        output: where the folder goes; left out, `hub/` in the run.
        base_model: the base model's name on the Hub, where the run used a local copy.
        licence: of the adapter, for the card; None names none.

    Raises:
        UsageError: if a name is not one of the Hub's, no tool could load the LoRA, the configuration holds a password, or the
            folder is a run or holds other files of these names.
        MissingFileError: if the run has not ended.
        WeightsError: if its LoRA is damaged, or another run's.
        RunDirectoryError: if the folder cannot be written.
    """
    _check_name(repo, "REPO")
    if base_model is not None:
        _check_name(base_model, "--base-model")
    folder = output or run / "hub"
    own = OwnFolder(folder, "rlcm push", NAMES)
    own.require()
    config, weights = finished_run(run)
    _check_secrets(config.model_dump(mode="json"))
    _check_lora(config, weights)
    on_hub, kind = local_folder(config.model) is None, _pipeline_class(config)
    if kind in WITHOUT_LOADER:
        raise UsageError(
            f"{run}: diffusers loads no LoRA into a {kind}, so one on the Hub would be of no use; write the whole pipeline by "
            f"`{command('rlcm', 'export', run, '--format', 'merged')}` and upload that folder."
        )
    read = read_run(run)
    base = base_model or (config.model.path if on_hub else None)
    published, left_out = _published(config, base)
    own.begin()
    with disk_errors(folder):
        write_bytes(folder / WEIGHTS_NAME, weights.read_bytes())
        write_bytes(folder / "config.yaml", published.dump().encode())
        files = [WEIGHTS_NAME, "config.yaml"]
        damaged = []
        for name in ("eval.json", STUDY):
            if wrong := _what_is_wrong(run / name):
                damaged.append(f"{name} is damaged and is not published: {wrong}")
            elif (run / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                write_bytes(folder / name, (run / name).read_bytes())
                files.append(name)
    if read.pairs(1):
        before_after_picture(run, folder / "before-after.png")
        files.append("before-after.png")
    if curve_picture(read.up_to_final(), folder / "curve.png"):
        files.append("curve.png")
    text = card(read, config, repo, kind, base, licence, files)
    with disk_errors(folder):
        write_bytes(folder / "README.md", text.encode())
    own.end()
    return Upload(repo, folder, ["README.md", *files], [*damaged, *_notes(config, base, left_out)])


def _what_is_wrong(file: Path) -> str:
    """Return why a file of evaluations cannot be read; nothing where it can, or is not there."""
    if not file.is_file():
        return ""
    try:
        found = read_json(file)
    except UnreadableFileError as error:
        return error.reason
    known = isinstance(found, dict) and any(isinstance(found.get(key), list) for key in ("evaluations", "results"))
    return "" if known else "it holds no evaluations"


def send(upload: Upload, private: bool = False) -> str:
    """Upload a prepared folder, whose repository is made where there is none; return its address.

    Args:
        private: of a repository that is made.

    Raises:
        UsageError: if there is no token.
        RLCMError: if the Hub refuses, or cannot be reached.
    """
    token = get_token()
    if token is None:
        raise UsageError(
            "there is no token for the Hugging Face Hub; make one that may write at https://huggingface.co/settings/tokens, then "
            "set HF_TOKEN or call `hf auth login`. To see the folder only, add --dry-run."
        )
    api = HfApi(token=token)
    try:
        api.create_repo(upload.repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            allow_patterns=upload.files,
            commit_message=f"Add a LoRA tuned by rlcm {__version__}",
        )
    # The hub client raises errors of huggingface_hub, httpx or requests, and OSError, depending on its version.
    except Exception as error:
        raise RLCMError(_refusal(upload, api.endpoint, error)) from error
    return f"{api.endpoint}/{upload.repo}"


def _refusal(upload: Upload, endpoint: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    remedy = {
        401: "the token is not valid: make another, and set HF_TOKEN or call `hf auth login`",
        403: f"the token may not write there: make one with write access, and check that {upload.repo.split('/')[0]} is yours",
    }.get(status or 0, "check the network and try again")
    return f"{upload.repo} could not be uploaded to {endpoint} ({reason}); {remedy}. The folder {upload.folder} is complete."


def _pipeline_class(config: TrainConfig) -> str:
    """Return the class of the run's pipeline without asking the network; nothing if this machine does not know it."""
    try:
        return pipeline_class(config.model.model_copy(update={"local_files_only": True}))
    except MissingFileError:
        return ""


def _check_lora(config: TrainConfig, weights: Path) -> None:
    """Refuse weights that are not the run's, as far as this machine knows its model; the network is not asked."""
    here = config.model_copy(update={"model": config.model.model_copy(update={"local_files_only": True})})
    try:
        tuned_lora(here, weights)
    except MissingFileError:
        read_lora(config.lora, weights)


def _check_name(name: str, setting: str) -> None:
    try:
        validate_repo_id(name)
        reason = "" if "/" in name else "the user or organisation is missing."
    except HFValidationError as error:
        reason = str(error)
    if reason:
        raise UsageError(
            f"{setting}={name!r} is not a name on the Hub: {reason} Give user/name, of letters, digits, '-', '_' and '.'."
        )


def _check_secrets(config: dict[str, Any]) -> None:
    for key, value in _texts(config):
        if without_secrets(value) != value:
            raise UsageError(
                f"config.yaml: {key} holds an address with a user or password, which would be published; take it out of the "
                "run's config.yaml (reward servers read their token from an environment variable)."
            )


def _published(config: TrainConfig, base_model: str | None) -> tuple[TrainConfig, list[str]]:
    """Return a run's configuration without the folders of this machine, and what of it names files that are not published."""
    values: dict[str, Any] = config.model_dump(mode="json") | {"output": TrainConfig().output}
    if base_model is not None:
        values["model"]["path"] = base_model
    own: list[str] = []

    def without_folders(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: without_folders(item, f"{key}.{name}" if key else name) for name, item in value.items()}
        if isinstance(value, list):
            prompts = key.endswith("prompts")
            return value if prompts else [without_folders(item, f"{key}.{number}") for number, item in enumerate(value)]
        if not isinstance(value, str) or not os.path.isabs(value):
            return value
        declared = key.endswith((".path", ".name")) or key in ("prompts", "evaluation.prompts")
        if not declared and not os.path.exists(value):  # a text that begins with a slash
            return value
        name = os.path.basename(value.rstrip("/"))
        own.append(f"{key}={name}")
        return name

    return TrainConfig.model_validate(without_folders(values)), own


def _notes(config: TrainConfig, base_model: str | None, left_out: list[str]) -> Iterator[str]:
    if left_out:
        yield f"config.yaml, which is published, names files that are not: {', '.join(left_out)}"
    if base_model is None and config.model.path not in BUILTIN:
        yield f"the card cannot link the base model, the folder {config.model.path}; name it with --base-model if it is on the Hub"


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a nest, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, (dict, list)):
        for part, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, f"{key}.{part}" if key else str(part))
