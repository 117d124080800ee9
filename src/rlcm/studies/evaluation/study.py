"""The study of one model or run: every number of steps, every set of prompts, the tuned model and its base."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlcm.errors import ConfigError, UnreadableFileError
from rlcm.pipelines import make_denoiser, preview_table
from rlcm.pipelines.settings import BUILTIN, SamplerSettings
from rlcm.processes.machine import describe_machine
from rlcm.processes.memory_retry import BatchSize
from rlcm.processes.usual import usual_torch
from rlcm.report.reading import final_round
from rlcm.report.words import counted
from rlcm.rewards import RewardMix, RewardSettings, build_rewards
from rlcm.runs.files import read_json
from rlcm.runs.own_folder import OwnFolder
from rlcm.runs.refusals import disk_errors
from rlcm.runs.rundir import RunDirectory, grid
from rlcm.runs.serialization import replacing
from rlcm.settings import Settings
from rlcm.sharing import tuned_lora, tuned_pipeline
from rlcm.studies.evaluation.draw import Drawn, draw_set
from rlcm.studies.evaluation.sets import Group
from rlcm.training.build import features_of, judge_of
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.final import tuned_weights
from rlcm.training.fitting import check_images
from rlcm.training.run_settings import CLOCKS
from rlcm.training.usage import own_name
from rlcm.training.values import read_value

FEW, MANY = (1, 2, 4, 8), (5, 10, 25, 50)
"""Steps that are looked at where none are named: by models of up to 16 steps, and by others."""
PICTURED = 6
"""Prompts of a set that are kept as pictures."""
PLOTS = "reward-[0-9]*.png"
OWN_FILES = ("eval.json", PLOTS, "pictures/base-[0-9]*.png", "pictures/tuned-[0-9]*.png", "pictures/prompts.*")
"""What a study may leave in its folder, its plots included."""


class StudySettings(Settings):
    """How much is drawn."""

    steps: tuple[int, ...] = ()
    """Numbers of denoising steps; the run's own is always among them. Left out: 1, 2, 4, 8, or 5, 10, 25, 50 for samplers
    of many steps."""
    each: int = Field(default=4, ge=1, le=10_000)
    """Images of every prompt, with seeds of their own."""
    seed: int = Field(default=20_240_404, ge=0, lt=2**63)
    """Seed of all noise."""
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    """Images sampled at once; fewer where memory runs out."""
    base: bool = True
    """Whether the base model is looked at beside the tuned one."""


@usual_torch()
def study(
    config: TrainConfig,
    run: Path | None,
    groups: Sequence[Group],
    rewards: Sequence[RewardSettings],
    settings: StudySettings,
    folder: Path,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Draw, score and write `eval.json` and pictures into `folder`, in place of an earlier study; return what is in the file.

    Args:
        config: of the run, or of the model.
        run: the run's folder with its tuned LoRA; None looks at the model that the configuration names.
        groups: see `prompt_sets`; the first is the one that the prompts' best and worst images are taken from.
        rewards: those that the run was not trained on are marked.
        note: is told what is being drawn.

    Raises:
        MissingFileError: if the run has no tuned weights.
        WeightsError: if they are damaged, or another run's.
        UsageError: if the folder is a run, or holds other files of a study's names.
        RunDirectoryError: if the folder cannot be written.
    """
    if run is not None:
        tuned_lora(config, tuned_weights(run))  # that it is there and whole, before anything is drawn
    mix, judge = build_rewards(rewards), judge_of(config)
    own = config.sampler.calls
    steps = sorted({own, *(settings.steps or (FEW if own <= 16 else MANY))})
    for count in steps:  # a number that the sampler has not is refused before anything is drawn
        preview_table(config.model, sampler_at(config.sampler, count))
    directory, own_files = RunDirectory(folder), own_folder(folder)
    own_files.require()
    sampling = BatchSize(settings.batch_size, "rollout.sample_batch_size", note)
    names = ["base"] if run is None else ["base", "tuned"] if settings.base else ["tuned"]
    rows: list[dict[str, Any]] = []
    before: dict[tuple[str, int], Mapping[str, Tensor]] = {}
    pictures: list[dict[str, Any]] = []
    for name in names:
        pipeline = tuned_pipeline(config, run if name == "tuned" else None, beside=True)
        if name == names[0]:
            first = make_denoiser(pipeline, sampler_at(config.sampler, own), config.model)
            check_images("--n", settings.each, first, max(len(group.prompts) for group in groups))
            del first
            own_files.begin(clear=True)  # not before there is something to write
            with disk_errors(folder):
                (folder / "pictures").mkdir(exist_ok=True)
        shown: dict[str, list[Drawn]] = {}
        for count in steps:
            denoiser = make_denoiser(pipeline, sampler_at(config.sampler, count), config.model)
            for group in groups:
                note(f"{name} model, {counted(count, 'step')}, {group.name}: {settings.each * len(group.prompts)} images")
                drawn = draw_set(
                    denoiser, group, mix, judge, each=settings.each, seed=settings.seed, sampling=sampling,
                    clock=CLOCKS[config.run.clock], features=features_of(judge, mix),
                )  # fmt: skip
                base = before.get((group.name, count)) if name == "tuned" else None
                rows.append({"model": name, "set": group.name, "steps": count} | drawn.summary(base))
                before.setdefault((group.name, count), drawn.rewards)
                if name == names[-1] and count == own and group is groups[0]:
                    _write_extremes(directory, mix, drawn)
                shown.setdefault(group.name, []).append(_few(drawn, len(group.prompts)))
        del pipeline, denoiser
        pictures += [_write_pictures(directory, name, place, group, steps, shown) for place, group in enumerate(groups)]
    found = {
        "model": own_name(config) if os.path.isabs(config.model.path) else config.model.path,
        "run": None if run is None else config.name or run.resolve().name,
        "round": None if run is None else final_round(run),
        "machine": describe_machine(),
        "seed": settings.seed,
        "batch_size": sampling.size,
        "own_steps": own,
        "rewards": [
            {
                "label": part.label,
                "weight": _own_weight(entry, config.rewards) if run is not None else part.weight,
                "trained": None if run is None else _is_trained(entry, config.rewards),
                "display": _display(part.reward),
            }
            for part, entry in zip(mix.parts, rewards, strict=True)
        ],
        "sets": [
            {"name": g.name, "kind": g.kind, "prompts": len(g.prompts), "trained": g.trained, "each": settings.each}
            for g in groups
        ],
        "results": rows,
        "pictures": pictures,
    }
    found = _without_nan(found)
    directory.write_json("eval.json", found)
    own_files.end(to_come=[PLOTS])
    return found


def sampler_at(sampler: SamplerSettings, steps: float) -> SamplerSettings:
    """Return a sampler without exploration noise at another number of steps; its own timesteps and its own
    window of noisy steps hold for its own number only.

    Raises:
        ConfigError: if the number is out of the range of sampler.steps.
    """
    own = sampler.timesteps is not None and sampler.calls == steps
    change: dict[str, Any] = {"final_std": 0.0} | ({} if own else {"steps": steps, "timesteps": None})
    if sampler.calls != steps:
        change["noisy_steps"] = "all"
    return parse_settings(SamplerSettings, sampler.model_dump() | change)


def default_rewards(config: TrainConfig) -> list[RewardSettings]:
    """Return the rewards of a run, those that it held out, and for the built-in model its alignment; of a label the first."""
    extra = [RewardSettings(name="alignment")] if config.model.path in BUILTIN else []
    found: dict[str, RewardSettings] = {}
    for entry in [*config.rewards, *config.evaluation.held_out, *extra]:
        found.setdefault(entry.label, entry)
    return list(found.values())


def _is_trained(entry: RewardSettings, trained: Sequence[RewardSettings]) -> bool:
    """Return whether a run learnt from a reward: one function has several paths, and shares its label and its arguments."""
    return any(entry.args == own.args and (entry.name == own.name or entry.label == own.label) for own in trained)


def _own_weight(entry: RewardSettings, trained: Sequence[RewardSettings]) -> float:
    """Return the weight that a run gives a reward it learnt from, which the study's own entry need not know; else the entry's."""
    return next((own.weight for own in trained if _is_trained(entry, [own])), entry.weight)


def own_folder(folder: Path) -> OwnFolder:
    """Return the folder of a study, in which nothing but an earlier study is replaced: it may be of other weights."""
    return OwnFolder(folder, "rlcm eval", OWN_FILES, _holds_study)


def _holds_study(folder: Path) -> bool:
    try:
        found = read_json(folder / "eval.json")
    except UnreadableFileError:
        return False
    return isinstance(found, dict) and {"own_steps", "sets", "results"} <= set(found)


def _write_extremes(directory: RunDirectory, mix: RewardMix, drawn: Drawn) -> None:
    """Write the prompts' best, median and worst images by the first reward's first component; a penalty's least is its best."""
    first = mix.parts[0]
    label = next(label for label in drawn.rewards if label.partition("/")[0] == first.label)
    values = drawn.rewards[label]
    directory.add_extremes(
        "pictures/prompts", 0, drawn, -values if first.weight < 0 else values, by=label, display=_display(first.reward)
    )


def _without_nan(value: Any) -> Any:
    """Return a nest of dicts and lists with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _display(reward: Any) -> dict[str, str] | None:
    shown: dict[str, str] | None = getattr(reward, "display", None)
    return shown


def _few(drawn: Drawn, prompts: int) -> Drawn:
    """Return the first image of the first prompts, so that the others need not be kept."""
    count = min(PICTURED, prompts)
    return Drawn(
        drawn.images[:count].clone(),
        drawn.prompts[:count],
        drawn.seeds[:count],
        {label: values[:count] for label, values in drawn.rewards.items()},
        {question: right[:count] for question, right in drawn.judge.items()},
        drawn.images_per_second,
    )


def _write_pictures(
    directory: RunDirectory, model: str, place: int, group: Group, steps: Sequence[int], shown: Mapping[str, Sequence[Drawn]]
) -> dict[str, Any]:
    """Write the pictures of one model and set, a row for every number of steps, and return what is in them."""
    parts = shown[group.name]
    images = torch.cat([part.images for part in parts])
    unscored = torch.full((len(parts[0].prompts),), math.nan)
    labels = dict.fromkeys(label for part in parts for label in part.rewards)
    file = f"pictures/{model}-{place + 1}.png"
    with disk_errors(directory.path / file), replacing(directory.path / file) as temporary:
        grid(images, len(parts[0].prompts)).save(temporary)
    return {
        "file": file,
        "model": model,
        "set": group.name,
        "steps": list(steps),
        "cell": list(images.shape[2:]),
        "prompts": parts[0].prompts,
        "seeds": parts[0].seeds,
        "rewards": {label: [part.rewards.get(label, unscored).tolist() for part in parts] for label in labels},
    }


def check_steps(steps: str | None) -> tuple[int, ...]:
    """Return the numbers of a text such as 1,2,4,8, each read as `sampler.steps` is; none for None.

    Raises:
        ConfigError: if it is not that.
    """
    try:
        texts = [] if steps is None else steps.split(",")
        if any(not text.strip() for text in texts):
            raise ConfigError("there is nothing between two commas, or before or after one")
        found = tuple(
            parse_settings(SamplerSettings, {"steps": read_value(SamplerSettings, "steps", text)}).steps for text in texts
        )
    except ConfigError as error:
        why = str(error).removesuffix(".")
        raise ConfigError(
            f"--steps {steps!r} is not a list of numbers from 1 to 1000 ({why}); write it like --steps 1,2,4,8."
        ) from None
    return found
