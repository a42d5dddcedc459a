"""A run that goes on with other devices: 8, 2, 1 and 8 again are one device throughout.

`test_processes.py` has the same with other numbers of processes.
"""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from swa_jax.training import loop, program
from swa_jax.training.config import BatchConfig, MeshConfig
from tests.training.processes import records_of
from tests.training.tiny import run_config, toy_model, write_corpus

pytestmark = pytest.mark.slow
# (mesh, the step at which a signal comes)
PARTS = [
    (MeshConfig(data=1, fsdp=8), 3),
    (MeshConfig(data=1, fsdp=2), 5),
    (MeshConfig(data=1), 8),
    (MeshConfig(data=4, fsdp=1, tensor=2), None),
]


def test_8_devices_then_2_then_1_and_back_are_one_run(tmp_path, monkeypatch):
    model = toy_model()
    monkeypatch.setattr(program, "language_model", lambda _config: model)
    config = run_config(
        write_corpus(tmp_path / "corpus"), batch=BatchConfig(rows=8), steps=12
    )
    whole = loop.train(config, out=tmp_path / "whole")
    out, window_at, rows = tmp_path / "run", loop.window_at, []
    for part, (mesh, last) in enumerate(PARTS):

        def stopping(schedule, *, last=last, **arguments):
            if arguments["step"] == last:
                os.kill(os.getpid(), signal.SIGTERM)
            return window_at(schedule, **arguments)

        monkeypatch.setattr(loop, "window_at", stopping)
        one = dataclasses.replace(config, mesh=mesh)
        found = loop.train(one, out=out, resume=part > 0)
        devices = mesh.fsdp * mesh.tensor * (mesh.data or 1)
        used = jax.tree.leaves(found.params)[0].sharding.device_set
        assert len(used) == devices
        assert found.step == (config.steps if last is None else last + 1)
        saved = out / "checkpoints" / str(found.step) / "run.json"
        rows.append(json.loads(saved.read_text())["data"]["iterator"]["row"])
    assert rows == [8 * 4, 8 * 6, 8 * 9, 8 * 12]
    check_same_steps(records_of(out), records_of(tmp_path / "whole"))
    pairs = zip(*map(jax.tree.leaves, (found.params, whole.params)), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def check_same_steps(records, wanted):
    for one, other in zip(records, wanted, strict=True):
        for name in ("step", "split", "window", "tokens", "lr"):
            assert one.get(name) == other.get(name)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
