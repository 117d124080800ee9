"""What docs/performance.md says of a GPU: a table a kind of case, made from the results alone."""

from __future__ import annotations

from typing import Any

from benchmarks.shared.pages import table

GIB = 2**30
NOT_MEASURED = "Not measured yet: nobody has run it on a GPU."


def text(found: dict[str, Any]) -> str:
    """Return the section of a run on a GPU; without one, that there is none."""
    if found.get("device") != "cuda":
        return NOT_MEASURED
    done = {name: row for name, row in found["cases"].items() if "error" not in row}
    kinds = {kind: [row for row in done.values() if row["kind"] == kind] for kind in ("rounds", "doctor", "demo")}
    parts = [f"{found['machine']}; {found['seconds'] / 60:.1f} minutes in all. Weights are random, of the published sizes."]
    if kinds["rounds"]:
        parts.append(rounds_table(kinds["rounds"]))
    if kinds["doctor"]:
        parts.append(doctor_table(kinds["doctor"]))
    parts += [demo_words(row) for row in kinds["demo"]]
    if failed := {name: row["error"] for name, row in found["cases"].items() if "error" in row}:
        parts.append("Failed:\n\n" + "\n".join(f"- `{name}`: {error}" for name, error in failed.items()))
    if found["left_out"]:
        parts.append("Left out:\n\n" + "\n".join(f"- `{name}`: {reason}" for name, reason in found["left_out"].items()))
    return "\n\n".join(part.strip() for part in parts)


def rounds_table(rows: list[dict[str, Any]]) -> str:
    """Return the rounds: speed by phase with and without the compiler, memory beside its estimate, the check, the mismatch."""
    plain = [row for row in rows if not row["compiled"]]
    compiled = {(row["shape"], row["precision"]): row for row in rows if row["compiled"]}
    head = [
        "model",
        "precision",
        "images/s sampling",
        "learning",
        "rounds",
        "peak, GiB",
        "estimated",
        "ratio off 1",
        "mismatch, stds",
    ]
    also = ["compiled: sampling", "learning", "rounds"] if compiled else []

    def speed(row: dict[str, Any] | None) -> list[str]:
        if row is None:
            return ["-"] * 3
        return [f"{row['images_per_second'][phase]:.3g}" for phase in ("sampling", "learning", "round")]

    cells = []
    for row in plain:
        apart = row["mismatch"]
        cells.append(
            [
                f"{row['shape']}, {row['pixels']} px",
                row["precision"],
                *speed(row),
                gib(row.get("measured_peak")),
                gib(row["estimated"]["total"]),
                "update left out" if row["first_ratio_off_1"] is None else f"{row['first_ratio_off_1']:.1g}",
                "-" if apart is None else f"{apart['stds']:.1e}",
                *(speed(compiled.get((row["shape"], row["precision"]))) if compiled else []),
            ]
        )
    words = "" if compiled else "\nNothing was compiled: there was no time for it, or the version had no `model.compile`."
    return table([*head, *also], cells) + words


def doctor_table(rows: list[dict[str, Any]]) -> str:
    """Return what the doctor said of every configuration."""
    head = [
        "configuration",
        "doctor",
        "estimated, GiB",
        "peak",
        "images/s",
        "sampling",
        "learning",
        "ratio off 1",
        "a whole run, hours",
    ]
    cells = []
    for row in rows:
        numbers = row["numbers"]
        speed, ratio = numbers.get("speed", {}), numbers.get("ratio", {})
        phases = ("images_per_second", "sampled_per_second", "learned_per_second")
        cells.append(
            [
                f"`{row['config']}`",
                "ok" if row["ok"] else " ".join(row["verdict"].split()),
                gib(numbers.get("memory", {}).get("need_bytes")),
                gib(row["measured_peak"]),
                *(f"{speed[phase]:.3g}" if speed else "-" for phase in phases),
                f"{ratio['deviation']:.1g}" if "deviation" in ratio else "-",
                f"{speed['seconds_in_all'] / 3600:.2g}" if speed else "-",
            ]
        )
    return table(head, cells)


def demo_words(row: dict[str, Any]) -> str:
    """Return the default run in a sentence."""
    return (
        f"The default towards smaller files, {row['rounds']} rounds: {row['before_kb']:.3f} kB to {row['after_kb']:.3f}, "
        f"{row['judge']:.1%} of the pictures right in the end, {row['seconds']:.0f} s of rounds; before an update the ratio is off 1 "
        f"by {row['ratio_deviation_max']:.1g} at most, and the mismatch is {row['mismatch_kl']:.1e} nats an action."
    )


def gib(size: float | None) -> str:
    """Return bytes as GiB."""
    return "-" if size is None else f"{size / GIB:.1f}"
