"""Run folders with given evaluations, without a training: what tests of comparisons and pages read."""

import json

import numpy as np
import yaml
from PIL import Image

PROMPTS, SEEDS = ["a cat", "a dog"], [11, 12]
DISPLAY = {"label": "JPEG size", "unit": "kB", "better": "lower"}


def write_run(
    folder, name, points, *, seed=0, steps=4, model="builtin", rewards=("jpeg",), held_out=None, display=DISPLAY, weight=1.0,
    final=-1,
):  # fmt: skip
    """Write a run whose evaluations are (round, seconds, reward); a round scores 10 images with `steps` calls each.

    Args:
        weight: of every reward; the evaluations' totals are weighted, and the rewards as they are.
        final: index of the evaluation whose weights are in final/; None for a run that has not ended.
    """
    path = folder / name
    (path / "samples").mkdir(parents=True)
    config = {
        "name": name, "output": str(folder), "seed": seed, "model": {"path": model}, "sampler": {"steps": steps},
        "rewards": [{"name": r, "label": r, "weight": weight} for r in rewards], "prompts": "world",
        "evaluation": {"images": 90, "seed": 1}, "run": {"timeout_seconds": 600.0},
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    evaluations = []
    for number, seconds, reward in points:
        value = {"mean": reward, "ci95": 0.1}
        evaluations.append(
            {
                "round": number, "seconds": seconds, "images": 90, "steps": steps,
                "reward": {"mean": weight * reward, "ci95": abs(weight) * 0.1},
                "rewards": dict.fromkeys(rewards, value), "judge": {"right": {"mean": 0.9 - number / 1000, "ci95": 0.01}},
                "guard": {"diversity": 0.3 - number / 1000},
                "held_out": {held_out: {"mean": reward / 2, "ci95": 0.1}} if held_out else {},
            }
        )  # fmt: skip
    ended = {} if final is None else {"final_round": points[final][0]}
    (path / "eval.json").write_text(json.dumps({"primary_metric": display, "evaluations": evaluations} | ended))
    metrics = [
        {"round": n, "seconds": s, "reward": r, "reward_queries": 10 * n, "network_calls": 10 * n * steps}
        for n, s, r in points
        if n
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    scored = {"total": [-2.0 * weight, -1.0 * weight], **{r: [-2.0, -1.0] for r in rewards}}
    for number in [point[0] for point in points]:
        sheet = np.full((8, 16, 3), 40 + number, np.uint8)
        Image.fromarray(sheet).save(path / f"samples/round-{number:06d}.png")
        described = {
            "round": number, "columns": 2, "cell": [8, 8], "prompts": PROMPTS, "seeds": SEEDS, "rewards": scored,
        }  # fmt: skip
        (path / f"samples/round-{number:06d}.json").write_text(json.dumps(described))
    return path
