"""How what is optional is installed: by the packages that it stands for, which works wherever this package came from."""

from __future__ import annotations

import re
import shlex
from importlib import metadata


def to_install(extra: str) -> str:
    """Return the command that installs the packages of an extra, such as `pip install 'gradio>=6.28'`."""
    try:
        required = metadata.requires("rlcm") or []
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        required = []
    wanted = [text.partition(";")[0].strip() for text in required if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", text)]
    return f"pip install {' '.join(map(shlex.quote, wanted))}" if wanted else f"pip install -c constraints.txt -e '.[{extra}]'"
