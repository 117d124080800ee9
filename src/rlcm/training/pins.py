"""What a run depends on, as digests: compared between its processes, and where it goes on.

`class_of` says, in one place, which settings may be others where a run goes on.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

import rlcm
from rlcm.addresses import is_address
from rlcm.errors import ConfigError
from rlcm.paths import local
from rlcm.pipelines.brought import BROUGHT, CHANGED
from rlcm.pipelines.contents import model_contents, pipeline_contents
from rlcm.pipelines.precision import resolve
from rlcm.processes.distributed import World
from rlcm.processes.machine import processor
from rlcm.rewards import RewardMix, RewardSettings
from rlcm.rewards.build import BUILT_IN, located, named_places, place_of
from rlcm.rewards.imported import load_callable
from rlcm.rewards.made_with import made_with
from rlcm.rewards.sources import own_files, own_text
from rlcm.runs import digests
from rlcm.runs.weights import listed
from rlcm.settings import leaves
from rlcm.training import pinned_arguments
from rlcm.training.config import TrainConfig
from rlcm.training.prompts import PromptSet

LIBRARIES = ("torch", "diffusers", "transformers", "peft")
CONTENT = (
    *("prompts", "evaluation.prompts", "rewards", "evaluation.held_out"),
    *("model.path", "model.revision", "model.variant", "model.loras"),
)
"""Settings that name something: what it holds is compared, so it may lie elsewhere."""
ROUNDING = (
    *("model.device", "model.precision", "model.tf32", "model.channels_last", "model.compile", "model.gradient_checkpointing"),
    *("model.attention_slicing", "model.vae_slicing", "model.offload_text_encoders", "model.decode_batch_size"),
    *("rollout.sample_batch_size", "run.micro_batch_size", "run.sharding", "optimizer.fused"),
)
"""Settings that change the last digits only."""
FREE = (
    *("name", "output", "model.local_files_only"),
    *("evaluation.final", "evaluation.every", "evaluation.grid", "evaluation.patience"),
)
"""Settings, beside those of `run`, that change nothing of what was learnt or measured."""
TABLES = ("settings", "contents", "surroundings")
"""Parts of what a checkpoint keeps of it."""
_SERVER, _CODE, _MADE, _REST = ": its server", ": its code", ": its arguments and weights", ": what it is made of"


def class_of(setting: str) -> Literal["free", "rounding", "content", "meaning"]:
    """Return what it means where a run goes on with another value of a setting.

    `free` and `rounding` may be others. `content` may be named otherwise, but not hold something else. `meaning` changes what
    the run learns or measures, so that before and after are no longer of one run.
    """
    if setting in ROUNDING:
        return "rounding"
    if setting in FREE or (setting.startswith("run.") and setting != "run.clock"):
        return "free"
    return "content" if setting in CONTENT else "meaning"


@dataclass(frozen=True, slots=True)
class Pins:
    """What a run depends on. Each is a short text or a digest, by its name."""

    settings: dict[str, str]
    """All that are neither free nor names of something."""
    contents: dict[str, str]
    """What files and objects hold: prompts, code of rewards, weights."""
    surroundings: dict[str, str]
    """Versions, device, precision, threads, processes: they change the last digits."""
    places: dict[str, str] = field(default_factory=dict)
    """Where some of the contents come from, for people; never compared."""
    names: dict[str, str] = field(default_factory=dict)
    """Digests of the arguments of rewards themselves, whatever they name: see `not_comparable`."""
    typed: dict[str, str] = field(default_factory=dict)
    """The same of the arguments as they were typed: where paths are relative, processes may have other working directories."""

    def state(self) -> dict[str, dict[str, str]]:
        """Return what a checkpoint keeps."""
        return {table: asdict(self)[table] for table in TABLES}


def pins_of(
    config: TrainConfig,
    prompts: PromptSet,
    looked_at: PromptSet,
    mix: RewardMix,
    held_out: RewardMix | None,
    *,
    pipeline: Any = None,
    entries: Sequence[RewardSettings] | None = None,
    source: str | Sequence[str] | None = None,
    processes: int = 1,
) -> Pins:
    """Return what a run depends on.

    Args:
        config: of the run, with the guidance that is used.
        looked_at: the prompts of evaluations.
        pipeline: the model, where it was passed as an object.
        entries: the rewards that a configuration names, left out those of this one; others were passed as objects.
        source: where the prompts are from, left out the configuration.

    Raises:
        ConfigError: if a file that counts cannot be read.
    """
    found = Pins({}, {}, surroundings(config, pipeline, processes))
    for setting, value in flat(config).items():
        if class_of(setting) in ("rounding", "meaning"):
            found.settings[setting] = value
    try:
        for key, chosen in (("prompts", prompts), ("evaluation.prompts", looked_at)):
            found.contents[key] = digest_of(chosen)
        source = config.prompts if source is None else source
        if source and isinstance(source, str):
            found.places["prompts"] = source
        output = local(config.output, "output").resolve()
        _pin_rewards(found, "rewards", mix, config.rewards if entries is None else entries, output)
        _pin_rewards(found, "evaluation.held_out", held_out, config.evaluation.held_out, output)
        found.contents.update(model_contents(config.model) if pipeline is None else pipeline_contents(pipeline, config.model))
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read ({error.strerror or error}); check the path and its permissions."
        ) from error
    return found


def digest_of(prompts: PromptSet) -> str:
    """Return the digest of prompts and their metadata as they were read, whatever file they came from."""
    return digests.of_value([prompts.prompts, prompts.metadata])


def _pin_rewards(found: Pins, group: str, mix: RewardMix | None, entries: Sequence[RewardSettings], output: Path) -> None:
    parts = mix.parts if mix else []
    by_label = {part.label: part.reward for part in parts}
    found.settings[f"the labels of {group}"] = json.dumps(sorted(part.label for part in parts))
    for part in parts:
        key = f"{group}.{part.label}"
        found.settings[f"{key}.weight"] = json.dumps(part.weight)
        found.settings[f"{key}.normalise"] = json.dumps(part.normalise)
        text = own_text(part.reward)
        if text is not None:
            found.contents[f"{key}{_CODE}"] = digests.of_value(text)
        if part.label not in {entry.label for entry in entries}:
            for table, values in zip((_MADE, _REST), made_with(part.reward), strict=True):
                if values:
                    found.contents[f"{key}{table}"] = digests.of_value(values)
    for typed in entries:
        entry = located(typed)
        key = f"{group}.{entry.label}"
        if is_address(entry.name):
            found.surroundings[f"{key}{_SERVER}"] = entry.name  # whose settings refuse passwords
            served = getattr(by_label.get(entry.label), "served", None)
            if served and not entry.args.get("rewards"):
                found.settings[f"{key}, what its servers give"] = json.dumps(served)
        else:
            found.settings[f"{key}.name"] = entry.name if entry.name in BUILT_IN else entry.name.rpartition(":")[2]
        for name, file in own_files(entry.name).items():
            found.contents[f"{key}: {name}"] = digests.of_source(file)
            found.places[f"{key}: {name}"] = str(file)
        target = None if is_address(entry.name) else load_callable(place_of(entry.name), entry.timeout_seconds)
        declared = set() if target is None else named_places(target)
        by_default = {} if target is None else pinned_arguments.defaults(target, output)
        grows = getattr(by_label.get(entry.label), "growing", ())
        for name, value in entry.args.items():
            place = f"{key}.args.{name}"
            if name in ([grows] if isinstance(grows, str) else grows):
                found.contents[place] = pinned_arguments.of_beginning(value, output)
            else:
                found.contents[place] = pinned_arguments.of_argument(value, output, name in declared)
            found.names[place] = pinned_arguments.of_name(value)
            found.typed[place] = pinned_arguments.of_name(typed.args[name])
        found.contents.update({f"{key}.args.{name}": d for name, d in by_default.items() if name not in entry.args})


def surroundings(config: TrainConfig, pipeline: Any = None, processes: int = 1) -> dict[str, str]:
    """Return versions, device, precision, threads and number of processes."""
    device, precision = resolve(config.model) if pipeline is None else (pipeline.device, pipeline.dtype)
    found = {"rlcm": f"{rlcm.__version__} ({_own_code()[:8]})"} | {name: _version(name) for name in LIBRARIES}
    found |= {
        "device": processor(gpu=device.type == "cuda"),
        "precision": str(precision).removeprefix("torch."),
        "processes": str(processes),
    }
    return found if device.type == "cuda" else found | {"threads": str(torch.get_num_threads())}


def flat(config: TrainConfig) -> dict[str, str]:
    """Return all settings by their dotted names, each as JSON."""
    values = config.model_dump(mode="json")
    names = (name for name, _ in leaves(TrainConfig))
    return {name: json.dumps(functools.reduce(lambda group, part: group[part], name.split("."), values)) for name in names}


def require_same(world: World, mine: Mapping[str, str], remedy: str) -> None:
    """Refuse processes that differ in what they depend on; all of them raise, and name the process and what differs.

    Raises:
        ConfigError: on every process.
    """
    if world.size == 1:
        return
    first, *others = world.gather(dict(mine))
    with world.together():
        for rank, other in enumerate(others, 1):
            found = [key for key in {**first, **other} if first.get(key) != other.get(key)]
            if found:
                raise ConfigError(f"process {rank} differs from process 0 in {listed(_names(found), 8)}; {remedy}")


def agree(world: World, pins: Pins) -> None:
    """Refuse processes that differ in prompts, rewards, weights, settings or versions; errors as `require_same`."""
    versions = {key: pins.surroundings[key] for key in ("rlcm", *LIBRARIES)}
    remedy = "give all machines the same files, and the same versions of rlcm and its libraries."
    # What may differ: what was left over, and whose cache of the Hub has the files of a model whose weights are compared by themselves.
    contents = {key: value for key, value in pins.contents.items() if not key.endswith(_REST) and key != CHANGED}
    by_name = [
        key for key, name in pins.names.items() if contents[key] == name or contents[key].startswith(pinned_arguments.UNREAD)
    ]
    contents |= {key: pins.typed[key] for key in by_name}
    require_same(world, pins.settings | contents | versions, remedy)


def changes_of_meaning(before: Mapping[str, Mapping[str, str]], now: Pins) -> list[str]:
    """Return what changes the meaning of a run that goes on, a short text each."""
    found = _differences(before["settings"], {key: value for key, value in now.settings.items() if class_of(key) == "meaning"})
    others = [
        key
        for key, value in now.contents.items()
        if _is_other(before["contents"].get(key, value), value) and not not_comparable(before, now, key)
    ]
    others += [key for key in BROUGHT if key in before["contents"] and key not in now.contents]
    if all(_is_object(str(contents.get("model.path"))) for contents in (before["contents"], now.contents)):
        others = [key for key in others if key != CHANGED]  # that is a digest of every weight
    return found + [f"{name} ({place})" if (place := now.places.get(name)) else name for name in _names(others)]


def not_compared(before: Mapping[str, Mapping[str, str]], now: Pins) -> list[str]:
    """Return what may be another thing and cannot be compared, a short text each: objects in place of files, other servers."""
    objects = [
        f"{key} (as an object, or from files)"
        for key, value in now.contents.items()
        if _is_object(before["contents"].get(key, value)) != _is_object(value)
    ]
    made = [f"{key} (it was not read before, or is not now)" for key in now.names if not_comparable(before, now, key)]
    return objects + made + [text for text in _differences(before["surroundings"], now.surroundings) if _SERVER in text]


def not_comparable(before: Mapping[str, Mapping[str, str]], now: Pins, key: str) -> bool:
    """Return whether an argument names what was not there before (the reward may have made it), or a folder that is not read now.

    A folder is not read where the working directory is in it.
    """
    known, held = before["contents"].get(key), now.contents[key]
    if key not in now.names or held == known:
        return False
    unread = held.startswith(pinned_arguments.UNREAD)
    return known in (now.names[key], now.typed[key]) or (unread and str(known).startswith(("folder ", pinned_arguments.UNREAD)))


def changes_of_rounding(before: Mapping[str, Mapping[str, str]], now: Pins) -> list[str]:
    """Return what changes the last digits of a run that goes on, a short text each."""
    rounding = {key: value for key, value in now.settings.items() if class_of(key) == "rounding"}
    around = {key: value for key, value in now.surroundings.items() if _SERVER not in key}
    return _differences(before["settings"], rounding) + _differences(before["surroundings"], around)


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [f"{key}: {before[key]} -> {value}" for key, value in now.items() if before.get(key, value) != value]


def _is_other(before: str, now: str) -> bool:
    """Whether something holds another thing; what was passed as an object and what was named cannot be compared."""
    return before != now and _is_object(before) == _is_object(now)


def _is_object(digest: str) -> bool:
    return digest.startswith("loaded ")


def _names(keys: Sequence[str]) -> list[str]:
    """Return what to name: files rather than the whole that they belong to."""
    files = [key for key in keys if ": " in key and not key.endswith((_CODE, _MADE, _REST))]
    wholes = {file.partition(": ")[0] for file in files}
    kept = [key for key in keys if key in files or key.removesuffix(_CODE) not in wholes]
    return [key for key in kept if key != "evaluation.prompts" or "prompts" not in kept]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


@functools.cache
def _own_code() -> str:
    """Return the digest of the package's own files: between versions, its number stays."""
    folder = Path(rlcm.__file__).parent
    return digests.of_value({str(file.relative_to(folder)): digests.of_source(file) for file in sorted(folder.rglob("*.py"))})
