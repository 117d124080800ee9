"""What a run leaves as its result: the tuned LoRA in `final/` with a model card, and the best so far in `best/`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError, MissingFileError, UnreadableFileError
from rlcm.paths import command, shown
from rlcm.pipelines.brought import ADAPTERS, CHANGED
from rlcm.policy.adapter import check_lora, read_lora, save_lora
from rlcm.policy.policy import Policy
from rlcm.report.run import DEPENDS_ON
from rlcm.report.templating import render
from rlcm.report.values import alteration, mapping
from rlcm.report.words import asked
from rlcm.runs.again import going_on
from rlcm.runs.checkpoint import rounds_kept
from rlcm.runs.files import read_json
from rlcm.runs.locks import is_held
from rlcm.runs.refusals import run_errors
from rlcm.runs.rundir import RunDirectory
from rlcm.runs.serialization import write_bytes
from rlcm.training.config import TrainConfig
from rlcm.training.run_config import run_config

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
OF_RUN = "rlcm_run"
"""Attribute of a tuned pipeline: the folder of the run that it is the result of."""


def save_final(
    policy: Policy,
    config: TrainConfig,
    evaluations: Sequence[dict[str, Any]],
    directory: RunDirectory,
    code: str = "",
    altered: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `final/` of a run: the tuned LoRA (averaged, where the run keeps an average) and its model card; see `model_card`.

    Raises:
        WeightsError: if the best weights are to be the result, and their file is damaged.
    """
    best = directory.path / "best" / WEIGHTS_NAME
    if config.evaluation.final == "best" and best.is_file():
        check_lora(policy.denoiser.module, read_lora(config.lora, best), config.lora, best)
        folder = directory.path / "final"
        with run_errors(folder):
            folder.mkdir(exist_ok=True)
            write_bytes(folder / WEIGHTS_NAME, best.read_bytes())
    else:
        folder = _save_present(policy, directory.path / "final")
    directory.write_text("final/README.md", model_card(config, evaluations, code, altered))
    return folder


def save_best(policy: Policy, directory: RunDirectory) -> Path:
    """Write `best/` of a run: the LoRA as it was when an evaluation found it best."""
    return _save_present(policy, directory.path / "best")


def finished_run(run: Path) -> tuple[TrainConfig, Path]:
    """Return the configuration of a run and the file of its tuned LoRA.

    Raises:
        MissingFileError: if the folder is no run's, or the run has no tuned weights yet.
        ConfigError: as `run_config`.
    """
    return run_config(run), tuned_weights(run)


def tuned_weights(run: Path) -> Path:
    """Return the file of a run's tuned LoRA.

    Raises:
        MissingFileError: if the run has none yet.
    """
    weights = run / "final" / WEIGHTS_NAME
    if not weights.is_file():
        if is_held(run):
            raise MissingFileError(
                f"{weights} does not exist yet: the run is being trained by another process. Wait until it has ended, or stop it there "
                f"with Ctrl-C; `{command('rlcm', 'report', run)}` shows how far it is."
            )
        rounds = max(rounds_kept(run) if run.is_dir() else [], default=0)
        end = f", or end it at once with `{going_on(run, f'run.rounds={rounds}')}`" if rounds else ""
        raise MissingFileError(f"{weights} does not exist: the run has not ended; go on with `{going_on(run)}`{end}.")
    return weights


def _save_present(policy: Policy, folder: Path) -> Path:
    with run_errors(folder):
        folder.mkdir(exist_ok=True)
    with policy.averaged():
        save_lora(policy, folder / WEIGHTS_NAME)
    return folder


def model_card(
    config: TrainConfig, evaluations: Sequence[dict[str, Any]], code: str = "", altered: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the model card of a run as Markdown.

    Args:
        config: of the run.
        evaluations: from the base model's to that of the weights.
        code: Python that draws a picture with them, of `rlcm.training.usage.local_usage`; nothing leaves it out.
        altered: after which rounds it went on with something else, see `rlcm.training.beginning.Stopped`.
    """
    before, after = (evaluations[0], evaluations[-1]) if evaluations else (None, None)
    changes = [alteration(entry) for entry in altered]
    return render(
        "training/templates/model_card.md.jinja",
        config=config,
        before=before,
        after=after,
        code=code,
        altered=changes,
        asked=asked,
    )


def require_whole_base(run: Path) -> None:
    """Do nothing if what a run was trained on can be loaded from what it names.

    Raises:
        ConfigError: if it was trained on a pipeline with adapters or changed weights that no file of the run holds.
    """
    contents = mapping(noted_by(run).get("contents"))
    if changed := contents.get(CHANGED):
        raise ConfigError(
            f"{shown(run)} was trained on a pipeline that was passed with other weights than its folder has ({changed}), and no file "
            f"of the run holds them. Make that pipeline as then, and load its LoRA: pipe.load_lora_weights({str(run / 'final')!r}). "
            "For runs that can be drawn from, save it first: pipe.save_pretrained('FOLDER'), and train with model.path=FOLDER."
        )
    if brought := contents.get(ADAPTERS):
        raise ConfigError(
            f"{shown(run)} was trained on a pipeline that was passed with the adapters {brought} in it, and no file of the run holds "
            f"them. Load them into a pipeline as then, its LoRA beside them: pipe.load_lora_weights({str(run / 'final')!r}, "
            "adapter_name='tuned'), and pipe.set_adapters with all of their names. For runs that hold them, give their files as "
            "model.loras."
        )


def noted_by(run: Path) -> Mapping[str, Any]:
    """Return what a run noted of what it depends on; nothing where that cannot be read."""
    with contextlib.suppress(UnreadableFileError, OSError):
        return mapping(read_json(run / DEPENDS_ON))
    return {}
