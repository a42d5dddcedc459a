"""Checkpoints: exact, complete or absent, and for the same run only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.training.checkpoint import Checkpoints, check_same_run, check_same_text
from swa_jax.training.config import MeshConfig, OptimizerConfig
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
    step = jit_train_step(model, optimizer, abstract, accumulation=1)
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
        assert checkpoints.restore_data(3) == {"at": 3}
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
    # What a killed process leaves: Orbax writes here and renames at the end.
    (folder / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 1


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
    )
    check_same_run(config, changed)


def test_another_text_is_refused_by_its_fingerprint():
    check_same_text("abc", "abc")
    with pytest.raises(ValueError, match="abc in the run, abd now"):
        check_same_text("abc", "abd")
