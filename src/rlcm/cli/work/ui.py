"""What `rlcm ui` does."""

from __future__ import annotations

import os
from pathlib import Path

import click

from rlcm.errors import UsageError
from rlcm.extras import to_install
from rlcm.paths import shown
from rlcm.processes.signals import until_told
from rlcm.report.words import counted
from rlcm.tuning.saying import quiet

PASSWORD = "RLCM_UI_PASSWORD"
"""The environment variable with the visitors' password, unless another is named."""


def serve_ui(runs: Path, host: str, port: int, password_env: str) -> None:
    """Run `rlcm ui`."""
    quiet()
    try:
        from rlcm.ui.folder import RunsFolder
        from rlcm.ui.page import create_app
        from rlcm.ui.server import address, check_host, listen, serve
    except ModuleNotFoundError as error:
        raise UsageError(f"the page needs the package {error.name}; install it with: {to_install('ui')}") from error
    password = os.environ.get(password_env) or None
    if password is not None and not password.strip():
        raise UsageError(
            f"the password in the environment variable {password_env} holds nothing but spaces; set another one, or unset it."
        )
    if password is None and password_env != PASSWORD:
        raise UsageError(
            f"--password-env={password_env!r}: there is no such environment variable, or it is empty; set it first."
        )
    check_host(host, password, password_env)
    folder = RunsFolder(runs.absolute())
    listener = listen(host, port)
    app = create_app(folder, host, password)
    with until_told():
        what = counted(len(folder.names()), "run") if runs.exists() else "no such folder yet, the first run makes it"
        click.echo(f"{shown(runs)}: {what}, at {address(listener)} (Ctrl-C ends it; runs go on)")
        serve(app, listener)
