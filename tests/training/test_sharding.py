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
from swa_jax.training.config import (
    GuardConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
)
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
from swa_jax.training.step import StepOptions
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
    """What `repeated_three_steps` yields first."""
    return next(repeated_three_steps(model, config, accumulation=accumulation))


def repeated_three_steps(model, config, *, accumulation):
    """Three steps with everything on: chunks of the loss, z-loss, mean, guard, sources.

    Each time: the first and the last state and the metrics of the steps, in NumPy.
    """
    mesh = make_mesh(config)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3, ema_decay=0.9), steps=10)
    abstract = abstract_state(model, optimizer, mesh)
    options = StepOptions(
        accumulation,
        LossConfig(chunk=6, z_loss=1e-3),
        GuardConfig(nonfinite="skip", spike="skip"),
        sources=2,
        largest_window=16,
    )
    step = jit_train_step(model, optimizer, abstract, options)
    while True:
        yield _three_steps(model, optimizer, abstract, step)


def _three_steps(model, optimizer, abstract, step):
    state = sharded_initial_state(model, optimizer, abstract, seed=3)
    first, history = jax.tree.map(np.array, state), []
    for seed, window in enumerate((4, 16, 7)):
        batch = random_batch(16, 16, vocab_size=MODEL.vocab_size, seed=seed)
        batch["sources"] = np.arange(16, dtype=np.int32) % 2
        batch = jax.device_put(batch, batch_sharding(abstract.step.sharding.mesh))
        state, metrics = step(state, batch, jnp.int32(window), TOKEN_BYTES)
        history.append(jax.tree.map(np.array, metrics))
    for leaf, shape in zip(
        jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
    ):
        assert leaf.sharding == shape.sharding
    return first, jax.tree.map(np.array, state), history


def check_equal(one, other):
    first, last, history = one
    other_first, other_last, other_history = other
    for (path, want), got in zip(
        jax.tree_util.tree_leaves_with_path(history),
        jax.tree.leaves(other_history),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=2e-5, err_msg=path_name(path))
    # The mean of the parameters moves as they do.
    for start, want, begun, got in (
        (first.params, last.params, other_first.params, other_last.params),
        (first.params, last.mean_params, other_first.params, other_last.mean_params),
    ):
        check_moves(start, want, begun, got)


def check_moves(first, params, other_first, other_params):
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


def check_bitwise(one, other):
    for (path, want), got in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_array_equal(got, want, err_msg=path_name(path))


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


MESHES = [
    MeshConfig(data, fsdp, 8 // (data * fsdp))
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if data * fsdp <= 8
]


@pytest.fixture(scope="module")
def language_model_on_one_device():
    return three_steps(language_model(MODEL), MeshConfig(data=1), accumulation=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", MESHES, ids=[f"{m.data}x{m.fsdp}x{m.tensor}" for m in MESHES]
)
def test_a_language_model_equals_itself_on_one_device_and_on_repetition(
    language_model_on_one_device, mesh
):
    model = language_model(MODEL)
    runs = repeated_three_steps(model, mesh, accumulation=2)
    many = next(runs)
    check_equal(language_model_on_one_device, many)
    check_bitwise(many, next(runs))


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=1, fsdp=8)])
def test_the_chunks_of_a_loss_send_nothing_from_device_to_device(mesh):
    model, optimizer = toy_model(), make_optimizer(OptimizerConfig(), steps=10)
    abstract = abstract_state(model, optimizer, make_mesh(mesh))
    options = StepOptions(loss=LossConfig(chunk=4))
    step = jit_train_step(model, optimizer, abstract, options)
    batch = random_batch(16, 16, vocab_size=MODEL.vocab_size)
    arguments = (abstract, batch, jnp.int32(3), TOKEN_BYTES)
    program, found = step.lower(*arguments).compile().as_text(), {}
    assert program is not None
    for computation in program.split("\n\n"):
        sends = re.findall(
            r" (all-\w+|reduce-scatter|collective-permute)\(", computation
        )
        found[computation.partition(" ")[0]] = len(sends)
    assert found.pop("ENTRY") > 0
    assert sum(found.values()) == 0


def test_the_state_that_goes_in_is_given_up():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model, optimizer = toy_model(), make_optimizer(OptimizerConfig(), steps=10)
    abstract = abstract_state(model, optimizer, mesh)
    state = sharded_initial_state(model, optimizer, abstract, seed=3)
    step = jit_train_step(model, optimizer, abstract)
    batch = random_batch(8, 16, vocab_size=MODEL.vocab_size)
    step(state, batch, jnp.int32(3), TOKEN_BYTES)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
