"""The table of shardings, and that a mesh changes nothing but the place of the work."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from swa_jax.models.language_model import language_model
from swa_jax.models.mixer_config import GLOBAL_KINDS, LOCAL_KINDS
from swa_jax.models.presets import PRESETS, preset
from swa_jax.training.config import MeshConfig, OptimizerConfig
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.sharding import (
    PARAMETER_SPECS,
    abstract_state,
    batch_sharding,
    check_rows,
    jit_train_step,
    make_mesh,
    path_name,
    sharded_initial_state,
    spec_of,
)
from tests.training.tiny import MODEL, random_batch, toy_model

TOKEN_BYTES = np.ones(MODEL.vocab_size, np.int32)


PAIRS = [f"{local}+{mixer}-nano" for mixer in GLOBAL_KINDS for local in LOCAL_KINDS]


@pytest.mark.parametrize("name", [*PRESETS, *PAIRS, "tiny"])
def test_every_parameter_matches_exactly_one_rule(name):
    config = MODEL if name == "tiny" else preset(name)
    check_rules(config)


@pytest.mark.parametrize("design", ["full", "free"])
def test_every_parameter_of_the_other_designs_matches_one_rule(design):
    model = preset("short_swa+gla-nano")
    local = dataclasses.replace(model.local, design=design, gate=False)
    check_rules(dataclasses.replace(model, local=local))


def check_rules(config):
    params = jax.eval_shape(language_model(config).init, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        rules = [spec for rule, spec in PARAMETER_SPECS if re.fullmatch(rule, name)]
        assert len(rules) == 1, (name, rules)
        assert len(rules[0]) <= leaf.ndim, name


def test_large_matrices_of_the_largest_preset_are_cut():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    model = language_model(PRESETS["swax-7b"])
    optimizer = make_optimizer(OptimizerConfig(), steps=1)
    state = abstract_state(model, optimizer, mesh)
    total = held = 0
    for leaf in jax.tree.leaves(state):
        total += leaf.size
        held += int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
    assert held < total / 7.9


def test_an_axis_that_does_not_divide_is_dropped():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    assert spec_of("head/kernel", (8, 6), mesh) == P("fsdp", "tensor")
    assert spec_of("head/kernel", (6, 6), mesh) == P(None, "tensor")
    assert spec_of("head/kernel", (8, 7), mesh) == P("fsdp", None)


def test_a_parameter_without_a_rule_is_refused():
    mesh = make_mesh(MeshConfig(data=1))
    with pytest.raises(ValueError, match=r"'head/rumour' matches 0 patterns"):
        spec_of("head/rumour", (2, 2), mesh)


def test_meshes_that_do_not_fit_are_refused():
    assert make_mesh(MeshConfig()).shape == {"data": 8, "fsdp": 1, "tensor": 1}
    assert make_mesh(MeshConfig(fsdp=2)).shape["data"] == 4
    with pytest.raises(ValueError, match="8 devices"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match="8 devices"):
        make_mesh(MeshConfig(data=3, fsdp=3))
    with pytest.raises(ValueError, match="= 16, got rows=8"):
        check_rows(make_mesh(MeshConfig(tensor=1)), rows=8, accumulation=2)


def three_steps(model, config, *, accumulation):
    mesh = make_mesh(config)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3), steps=10)
    abstract = abstract_state(model, optimizer, mesh)
    state = sharded_initial_state(model, optimizer, abstract, seed=3)
    first = jax.tree.map(np.array, state.params)
    step = jit_train_step(model, optimizer, abstract, accumulation=accumulation)
    history = []
    for seed, window in enumerate((4, 16, 7)):
        batch = random_batch(16, 16, vocab_size=MODEL.vocab_size, seed=seed)
        batch = jax.device_put(batch, batch_sharding(mesh))
        state, metrics = step(state, batch, jnp.int32(window), TOKEN_BYTES)
        history.append(
            {name: float(value) for name, value in metrics._asdict().items()}
        )
    for leaf, shape in zip(
        jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
    ):
        assert leaf.sharding == shape.sharding
    return first, jax.tree.map(np.array, state.params), history


def check_equal(one, other):
    first, params, history = one
    other_first, other_params, other_history = other
    for want, got in zip(history, other_history, strict=True):
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=2e-5), name
    for (path, start), want, begun, got in zip(
        jax.tree_util.tree_leaves_with_path(first),
        jax.tree.leaves(params),
        jax.tree.leaves(other_first),
        jax.tree.leaves(other_params),
        strict=True,
    ):
        np.testing.assert_array_equal(begun, start, err_msg=path_name(path))
        # Adam turns rounding in a gradient near 0 into a visible part of a step, so
        # the moves agree in norm.
        moved = np.linalg.norm(np.float64(want) - start)
        apart = np.linalg.norm(np.float64(want) - got)
        assert apart <= 1e-3 * moved, (path_name(path), apart, moved)


@pytest.fixture(scope="module")
def one_device():
    return three_steps(toy_model(), MeshConfig(data=1), accumulation=1)


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [
        (MeshConfig(data=8), 1),
        (MeshConfig(data=1, fsdp=8), 2),
        (MeshConfig(data=2, fsdp=2, tensor=2), 1),
        (MeshConfig(data=1, fsdp=1, tensor=2), 4),
    ],
    ids=["data", "fsdp", "all axes", "tensor"],
)
def test_many_devices_equal_one(one_device, mesh, accumulation):
    other = three_steps(toy_model(), mesh, accumulation=accumulation)
    check_equal(one_device, other)


@pytest.mark.slow
def test_a_language_model_on_many_devices_equals_itself_on_one():
    model = language_model(MODEL)
    one = three_steps(model, MeshConfig(data=1), accumulation=1)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    check_equal(one, three_steps(model, mesh, accumulation=2))


def test_the_state_that_goes_in_is_given_up():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model, optimizer = toy_model(), make_optimizer(OptimizerConfig(), steps=10)
    abstract = abstract_state(model, optimizer, mesh)
    state = sharded_initial_state(model, optimizer, abstract, seed=3)
    step = jit_train_step(model, optimizer, abstract, accumulation=1)
    batch = random_batch(8, 16, vocab_size=MODEL.vocab_size)
    step(state, batch, jnp.int32(3), TOKEN_BYTES)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
