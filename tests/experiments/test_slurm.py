"""The batch script of `experiments/launch` under a real Slurm: two ranks, a requeue."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from swa_jax.configuration import to_dict
from swa_jax.training.config import (
    BatchConfig,
    CheckpointConfig,
    LoggingConfig,
    MeshConfig,
)
from tests.experiments.slurm import Slurm, missing, wait_until
from tests.training import tiny
from tests.training.processes import records_of
from tests.training.tiny import run_config, write_corpus

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "launch" / "slurm.sh"
PATIENCE = 240  # seconds, of a machine with other things to do
MODEL = dataclasses.replace(tiny.MODEL, pattern=("swa",), periods=1)
# What the test's machine has, in place of two nodes of eight GPUs.
HERE = [
    "--nodes=1",
    "--ntasks-per-node=2",
    "--gpus-per-node=0",
    "--cpus-per-task=1",
    "--time=30",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        slurm.environment |= {
            "SWAX": f"{sys.executable} -m swa_jax.cli",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        yield slurm


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration file of a run that is as small as a run can be."""
    folder = tmp_path_factory.mktemp("config")
    small = run_config(
        write_corpus(folder / "corpus"),
        model=MODEL,
        steps=240,
        batch=BatchConfig(rows=4),
        mesh=MeshConfig(fsdp=2),
        # Saves take the time in which a signal, looked for once a second, arrives.
        checkpoint=CheckpointConfig(every=8, keep=2),
        logging=LoggingConfig(
            console_seconds=0.0, validation_every=120, validation_batches=1
        ),
    )
    file = folder / "run.json"
    file.write_text(json.dumps(to_dict(small)))
    return file


def submit(slurm, config, out):
    """The number of a job, and the file that it writes."""
    log = out.with_suffix(".log")
    words = ["sbatch", "--parsable", *HERE, f"--output={log}", str(SCRIPT)]
    flags = [str(out), "--config", str(config)]
    done = subprocess.run(
        [*words, *flags],
        env=slurm.environment,
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + slurm.logs()
    return done.stdout.strip(), log


def wait_for_end(slurm, job, log):
    def ended():
        return slurm.job(job).get("JobState") in ("COMPLETED", "FAILED", "CANCELLED")

    wait_until(ended, lambda: read(log) + slurm.logs(), seconds=PATIENCE)
    state = slurm.job(job)
    assert state["JobState"] == "COMPLETED", read(log)
    return state


def read(log):
    return log.read_text() if log.exists() else ""


def test_a_requeued_job_finds_its_checkpoint_and_goes_on_bitwise(
    slurm, config, tmp_path
):
    whole, out = tmp_path / "whole", tmp_path / "run"
    wait_for_end(slurm, *submit(slurm, config, whole))
    job, log = submit(slurm, config, out)
    wait_until(lambda: len(records_of(out)) > 20, lambda: read(log), seconds=PATIENCE)
    # What `--signal=TERM@300` and a preemption send, to the ranks alone.
    slurm.ask("scancel", "--signal=TERM", job)
    state = wait_for_end(slurm, job, log)
    text = read(log)
    assert state["Restarts"] == "1", text
    assert "stopped by a signal; step" in text
    assert text.count("exit code 143") >= 1, text
    assert records_of(out) == records_of(whole)
    assert records_of(out)[-1]["step"] == 240
    assert (out / "report.html").is_file()


def test_the_doctor_finds_the_processes_of_srun(slurm):
    done = subprocess.run(
        [
            "srun",
            "--ntasks=2",
            *slurm.environment["SWAX"].split(),
            "doctor",
            "--no-kernels",
        ],
        env=slurm.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "process 1 of 2: 1 x cpu, on " in done.stdout
    assert "over 2 devices" in done.stdout
    assert done.stdout.count("all is well") == 1
    assert "SLURM_STEP_NODELIST=localhost" in done.stdout
