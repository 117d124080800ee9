"""The model card of a published run: what the adapter is, what it was trained for, what came of it, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from rlcm._version import __version__
from rlcm.pipelines.licences import restrictions
from rlcm.pipelines.settings import BUILTIN
from rlcm.policy.window import ALL, shown
from rlcm.report.run import Run
from rlcm.report.steps import step_tables
from rlcm.report.templating import code_span, render
from rlcm.report.words import comparison, duration, headline
from rlcm.training.config import TrainConfig
from rlcm.training.usage import own_name, usage


def card(
    run: Run, config: TrainConfig, repo: str, kind: str, base_model: str | None, licence: str | None, pictures: Sequence[str]
) -> str:
    """Return the card as Markdown.

    Args:
        run: what its folder holds.
        repo: where the adapter will be, `user/name`.
        kind: class of the pipeline, nothing where it is not known.
        base_model: name of the base model on the Hub; None where it has none.
        licence: of the adapter; None names none.
        pictures: files beside the card.
    """
    based = config.model if base_model is None else config.model.model_copy(update={"path": base_model})
    prompt = run.samples[-1].prompts[0] if run.samples else "a fox"
    return render(
        "sharing/templates/hub_card.md.jinja",
        header=header(config, base_model, licence),
        title=repo.split("/")[1],
        base=base_model or own_name(config),
        builtin=config.model.path in BUILTIN,
        on_hub=base_model is not None,
        licence=licence,
        restricted=[note.removeprefix("licence: ") for note in restrictions(based)],
        headline="".join(headline(run)).replace("\N{NO-BREAK SPACE}", " "),
        rewards=[{"label": r.label, "weight": r.weight} for r in config.rewards],
        altered=run.altered,
        rows=comparison(run),
        evaluated=run.outcome.get("images"),
        tables=step_tables(run.study),
        pictures=pictures,
        settings=settings_of(run, config),
        version=__version__,
        code=usage(config, repo, kind, base_model, prompt),
    )


def header(config: TrainConfig, base_model: str | None, licence: str | None) -> str:
    """Return the card's metadata as the Hub reads it, in YAML."""
    values: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if licence:
        values["license"] = licence
    if base_model:
        values |= {"base_model": base_model, "base_model_relation": "adapter"}
    tags = ["text-to-image", "lora", "diffusers", "reinforcement-learning", "rlcm"]
    return yaml.safe_dump(values | {"tags": tags}, sort_keys=False, allow_unicode=True)


def settings_of(run: Run, config: TrainConfig) -> dict[str, str]:
    """Return what the run's weights were made of, in a few words of Markdown each."""
    run = run.up_to_final()
    last = (run.rounds or [{}])[-1]
    sampler, guidance = config.sampler, config.sampler.guidance
    scheduler = "the model's own" if sampler.scheduler == "auto" else sampler.scheduler
    found = {
        "Sampler": ", ".join(
            [
                f"{scheduler}, {config.sampler.calls} steps",
                *([] if guidance is None else [f"guidance {guidance:g}"]),
                *([] if sampler.eta is None else [f"eta {sampler.eta:g}"]),
                *([] if sampler.shift is None else [f"shift {sampler.shift:g}"]),
                *([] if sampler.noisy_steps == ALL else [f"noise in steps {shown(sampler.noisy_steps)}"]),
            ]
        ),
        "LoRA": f"rank {config.lora.rank}, alpha {config.lora.alpha:g} (multiplied into the weights), "
        f"on {', '.join(code_span(name, in_table=True) for name in config.lora.target_modules)}",
        "Algorithm": f"{config.algorithm.loss}, advantage {config.algorithm.advantage}, "
        f"KL weight {config.algorithm.kl_coefficient:g}",
        "Learning rate": f"{config.optimizer.lr:g}",
        "Training": f"{run.last_round} rounds of {config.rollout.batch_size} images, seed {config.seed}",
    }
    if isinstance(queries := last.get("reward_queries"), (int, float)):
        found["Images scored"] = f"{queries:,.0f}"
    if run.seconds:
        found["Time"] = f"{duration(run.seconds)} of sampling and learning".replace("\N{NO-BREAK SPACE}", " ")
    if config.evaluation.final == "best":
        found["Weights"] = f"those of the evaluation that was best by {code_span(config.evaluation.best, in_table=True)}"
    return found
