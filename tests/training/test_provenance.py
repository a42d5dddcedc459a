"""What made a checkpoint, and what a run that goes on elsewhere says of it."""

import dataclasses

from swa_jax.training import loop, program, run
from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.config import CheckpointConfig, MeshConfig
from swa_jax.training.loop import train
from swa_jax.training.provenance import LIBRARIES, describe_changes, provenance
from tests.training.tiny import run_config, toy_model, write_corpus


def test_it_names_code_libraries_and_devices():
    found = provenance()
    assert set(found) == {"code", "python", "devices", *LIBRARIES}
    assert all(found.values())
    assert found == provenance()


def test_only_what_differs_is_named():
    made = {"code": "a", "jax": "1"}
    assert describe_changes(made, dict(made)) is None
    words = describe_changes(made, {"code": "b", "jax": "1", "flax": "2"})
    assert words is not None
    assert "code (a then, b now), flax (none then, 2 now)" in words
    assert "jax" not in words


def test_other_code_and_another_mesh_go_on_with_a_warning(
    tmp_path, monkeypatch, capsys
):
    for module in (program, run):
        monkeypatch.setattr(module, "language_model", lambda _config: toy_model())
    config = run_config(
        write_corpus(tmp_path / "corpus"), steps=2, checkpoint=CheckpointConfig(1)
    )
    out = tmp_path / "run"
    train(config, out=out)
    capsys.readouterr()
    train(config, out=out, resume=True)
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(loop, "provenance", lambda: provenance() | {"code": "new"})
    mesh = MeshConfig(data=2)
    train(dataclasses.replace(config, mesh=mesh), out=out, resume=True)
    words = capsys.readouterr().err
    assert "warning: the numbers from here on may differ" in words
    assert "new now), mesh (MeshConfig(data=1," in words
    with Checkpoints(out / "checkpoints") as checkpoints:
        assert checkpoints.record(2).provenance["code"] == provenance()["code"]
