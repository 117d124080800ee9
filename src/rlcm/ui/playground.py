"""Drawing one prompt and seed with the base model and with what a run has learnt, at any strength."""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from rlcm._version import __version__
from rlcm.errors import RewardError, UsageError
from rlcm.pipelines import load_pipeline, make_denoiser
from rlcm.pipelines.settings import DrawSettings
from rlcm.policy.rollout import decode_images, require_pictures, sample_latents
from rlcm.report.encoding import data_uri
from rlcm.report.metric import Metric
from rlcm.report.reading import read_run
from rlcm.report.values import finite, mapping
from rlcm.report.words import DIVERSITY, decimals, with_unit
from rlcm.rewards import RewardMix, build_rewards
from rlcm.runs.rundir import grid
from rlcm.sharing import other_base, tuned_pipeline
from rlcm.studies.evaluation.study import sampler_at
from rlcm.studies.frontier import read_strengths
from rlcm.training.build import judge_of
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.evaluate import Judge
from rlcm.training.final import tuned_weights
from rlcm.training.locations import located
from rlcm.training.run_config import run_config

KEPT = 2
"""Models that stay loaded."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture, and all that it takes to draw it again."""

    picture: Image.Image
    about: dict[str, Any]
    """prompt, seed, steps, guidance, strength, model, run."""
    rewards: dict[str, float] = field(default_factory=dict)
    """By label, as the rewards answer; `Studio.metric` knows how people read them."""
    verdicts: list[tuple[str, bool]] = field(default_factory=list)
    """What the judge said, by question."""
    failure: str = ""
    """Why there are no rewards."""
    warning: str = ""
    """What makes the picture another one than the run would have drawn."""

    def png(self) -> bytes:
        """Return the picture as a PNG file with all that is known of it in its text chunks."""
        chunks = PngImagePlugin.PngInfo()
        about = self.about | {"reward": json.dumps(self.rewards), "software": f"rlcm {__version__}"}
        for key, value in about.items():
            chunks.add_itxt(key, str(value))
        buffer = io.BytesIO()
        self.picture.save(buffer, format="PNG", pnginfo=chunks)
        return buffer.getvalue()

    def uri(self) -> str:
        """Return the PNG file as a data URI."""
        return data_uri("png", self.png())


class Strength:
    """The weights of a network as a blend of a base model's and a tuned one's.

        W(s) = W_base + s (W_tuned - W_base)

    At 0 and 1 they are the one's and the other's, bit for bit.

    Args:
        network: the base model's; its weights are changed in place.
        tuned: the same network after tuning.
    """

    def __init__(self, network: nn.Module, tuned: nn.Module) -> None:
        others = dict(tuned.named_parameters())
        self._blends = [
            (parameter, parameter.detach().clone(), others[name].detach().clone())
            for name, parameter in network.named_parameters()
            if not torch.equal(parameter, others[name])
        ]
        self.value = 0.0

    @torch.no_grad()
    def set(self, strength: float) -> None:
        """Blend with the given strength; 0 is the base model, 1 the tuned one."""
        if strength == self.value:
            return
        for parameter, base, tuned in self._blends:
            if strength in (0, 1):
                parameter.copy_(tuned if strength else base)
            else:
                parameter.copy_(torch.lerp(base.float(), tuned.float(), strength))
        self.value = strength


class Studio:
    """One model, ready to draw: a run's base and tuned weights, or a base model alone.

    Args:
        config: of the run.
        run: its folder; None for the model that the configuration names, untuned.

    Raises:
        RLCMError: and its children, if the model or the tuned weights cannot be had. Without its rewards a picture is drawn all
            the same: those that a script gave to its training cannot be found from here.
    """

    def __init__(self, config: TrainConfig, run: Path | None) -> None:
        self.config, self.run = config, run
        tuned = None if run is None else tuned_pipeline(config, run)
        # Weights are blended, which takes whole ones.
        self.pipeline = load_pipeline(config.model.model_copy(update={"quantisation": "none"}))
        self.strength: Strength | None = None
        if tuned is not None:
            name = "unet" if hasattr(self.pipeline, "unet") else "transformer"
            self.strength = Strength(getattr(self.pipeline, name), getattr(tuned, name))
        self.rewards: RewardMix | None = None
        self.metric = Metric()
        self.judge: Judge | None = judge_of(config)
        self.warning = "" if run is None else other_base(config.model, run)

    @property
    def own_steps(self) -> int:
        """The number of steps that the run was trained with."""
        return self.config.sampler.calls

    def draw(self, prompt: str, seed: float, steps: float, strength: float = 1.0) -> list[Drawn]:
        """Return the base model's picture and, where there is a run, the tuned one's, scored and judged.

        The picture at strength 1 is that of `rlcm sample RUN`, at 0 that of the base model.

        Raises:
            ConfigError: if a number is out of the range that it has on the command line.
        """
        asked = parse_settings(DrawSettings, {"seed": seed, "strength": strength})
        sampler = sampler_at(self.config.sampler, steps)
        seed, steps, strength = asked.seed, sampler.calls, asked.strength
        pair = [0.0] if self.strength is None else [0.0, strength]
        denoiser = make_denoiser(self.pipeline, sampler, self.config.model)
        conditioning = denoiser.encode([prompt])
        drawn = []
        for value in pair:
            if self.strength is not None:
                self.strength.set(value)
            drawn.append(decode_images(denoiser, sample_latents(denoiser, denoiser.table, conditioning, [seed])))
        images = require_pictures(torch.cat(drawn))
        rewards, failure = self._score(images, prompt)
        judged = self.judge(images, [prompt] * len(images), [{}] * len(images)) if self.judge else {}
        about = {"prompt": prompt, "seed": seed, "steps": steps, "guidance": denoiser.guidance, "model": self.config.model.path}
        return [
            Drawn(
                grid(images[i : i + 1], 1),
                about | {"strength": value, "run": "" if self.run is None else self.config.name or self.run.name},
                {label: values[i].item() for label, values in rewards.items()},
                [(question, bool(right[i])) for question, right in judged.items()],
                failure,
                self.warning,
            )
            for i, value in enumerate(pair)
        ]

    def _score(self, images: Tensor, prompt: str) -> tuple[dict[str, Tensor], str]:
        try:
            if self.rewards is None:
                self.rewards = build_rewards(self.config.rewards)
                self.metric = _metric(self.rewards)
            return self.rewards.score(images, [prompt] * len(images)).parts, ""
        except (UsageError, RewardError) as error:
            return {}, str(error)


def standing(run: Path, strength: float) -> str:
    """Return in a sentence what was measured of a run at the strength nearest to the given one, by `rlcm compare --frontier`;
    nothing where nothing was."""
    entries = read_strengths(run)
    if not entries:
        return ""
    base, there = entries[0], min(entries, key=lambda entry: abs(entry["strength"] - strength))
    metric = read_run(run).metric
    before, after = metric.interval(base), metric.interval(there)
    if before is None or after is None:
        return ""
    shown = [with_unit(value, metric.unit, decimals(before[0], after[0])) for value in (before[0], after[0])]
    text = f"Measured at strength {there['strength']:g}: {metric.label} {shown[1]}, {shown[0]} at 0"
    guards = [mapping(entry.get("guard")) for entry in (base, there)]
    pairs = [[finite(guard.get(key)) for guard in guards] for key in DIVERSITY]
    old, new = next((pair for pair in pairs if pair[0] and pair[1] is not None), (None, None))
    return f"{text}; {new / old:.0%} of the base model's diversity." if old and new is not None else f"{text}."


def _metric(rewards: RewardMix) -> Metric:
    """Return how the rewards are shown to people."""
    shown = rewards.primary_metric
    if not shown:
        return Metric()
    lower, penalty = shown.get("better") == "lower", bool(shown.get("penalty"))
    return Metric(str(shown["label"]), str(shown.get("unit", "")), lower, rewards.parts[0].label, penalty)


class Studios:
    """Keeps the models that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], Studio] = OrderedDict()
        self._lock = threading.Lock()

    def draw(self, run: Path | None, prompt: str, seed: float, steps: float, strength: float) -> tuple[list[Drawn], Metric]:
        """Return what `Studio.draw` returns, of a run or of the built-in model, and how its reward is shown; one at a time.

        Raises:
            RLCMError: and its children, as `Studio`.
        """
        with self._lock:
            studio = self._studio(run)
            return studio.draw(prompt, seed, steps, strength), studio.metric

    def prepare(self, run: Path | None) -> int:
        """Load a model and return the number of steps that it was trained with; errors as `draw`."""
        with self._lock:
            return self._studio(run).own_steps

    def _studio(self, run: Path | None) -> Studio:
        stamp = None if run is None else tuned_weights(run).stat().st_mtime_ns
        key = (run, stamp)
        if key not in self._kept:
            for old in [known for known in self._kept if known[0] == run]:
                del self._kept[old]
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = Studio(located(TrainConfig() if run is None else run_config(run)), run)
        self._kept.move_to_end(key)
        return self._kept[key]
