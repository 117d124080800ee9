"""Characters that look like those of a keyboard: what word processors and web pages put in place of quotes, hyphens and spaces."""

from __future__ import annotations

import re
import unicodedata

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
"""Hyphens, dashes and minus signs other than `-`."""
DOUBLE = "\u201c\u201d\u201e\u201f\u2033\uff02"
SINGLE = "\u2018\u2019\u201a\u201b\u2032\uff07"
QUOTES = DOUBLE + SINGLE
"""Quotes that neither a shell nor YAML takes for such."""
_KEYS = str.maketrans({**dict.fromkeys(DASHES, "-"), **dict.fromkeys(DOUBLE, '"'), **dict.fromkeys(SINGLE, "'")})


def keyboard(text: str) -> str:
    """Return a text with the characters of a keyboard in place of those that look like them; invisible ones are left out."""
    kept = (_plain(one) for one in text.translate(_KEYS))
    return "".join(kept)


def straight(text: str) -> str:
    """Return a text with straight quotes in place of typographic ones."""
    return "".join(one.translate(_KEYS) if one in QUOTES else one for one in text)


def named(text: str) -> str:
    """Return the names of the characters in a text that only look like those of a keyboard, or are invisible."""
    found = dict.fromkeys(one for one in text if _plain(one.translate(_KEYS)) != one)
    names = {one: unicodedata.name(one, "character").lower() for one in found}
    return ", ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name} (U+{ord(one):04X})" for one, name in names.items())


def visible(text: str) -> str:
    """Return a text with what is invisible, or looks like a space, as <U+...>."""
    return "".join(one if one == " " or one.isprintable() else f"<U+{ord(one):04X}>" for one in text)


def unquoted(text: str, *, plain: bool = False) -> str | None:
    """Return what stands in typographic quotes; None where a text as a whole does not.

    Args:
        plain: whether straight quotes count, too.
    """
    doubles, singles = DOUBLE + '"' * plain, SINGLE + "'" * plain
    first, last, inner = text[:1], text[-1:], text[1:-1]
    if len(text) < 2 or first not in doubles + singles:
        return None
    if first in doubles:
        return inner if last in doubles and not any(one in doubles for one in inner) else None
    between = re.sub(rf"(?<=\w)[{singles}](?=\w)", "", inner)  # an apostrophe
    return inner if last in singles and not any(one in singles for one in between) else None


def torn(text: str) -> bool:
    """Return whether a text begins with a double typographic quote that does not end, as before a space or a comma."""
    return text[:1] in tuple(DOUBLE) and not any(one in DOUBLE for one in text[1:])


def _plain(one: str) -> str:
    kind = unicodedata.category(one)
    if one == " " or one.isascii():
        return one
    if kind == "Zs":
        return " "
    if kind == "Cf":
        return ""
    if kind == "Nd":
        return str(unicodedata.digit(one))
    return unicodedata.normalize("NFKC", one) if "\uff01" <= one <= "\uff5e" else one
