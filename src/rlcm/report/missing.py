"""What a run directory lacks, told to whoever reads its page."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rlcm.report.run import BEST, WEIGHTS, Run
from rlcm.report.values import finite, mapping


def what_is_missing(run: Run) -> Iterator[str]:
    """Yield what a run that was stopped early, or that goes on, does not have yet."""
    if not os.path.isfile(run.path / WEIGHTS):
        planned = finite(mapping(run.config.get("run")).get("rounds"))
        of = f" of {planned:.0f}" if planned and planned >= run.last_round else ""
        yield (
            f"The final LoRA: this page was written after round {run.last_round}{of}. If the run was stopped there, it goes on "
            "with rlcm train --resume and the path of this folder."
        )
    elif run.goes_on:
        yield (
            f"The LoRA of round {run.last_round}: final/ has that of round {run.final_round}, and before and after are told of it. The "
            "run has not ended; it goes on with rlcm train --resume and the path of this folder, and "
            f"run.rounds={run.last_round} behind that ends it there."
        )
    elif run.wants_best and run.final_round == run.last_round and not os.path.isfile(run.path / BEST):
        yield (
            "Best weights (best/): no evaluation that counts was better than the base model, so evaluation.final=best had no effect, "
            "and final/ has the LoRA of the last round."
        )
    if not run.evaluations:
        yield "Evaluations (eval.json): the numbers on fixed prompts and seeds, before and after."
    elif len(run.evaluations) == 1:
        yield "An evaluation after the base model's (eval.json), so there is no before and after in numbers."
    if not run.samples:
        yield "Pictures (samples/)."
    elif len(run.samples) == 1:
        yield f"Pictures of a second round (samples/): those of round {run.samples[0].round} are the only ones."
    if not run.rounds:
        yield "The rounds' metrics (metrics.jsonl): no learning curve, no timings."
    if not run.config_text:
        yield "The configuration (config.yaml)."
