"""The built-in model: one to four things at 64x64 pixels, in plain diffusers and transformers format, inside the package."""

from __future__ import annotations

from pathlib import Path

from rlcm.errors import MissingFileError

WEIGHTS = Path(__file__).parent / "weights"
DEMO, PUBLISHED = (Path(__file__).parent / f"{name}.yaml" for name in ("demo", "published"))
"""The configuration that is called `demo`, and the paper's."""
PARTS: dict[str, str] = {
    "student": "student",
    "teacher": "teacher",
    "clip": "clip",
    "detector": "detector/model.safetensors",
    "judge": "judge/model.safetensors",
}


def configuration(name: str | None) -> Path | str | None:
    """Return the file of a configuration: none where there is no name, the package's own `demo` and `published`, else the name."""
    own = {"demo": DEMO, "published": PUBLISHED}.get(name or "")
    return own if own and not Path(own.stem).exists() else name or None


def model_path(name: str) -> Path:
    """Return where a part of the built-in model lies: student, teacher, clip, detector or judge.

    Raises:
        MissingFileError: if there is no such part, or the package was installed without its weights.
    """
    if name not in PARTS:
        raise MissingFileError(f"the built-in model has no part {name!r}; its parts are {', '.join(PARTS)}.")
    path = WEIGHTS / PARTS[name]
    if not path.exists():
        raise MissingFileError(
            f"{path} is missing, so the package is incomplete; install it again, or train the built-in model "
            "with `rlcm builtin train`."
        )
    return path


def is_part(path: Path | str) -> bool:
    """Say whether a path is that of a part of the built-in model."""
    return WEIGHTS in Path(path).parents


__all__ = ["DEMO", "PARTS", "PUBLISHED", "WEIGHTS", "configuration", "is_part", "model_path"]
