"""Interrupts: the first signal is a wish, the second acts, and afterwards everything is as before."""

import signal
import subprocess
import sys
import threading

import pytest

from rlcm.processes.signals import Ending
from rlcm.training.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_second_acts(number):
    acted = []
    before = signal.signal(number, lambda *_: acted.append(number))
    try:
        with Interrupts() as interrupts:
            assert not interrupts.wanted
            signal.raise_signal(number)
            assert interrupts.wanted
            assert acted == []
            signal.raise_signal(number)
            assert acted == [number]
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(KeyError), Interrupts():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) == before[0]


def test_in_other_threads_it_does_nothing():
    seen = []

    def work():
        with Interrupts() as interrupts:
            seen.append((interrupts.wanted, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_warning_is_a_wish_too(number):
    with Ending(), Interrupts() as interrupts:  # as in a command
        signal.raise_signal(number)
        assert interrupts.wanted
        assert interrupts.by == number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_program_keeps_its_own_use_of_a_users_signal():
    acted = []
    before = signal.signal(signal.SIGUSR1, lambda *_: acted.append(1))
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGUSR1)
        assert not interrupts.wanted
        assert acted == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_python_does_not_know_of_stays():
    script = (
        "import faulthandler, signal\nfrom rlcm.training.interrupts import Interrupts\n"
        "faulthandler.register(signal.SIGUSR1)\n"
        "with Interrupts() as found:\n    signal.raise_signal(signal.SIGUSR1)\nassert not found.wanted\n"
        "signal.raise_signal(signal.SIGUSR1)\nprint('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "goes on"), done.stderr
    assert done.stderr.count("most recent call first") == 2
