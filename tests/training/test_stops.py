"""SIGTERM and Ctrl-C in every phase of a run: saved, out in time, bitwise the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.processes import Server, records_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SOON = 5.0  # seconds, of a machine with other things to do


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


def stop_at(server, out, number, **options):
    """The exit code of a run that gets a signal at a point."""
    run = server.start(out, **options)
    run.wait_until_there()
    begin = time.monotonic()
    run.signal(number)
    code = run.wait()
    assert time.monotonic() - begin < SOON
    assert "Traceback" not in run.text()
    return code


def last_step(out):
    records = records_of(out)
    return records[-1]["step"] if records else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_step_a_run_leaves_at_once(server, tmp_path, number):
    out = tmp_path / "run"
    code = stop_at(server, out, number, point="data")
    assert code in (-number, 128 + number)
    assert not out.exists()
    assert stop_at(server, out, number, point="compilation") == 128 + number
    assert records_of(out) == []


def test_stopped_in_evaluations_a_run_ends_as_if_whole(server, tmp_path):
    out = tmp_path / "run"
    assert stop_at(server, out, signal.SIGTERM, point="compilation") == 143
    # The second evaluation of step 10, which the next run does again.
    assert stop_at(server, out, signal.SIGTERM, point="evaluation", after=1) == 143
    assert (out / "checkpoints" / "10").is_dir()
    assert last_step(out) == 10
    assert records_of(out)[-1]["split"] == "train"
    # The last evaluation of all.
    assert stop_at(server, out, signal.SIGINT, point="evaluation", after=11) == 130
    assert (out / "checkpoints" / "60").is_dir()
    assert records_of(out)[-1]["split"] == "train"
    output = server.start(out).finish()
    assert "step 60: validation" in output
    assert "compiled" not in output
    server.check_equal_to_whole(out)
    assert "validation" not in server.start(out).finish(), "it is done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_save_the_last_step_is_saved_too(server, tmp_path, number):
    out = tmp_path / "run"
    options = {"point": "unfinished", "after": 1, "hold": 0.5, "pause": 0.02}
    assert stop_at(server, out, number, **options) == 128 + number
    saved = last_step(out)
    assert saved >= 10
    assert (out / "checkpoints" / str(saved)).is_dir()


def test_a_second_ctrl_c_leaves_in_the_middle_of_a_save(server, tmp_path):
    out = tmp_path / "run"
    run = server.start(out, point="unfinished", after=1)
    run.wait_until_there()
    run.signal(signal.SIGINT)
    time.sleep(0.5)
    begin = time.monotonic()
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert time.monotonic() - begin < 1.0
    assert "left at once" in run.text()
    assert (out / "checkpoints" / "5").is_dir()
    assert not (out / "checkpoints" / "10").is_dir()
    server.start(out).finish()
    server.check_equal_to_whole(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_leaves_xla_to_itself(server, tmp_path, number):
    """A true compilation, which is in the middle when the interpreter ends."""
    flags = (
        "--steps 9 --data.seq-len 64 --batch.rows 8 --data.validation-fraction 0.3 "
        f"--data {server.corpus} --out {tmp_path / 'run'} "
        f"--runtime.compilation-cache {tmp_path / 'cache'}"
    )
    errors = tmp_path / "errors"
    program = "from swa_jax.cli import main; raise SystemExit(main())"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "train", *flags.split()],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    end = time.monotonic() + 60
    while "text:" not in errors.read_text() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(1.0)
    begin = time.monotonic()
    process.send_signal(number)
    assert process.wait(60) == 128 + number, errors.read_text()
    assert time.monotonic() - begin < SOON
    *_, last = errors.read_text().splitlines()
    assert last.startswith("swax: interrupted; ")
    assert "Traceback" not in errors.read_text()
