"""The files that start a run on a cluster, checked as far as goes without one."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from swa_jax.commands.train_arguments import train_arguments

FOLDER = Path(__file__).parents[2] / "experiments" / "launch"
SCRIPT = FOLDER / "slurm.sh"


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load((FOLDER / "jobset.yaml").read_text())


@pytest.fixture
def programs(tmp_path):
    """Stand-ins that write down their arguments; `srun` ends with $CODE."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("swax", "srun", "scontrol"):
        file = folder / name
        file.write_text(
            "#!/bin/bash\n"
            f'printf "%s\\n" {name} "$@" >> "{tmp_path}/called"\n'
            f'[[ {name} != srun ]] || exit "$CODE"\n'
        )
        file.chmod(0o755)

    def run(*words, **environment):
        (tmp_path / "called").unlink(missing_ok=True)
        done = subprocess.run(
            words,
            env={"PATH": f"{folder}:{os.environ['PATH']}"} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        called = tmp_path / "called"
        lines = called.read_text().splitlines() if called.exists() else []
        return done.returncode, lines, done.stderr

    return run


def template(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job, job["template"]["spec"]


def test_the_numbers_and_names_of_the_manifest_agree(manifest):
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True
    job, spec = template(manifest)
    assert job["replicas"] == 1
    assert spec["completionMode"] == "Indexed", "who sets JOB_COMPLETION_INDEX"
    assert spec["completions"] == spec["parallelism"] > 1
    assert spec["backoffLimit"] == 0
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 300
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    for variable in container["env"]:
        assert type(variable["value"]) is str, "Kubernetes takes nothing else"


@pytest.mark.parametrize("begun", [False, True])
def test_the_command_of_the_manifest_is_one_of_swax_train(
    manifest, programs, tmp_path, begun
):
    job, spec = template(manifest)
    (container,) = spec["template"]["spec"]["containers"]
    run = tmp_path / "a run"
    run.mkdir()
    if begun:
        (run / "config.json").touch()
    code, called, errors = programs(
        *container["command"], RUN=str(run), JOB_COMPLETION_INDEX="1"
    )
    assert (code, errors) == (0, "")
    name, command, *words = called
    assert (name, command) == ("swax", "train")
    (run / "config.json").unlink(missing_ok=True)  # it would have to be a true one
    train = train_arguments(words, {})
    assert train.out == run
    assert train.resume is begun
    cluster = train.cluster
    assert (cluster.processes, cluster.process) == (spec["completions"], 1)
    host, _, port = str(cluster.coordinator).partition(":")
    name = manifest["metadata"]["name"]
    assert host == f"{name}-{job['name']}-0-0.{name}", (
        "the first pod, as JobSet names it"
    )
    assert int(port) == container["ports"][0]["containerPort"]
    gpus = spec["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    mesh = train.config.mesh
    assert gpus % (mesh.fsdp * mesh.tensor) == 0
    rows = train.config.batch.rows // train.config.batch.accumulation
    assert rows % (gpus // mesh.tensor) == 0


def test_the_options_of_the_script_are_one_task_for_each_gpu():
    text = SCRIPT.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == "TERM@300", "to the ranks, not to the script"
    assert "requeue" in options
    assert options["open-mode"] == "append", "the log of the start before"
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, "0", False), (1, "0", False), (143, "0", True), (143, "9", True),
     (143, "100", False), (134, "0", False)],
)  # fmt: skip
def test_the_script_puts_a_job_back_that_was_stopped(
    programs, code, restarts, requeued
):
    found, called, _ = programs(
        str(SCRIPT),
        "runs/one",
        "--steps",
        "5",
        CODE=str(code),
        SLURM_JOB_ID="7",
        SLURM_RESTART_COUNT=restarts,
    )
    assert found == code
    srun = "srun --kill-on-bad-exit=1 swax train --out runs/one --steps 5"
    requeue = " scontrol requeue 7" if requeued else ""
    assert shlex.join(called) == srun + requeue


def test_the_script_goes_on_with_a_run_that_is_there(programs, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").touch()
    _, called, _ = programs(str(SCRIPT), "one", CODE="0", SLURM_JOB_ID="7")
    assert called[-3:] == ["--out", "one", "--resume"]
    code, called, errors = programs(str(SCRIPT), CODE="0")
    assert (code, called) == (2, [])
    assert "usage: sbatch" in errors
