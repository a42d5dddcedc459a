"""Checkpoints: exact, complete or absent, and for the same run only."""

import dataclasses
import pickle
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.training import checkpoint
from swa_jax.training.checkpoint import (
    Checkpoints,
    SaveFailed,
    check_same_run,
    check_same_text,
)
from swa_jax.training.config import (
    GuardConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
)
from swa_jax.training.manifest import write_manifest
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.sharding import (
    abstract_state,
    jit_train_step,
    make_mesh,
    sharded_initial_state,
)
from tests.training.tiny import MODEL, random_batch, run_config, toy_model


def pieces(mesh):
    model = toy_model()
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2), steps=10)
    abstract = abstract_state(model, optimizer, make_mesh(mesh))
    state = sharded_initial_state(model, optimizer, abstract, seed=0)
    step = jit_train_step(model, optimizer, abstract)
    return abstract, state, step


def copies(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_save_is_what_the_state_was_although_training_goes_on(tmp_path):
    abstract, state, step = pieces(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = random_batch(8, 16, vocab_size=MODEL.vocab_size)
    token_bytes = np.ones(MODEL.vocab_size, np.int32)
    saved = {}
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for completed in range(1, 5):
            state, _ = step(state, batch, jnp.int32(4), token_bytes)
            saved[completed] = copies(state)
            checkpoints.save(
                state, step=completed, data={"at": completed}, config=run_config()
            )
        assert checkpoints.latest_step() == 4
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [3, 4]
        assert checkpoints.record(3).data == {"at": 3}
        for completed in (3, 4):
            restored = checkpoints.restore(abstract, step=completed)
            for want, got in zip(saved[completed], copies(restored), strict=True):
                np.testing.assert_array_equal(got, want)
            for shape, leaf in zip(
                jax.tree.leaves(abstract), jax.tree.leaves(restored), strict=True
            ):
                assert leaf.sharding == shape.sharding


def test_another_mesh_reads_the_same_numbers(tmp_path):
    _, state, _ = pieces(MeshConfig(data=1, fsdp=4, tensor=2))
    other, _, _ = pieces(MeshConfig(data=1))
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(state, step=1, data={}, config=run_config())
        checkpoints.latest_step()
        restored = checkpoints.restore(other, step=1)
        params = checkpoints.restore_params(other.params, step=1)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(restored))
    for want, got in zip(copies(state), copies(restored), strict=True):
        np.testing.assert_array_equal(got, want)
    for want, got in zip(copies(state.params), copies(params), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_save_that_was_cut_off_is_not_there(tmp_path):
    _, state, _ = pieces(MeshConfig(data=1))
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(state, step=1, data={}, config=run_config())
    # What killed processes leave, of Orbax's and of our own.
    for name in ("2.unfinished.orbax-checkpoint-tmp", "2.unfinished", "0.removed"):
        (folder / name / "params").mkdir(parents=True)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert len(list(folder.iterdir())) == 4, "a reader removes nothing"
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert [path.name for path in folder.iterdir()] == ["1"]


def save_steps(folder, state, steps, *, keep=2, losses=()):
    losses = dict(losses)
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(
                state,
                step=step,
                data={},
                config=run_config(),
                validation_loss=losses.get(step),
            )
        checkpoints.wait()
        return checkpoints.steps(), checkpoints.best_step()


def test_the_best_is_kept_beside_the_newest(tmp_path):
    _, state, _ = pieces(MeshConfig(data=1))
    folder = tmp_path / "checkpoints"
    losses = {1: 3.0, 2: 2.5, 4: 2.5, 5: 2.75}
    assert save_steps(folder, state, range(1, 7), losses=losses) == ([2, 5, 6], 2)
    assert save_steps(folder, state, [7, 8], keep=1, losses={8: 2.25}) == ([8], 8)
    assert save_steps(folder, state, [9], keep=1) == ([8, 9], 8)


def damage_file(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 4
    path.write_bytes(contents)


def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path):
    abstract, state, _ = pieces(MeshConfig(data=1))
    folder = tmp_path / "checkpoints"
    save_steps(folder, state, [1, 2, 3], keep=3, losses={1: 2.0, 2: 1.0})
    damage_file(folder / "3" / "progress" / "_METADATA")
    damage_file(folder / "2" / "run.json")
    with Checkpoints(folder, keep=3) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        assert checkpoints.latest_step() == 1
        assert checkpoints.best_step() == 1, "a loss that cannot be trusted is none"
        notes = "\n".join(checkpoints.notes)
        assert f"{folder / '3'} is damaged (progress/_METADATA has other" in notes
        assert f"{folder / '2'} is damaged (run.json has other contents" in notes
        with pytest.raises(ValueError, match=r"run\.json has other contents"):
            checkpoints.record(2)
        checkpoints.restore(abstract, step=1)
        checkpoints.set_aside_after(1)
        assert checkpoints.steps() == [1]
        assert (folder / "3.damaged").is_dir()
    assert save_steps(folder, state, [2, 3], keep=1)[0] == [1, 3]


def test_where_all_are_damaged_nothing_is_taken(tmp_path):
    _, state, _ = pieces(MeshConfig(data=1))
    folder = tmp_path / "checkpoints"
    save_steps(folder, state, [1, 2])
    for step in ("1", "2"):
        (folder / step / "manifest.json").unlink()
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match=r"every .* damaged: 2: manifest.json is miss"),
    ):
        checkpoints.latest_step()


def check_for_a_while(checkpoints):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        checkpoints.check()  # what each step does


def test_a_failed_save_is_told_and_leaves_the_others_whole(tmp_path, monkeypatch):
    _, state, _ = pieces(MeshConfig(data=1))
    folder = tmp_path / "checkpoints"
    save_steps(folder, state, [1])

    def full(folder):
        raise OSError(28, "No space left on device")

    with Checkpoints(folder, keep=1) as checkpoints:
        monkeypatch.setattr(checkpoint, "write_manifest", full)
        checkpoints.save(state, step=2, data={}, config=run_config())
        with pytest.raises(SaveFailed, match=r"step 2 .*No space left.* whole: \[1\]"):
            checkpoints.wait()
        checkpoints.check()
        assert [path.name for path in folder.iterdir()] == ["1"], "the space is free"
        checkpoints.save(state, step=3, data={}, config=run_config())
        with pytest.raises(SaveFailed, match="step 3"):
            check_for_a_while(checkpoints)
        assert checkpoints.latest_step() == 1
    with (
        pytest.raises(SaveFailed, match="step 4"),
        Checkpoints(folder, keep=1) as checkpoints,
    ):
        checkpoints.save(state, step=4, data={}, config=run_config())


def test_a_validation_after_the_save_counts_for_the_best(tmp_path):
    _, state, _ = pieces(MeshConfig(data=1))
    folder = tmp_path / "checkpoints"
    save_steps(folder, state, [1, 2, 3], keep=1, losses={1: 2.0})
    with Checkpoints(folder, keep=1) as checkpoints:
        assert checkpoints.steps() == [1, 3]
        checkpoints.validated(3, 1.5)
        assert checkpoints.record(3).validation_loss == 1.5
        assert checkpoints.damage(3) is None
        assert (checkpoints.best_step(), checkpoints.steps()) == (3, [3])
        for text in ("", "[]", '{"validation_loss": NaN}', '{"validation_loss": "1"}'):
            (folder / "3" / "validation.json").write_text(text)
            assert checkpoints.record(3).validation_loss is None


def test_what_cannot_be_removed_is_no_failed_save(tmp_path, monkeypatch):
    _, state, _ = pieces(MeshConfig(data=1))
    folder = tmp_path / "checkpoints"
    save_steps(folder, state, [1])

    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "remove", refuse)
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state, step=2, data={}, config=run_config())
        with pytest.raises(SaveFailed, match=r"2 is saved .* older ones could not be"):
            checkpoints.wait()
        assert checkpoints.latest_step() == 2


def test_memory_that_ran_out_is_no_damage(tmp_path, monkeypatch):
    abstract, state, _ = pieces(MeshConfig(data=1))
    save_steps(tmp_path / "checkpoints", state, [1])
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for error in (MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: no memory")):

            def fail(*_, error=error, **__):
                raise error

            monkeypatch.setattr(checkpoints._orbax, "restore", fail)
            with pytest.raises(type(error)):
                checkpoints.restore(abstract, step=1)


def test_a_record_of_other_code_is_told(tmp_path):
    _, state, _ = pieces(MeshConfig(data=1))
    folder = tmp_path / "checkpoints"
    save_steps(folder, state, [1])
    (folder / "1" / "run.json").write_text('{"words": 1}')
    write_manifest(folder / "1")
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match="was written by other code"),
    ):
        checkpoints.record(1)


def test_reading_unpickles_nothing(tmp_path, monkeypatch):
    abstract, state, _ = pieces(MeshConfig(data=1))
    save_steps(tmp_path / "checkpoints", state, [1])

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.record(1)
        checkpoints.restore(abstract, step=1)


def test_a_reader_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.steps() == []
    assert not (tmp_path / "checkpoints").exists()


def test_a_changed_configuration_is_refused_by_name():
    config = run_config()
    model = dataclasses.replace(MODEL, periods=3)
    changed = dataclasses.replace(config, model=model, steps=13)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are checked)
        check_same_run(config, changed)
    assert "steps: 12 in the run, 13 now" in str(error.value)
    assert "model.periods: 2 in the run, 3 now" in str(error.value)


def test_what_changes_no_number_may_change():
    config = run_config()
    changed = dataclasses.replace(
        config,
        mesh=MeshConfig(fsdp=2),
        logging=dataclasses.replace(config.logging, every=7),
        checkpoint=dataclasses.replace(config.checkpoint, keep=7),
        data=dataclasses.replace(config.data, path="elsewhere"),
        batch=dataclasses.replace(config.batch, accumulation=1),
        model=dataclasses.replace(MODEL, remat="full"),
        loss=LossConfig(chunk=8),
        guard=GuardConfig(nonfinite="skip"),
    )
    check_same_run(config, changed)
    logging = dataclasses.replace(config.logging, validation_batches=7)
    with pytest.raises(ValueError, match=r"logging\.validation_batches: 2 in the run"):
        check_same_run(config, dataclasses.replace(config, logging=logging))
    with pytest.raises(ValueError, match=r"loss\.z_loss"):
        check_same_run(config, dataclasses.replace(config, loss=LossConfig(z_loss=0.1)))


def test_another_text_is_refused_by_its_fingerprint():
    check_same_text("abc", "abc")
    with pytest.raises(ValueError, match="abc in the run, abd now"):
        check_same_text("abc", "abd")
