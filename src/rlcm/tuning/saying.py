"""What is said beside a command's result: libraries are silenced, and long work says how far it is."""

from __future__ import annotations

import warnings

from rich.console import Console


def quiet() -> None:
    """Silence what libraries say about themselves; the product's own words stay."""
    import diffusers
    import huggingface_hub
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # of each attempt to reach the Hub; the last one's failure is told


def say(text: str) -> None:
    """Tell the user how far it is, beside what the command prints."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
