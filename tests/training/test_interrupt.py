"""Signals: the first asks, a second Ctrl-C leaves, whatever the program is doing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from swa_jax.training.interrupt import (
    Stopped,
    leave,
    stop_on_signals,
    until_stopped,
)

ROOT = Path(__file__).parents[2]
# A computation that hears no signal, as one in XLA.
PROGRAM = """
import hashlib, sys, time
from swa_jax.training.interrupt import Stopped, leave, stop_on_signals, until_stopped
def deaf():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
with stop_on_signals() as stop:
    if sys.argv[1] == "main":
        deaf()
    try:
        until_stopped(deaf, stop)
    except Stopped as stopped:
        code = 128 + stopped.number
sys.exit(leave(code))
"""


def run_deaf(where, *signals):
    """The exit code, output and seconds after signals to a deaf computation."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, where],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        begin = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        try:
            _, errors = process.communicate(timeout=2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            return None, "", 0.0
        return process.returncode, errors, time.monotonic() - begin


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_handlers_are_given_back(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.number == number
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers send it more than once
        assert stop.number == number
    assert signal.getsignal(number) == before
    assert not [t for t in threading.enumerate() if t.name == "swax-signals"]


def test_a_second_ctrl_c_leaves_at_once():
    code, errors, seconds = run_deaf("main", signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert "left at once" in errors
    assert seconds < 1.5


def test_a_second_sigterm_is_patient():
    assert run_deaf("main", signal.SIGTERM, signal.SIGTERM)[0] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_deaf_computation_is_not_waited_for(number):
    code, errors, seconds = run_deaf("thread", number)
    assert code == 128 + number
    assert errors == ""
    assert seconds < 1.5


def test_work_hands_back_its_result_or_its_error():
    with stop_on_signals() as stop:
        assert until_stopped(lambda: 3, stop) == 3
        with pytest.raises(ZeroDivisionError):
            until_stopped(lambda: 1 // 0, stop)
        stop.ask(signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            until_stopped(lambda: 3, stop)
        assert stopped.value.number == signal.SIGTERM
    assert leave(7) == 7


def test_outside_of_the_main_thread_nothing_is_asked():
    seen = []

    def block():
        with stop_on_signals() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [False]
