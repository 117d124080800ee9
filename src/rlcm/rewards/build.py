"""From the entries of the list `rewards:` to the mix a run learns from."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlcm.addresses import is_address
from rlcm.errors import ConfigError
from rlcm.paths import existing, local
from rlcm.rewards.composition import RewardMix, RewardPart
from rlcm.rewards.imported import load_callable
from rlcm.rewards.settings import RewardSettings
from rlcm.rewards.sources import check_neighbours
from rlcm.rewards.user import bind_arguments, signature_of


class BuiltIn(NamedTuple):
    """A reward that is named by one word."""

    path: str
    """Where it is, imported only when a run uses it."""
    summary: str


BUILT_IN: dict[str, BuiltIn] = {
    "jpeg_compressibility": BuiltIn("rlcm.rewards.image:Compressibility", "minus the size as a JPEG file, kB"),
    "jpeg_incompressibility": BuiltIn("rlcm.rewards.image:Incompressibility", "the size as a JPEG file, kB"),
    "alignment": BuiltIn("rlcm.rewards.learned.alignment:Alignment", "fits the prompt, by the built-in model's CLIP"),
    "composition": BuiltIn(
        "rlcm.rewards.verified.composition:Composition", "the right objects, counts, colours and places, by a detector"
    ),
    "ocr": BuiltIn("rlcm.rewards.verified.ocr:Ocr", "the words in quotes in the prompt can be read in the picture"),
    "taste": BuiltIn("rlcm.rewards.taste.reward:Taste", "what voters like, learnt from a file of votes"),
    "colourfulness": BuiltIn("rlcm.rewards.image:Colourfulness", "Hasler and Suesstrunk's measure"),
    "sharpness": BuiltIn("rlcm.rewards.image:Sharpness", "variance of the Laplacian"),
    "brightness": BuiltIn("rlcm.rewards.image:Brightness", "minus the distance of the mean luma from a target"),
    "aesthetic": BuiltIn("rlcm.rewards.learned:Aesthetic", "LAION's aesthetic score, 1 to 10"),
    "clipscore": BuiltIn("rlcm.rewards.learned:ClipScore", "fits the prompt, by OpenAI's CLIP"),
    "pickscore": BuiltIn("rlcm.rewards.learned:PickScore", "people's preferences, PickScore v1"),
    "hps": BuiltIn("rlcm.rewards.learned:HumanPreference", "people's preferences, HPS v2.1"),
    "imscore": BuiltIn("rlcm.rewards.learned:ImScore", "ImageReward, MPS, HPSv3 and others of the package imscore"),
    "vlm_alignment": BuiltIn("rlcm.rewards.vlm:VlmAlignment", "a vision-language model describes, BERTScore compares"),
    "vlm_rating": BuiltIn("rlcm.rewards.vlm:VlmRating", "a vision-language model rates from 1 to 10"),
    "vlm_yes": BuiltIn("rlcm.rewards.vlm:VlmYes", "probability that a vision-language model says yes"),
}
"""The rewards that have a name of one word."""


def build_reward(settings: RewardSettings) -> Callable[..., Any]:
    """Return the callable that one entry names.

    Raises:
        ConfigError: if there is no such reward, or its arguments do not fit.
        MissingFileError: if a file that it names is not there.
    """
    name = settings.name
    if is_address(name):
        return _bind(settings, "rlcm.rewards.served.http:HttpReward", {"address": name, **settings.args})
    return _bind(settings, place_of(name), settings.args)


def place_of(name: str) -> str:
    """Return the import path of a reward, which is not a server's, by its built-in name or its path.

    Raises:
        ConfigError: if there is no such reward.
    """
    if name in BUILT_IN:
        return BUILT_IN[name].path
    if ":" not in name:
        close = difflib.get_close_matches(name, BUILT_IN, n=1) or [known for known in BUILT_IN if name in known]
        hint = f"did you mean {' or '.join(close)}?" if close else f"the built-in ones are {', '.join(BUILT_IN)}."
        raise ConfigError(
            f"rewards: there is no reward {name!r}; {hint} Your own is module:function or path/to/file.py:function."
        )
    return name


def named(settings: RewardSettings) -> RewardSettings:
    """Return an entry whose file, if it names one that is there, has its absolute path; nothing is imported."""
    place, colon, function = settings.name.rpartition(":")
    if not place.endswith(".py") or is_address(settings.name):
        return settings
    path = existing(place, "rewards")
    return settings if path is None else settings.model_copy(update={"name": f"{path}{colon}{function}"})


def located(settings: RewardSettings) -> RewardSettings:
    """Return an entry in which its own file, and those that its arguments are declared to name, have absolute paths.

    Arguments that name files are those in the attribute `places` of a reward, and those annotated as `pathlib.Path`.

    Raises:
        ConfigError, MissingFileError: as `build_reward`.
    """
    settings = named(settings)
    if is_address(settings.name):
        return settings
    args = _located(settings.label, load_callable(place_of(settings.name)), settings.args)
    return settings.model_copy(update={"args": args})


def build_rewards(rewards: Sequence[RewardSettings]) -> RewardMix:
    """Return the mix of all entries. See `build_reward` for the errors."""
    mix = RewardMix(
        [RewardPart(r.label, build_reward(r), r.weight, r.normalise, r.on_failure, r.timeout_seconds) for r in rewards]
    )
    check_neighbours(r.name for r in rewards if not is_address(r.name))
    return mix


_LISTED = r"(\w+\.)*(Sequence|[Ll]ist|[Tt]uple)\[str(, \.\.\.)?\]"
_LIST_OF_TEXTS = re.compile(rf"{_LISTED}( \| None)?|None \| {_LISTED}|(\w+\.)*Optional\[{_LISTED}\]")
"""Annotations that mean a list of texts and nothing else, as Python writes them."""


def _bind(settings: RewardSettings, path: str, args: Mapping[str, Any]) -> Callable[..., Any]:
    target = load_callable(path, settings.timeout_seconds)
    args = _located(settings.label, target, args)
    _require_lists(settings.label, target, args)
    # Rewards that send many requests want to know whether one of them may fail alone.
    signature = signature_of(target) if inspect.isclass(target) else None
    tells = signature is not None and "on_failure" in signature.parameters
    given = {**args, "on_failure": settings.on_failure} if tells else args
    return bind_arguments(settings.label, target, given, settings.timeout_seconds)


def _require_lists(label: str, target: Callable[..., Any], args: Mapping[str, Any]) -> None:
    """Refuse a text, which is a sequence of its letters, and anything else where a reward says that it takes a list of texts.

    Raises:
        ConfigError: if there is one.
    """
    signature = signature_of(target)
    for name, parameter in {} if signature is None else signature.parameters.items():
        value = args.get(name)
        if value is None or not _LIST_OF_TEXTS.fullmatch(str(parameter.annotation).strip("'\"")):
            continue
        setting = f"rewards.{label}.args.{name}"
        if isinstance(value, str):
            raise ConfigError(f"{setting}={value!r} is a text, and {name} takes a list of texts; write {name}: [{value}]")
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise ConfigError(f"{setting}={value!r} is no list of texts; write it as {name}: [one, another]")


_PATH = r"(?:\w+\.)*Path"
_PATHS = re.compile(rf"(?:\w+\.)*(?:Sequence|Iterable|[Ll]ist|[Tt]uple|[Ss]et)\[{_PATH}(?:,(?:\.\.\.|{_PATH}))*\]")
_NAMED_PATHS = re.compile(rf"(?:\w+\.)*(?:Mapping|[Dd]ict)\[str,{_PATH}\]")


def named_places(target: Callable[..., Any]) -> set[str]:
    """Return the names of parameters that a reward says to name files or folders."""
    return {*_annotated_as_paths(target), *getattr(target, "places", ())}


def _annotated_as_paths(target: Callable[..., Any]) -> dict[str, list[str]]:
    """Return the parameters in whose annotation there is a `Path`, each with what it may be."""
    signature = signature_of(target)
    parameters = () if signature is None else signature.parameters.values()
    return {p.name: _annotations(p) for p in parameters if re.search(r"\bPath\b", str(p.annotation))}


def _annotations(parameter: inspect.Parameter) -> list[str]:
    """Return what a parameter may be by its annotation, as texts without spaces and quotes."""
    text = re.sub(r"[\s'\"]", "", str(parameter.annotation))
    if union := re.fullmatch(r"(?:\w+\.)*(?:Optional|Union)\[(.*)\]", text):
        text = re.sub(r",(?![^\[]*\])", "|", union[1])
    return re.split(r"\|(?![^\[]*\])", text)


def _absolute(value: Any, setting: str, annotations: Sequence[str]) -> Any:
    """Return a path, or a list or a dict of paths, with all of them absolute; anything else as it is."""

    def one(text: Any) -> Any:
        return str(local(text, setting).absolute()) if isinstance(text, str) and text else text

    if isinstance(value, list) and any(map(_PATHS.fullmatch, annotations)):
        return list(map(one, value))
    if isinstance(value, dict) and any(map(_NAMED_PATHS.fullmatch, annotations)):
        return {key: one(text) for key, text in value.items()}
    return one(value)


def _located(label: str, target: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with those that are declared to name files as absolute paths."""
    found, annotated, places = dict(args), _annotated_as_paths(target), getattr(target, "places", ())
    for name, value in args.items():
        setting = f"rewards.{label}.args.{name}"
        is_far = name == "model" and bool(args.get("endpoint"))  # a name over there
        if name in annotated:
            found[name] = _absolute(value, setting, annotated[name])
        elif name in places and isinstance(value, str) and not is_far:
            found[name] = str(existing(value, setting) or value)
    return found
