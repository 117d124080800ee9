"""The picture of before and after, for a README or a post."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from rlcm.errors import RunDirectoryError
from rlcm.paths import local
from rlcm.report.drawing import ACCENT, INK, LARGE, MUTED, STYLE, draw_chart, learning_curve
from rlcm.report.lettering import cut, font, wrapped
from rlcm.report.reading import read_run
from rlcm.report.run import Run
from rlcm.report.samples import Pair, Shot
from rlcm.report.words import decimals, headline, headline_by_judge, with_unit
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import replacing

RIGHT, WRONG = "#1a7f37", "#b3261e"


def before_after_picture(run_dir: Path, out: Path, columns: int = 6) -> Path:
    """Write a PNG, 1280 pixels wide, of pictures of the fixed set before and after tuning; return `out`.

    Where the reward is for pictures that are right, they are the first that the judge finds wrong before and right after, and in the
    last column the first that stayed wrong; the picture says this. Elsewhere they are the first of the set.

    Args:
        columns: pictures in a row, 1 to 10; fewer where the run kept fewer.

    Raises:
        ValueError: if `columns` is out of range.
        RunDirectoryError: if the run has not both pictures of before and of after, or `out` cannot be written.
    """
    if not 1 <= columns <= 10:
        raise ValueError(f"columns={columns} is not in 1 .. 10.")
    run, out = read_run(local(run_dir, "run_dir")), local(out, "out")
    every, question = run.pairs(sys.maxsize), run.metric.question
    places, rule = telling([(_answer(pair.before, question), _answer(pair.after, question)) for pair in every], columns)
    pairs = [every[place] for place in places]
    if not pairs:
        raise RunDirectoryError(
            f"{run.path / 'samples'} has no pictures of the same prompts from two rounds, so there is no before and after; "
            "let the run go on to its next evaluation (`rlcm train --resume`)."
        )
    with _written(out) as temporary:
        _draw_rows(run, pairs, rule).save(temporary, format="PNG", optimize=True)
    return out


def telling(answers: Sequence[tuple[bool | None, bool | None]], count: int) -> tuple[list[int], str]:
    """Return which pictures to show, and the rule they were chosen by; no rule where they are simply the first.

    Args:
        answers: for each, whether it was right before and is right now; None where nobody said.
        count: of pictures, at most.
    """
    wrong = [(place, now) for place, (before, now) in enumerate(answers) if before is False and now is not None]
    mended, stayed = ([place for place, now in wrong if now is wanted] for wanted in (True, False))
    if not mended or count < 2:
        return list(range(min(count, len(answers)))), ""
    rule = "Shown: the first that were wrong and became right"
    return [*mended[: count - len(stayed[:1])], *stayed[:1]], rule + (", and the first that stayed wrong." if stayed else ".")


def _answer(shot: Shot, question: str | None) -> bool | None:
    return dict(shot.verdicts).get(question) if question else None


def curve_picture(run: Run, out: Path) -> bool:
    """Write a PNG of the learning curve over time, unless there is too little to draw; return whether there is one.

    Raises:
        RunDirectoryError: if `out` cannot be written.
    """
    lines, x_label, y_label = learning_curve(run, "seconds")
    if not lines:
        return False
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=LARGE, layout="constrained")
        draw_chart(figure.add_subplot(), lines, x_label, y_label)
        with _written(out) as temporary:
            figure.savefig(temporary, dpi=160, facecolor="white")
    return True


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """Yield where to write a picture that takes the place of `out` once it is whole; its folder is made."""
    with disk_errors(out, "choose another path"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            yield temporary


def _draw_rows(run: Run, pairs: Sequence[Pair], rule: str) -> Image.Image:
    """Return the picture of two rows: caption, the rule, prompts, pictures with their numbers or whether they are right."""
    width, margin, gutter, gap = 1280, 36, 104, 14
    side = min(240, (width - 2 * margin - gutter - gap * (len(pairs) - 1)) // len(pairs))
    source = pairs[0].before.picture
    height = round(side * source.height / source.width)
    small = font(15)
    prompts = [wrapped(pair.prompt, small, side) for pair in pairs]
    top, label_height, between = 122 + 26 * bool(rule) + 20 * max(map(len, prompts)), 40, 14
    canvas = Image.new("RGB", (width, top + 2 * (height + label_height) + between + 20), "white")
    draw = ImageDraw.Draw(canvas)
    bold, plain = font(19, True), font(19)

    by_judge = headline_by_judge(run)
    if by_judge:
        (start, emphasis, means), beside = by_judge
    else:
        start, emphasis, rest = headline(run)
        # The sentence up to its means; the judge's part of it goes into the line below.
        means, _, beside = rest.rstrip(".").partition("; ")
    x = float(margin)
    size = next(
        s for s in range(28, 11, -1) if font(s, True).getlength(start + emphasis + means) <= width - 2 * margin or s == 12
    )
    title = font(size, True)
    for text, colour in ((start, INK), (emphasis, ACCENT), (means, INK)):
        draw.text((x, 30), text, font=title, fill=colour)
        x += title.getlength(text)
    line = "Same prompts, same seeds" + (f"; {beside}" if beside else "") + "."
    for row, text in enumerate(filter(None, (line, rule))):
        draw.text((margin, 72 + 26 * row), cut(text, plain, width - 2 * margin), font=plain, fill=MUTED)

    for column, lines in enumerate(prompts):
        x = margin + gutter + column * (side + gap) + side / 2
        for place_up, text in enumerate(reversed(lines)):
            draw.text((x, top - 11 - 20 * place_up), text, font=small, fill=MUTED, anchor="ms")

    digits = decimals(*(s.value for p in pairs for s in (p.before, p.after) if s.value is not None))
    for row, (name, shots) in enumerate({"before": [p.before for p in pairs], "after": [p.after for p in pairs]}.items()):
        y = top + row * (height + label_height + between)
        letters, colour = (bold, ACCENT) if name == "after" else (plain, INK)
        draw.text((margin, y + height / 2), name, font=font(22, True), fill=colour, anchor="lm")
        draw.text((margin, y + height / 2 + 24), f"round {shots[0].round}", font=small, fill=MUTED, anchor="lm")
        for column, shot in enumerate(shots):
            x = margin + gutter + column * (side + gap)
            _paste(canvas, shot.picture, (round(x), y), (side, height))
            right = _answer(shot, run.metric.question)
            value = with_unit(shot.value, run.metric.unit, digits)
            if right is not None:
                value, colour = ("✓ right", RIGHT) if right else ("✗ wrong", WRONG)
            draw.text((x + side / 2, y + height + 8), value, font=letters, fill=colour, anchor="ma")
    return canvas


def _paste(canvas: Image.Image, picture: Image.Image, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Paste a picture, scaled to `size`, with rounded corners."""
    scale, box = 4, (0, 0, 4 * size[0] - 1, 4 * size[1] - 1)  # drawn large and made smaller, for smooth corners
    shape, rim = (Image.new("L", (scale * size[0], scale * size[1]), 0) for _ in range(2))
    ImageDraw.Draw(shape).rounded_rectangle(box, radius=10 * scale, fill=255)
    # A faint rim, so that white pictures end somewhere.
    ImageDraw.Draw(rim).rounded_rectangle(box, radius=10 * scale, outline=40, width=scale)
    canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), corner, shape.resize(size, Image.Resampling.LANCZOS))
    canvas.paste("black", (*corner, corner[0] + size[0], corner[1] + size[1]), rim.resize(size, Image.Resampling.LANCZOS))
