"""What `swax checkpoints` lists, and `swax export` takes out of a run."""

import shutil

import jax
import numpy as np
import pytest

from swa_jax.cli import main
from swa_jax.training import program, run
from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.config import CheckpointConfig
from swa_jax.training.loop import train
from swa_jax.training.run import open_run
from tests.training.tiny import run_config, toy_model, write_corpus


@pytest.fixture(autouse=True, scope="module")
def toy():
    model = toy_model()
    with pytest.MonkeyPatch.context() as patch:
        for module in (program, run):
            patch.setattr(module, "language_model", lambda _config: model)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints of steps 6, 9 and 12, validated at 6 and 12."""
    folder = tmp_path_factory.mktemp("trained")
    config = run_config(
        write_corpus(folder / "corpus"), checkpoint=CheckpointConfig(3, keep=3)
    )
    train(config, out=folder / "run")
    return folder / "run"


def rows_of(output):
    lines = [line.split() for line in output.splitlines()]
    return {words[0]: words[1:] for words in lines if words and words[0].isdecimal()}


def test_checkpoints_lists_and_verifies(trained, tmp_path, capsys):
    assert main(["checkpoints", str(trained)]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == ["6", "9", "12"]
    assert all(row[1] == "verified" for row in rows.values())
    with Checkpoints(trained / "checkpoints") as checkpoints:
        best = checkpoints.best_step()
        loss = checkpoints.record(12).validation_loss
    assert loss is not None
    assert float(rows["12"][2]) == pytest.approx(loss, rel=1e-5)
    assert rows["9"][2:] == ["-"]
    assert "newest" in rows["12"]
    assert best in (6, 12)
    assert any("best" in word for word in rows[str(best)])


def test_a_damaged_one_is_named_and_ends_in_1(trained, tmp_path, capsys):
    damaged = shutil.copytree(trained, tmp_path / "run")
    (damaged / "checkpoints" / "12" / "params" / "_METADATA").write_text("{}")
    assert main(["checkpoints", str(damaged)]) == 1
    captured = capsys.readouterr()
    assert "step 12: params/_METADATA has 2 bytes instead of" in captured.out
    assert "1 of 3 checkpoints" in captured.err
    rows = rows_of(captured.out)
    assert rows["12"][1] == "damaged"
    assert "newest" in rows["9"]
    assert main(["generate", str(damaged), "--step", "12"]) == 2
    assert "12 is damaged: params/_METADATA" in capsys.readouterr().err


def test_one_that_a_run_removes_meanwhile_is_no_damage(
    trained, tmp_path, capsys, monkeypatch
):
    live = shutil.copytree(trained, tmp_path / "run")
    damage = Checkpoints.damage

    def pruned_first(checkpoints, step):
        if step == 9:
            shutil.rmtree(checkpoints.folder / "9")
        return damage(checkpoints, step)

    monkeypatch.setattr(Checkpoints, "damage", pruned_first)
    assert main(["checkpoints", str(live)]) == 0
    assert list(rows_of(capsys.readouterr().out)) == ["6", "12"]


def test_a_run_without_checkpoints_is_told(trained, tmp_path, capsys):
    assert main(["checkpoints", str(tmp_path)]) == 2
    shutil.copy(trained / "config.json", tmp_path)
    assert main(["checkpoints", str(tmp_path)]) == 0
    assert "no checkpoint in" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["newest", "best", "9"])
def test_an_export_is_the_checkpoint(trained, tmp_path, capsys, step):
    out = tmp_path / "export"
    assert main(["export", str(trained), "--out", str(out), "--step", step]) == 0
    assert str(out / "model.safetensors") in capsys.readouterr().out
    wanted = open_run(trained, step=int(step) if step.isdecimal() else step)
    got = open_run(out)
    assert (got.step, got.fingerprint) == (wanted.step, wanted.fingerprint)
    assert got.config == wanted.config
    for one, other in zip(
        jax.tree.leaves(wanted.params), jax.tree.leaves(got.params), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(other), np.asarray(one))
    assert main(["export", str(trained), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
