"""kill -9 in the middle of a run, in a process of its own, and what resuming makes.

The equality is bitwise: parameters, optimizer state, step and every line of metrics.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from swa_jax.models.language_model import language_model
from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.config import MeshConfig
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.run import read_config
from swa_jax.training.sharding import abstract_state, make_mesh, path_name
from tests.training.tiny import write_corpus

ROOT = Path(__file__).parents[2]
KILL_AFTER = 11  # steps; the last checkpoint is then that of step 8, or a part of it
LIMIT = 300  # seconds

# The steps are slowed down so that the kill comes in the middle of the run.
PROGRAM = """
import sys, time
from pathlib import Path
from tests.training.tiny import run_config
from swa_jax.training import loop
from swa_jax.training.config import CheckpointConfig
corpus, out, mode, pause = sys.argv[1:]
window_at = loop.window_at
def slow_window_at(*arguments, **options):
    time.sleep(float(pause))
    return window_at(*arguments, **options)
loop.window_at = slow_window_at
config = run_config(Path(corpus), steps=20, checkpoint=CheckpointConfig(4, keep=2))
loop.train(config, out=Path(out), resume=mode == "resume")
"""


def start(corpus, out, mode, *, pause=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(corpus), str(out), mode, str(pause)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    return output


def records_of(out):
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    for record in records:
        record.pop("tokens_per_second", None)
    return records


def kill_after(process, out, step):
    end = time.monotonic() + LIMIT
    while not any(record["step"] >= step for record in records_of(out)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def final_state(out):
    config = read_config(out)
    model = language_model(config.model)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    abstract = abstract_state(model, optimizer, make_mesh(MeshConfig(data=1)))
    with Checkpoints(out / "checkpoints") as checkpoints:
        state = checkpoints.restore(abstract, step=20)
    return {
        path_name(path): np.array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(corpus, whole, "begin"))
    killed = start(corpus, cut, "begin", pause=0.1)
    kill_after(killed, cut, KILL_AFTER)
    assert max(record["step"] for record in records_of(cut)) < 20
    output = finish(start(corpus, cut, "resume"))
    assert "Warning" not in output
    assert records_of(cut) == records_of(whole)
    wanted, got = final_state(whole), final_state(cut)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
