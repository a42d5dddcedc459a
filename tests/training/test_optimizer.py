"""AdamW against its formulas in float64 NumPy, and what decays."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.models.language_model import language_model
from swa_jax.models.presets import PRESETS
from swa_jax.training.config import OptimizerConfig
from swa_jax.training.optimizer import (
    decays,
    learning_rate_at,
    make_optimizer,
    running_mean,
)
from swa_jax.training.sharding import path_name


def test_learning_rate_rises_then_falls_along_a_cosine():
    config = OptimizerConfig(peak_lr=2.0**-9, warmup_fraction=0.1, final_lr_ratio=0.1)
    rates = np.array(
        [learning_rate_at(config, jnp.int32(step), steps=100) for step in range(100)]
    )
    np.testing.assert_allclose(rates[:10], config.peak_lr * np.arange(1, 11) / 10)
    angle = np.pi * (np.arange(10, 100) - 10) / 89
    expected = config.peak_lr * (0.1 + 0.9 * (1 + np.cos(angle)) / 2)
    np.testing.assert_allclose(rates[10:], expected, rtol=1e-5)
    assert rates[-1] == pytest.approx(0.1 * config.peak_lr)


def test_warm_up_stable_decay():
    config = OptimizerConfig(
        peak_lr=2.0**-9,
        schedule="wsd",
        warmup_fraction=0.1,
        decay_fraction=0.2,
        final_lr_ratio=0.05,
    )
    rates = np.array(
        [learning_rate_at(config, jnp.int32(step), steps=100) for step in range(100)]
    )
    np.testing.assert_allclose(rates[:10], config.peak_lr * np.arange(1, 11) / 10)
    np.testing.assert_array_equal(rates[10:81], config.peak_lr)
    left = 1 - np.sqrt((np.arange(80, 100) - 80) / 19)
    expected = config.peak_lr * (0.05 + 0.95 * left)
    np.testing.assert_allclose(rates[80:], expected, rtol=1e-5)
    assert rates[-1] == pytest.approx(0.05 * config.peak_lr)
    constant = dataclasses.replace(config, decay_fraction=0.0)
    assert learning_rate_at(constant, jnp.int32(99), steps=100) == config.peak_lr


def test_a_warm_up_and_a_decay_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="with a sum above 1"):
        OptimizerConfig(schedule="wsd", warmup_fraction=0.5, decay_fraction=0.6)
    OptimizerConfig(warmup_fraction=0.5, decay_fraction=0.6)  # not read by the cosine
    with pytest.raises(
        ValueError, match=r"schedule must be one of \('cosine', 'wsd'\)"
    ):
        OptimizerConfig(schedule="linear")  # type: ignore
    with pytest.raises(ValueError, match="ema_decay must be a number from 0"):
        OptimizerConfig(ema_decay=1.0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_running_mean_weighs_by_age_and_forgets_the_start(decay):
    random = np.random.default_rng(0)
    values = random.normal(size=(7, 3)).astype(np.float32)
    mean = {"a": np.full(3, 1e6, np.float32)}
    update = jax.jit(functools.partial(running_mean, decay=decay))
    for number in range(1, 8):
        mean = update(mean, {"a": values[number - 1]}, updates=jnp.int32(number))
        weights = np.float64(decay) ** np.arange(number - 1, -1, -1)
        wanted = (weights[:, None] * values[:number]).sum(0) / weights.sum()
        np.testing.assert_allclose(mean["a"], wanted, rtol=2e-5, atol=2e-6)
        if number == 1:
            np.testing.assert_array_equal(mean["a"], values[0])


def test_a_step_that_is_skipped_counts_for_the_learning_rate_alone():
    config = OptimizerConfig(warmup_fraction=0.5, peak_lr=0.01, weight_decay=0.0)
    optimizer = make_optimizer(config, steps=10)
    params = {"b": jnp.ones(2)}
    gradients = {"b": jnp.array([0.1, -0.1])}
    state = optimizer.init(params)
    moves, _ = optimizer.update(gradients, state, params, jnp.int32(3))
    # The first update of Adam has the size of the learning rate, whatever the step.
    rate = float(optimizer.learning_rate(jnp.int32(3)))
    np.testing.assert_allclose(moves["b"], [-rate, rate], rtol=1e-5)


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.0), (1, 1.0), (2, 0.5), (3, 0)])
def test_learning_rate_of_the_shortest_runs_is_finite_and_positive(steps, fraction):
    config = OptimizerConfig(warmup_fraction=fraction)
    rates = [learning_rate_at(config, jnp.int32(s), steps=steps) for s in range(steps)]
    assert all(0 < float(rate) <= config.peak_lr * 1.000001 for rate in rates)


def test_updates_follow_the_formulas():
    config = OptimizerConfig(peak_lr=0.01, clip_norm=0.5, weight_decay=0.1)
    optimizer = make_optimizer(config, steps=10)
    random = np.random.default_rng(0)
    params = {"a": {"kernel": random.normal(size=(3, 2))}, "b": random.normal(size=2)}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    state = optimizer.init(params)
    expected = jax.tree.map(np.float64, params)
    m = jax.tree.map(np.zeros_like, expected)
    v = jax.tree.map(np.zeros_like, expected)
    for step in range(4):
        gradients = jax.tree.map(
            lambda x: random.normal(size=x.shape).astype(np.float32), params
        )
        updates, state = jax.jit(optimizer.update)(
            gradients, state, params, jnp.int32(step)
        )
        params = jax.tree.map(jnp.add, params, updates)
        squares = [np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(gradients)]
        scale = min(1.0, 0.5 / math.sqrt(sum(squares)))
        clipped = jax.tree.map(lambda g, s=scale: np.float64(g) * s, gradients)
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, clipped)
        v = jax.tree.map(lambda a, g: 0.95 * a + 0.05 * g * g, v, clipped)
        lr = float(optimizer.learning_rate(jnp.int32(step)))
        correct_m, correct_v = 1 - 0.9 ** (step + 1), 1 - 0.95 ** (step + 1)

        def move(p, a, b, decay, lr=lr, correct_m=correct_m, correct_v=correct_v):
            direction = a / correct_m / (np.sqrt(b / correct_v) + 1e-8)
            return p - lr * (direction + decay * p)

        expected = jax.tree.map(move, expected, m, v, {"a": {"kernel": 0.1}, "b": 0.0})
    for got, want in zip(
        jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["swax-nano", "hybrid-nano"])
def test_matrices_decay_and_nothing_else(name):
    model = language_model(PRESETS[name])
    params = jax.eval_shape(model.init, jax.random.key(0))
    for path, decaying in jax.tree_util.tree_leaves_with_path(decays(params)):
        wanted = path_name(path).endswith("/kernel")
        assert decaying == wanted, path_name(path)
    assert decays(params)["head"]["kernel"]
    assert not decays(params)["embed"]["embedding"]
