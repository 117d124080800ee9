"""Addresses of servers: secrets stand in them as `${VARIABLE}`, so that nothing which is written or shown holds one."""

from __future__ import annotations

import os
import re
import socket
from urllib.parse import quote, urlsplit

from rlcm.errors import ConfigError, UsageError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Texts to look through may be long and of one word, so neither may be tried from every letter of one: that takes its length squared.
_USER = re.compile(r"((?<=[\w+.-]):/{1,2})([^/?#\s@'\"]*)@")  # of any scheme: it may be mistyped
_FIELD = re.compile(r"([?&;]([\w.-]+)=)([^&;#\s'\"]+)")
_TOKEN = re.compile(r"[!-~]+")
_SECRET = re.compile(r"key|token|secret|passw|pwd|auth|credential|signature|\A(pw|sig)\Z", re.IGNORECASE)


def is_address(name: str) -> bool:
    """Return whether a text is the address of a server."""
    return name.lower().startswith(("http://", "https://"))


def open_port(host: str, port: int, named: str, waiting: int = 128) -> socket.socket:
    """Return a port that listens, so that whoever reads its address can call at once.

    Args:
        port: 0 takes a free one.
        named: how the user gave both, for the error.
        waiting: how many callers may wait to be taken in.

    Raises:
        UsageError: if it cannot be opened.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(waiting)
    except OSError as error:
        listener.close()
        raise UsageError(f"{named} cannot be opened ({error.strerror}); choose another, or 0.") from error
    return listener


def without_secrets(text: str) -> str:
    """Return a text with `***` in place of users, passwords and keys in its addresses; `${VARIABLE}` stays."""

    def hide_user(found: re.Match[str]) -> str:
        return found[0] if _is_named(found[2]) else f"{found[1]}***@"

    def hide_field(found: re.Match[str]) -> str:
        return found[0] if not _SECRET.search(found[2]) or _is_named(found[3]) else f"{found[1]}***"

    return _FIELD.sub(hide_field, _USER.sub(hide_user, text))


def bearer_token(variable: str) -> str | None:
    """Return the token that an environment variable holds; None where it is not set, or empty.

    Raises:
        ConfigError: if it has characters that no request can carry; the text does not show it.
    """
    token = os.environ.get(variable) or None
    if token is not None and not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"the token in the environment variable {variable} cannot be sent with a request; set it to letters of the English "
            "alphabet, digits and signs, without spaces or line breaks."
        )
    return token


def check_address(address: str) -> None:
    """Do nothing if an address can be used and holds no secret.

    Raises:
        ValueError: if it is none; or if a user, a password or a key stands in it, and not the variable that has it.
    """
    try:
        parts = urlsplit(_VARIABLE.sub("x", address))
        whole = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    shown = without_secrets(address)
    if not whole:
        raise ValueError(f"{shown!r} is not an address; write http://host:port.")
    if shown != address:
        raise ValueError(
            f"{shown} holds a user, a password or a key, which would be written into the run's files. Put it into an environment "
            f"variable, such as REWARD_SECRET, and its name into the address: {shown.replace('***', '${REWARD_SECRET}')} (in single "
            "quotes, so that the shell leaves it alone). A bearer token needs no place in the address: see token_env"
        )


def request_address(address: str, path: str) -> str:
    """Return where a request goes: the path after that of the server's address, and its variables' values in place.

    Raises:
        ConfigError: if a variable is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ConfigError(f"{address} needs the environment variable {found[1]}, which is not set; set it and start again.")
        return quote(os.environ[found[1]], safe=":%!$'()*+,~")

    head, mark, query = address.partition("?")
    return _VARIABLE.sub(value, head.rstrip("/") + path + mark + query)


def _is_named(secret: str) -> bool:
    return _VARIABLE.sub("", secret).strip(":") == ""
