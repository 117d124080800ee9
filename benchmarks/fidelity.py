"""Does tuning blur a few-step model? Long runs, looked at in every number of steps, before and after.

    python benchmarks/fidelity.py [--methods default published nft ...] [--seeds 0 1 2] [--minutes 4] [--jobs 2]

Results of methods that are not named stay as they are.

The reward is right or wrong (`composition`), on the training prompts of the built-in world; for methods that follow its gradient,
its graded form. Every run computes for the same minutes, on one thread. Before and after, in 1, 2, 4, 8 and 16 steps, 270 pictures of
unseen prompts from the same noise: right by the held-out judge and by the rewards' detector, sharpness, and the Fréchet distance to
renders and to what the teacher draws in 50 steps. Writes benchmarks/results/fidelity.json, docs/fidelity.md and
docs/images/fidelity.png. A run or measurement that is there is not made again.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.figures import figure
from benchmarks.shared.pages import spread, table
from benchmarks.shared.places import DOCS, IMAGES, RESULTS, ROOT
from benchmarks.shared.training import run_alone
from rlcm.builtin import model_path
from rlcm.builtin.detector import JudgeDetector, RewardDetector
from rlcm.builtin.judging import by_kind, right, sharpness
from rlcm.builtin.prompts import prompt_set
from rlcm.builtin.renderer import DEFAULT_FONT, Renderer
from rlcm.builtin.scenes import arrange
from rlcm.builtin.vocabulary import TAGS, every, metadata
from rlcm.pipelines import ModelSettings, SamplerSettings, make_denoiser
from rlcm.pipelines.loading import load_pipeline
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import pictures_of
from rlcm.processes.machine import describe_machine
from rlcm.sharing import tuned_pipeline
from rlcm.studies.evaluation.study import sampler_at
from rlcm.training.config import load_config

GRADED = "rewards=[{name: composition, args: {graded: true}}]"
PLAIN = "rewards=[composition]"
METHODS: dict[str, tuple[str, list[str]]] = {
    "default": ("what `rlcm train` does: branches of one state, and a leash", [PLAIN]),
    "published": (
        "RLCM with its published settings, in 4 steps: no branches, no leash",
        ["published", PLAIN, "sampler.steps=4"],
    ),
    "nft": (
        "DiffusionNFT's loss with the default's leash, a rate of 0.003 and 64 images a round, which a search on small JPEG files chose",
        [PLAIN, "algorithm.loss=nft"],
    ),
    "awm": (
        "Advantage Weighted Matching, with the same rate, images and leash as `nft`",
        [PLAIN, "algorithm.loss=awm"],
    ),
    "hybrid": (
        "the default, and beside it the gradient of the reward's graded form through the last call",
        [GRADED, "algorithm.last_call_weight=0.5"],
    ),
    "back-propagation": (
        "the demo: the gradient of the reward's graded form through the last two calls, no leash",
        ["demo", GRADED],
    ),
    "nft-hybrid": (
        "the demo's layers and rate, no leash: DiffusionNFT's loss, and beside it the gradient of the reward's graded form "
        "through the last call",
        [
            "demo",
            GRADED,
            "algorithm.loss=nft",
            "algorithm.last_call_weight=0.5",
            "algorithm.backprop_calls=1",
            "rollout.images_per_prompt=4",
        ],
    ),
}
STEPS = (1, 2, 4, 8, 16)
OWN = 4
"""The number of steps that is trained with."""
EACH, BATCH = 2, 60
TEACHER_STEPS, GUIDANCE = 50, 3.0
KL_PICTURES = 2
"""Of a run's own evaluations, which are kept short."""
COLOURS = {
    "default": "#c1272d",
    "published": "#1d2126",
    "nft": "#7b3fa0",
    "awm": "#b08ad0",
    "hybrid": "#e8791e",
    "back-propagation": "#1f7a4d",
    "nft-hybrid": "#1f5fbf",
}


def wanted() -> list[dict[str, Any]]:
    """Return what is asked of the pictures: unseen prompts, each of them several times."""
    return [entry for entry in prompt_set("world-unseen") for _ in range(EACH)]


def features(images: Tensor) -> np.ndarray:
    """Return what the judge sees of images [B, 3, 64, 64], wherever it is: [B, 96], the mean over the four quarters."""
    seen = JudgeDetector.load(model_path("judge")).features(images)
    return seen.view(len(seen), -1, 4).mean(2).double().numpy()


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Fréchet distance of the normal distributions of two sets of features [N, D]: as in FID (arXiv:1706.08500).

    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))
    """
    covariances = [np.cov(rows, rowvar=False) for rows in (one, other)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    apart = one.mean(0) - other.mean(0)
    return float(apart @ apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared)


def renders(number: int) -> Tensor:
    """Return renders of what is asked: [B, 3, 64, 64] in [0, 1]; another number gives others."""
    known = {metadata(asked)["prompt"]: asked for tag in TAGS for asked in every(tag, held_out=False)}
    renderer, rng = Renderer(DEFAULT_FONT), np.random.default_rng([8_000_000, number])
    arrays = [renderer.draw(arrange(known[a["prompt"]], rng, None), int(rng.integers(2**62))) for a in wanted()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def references(folder: Path) -> dict[str, Any]:
    """Return the features of renders and of the teacher's pictures, and their figures; drawn once and kept."""
    kept = folder / "references.npz"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model = ModelSettings(path="builtin-teacher")
        settings = SamplerSettings(scheduler="ddim", steps=TEACHER_STEPS, guidance=GUIDANCE, eta=1.0)
        drawn = drawn_by(make_denoiser(load_pipeline(model), settings, model))
        real, others = renders(0), renders(1)
        figures = {"renders": pictures_figures(others), "teacher": pictures_figures(drawn)}
        told = np.array(json.dumps(figures))
        np.savez(kept, figures=told, real=features(real), others=features(others), teacher=features(drawn))
    stored = np.load(kept)
    figures = json.loads(str(stored["figures"]))
    figures["renders"]["to_renders"] = frechet(stored["others"], stored["real"])
    figures["teacher"]["to_renders"] = frechet(stored["teacher"], stored["real"])
    return {"real": stored["real"], "teacher": stored["teacher"], "figures": figures}


def drawn_by(denoiser: Any) -> Tensor:
    """Return a picture for each that is asked; the same noise for the same place."""
    prompts = [entry["prompt"] for entry in wanted()]
    return pictures_of(denoiser, prompts, [image_seed("fidelity", place) for place in range(len(prompts))], BATCH)


def pictures_figures(images: Tensor) -> dict[str, Any]:
    """Return the shares of right pictures, a mean over the kinds, by the judge and by the rewards' detector; and the sharpness."""
    asked = wanted()
    detectors = {"right": JudgeDetector.load(model_path("judge")), "reward": RewardDetector.load(model_path("detector"))}
    shares = {name: by_kind(right(detector, images, asked), asked)["overall"] for name, detector in detectors.items()}
    return shares | {"sharpness": sharpness(images)}


def measured(folder: Path, tuned: bool, compared: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the figures of a run's model, or of the one that it began with, by number of steps."""
    kept = folder / ("measured.json" if tuned else "measured-base.json")
    if not kept.is_file():
        torch.set_num_threads(1)
        config = load_config(folder / "config.yaml")
        pipeline = tuned_pipeline(config, folder if tuned else None)
        found = {}
        for steps in STEPS:
            images = drawn_by(make_denoiser(pipeline, sampler_at(config.sampler, steps), config.model))
            seen = features(images)
            distances = {f"to_{name}": frechet(seen, other) for name, other in compared.items()}
            found[str(steps)] = pictures_figures(images) | distances
        kept.write_text(json.dumps(found))
    loaded: dict[str, dict[str, Any]] = json.loads(kept.read_text())
    return loaded


def train(method: str, seed: int, minutes: float, output: Path) -> Path:
    """Train in a process of its own, unless that is done, and return the run's folder."""
    folder = output / f"{method}-{seed}"
    if not (folder / "final").is_dir():
        own = [f"name={folder.name}", f"seed={seed}", f"output={output}", "run.tracker=none", "run.rounds=1000000"]
        own += [
            f"run.time_limit_minutes={minutes}",
            "run.clock=cpu",
            f"evaluation.images={KL_PICTURES}",
            "evaluation.every=0",
            "run.save_every=0",
        ]
        begun = ["--resume", str(folder)] if folder.is_dir() else [*METHODS[method][1], "prompts=world", *own]
        run_alone(begun)
        print(f"trained: {folder.name}", flush=True)
    return folder


def page(found: Mapping[str, Any]) -> str:
    """Return the page of the results."""
    base, runs, known = found["base"], found["runs"], found["references"]
    methods = [method for method in METHODS if method in runs]
    real = known["renders"]["sharpness"]
    parts = []
    for key, head, digits, scale in (
        ("right", "Right by the held-out judge", ".1%", 1.0),
        ("sharpness", "Sharpness, as a share of the renders'", ".0%", 1 / real),
        ("to_real", "Fréchet distance to renders, times 10,000", ".1f", 1e4),
        ("to_teacher", "Fréchet distance to the teacher's pictures, times 10,000", ".1f", 1e4),
    ):
        rows = [["before", *(f"{scale * base[str(n)][key]:{digits}}" for n in STEPS)]]
        for method in methods:
            each = [[scale * run["steps"][str(n)][key] for run in runs[method]] for n in STEPS]
            rows.append([f"`{method}`", *(spread(values, digits) for values in each)])
        parts.append(f"## {head}\n\n{table(['', *(f'{n} steps' if n > 1 else '1 step' for n in STEPS)], rows)}")
    about = "".join(f"- `{method}`: {METHODS[method][0]}.\n" for method in methods)
    seeds = sorted({run["seed"] for rows in runs.values() for run in rows})
    kept = [
        [
            f"`{method}`",
            spread([run["kl"] for run in runs[method]], ".0f"),
            *(_kept(base, runs[method], n) for n in STEPS),
            spread([run["steps"][str(OWN)]["sharpness"] / base[str(OWN)]["sharpness"] for run in runs[method]], ".0%"),
            spread([run["steps"][str(OWN)]["to_real"] / base[str(OWN)]["to_real"] for run in runs[method]], ".2f"),
        ]
        for method in methods
    ]
    heads = [
        "",
        "KL, nats an image",
        "change in 1 step",
        *(f"in {n}" for n in STEPS[1:]),
        f"sharpness in {OWN}, of the base's",
        f"distance to renders in {OWN}, times the base's",
    ]
    shown = "\n\n".join(
        f"![The same prompts and noise before training and by {', '.join(together)}](images/{_picture(together)})"
        for together in found["shown"]
    )
    return f"""# Does tuning blur a few-step model?

It is often said that reinforcement learning on a distilled model blurs it. This page measures it on the built-in model:
{found["minutes"]:g} minutes of computing a run on one thread, {len(seeds)} seeds, trained in {OWN} steps and
sampled in {STEPS[0]} to {STEPS[-1]}. The reward asks for the right things, numbers, colours and places.

{about}
## In short

{"".join(f"- {_verdict(method, base, runs[method])}{chr(10)}" for method in methods)}
Only differences that hold in every seed are listed. With three seeds that happens by chance in a quarter of all cells, so a single
one says little. A model that hardly moved, as the KL divergence below says of `default` and `published`, cannot show whether its
method blurs.

![Right pictures, sharpness and distance to renders by number of steps, before and after](images/fidelity.png)

Changes are in points of right pictures, by the judge. Each figure is a mean over the seeds, with the lowest and highest. The KL
divergence from the base model says how far a model moved: one that hardly moved cannot blur. It is that of {KL_PICTURES} pictures a
run, so it is rough.

{table(heads, kept)}
{chr(10).join(parts)}
## Pictures

The first unseen prompt of each kind, the same noise in every row, in {OWN} steps, by the models of the first seed.

{shown}

## How it was measured

- {found["pictures"]} pictures, {EACH} of each prompt of `world-unseen`, from the same noise before and after. No run trains on
  these prompts.
- *Right* is a mean over the six kinds of prompts. The judge is a detector that no reward and no gradient uses.
- *Sharpness* is the mean difference of neighbouring pixels. Renders are what the model learnt from: here {EACH} of each prompt.
- *Fréchet distance* is that of FID, in {found["features"]} features of the judge, the mean over the picture's quarters: so few
  pictures allow no more. Other renders of the same prompts are {1e4 * known["renders"]["to_renders"]:.1f} from these.
- The teacher in {TEACHER_STEPS} steps is right in {known["teacher"]["right"]:.1%} of its pictures. They are
  {1e4 * known["teacher"]["to_renders"]:.1f} from renders, and {known["teacher"]["sharpness"] / real:.0%} as sharp.

Machine: {found["machine"]}. Command: `python benchmarks/fidelity.py`; all figures are in `benchmarks/results/fidelity.json`.
"""


def _picture(together: Sequence[str]) -> str:
    """Return the name of the file of pictures by methods that were made together."""
    return f"fidelity-pictures-{'-'.join(together)}.png"


def _verdict(method: str, base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what became of a method's models, a sentence or two: only what all seeds agree on is said to have changed."""

    def way(key: str, steps: int, up: str, down: str) -> str:
        changes = [run["steps"][str(steps)][key] - base[str(steps)][key] for run in runs]
        return up if min(changes) > 0 else down if max(changes) < 0 else ""

    def clear(key: str, up: str, down: str) -> str:
        told = {word: [n for n in STEPS if way(key, n, up, down) == word] for word in (up, down)}
        parts = [f"{word} in {', '.join(map(str, steps))} steps" for word, steps in told.items() if steps]
        return " and ".join(parts) or f"neither clearly {up} nor {down}"

    sharp, far = clear("sharpness", "sharper", "blurrier"), clear("to_real", "further from renders", "closer to renders")
    return f"`{method}`: pictures are {sharp}, {far}, and {clear('right', 'more often right', 'less often right')}."


def _kept(base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], steps: int) -> str:
    return spread([100 * (run["steps"][str(steps)]["right"] - base[str(steps)]["right"]) for run in runs], "+.1f")


def merged(before: Mapping[str, Any], runs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runs of all methods, those made now in place of earlier ones, and which were made together, for their pictures."""
    every_run = {**before.get("runs", {}), **runs}
    kept = [together for together in before.get("shown", []) if not set(together) <= set(runs)]
    return {"runs": {method: every_run[method] for method in METHODS if method in every_run}, "shown": [*kept, list(runs)]}


def draw(found: Mapping[str, Any]) -> None:
    """Write the picture: a panel a figure, a line a method with its seeds' range, and the base model."""
    base, runs = found["base"], found["runs"]
    real = found["references"]["renders"]["sharpness"]
    panels = (
        ("right", "right by the judge", 1.0),
        ("sharpness", "sharpness, of the renders'", 1 / real),
        ("to_real", "distance to renders, times 10,000", 1e4),
    )
    with figure(IMAGES / "fidelity.png", 10.5, 3.6) as drawn:
        for axes, (key, label, scale) in zip(drawn.subplots(1, 3), panels, strict=True):
            places = range(len(STEPS))
            axes.plot(places, [scale * base[str(n)][key] for n in STEPS], "o--", color="#8a939e", label="before")
            for method, rows in runs.items():
                each = [[scale * run["steps"][str(n)][key] for run in rows] for n in STEPS]
                axes.plot(places, [mean(values) for values in each], "o-", color=COLOURS[method], label=method)
                axes.fill_between(
                    places, [min(v) for v in each], [max(v) for v in each], color=COLOURS[method], alpha=0.12, lw=0
                )
            axes.set_xticks(places, [str(n) for n in STEPS])
            axes.set_xlabel("steps")
            axes.set_title(label, fontsize=10)
        drawn.axes[0].legend(fontsize=8)


def show(folders: Mapping[str, Path]) -> None:
    """Write pictures of the base model and of a run of each method: the first unseen prompt of each kind, in the trained steps."""
    first = {entry["tag"]: entry["prompt"] for entry in reversed(prompt_set("world-unseen"))}
    prompts = [first[tag] for tag in TAGS]
    seeds = [image_seed("fidelity pictures", place) for place in range(len(prompts))]
    rows: dict[str, Tensor] = {}
    for method, folder in {"before": next(iter(folders.values())), **folders}.items():
        config = load_config(folder / "config.yaml")
        pipeline = tuned_pipeline(config, None if method == "before" else folder)
        rows[method] = pictures_of(make_denoiser(pipeline, config.sampler, config.model), prompts, seeds, BATCH)
    with figure(IMAGES / _picture(list(folders)), 1.5 * len(prompts), 1.5 * len(rows) + 0.3) as drawn:
        grid = drawn.subplots(len(rows), len(prompts))
        for cells, (method, images) in zip(grid, rows.items(), strict=True):
            for axes, image in zip(cells, images, strict=True):
                axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                for side in axes.spines.values():
                    side.set_visible(False)
            cells[0].set_ylabel(method, fontsize=9)
        for axes, prompt in zip(grid[0], prompts, strict=True):
            axes.set_title("\n".join(textwrap.wrap(prompt, 18)), fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, and write the page."""
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--minutes", type=float, default=4.0, help="of computing a run")
    options.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    options.add_argument("--keep", type=Path, default=ROOT / "runs" / "fidelity", help="where runs and measurements are kept")
    given = options.parse_args(arguments)
    before = files.read_if_there(RESULTS / "fidelity.json")
    others = [row["seed"] for name, rows in before.get("runs", {}).items() if name not in given.methods for row in rows]
    if others and (before["minutes"] != given.minutes or set(others) != set(given.seeds)):
        raise SystemExit(
            f"fidelity.json has other methods with {before['minutes']:g} minutes and the seeds {sorted(set(others))}; "
            "give the same, or name all methods."
        )
    keys = [(method, seed) for seed in given.seeds for method in given.methods]
    with ThreadPoolExecutor(given.jobs) as pool:
        folders = list(pool.map(lambda key: train(key[0], key[1], given.minutes, given.keep), keys))
    known = references(given.keep)
    compared = {"real": known["real"], "teacher": known["teacher"]}
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as processes:
        base = processes.submit(measured, folders[0], False, compared)
        steps = list(processes.map(measured, folders, [True] * len(folders), [compared] * len(folders)))
    runs: dict[str, list[dict[str, Any]]] = {}
    for (method, seed), folder, own in zip(keys, folders, steps, strict=True):
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        rest = {name: last[name] for name in ("round", "seconds", "reward_queries") if name in last}
        rest["kl"] = json.loads((folder / "eval.json").read_text())["evaluations"][-1]["kl"]["mean"]
        runs.setdefault(method, []).append({"seed": seed, **rest, "steps": own})
    found = {
        "machine": describe_machine(),
        "minutes": given.minutes,
        "pictures": len(wanted()),
        "features": int(known["real"].shape[1]),
        "references": known["figures"],
        "base": base.result(),
    } | merged(before, runs)
    files.write(RESULTS / "fidelity.json", found)
    draw(found)
    show({method: given.keep / f"{method}-{given.seeds[0]}" for method in given.methods})
    (DOCS / "fidelity.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
