"""The README as package indexes show it: they have no files beside it, so its relative links and pictures need addresses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)\n*")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def published(readme: str, source: str | None) -> str:
    """Return the README with absolute addresses, or without pictures and links where no address of the source is known.

    Args:
        source: where the files of the repository can be looked at, such as https://host/user/rlcm; None if nowhere.
    """
    if source is None:
        return LINK.sub(r"\1", PICTURE.sub("", readme))
    readme = PICTURE.sub(lambda found: f"![{found[1]}]({source}/raw/main/{found[2]})\n\n", readme)
    return LINK.sub(lambda found: f"[{found[1]}]({source}/blob/main/{found[2]})", readme)


class Readme(MetadataHookInterface):
    """Sets the package's description from README.md."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add `readme` to the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": published(text, source)}
