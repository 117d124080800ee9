"""The page of results: what is claimed, with its figure, seeds and command; and what was tried and missed.

    python benchmarks/claims.py

Reads what is committed in benchmarks/results and writes docs/results.md. Nothing on that page is typed in by hand but the words.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import demo_seeds
from benchmarks.algorithms.measure import SOUND
from benchmarks.algorithms.methods import DDPO_SECOND, PLAIN
from benchmarks.algorithms.methods import METHODS as STUDIED
from benchmarks.algorithms.methods import TASKS as STUDIED_TASKS
from benchmarks.algorithms.page import seeds_of, shares_of, times_of
from benchmarks.algorithms.summary import always_sooner, overlaps
from benchmarks.fidelity import GRADED, METHODS, OWN
from benchmarks.leashes import verdict
from benchmarks.mixed_rewards import alike
from benchmarks.shared.command import parser
from benchmarks.shared.pages import spread, table
from benchmarks.shared.places import DOCS, RESULTS, ROOT
from benchmarks.shared.results import read
from benchmarks.voting.page import verdicts as of_votes

TASKS = {
    "jpeg_compressibility": "small JPEG files",
    "jpeg_incompressibility": "large JPEG files",
    "alignment": "text alignment",
    "composition": "right or wrong",
}
DEFAULT = "branched-uniform"
"""The default's method, as the study calls it."""
STUDY = "[`python -m benchmarks.algorithms`](algorithms/study.md)"
FIDELITY = "[`python benchmarks/fidelity.py`](fidelity.md)"
DEMO = "[`python benchmarks/demo_seeds.py`](demo.md)"
MOVED = 5
"""Nats an image: methods that moved the model less gained too little to ask what is kept of it."""


def claims() -> list[tuple[str, str, str, str]]:
    """Return what is claimed: the claim, its figure, the seeds, and the command with its page."""
    return [*_of_the_study(), *_of_ddpo(), *_of_the_demo(), *_of_fidelity(), *_of_mixes(), *_of_the_program()]


def _of_the_study() -> list[tuple[str, str, str, str]]:
    found = []
    for task, one in read(RESULTS / "algorithms.json")["tasks"].items():
        methods = one["methods"]
        best = _highest(methods)
        apart = [name for name in methods if always_sooner(methods, name)]
        fastest = max(apart or methods, key=lambda name: methods[name]["to_plain"]["speed_up"]["median"] or 0)
        reward, plain, after = methods[best]["reward"], methods[PLAIN]["reward"], methods[best]["best_after"]
        same = [name for name in methods if name != best and overlaps(methods, best, name)]
        broken, end = methods[best]["broken"], methods[best]["end"]["judge"]["mean"]
        found.append(
            (
                f"{TASKS[task]}: of {len(methods)} methods with the same search and the same time, `{best}` has the best sound reward"
                + _not_apart(same),
                f"{one['untrained']['reward']:.3f} to {reward['mean']:.3f} ({reward['low']:.3f} to {reward['high']:.3f}), after "
                f"{after['low']:.0f} to {after['high']:.0f} s"
                + (f" (later the pictures of {broken} of {len(methods[best]['seeds'])} runs broke)" if broken else "")
                + f"; published RLCM to {plain['mean']:.3f} ({plain['low']:.3f} to {plain['high']:.3f}). At the last evaluation "
                f"the judge finds {end:.0%} of `{best}`'s pictures right, from {one['untrained']['judge']:.0%}",
                seeds_of(methods.values()),
                STUDY,
            )
        )
        if STUDIED_TASKS[task].asks:
            claim = f"{TASKS[task]}: the same on unseen prompts by the held-out judge, at the best evaluation and at the last"
            told = f"{one['untrained']['judge']:.1%} to {shares_of(methods[best]['judge'])}; {shares_of(methods[best]['end']['judge'])}"
            found.append((claim, told, seeds_of([methods[best]]), STUDY))
            continue
        up = methods[fastest]["to_plain"]["speed_up"]
        if fastest != PLAIN and up["median"]:
            how = "of the methods that are sooner in every seed, " if apart else "in the median, not in every seed, "
            claim = f"{TASKS[task]}: {how}`{fastest}` is the first at published RLCM's best sound reward"
            found.append((claim, f"{times_of(up)} times sooner", seeds_of([methods[fastest], methods[PLAIN]]), STUDY))
    return found


def _not_apart(names: Sequence[str]) -> str:
    """Return of which other methods the seeds of a claim's method are not all apart."""
    return f", but its seeds are not apart from {', '.join(f'`{name}`' for name in names)}" if names else ""


def _of_ddpo() -> list[tuple[str, str, str, str]]:
    found = []
    for task, one in read(RESULTS / "algorithms.json")["tasks"].items():
        if "ddpo" not in one:
            continue
        own = one["ddpo"]
        furthest, times = own["variants"][own["furthest"]], STUDIED[own["furthest"]].times
        reward = furthest["reward"]
        found.append(
            (
                f"{TASKS[task]}: DDPO, with {_tried(own['furthest'])} of the same search, and {times} times the time of the others",
                f"{furthest['before']['reward']:.3f} to {reward['mean']:.3f} ({reward['low']:.3f} to {reward['high']:.3f}), "
                f"the best in {furthest['budget'] / 60:g} minutes of computing",
                seeds_of([furthest]),
                STUDY,
            )
        )
        for name, words in ((DEFAULT, "branched rollouts, searched, without the default's leash"), (PLAIN, "published RLCM")):
            count = len(one["methods"][name]["seeds"])
            told = [
                f"{what}: {times_of(there['speed_up'])} times sooner, in {there['reached']} of {count} seeds; DDPO scored "
                f"{times_of(there['fewer_queries'])} times as many images"
                for what, key in (("DDPO's best", "to_best"), ("DDPO's gain", "to_gain"))
                if (there := own["methods"][name][key]) is not None and there["reached"]
            ]
            claim = f"{TASKS[task]}: {words}, until they are where DDPO was, and until they have gained as much"
            found.append((claim, ". ".join(told), seeds_of([one["methods"][name], furthest]), STUDY))
    return found


def _tried(name: str) -> str:
    return "the second-best try (the best one's rate breaks the pictures)" if name == DDPO_SECOND else "the best try"


def _highest(methods: Mapping[str, Any]) -> str:
    """Return the method with the best sound reward."""
    return max(methods, key=lambda name: float(methods[name]["reward"]["mean"]))


def _of_the_demo() -> list[tuple[str, str, str, str]]:
    runs = read(RESULTS / "demo.json")["runs"]
    judged = demo_seeds.judged_as_trained(runs)
    gone, by_kinds = [one["errors_gone"]["mean"] for one in judged], [demo_seeds.gone_by_kinds(one) for one in judged]
    after = [one["tuned"]["right"]["overall"] for one in judged]
    seconds = max(run["whole_command_seconds"] for run in runs)
    return [
        (
            "the demo fixes errors of the base model on prompts that it was not trained on, by the held-out judge",
            f"{min(gone):.0%} to {max(gone):.0%} of the wrong pictures gone; as a mean of the kinds of prompts {min(by_kinds):.0%} to "
            f"{max(by_kinds):.0%} ({judged[0]['base']['right']['overall']:.1%} right before, {min(after):.1%} to {max(after):.1%} "
            f"after), in at most {seconds:.0f} s",
            str(len(runs)),
            DEMO,
        ),
        *_of_the_demo_at_length(),
    ]


def _of_the_demo_at_length() -> list[tuple[str, str, str, str]]:
    runs = read(RESULTS / "demo-long.json")["runs"]
    judged = demo_seeds.judged_as_trained(runs)
    after, gone = [one["tuned"]["right"]["overall"] for one in judged], [one["errors_gone"]["mean"] for one in judged]
    one_step = [run["judged"]["unseen, 1"]["tuned"]["right"]["overall"] for run in runs]
    before = runs[0]["judged"]["unseen, 1"]["base"]["right"]["overall"]
    return [
        (
            "four times as many rounds of the demo, on the same unseen prompts",
            f"{judged[0]['base']['right']['overall']:.1%} to {spread(after, '.1%')} right, {spread(gone, '.0%')} of the wrong pictures "
            f"gone; the teacher in 50 steps is right in {demo_seeds.told_of_teacher()}. In one step fewer are right than before: "
            f"{before:.1%} to {spread(one_step, '.1%')}",
            str(len(runs)),
            "[`python benchmarks/demo_seeds.py --long`](demo-long.md)",
        )
    ]


def _of_fidelity() -> list[tuple[str, str, str, str]]:
    found = read(RESULTS / "fidelity.json")
    base = found["base"][str(OWN)]
    rows = []
    for method, runs in found["runs"].items():
        steps = [run["steps"][str(OWN)] for run in runs]
        sharp = spread([one["sharpness"] / base["sharpness"] for one in steps], ".0%")
        far = spread([one["to_real"] / base["to_real"] for one in steps], ".2f")
        right = spread([100 * (one["right"] - base["right"]) for one in steps], "+.1f")
        reward = "how far a picture has what was asked" if GRADED in METHODS[method][1] else "right or wrong"
        rows.append(
            (
                f"do {found['minutes']:g} minutes of `{method}`, on {reward}, blur the pictures?",
                f"sharpness {sharp} of the base's, distance to renders {far} times the base's, {right} points right; it moved by "
                f"{mean(run['kl'] for run in runs):.0f} nats an image",
                str(len(runs)),
                FIDELITY,
            )
        )
    return rows


def _of_mixes() -> list[tuple[str, str, str, str]]:
    runs = read(RESULTS / "mixed_rewards.json")["runs"]
    ways: dict[str, list[Mapping[str, Any]]] = {}
    for one in runs:
        ways.setdefault(one["way"], []).append(one)
    told = "; ".join(
        f"{way}: {mean(one['right']['before'] for one in mine):.1%} to {mean(one['right']['after'] for one in mine):.1%} right, "
        f"colourfulness {mean(one['colourfulness']['before'] for one in mine):.0f} to "
        f"{mean(one['colourfulness']['after'] for one in mine):.0f}"
        for way, mine in ways.items()
    )
    seeds = str(len(next(iter(ways.values()))))
    command = "[`python benchmarks/mixed_rewards.py`](algorithms/gdpo.md#measured)"
    how = "on the hard one no way of adding them is clearly better" if alike(runs) else "how they are added decides"
    return [(f"a hard reward together with an easy one of another scale: {how}", told, seeds, command)]


def _of_the_program() -> list[tuple[str, str, str, str]]:
    speed, kills = read(RESULTS / "speed.json"), read(RESULTS / "faults_kill.json")["kills"]
    whole = sum(one["same_lora"] and one["rounds_whole"] for one in kills)
    under_way = sum("checkpoint" in one["at"] for one in kills)
    repeats = len(speed["round_over_bare"]["all"])
    return [
        (
            "a round of published RLCM costs little more than its network calls, and less than a loop in the published style",
            f"{speed['round_over_bare']['median']:.2f} times its calls; the published style "
            f"{speed['published_over_round']['median']:.1f} times a round",
            f"{repeats} repeats",
            f"[`python benchmarks/speed.py --repeats {repeats}`](performance.md)",
        ),
        (
            "a run that is killed at a random moment and resumed ends exactly like an undisturbed run, byte for byte",
            f"{whole} of {len(kills)}; {under_way} of these while rounds were made",
            f"{len(kills)} kills",
            "[`python benchmarks/faults/kill.py`](reliability.md)",
        ),
    ]


def missed() -> list[str]:
    """Return what was aimed at and not reached, or not measured, a sentence each."""
    runs = read(RESULTS / "demo.json")["runs"]
    long = demo_seeds.bars(read(RESULTS / "demo-long.json")["runs"], at_length=True)
    bars, at_length = (
        [f"{what} (asked {bar}, worst seed {value})" for what, bar, value, met in found if not met]
        for found in (demo_seeds.bars(runs), long)
    )
    return [
        f"The demo misses: {'; '.join(bars)}." if bars else "The demo reaches all of its bars.",
        f"The demo at length misses: {'; '.join(at_length)}." if at_length else "The demo at length reaches all of its bars.",
        _grounds(runs),
        _below_teacher(),
        _two_thirds(),
        _unseen_combinations(runs),
        _not_first(),
        *_ddpo_missed(),
        _rlcm_missed(),
        _kept(),
        _frontier_missed(),
        *_tasks_missed(),
        f"[Learning from votes](voters.md): {of_votes(read(RESULTS / 'voters.json')['cells']).replace('**', '')}",
        *NOT_MEASURED,
        "Speed and memory on a GPU, and published weights of large models: nobody has run these yet.",
    ]


NOT_MEASURED = (
    "The default as it is shipped, with its leash, was not timed against DDPO. The study's methods have a plain penalty or none.",
    "AWM, REBEL and normalised ratios were run on one of the study's four tasks, `dense` and `divergence-ppo` on two.",
    "On right or wrong a try's share is known to 4 points, and two tries of published RLCM were equal: which settings won there owes "
    "something to chance.",
    "Fidelity was asked for after runs ten times as long, and at equal reward. Its runs have four minutes, five times as long as the "
    "study's (as long on right or wrong), and equal time.",
    "DDPO was asked to run to a plateau or for 90 minutes; it had 15 and 22.5.",
    "Not tried: other wordings of a prompt, a reference model that follows or is reset, a KL by step, a term for novelty.",
)
"""What was asked for and is not there, beside what can be read from the results."""


def _two_thirds() -> str:
    runs = read(RESULTS / "demo-long.json")["runs"]
    told = []
    for steps in (2, 4):
        judged = [run["judged"][f"unseen, {steps}"] for run in runs]
        after = spread([one["tuned"]["right"]["overall"] for one in judged], ".1%")
        told.append(f"in {steps} steps {judged[0]['base']['right']['overall']:.1%} to {after}")
    return (
        "Two thirds of the errors gone on right or wrong, in 2 and in 4 steps (the aim 92% right): no run comes near. The furthest "
        f"is the demo at length, {' and '.join(told)}."
    )


def _unseen_combinations(runs: Sequence[Mapping[str, Any]]) -> str:
    steps = runs[0]["steps"]
    points, gone = {}, {}
    for what in ("unseen", "held out"):
        judged = [run["judged"][f"{what}, {steps}"] for run in runs]
        points[what] = 100 * mean(one["tuned"]["right"]["overall"] - one["base"]["right"]["overall"] for one in judged)
        gone[what] = mean(one["errors_gone"]["mean"] for one in judged)
    return (
        f"Of combinations that no training has seen the demo makes {points['held out']:.1f} points more right, of the other prompts "
        f"{points['unseen']:.1f}; of the errors {gone['held out']:.0%} and {gone['unseen']:.0%} are gone. Asked was 85% of the gain: "
        f"{_met(points)} in points, {_met(gone)} in errors."
    )


def _met(gain: Mapping[str, float]) -> str:
    return "reached" if gain["held out"] >= 0.85 * gain["unseen"] else "missed"


def _rlcm_missed() -> str:
    """Return how published RLCM compares with DDPO where it was to be sooner, and at least as good with as many images."""
    told = []
    for task, one in read(RESULTS / "algorithms.json")["tasks"].items():
        if "ddpo" not in one:
            continue
        own = one["ddpo"]
        furthest, there = own["variants"][own["furthest"]], own["methods"][PLAIN]["to_best"]
        images, best = furthest["spent"]["reward_queries"], []
        for seed in one["methods"][PLAIN]["seeds"]:
            looks = read(RESULTS / "algorithms" / f"{task}-{PLAIN}-{seed}.json")["evaluations"]
            sound = [e for e in looks if e["reward_queries"] <= images and e["judge"] >= SOUND * looks[0]["judge"]]
            best.append(max(e["reward"] for e in sound))
        when = f"is where DDPO was in {there['reached']} of {len(best)} seeds" if there else "begins where DDPO ended"
        told.append(
            f"{TASKS[task]}: it {when}, and with the {images:,.0f} images of DDPO's median best it has {mean(best):.3f}, DDPO "
            f"{furthest['reward']['mean']:.3f}"
        )
    return (
        f"Published RLCM was to be sooner than DDPO on every task, and at least as good with as many images: {'; '.join(told)}."
    )


def _kept() -> str:
    """Return the share of the gain in the trained number of steps that is kept in others, of the methods that moved furthest."""
    found = read(RESULTS / "fidelity.json")
    told = []
    for method, runs in found["runs"].items():
        gains = {n: mean(run["steps"][n]["right"] for run in runs) - found["base"][n]["right"] for n in ("1", "2", "4", "8")}
        if mean(run["kl"] for run in runs) > MOVED:
            told.append(f"`{method}` {', '.join(f'{gains[n] / gains[str(OWN)]:.0%}' for n in ('1', '2', '8'))}")
    return (
        f"At least 90% of the gain in 4 steps was to be kept in 1, 2 and 8. Methods that moved further than {MOVED} nats keep: "
        f"{'; '.join(told)} ([fidelity](fidelity.md))."
    )


def _grounds(runs: Sequence[Mapping[str, Any]]) -> str:
    judged = demo_seeds.judged_as_trained(runs)
    kept = [one["tuned"]["grounds"] / one["base"]["grounds"] for one in judged]
    return (
        f"The grounds of the demo's pictures, which no reward asks for, become alike: their colours are {spread(kept, '.0%')} as far "
        "apart as the base model's ([what a leash keeps](demo.md#with-a-leash))."
    )


def _below_teacher() -> str:
    card = read(ROOT / "src" / "rlcm" / "builtin" / "weights" / "evaluation.json")
    teacher, student = (card[name]["score"]["overall"] for name in ("teacher_50", "student_4"))
    return (
        f"The built-in model in 4 steps is right in {100 * (teacher - student):.1f} points fewer of its pictures than its teacher in "
        "50 (asked at most 5; `rlcm builtin evaluate`)."
    )


def _tasks_missed() -> list[str]:
    run = read(RESULTS / "algorithms.json")["tasks"]
    return [f"{words.capitalize()} in the equally tuned study: not run." for task, words in TASKS.items() if task not in run]


def _ddpo_missed() -> list[str]:
    tasks = read(RESULTS / "algorithms.json")["tasks"]
    without = [TASKS[task] for task, one in tasks.items() if "ddpo" not in one]
    told = [f"DDPO with equal tuning: not run on {', '.join(without)}." if without else ""]
    for task, one in tasks.items():
        if "ddpo" not in one:
            continue
        furthest = one["ddpo"]["variants"][one["ddpo"]["furthest"]]
        if rising := furthest["rising"]:
            of, minutes = len(furthest["seeds"]), furthest["budget"] / 60
            told.append(
                f"A plateau of DDPO on {TASKS[task]}: in {rising} of {of} runs the best evaluation is the last one, after {minutes:g} "
                "minutes. More time would give more."
            )
    return [text for text in told if text]


def _frontier_missed() -> str:
    found = read(RESULTS / "leashes.json")
    told = verdict(found)
    return f"The frontier of reward and diversity: small JPEG files only. {told} ([the sweep](frontier.md#measured))"


def _not_first() -> str:
    tasks = read(RESULTS / "algorithms.json")["tasks"]
    beaten = [
        f"{TASKS[task]} (`{best}` {one['methods'][best]['reward']['mean']:.3f}, the default's method, without its leash, "
        f"{one['methods'][DEFAULT]['reward']['mean']:.3f})"
        for task, one in tasks.items()
        if DEFAULT in one["methods"] and (best := _highest(one["methods"])) != DEFAULT
    ]
    if not beaten:
        return f"The default's method is first on all {len(tasks)} tasks of the study; other rewards were not tried."
    return f"The default's method is not first everywhere: {'; '.join(beaten)}."


def page(machines: Sequence[str]) -> str:
    """Return the page."""
    head = ("what is claimed", "measured", "seeds", "command and page")
    misses = "".join(f"- {text}\n" for text in missed())
    return f"""# Results

Everything here was measured on the package's built-in model (64x64 pixels), on CPUs. Figures are means over the seeds (speed-ups:
medians), with the lowest and highest seed in brackets. *Right* is what the held-out [judge](glossary.md#judge) says, which no reward
and no gradient sees; in the study it also says which settings and which evaluations count, and ends runs whose pictures broke. The sets
of pictures differ, and so does what is right before training. A command makes the runs that are missing and then its page;
`--no-runs` of the study makes the page alone.

{table(head, claims())}
## Missed, and not measured

{misses}
## How to read it

- One small model says how methods compare on it. It does not say what they gain on yours.
- Seeds vary. Where the brackets of two methods overlap, the order of their means says little.
- Times depend on when a run was ended: published RLCM and DDPO still rose on small JPEG files. Times against DDPO are from the median
  of its seeds, and their brackets are over the other method's seeds alone; DDPO shared its machine with three to five other runs.
- To repeat a claim of the study: `python -m benchmarks.algorithms --root NEW --with-search --tasks TASK --methods METHOD rlcm
  --seeds 0 1 2 3 4`. It takes the settings that the search chose, a folder of its own, and 45 seconds of computing a run (225 on right
  or wrong).
- Another processor rounds differently, and a run of many updates then ends elsewhere. The figures hold for the machines that their
  pages name: {"; ".join(machines)}.
"""


def main() -> None:
    """Write the page."""
    parser(__doc__).parse_args()
    named = ("demo", "demo-long", "speed", "fidelity", "mixed_rewards")
    machines = sorted({read(RESULTS / f"{name}.json")["machine"] for name in named})
    text = page(machines)
    (DOCS / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
