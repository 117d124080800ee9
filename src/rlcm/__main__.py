"""The command `rlcm`, from its first moment on."""

import signal


def main() -> None:
    """Run the command that was typed."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in a shell's background
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what only begins, or has ended, without a traceback
    from rlcm.cli import main as command

    command(prog_name="rlcm")


if __name__ == "__main__":
    main()
