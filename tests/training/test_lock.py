"""The lock of a run folder: one process at a time, and none after its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swa_jax.training.lock import LOCK_FILE, check_free, locked

ROOT = Path(__file__).parents[2]
HOLDER = """
import os, sys, time
from pathlib import Path
from swa_jax.training.lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker that outlives its parent must not keep the lock
        time.sleep(60)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_who_is_there(tmp_path):
    folder = tmp_path / "run"
    with locked(folder):
        for attempt in (check_free, lambda folder: locked(folder).__enter__()):
            with pytest.raises(ValueError, match=f"in use: process {os.getpid()} on"):
                attempt(folder)
    check_free(folder)
    with locked(folder):
        pass


def test_looking_makes_nothing(tmp_path):
    check_free(tmp_path / "nowhere")
    check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_lock(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        with pytest.raises(ValueError, match=f"process {pid} on"):
            check_free(folder)
        holder.kill()
        holder.wait()
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            try:
                check_free(folder)
                break
            except ValueError:
                time.sleep(0.01)
        with locked(folder):
            assert str(os.getpid()) in (folder / LOCK_FILE).read_text()
        os.killpg(pid, signal.SIGKILL)  # the worker
