"""``swax doctor``: what it prints, what it hides, and who does not answer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swa_jax.cli import main
from swa_jax.commands import doctor
from swa_jax.commands.doctor import all_reduce, say_processes, settings
from swa_jax.commands.self_test import Finding
from tests.training.processes import free_port

ROOT = Path(__file__).parents[2]
WELL = Finding("product", "chosen", "float32", 1e-7)


@pytest.fixture
def findings(monkeypatch):
    found = [WELL]
    monkeypatch.setattr(doctor, "self_test", lambda **_: found)
    return found


def test_a_machine_that_is_well_ends_in_0(findings, capsys):
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "process 0 of 1: 8 x cpu, on " in output
    assert "all-reduce of 4.2 MB over 8 devices: " in output
    assert "product, chosen, float32: right, error 1.0e-07 (at most 5e-06)" in output
    assert output.endswith("all is well\n")


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (WELL._replace(error=1e-4), "WRONG, error 1.0e-04"),
        (WELL._replace(error=None, words="no such PTX"), "FAILED: no such PTX"),
    ],
)
def test_a_wrong_kernel_ends_in_1_by_name(findings, capsys, finding, words):
    findings.append(finding)
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert f"process 0: product, chosen, float32: {words}" in captured.err
    assert "all is well" not in captured.out


def test_a_wrong_sum_ends_in_1(findings, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "all_reduce", lambda: (False, "all-reduce: WRONG"))
    assert main(["doctor"]) == 1
    assert "not well: the all-reduce" in capsys.readouterr().err


def test_the_sum_over_all_devices_is_checked_for_its_value(monkeypatch):
    right, line = all_reduce()
    assert right, line
    block = doctor.jax.block_until_ready
    monkeypatch.setattr(doctor.jax, "block_until_ready", lambda x: block(x) * 1.0000002)
    right, line = all_reduce()
    assert not right
    assert line.endswith("WRONG")


@pytest.mark.parametrize(
    "words",
    [["--foo"], ["x"], ["--recheck", "3"], ["--cluster.processes", "2"],
     ["--cluster.coordinator", "x"]],
)  # fmt: skip
def test_bad_usage_ends_in_2(words, capsys):
    assert main(["doctor", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_flags_reach_the_self_test(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        doctor, "self_test", lambda **options: asked.append(options) or [WELL]
    )
    for words in ([], ["--recheck"], ["--no-cache"], ["--no-kernels"]):
        assert main(["doctor", *words]) == 0
    assert asked == [
        {"recheck": False, "cache": True},
        {"recheck": True, "cache": True},
        {"recheck": False, "cache": False},
    ]


def test_settings_are_shown_and_secrets_are_not():
    environment = {
        "NCCL_DEBUG": "WARN",
        "XLA_FLAGS": "--a",
        "SLURM_JWT_TOKEN": "s3cret",
        "JAX_COORDINATOR_ADDRESS": "http://user:s3cret@host",
        "https_proxy": "http://user:s3cret@host",
        "HOME": "/home/somebody",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
    }
    assert settings(environment) == [
        "JAX_COORDINATOR_ADDRESS=http://host",
        "NCCL_DEBUG=WARN",
        "SLURM_JWT_TOKEN=(set, not shown)",
        "XLA_FLAGS=--a",
        "https_proxy=(set, not shown)",
    ]


def test_processes_that_differ_are_named():
    one = {
        "host": "n1",
        "pid": 7,
        "devices": "8 x H200",
        "memory": "141.0 GB",
        "versions": {"jax": "0.10.2"},
    }
    lines = []
    assert say_processes([one, one], lines.append) == []
    assert lines[2] == "process 1 of 2: 8 x H200, 141.0 GB each, on n1 (pid 7)"
    other = one | {"versions": {"jax": "0.12.0"}, "devices": "7 x H200"}
    assert say_processes([one, other], lines.append) == [
        "process 1 has other versions: {'jax': '0.12.0'}",
        "process 1 has other devices: 7 x H200",
    ]


def start(process, processes, port, *words, cache):
    """One of the processes of an examination, with its output in a pipe."""
    flags = (
        f"--cluster.coordinator 127.0.0.1:{port} --cluster.processes {processes} "
        f"--cluster.process {process}"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "swa_jax.cli", "doctor", *flags.split(), *words],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_who_does_not_come_is_named_with_exit_code_1(tmp_path):
    with start(
        0, 3, free_port(), "--cluster.wait-seconds", "3", cache=tmp_path
    ) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    *_, last = output.splitlines()
    assert last == "swax: error: did not come in time: process 1, process 2"
    assert "@ " not in output, "addresses of functions say nothing"


@pytest.mark.slow
def test_who_came_and_does_not_answer_is_named_with_exit_code_1(tmp_path):
    port = free_port()
    words = ("--no-cache", "--cluster.wait-seconds", "8")
    first, second = (start(i, 2, port, *words, cache=tmp_path) for i in range(2))
    with first, second:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("all-reduce of"):
                break
        # In the self-test, the process and its child.
        os.killpg(second.pid, signal.SIGSTOP)
        begin = time.monotonic()
        output, _ = first.communicate(timeout=200)
        os.killpg(second.pid, signal.SIGKILL)
    assert first.returncode == 1
    assert time.monotonic() - begin < 150
    assert "no sign of life from process 1 on " in output
