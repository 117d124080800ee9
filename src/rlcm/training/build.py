"""From a configuration to objects: the one place where a string becomes a model, a reward or a set of prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcm.errors import ConfigError
from rlcm.learning.advantages import branch_probabilities
from rlcm.paths import local
from rlcm.pipelines import (
    PipelineDenoiser,
    bare_network,
    load_pipeline,
    make_denoiser,
    preview_table,
    restrictions,
    truncated_prompts,
    unpinned,
)
from rlcm.pipelines.acceleration import use_tf32
from rlcm.pipelines.brought import BROUGHT, brought_by
from rlcm.pipelines.guidance import guidance_left_open
from rlcm.pipelines.lora_files import require_local
from rlcm.pipelines.settings import BUILTIN, SamplerSettings
from rlcm.policy.policy import Policy, check_targets
from rlcm.policy.transitions import require_noise
from rlcm.policy.window import shown
from rlcm.rewards import RewardMix, build_rewards
from rlcm.rewards.given import Rewards, given, mix_of
from rlcm.runs.trackers import require_tracker
from rlcm.training.config import TrainConfig
from rlcm.training.diversity import Features
from rlcm.training.evaluate import Evaluator
from rlcm.training.fitting import check_memory, memory_need, sampled_at_once
from rlcm.training.idle import idle_settings
from rlcm.training.pins import Pins, pins_of
from rlcm.training.prompts import PromptSet, load_prompts, mistakable
from rlcm.training.watch import require_figures, require_noise_for_figures
from rlcm.types import Conditioning, TransitionTable

if TYPE_CHECKING:
    from rlcm.builtin.judging import PromptJudge


@dataclass(slots=True)
class Parts:
    """What a run is made of."""

    policy: Policy
    prompts: PromptSet
    conditioning: Conditioning
    rewards: RewardMix
    evaluator: Evaluator
    notes: list[str]
    """What the user should know before the run starts."""
    sampler: SamplerSettings
    """How the model is sampled: the configuration's, with the guidance that is taken where it was left open."""


@dataclass(slots=True)
class Checked:
    """What a run needs besides its model."""

    prompts: PromptSet
    looked_at: PromptSet
    rewards: RewardMix
    held_out: RewardMix | None
    notes: list[str]
    """What the user should know before the weights are read."""


def checked(
    config: TrainConfig,
    *,
    pipeline: Any = None,
    rewards: Rewards | None = None,
    prompts: Sequence[str] | None = None,
) -> Checked:
    """Return what a run needs besides its model, after all that can be wrong before weights are read; arguments as for `build`.

    Raises:
        UsageError: and its children, with the setting and the remedy.
    """
    require_tracker(config.run.tracker)
    _check_output(config)
    training = load_prompts(config.prompts if prompts is None else prompts)
    looked_at = training if config.evaluation.prompts is None else load_prompts(config.evaluation.prompts, "evaluation.prompts")
    mix = build_rewards(config.rewards) if rewards is None else mix_of(rewards)
    held_out = build_rewards(config.evaluation.held_out) if config.evaluation.held_out else None
    scored_by_mix = [training] if looked_at is training else [training, looked_at]
    for scores, scored in (*((mix, prompts_of) for prompts_of in scored_by_mix), (held_out, looked_at)):
        if scores is not None:
            scores.check_prompts(scored.prompts, scored.metadata)
    judged: list[str] = []
    if built_in := pipeline is None and config.model.path in BUILTIN:
        from rlcm.builtin.judging import questions

        judged = questions(looked_at.prompts, looked_at.metadata)
    diversity = _figures_of_diversity(config, looked_at, built_in=built_in, mixes=(mix, held_out))
    require_figures(config.evaluation, mix, held_out, judged, diversity)
    backprop = config.algorithm.loss == "reward_backprop"
    if config.algorithm.follows_reward:
        mix.require_differentiable()
    if pipeline is None:
        _check_before_loading(config, acting=not backprop)
    notes = mistakable(config.prompts if prompts is None else prompts) + mistakable(
        config.evaluation.prompts, "evaluation.prompts"
    )
    return Checked(training, looked_at, mix, held_out, notes + idle_settings(config))


def build(
    config: TrainConfig,
    *,
    pipeline: Any = None,
    rewards: Rewards | None = None,
    prompts: Sequence[str] | None = None,
    check: Callable[[Pins], None] | None = None,
    processes: int = 1,
) -> Parts:
    """Return the parts of a run; whatever is cheap to get wrong is checked before a model is loaded.

    Args:
        pipeline: a loaded diffusers pipeline in place of the one `config.model` names.
        rewards: in place of `config.rewards`; see `rlcm.rewards.given`.
        prompts: prompts in place of `config.prompts`.
        check: is given what the run depends on, before the model is loaded; left out, nothing is read for it.
        processes: that share the run's images, and the work for `check`.

    Raises:
        UsageError: and its children, with the setting and the remedy.
    """
    found = checked(config, pipeline=pipeline, rewards=rewards, prompts=prompts)
    training, looked_at, mix, held_out = found.prompts, found.looked_at, found.rewards, found.held_out
    backprop = config.algorithm.loss == "reward_backprop"
    config = _with_guidance(config, pipeline)
    if check is None:
        brought = {} if pipeline is None else brought_by(pipeline, config.model)
    else:
        passed = [] if rewards is None else given(rewards)
        entries = config.rewards if rewards is None else [one.settings for one in passed if one.reward is None]
        source = config.prompts if prompts is None else ""
        pins = pins_of(
            config,
            training,
            looked_at,
            mix,
            held_out,
            pipeline=pipeline,
            entries=entries,
            source=source,
            processes=processes,
        )
        brought = {key: pins.contents[key] for key in BROUGHT if key in pins.contents}
        check(pins)
    loaded = load_pipeline(config.model) if pipeline is None else pipeline
    denoiser = make_denoiser(loaded, config.sampler, config.model)
    if pipeline is not None:
        _refuse_what_comes_too_late(config, denoiser)
        use_tf32(config.model.tf32, denoiser.device)
    if not backprop:
        _require_actions(denoiser.table, config)
    notes = found.notes + (unpinned(config.model) if pipeline is None else [])
    notes += restrictions(config.model, pipeline)
    if brought:
        what = " and ".join(f"the {kind} {brought[key]}" for key, kind in BROUGHT.items() if key in brought)
        notes.append(
            f"{what} of the pipeline that was passed are trained with, and no file of the run holds them: its LoRA belongs beside "
            "them, and what draws from the run's folder refuses"
        )
    notes += [
        f'the prompt "{_short(prompt)}" is longer than the model reads; only "{kept}" counts'
        for prompt, kept in truncated_prompts(loaded, list(dict.fromkeys(training.prompts + looked_at.prompts)))
    ]
    policy = Policy(denoiser, config.lora, config.seed)
    check_memory(policy, denoiser, config, processes)
    if config.model.compile:
        denoiser.compile()
    notes.append(f"memory estimate: {memory_need(denoiser, config).total / 1e9:.2f} GB")
    table = denoiser.table
    if config.sampler.final_std:
        table = make_denoiser(loaded, _without_final_noise(config.sampler), config.model).table
    require_noise_for_figures(config.evaluation, bool(table.std.any()))
    conditioning = denoiser.encode(training.prompts)
    judge = None if pipeline is not None else judge_of(config)
    return Parts(
        policy,
        training,
        conditioning,
        mix,
        Evaluator(
            config.evaluation,
            looked_at.prompts,
            looked_at.metadata,
            conditioning if looked_at is training else denoiser.encode(looked_at.prompts),
            mix,
            table,
            judge,
            sampled_at_once(config.rollout),
            held_out,
            features_of(judge, mix, held_out),
        ),
        notes,
        config.sampler,
    )


def _short(prompt: str) -> str:
    """Return a prompt that a line of a terminal can be asked to hold."""
    return prompt if len(prompt) <= 1000 else f"{prompt[:1000]} ..."


def _with_guidance(config: TrainConfig, pipeline: Any) -> TrainConfig:
    """Return the configuration with the guidance that the model takes, where it was left open and its pipeline takes another."""
    own = guidance_left_open(config.model, pipeline) if config.sampler.guidance is None else None
    if own is None:
        return config
    return config.model_copy(update={"sampler": config.sampler.model_copy(update={"guidance": own})})


def _check_before_loading(config: TrainConfig, *, acting: bool) -> None:
    """Refuse a sampler or an adapter that does not fit the model before its weights are read or downloaded."""
    table = preview_table(config.model, config.sampler)
    looked_at = preview_table(config.model, _without_final_noise(config.sampler)) if config.sampler.final_std else table
    require_noise_for_figures(config.evaluation, bool(looked_at.std.any()))
    if acting:
        _require_actions(table, config)
    check_targets(bare_network(config.model), config.lora)
    require_local(config.model.loras)


def _without_final_noise(sampler: SamplerSettings) -> SamplerSettings:
    """Return the sampler of evaluations."""
    return sampler.model_copy(update={"final_std": 0.0})


def _check_output(config: TrainConfig) -> None:
    """Refuse a place of the runs in which no folder can be made."""
    place = local(config.output, "output").absolute() / config.name  # a run that goes on needs its own folder alone
    there = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise ConfigError(f"output={config.output!r}: {there} is no folder; choose another place for the run's folder.")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"output={config.output!r}: nothing can be written into {there}; choose another folder.")


def _require_actions(table: TransitionTable, config: TrainConfig) -> None:
    """Refuse a sampler without an action, or a schedule of branches that does not fit its actions."""
    require_noise(table, eta=config.sampler.eta, window=config.sampler.noisy_steps)
    schedule, noisy = config.rollout.branch_schedule, table.noisy_steps().tolist()
    if config.rollout.branches > 1:
        try:
            branch_probabilities(schedule, len(noisy))
        except ValueError as error:
            given = schedule if isinstance(schedule, str) else list(schedule)
            raise ConfigError(
                f"rollout.branch_schedule={given}: {error}. The steps of this sampler that draw noise are {shown(noisy)}."
            ) from None


def _refuse_what_comes_too_late(config: TrainConfig, passed: PipelineDenoiser) -> None:
    """Refuse settings that act while a model is loaded, and weights that torch lets nobody train, where a loaded one was passed.

    Raises:
        ConfigError: if one of them is set, or the model was loaded in torch's inference mode.
    """
    if any(parameter.is_inference() for parameter in passed.module.parameters()):
        raise ConfigError(
            "the pipeline that was passed was loaded under torch.inference_mode(), and torch trains no such weights; load it outside "
            "of that, or pass the path of its folder."
        )
    model = config.model
    late = {"quantisation": model.quantisation != "none", "channels_last": model.channels_last}
    for name, is_set in late.items():
        if is_set:
            raise ConfigError(
                f"model.{name}={str(getattr(model, name)).lower()} acts while a model is loaded, and this one was passed as a loaded "
                "pipeline; pass the path of its folder, or leave the setting out."
            )


def judge_of(config: TrainConfig) -> PromptJudge | None:
    """Return the held-out judge of the built-in model; other models have none."""
    if config.model.path not in BUILTIN:
        return None
    from rlcm.builtin.judging import PromptJudge

    return PromptJudge()


def _figures_of_diversity(
    config: TrainConfig, prompts: PromptSet, *, built_in: bool, mixes: Sequence[RewardMix | None]
) -> list[str]:
    """Return the names of the figures of diversity that evaluations on these prompts will have; see `features_of`."""
    count = config.evaluation.images
    taken = [prompts.prompts[i % len(prompts)] for i in range(min(count, 2 * len(prompts)))]
    if len(set(taken)) == len(taken) and config.evaluation.diversity_images < 2:
        return []  # no prompt comes twice
    seen = ["judge", "clip"] if built_in else ["clip"] * bool(_with_clip(mixes))
    return [f"{figure}_{name}" for figure in ("diversity", "vendi") for name in seen] or ["diversity"]


def _with_clip(mixes: Sequence[RewardMix | None]) -> list[Any]:
    """Return those of the package's own rewards that have a CLIP."""
    own = [part.reward for mix in mixes if mix for part in mix.parts if type(part.reward).__module__.startswith("rlcm.")]
    return [reward for reward in own if hasattr(reward, "clip_features")]


def features_of(judge: PromptJudge | None, *mixes: RewardMix | None) -> Features:
    """Return in whose features diversity is measured: of the built-in model its judge's and its CLIP's, of others those of the first
    CLIP among the package's own rewards, if there is one."""
    if judge is not None:
        from rlcm.rewards.learned.alignment import Alignment

        return {"judge": judge.features, "clip": Alignment().clip_features}
    return next(({"clip": reward.clip_features} for reward in _with_clip(mixes)), {})
