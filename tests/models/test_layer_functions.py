"""Layers as functions: composed they are the model, alone they are its branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.models.layer_functions import (
    embedding_function,
    final_norm_function,
    layer_functions,
)
from tests.tolerances import assert_near

T = 20


def tokens_of(rows=2):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 400, (rows, T)), jnp.int32)


@pytest.mark.parametrize("kind", ["swax", "swa", "hybrid"])
@pytest.mark.parametrize("window", [1, 5, 64])
def test_composed_they_are_the_model(make_tiny, kind, window):
    config, model, params = make_tiny(kind)
    tokens_BT = tokens_of()
    ids_BT = jnp.asarray([[1] * T, [1] * 7 + [2] * (T - 7)], jnp.int32)
    layers = layer_functions(config, params, window=window, segment_ids=ids_BT)
    x_BTD = embedding_function(config, params)(tokens_BT)
    for layer in layers:
        x_BTD = x_BTD + layer.mixer(x_BTD)
        x_BTD = x_BTD + layer.feed_forward(x_BTD)
    found = final_norm_function(config, params)(x_BTD)
    wanted, _ = model.hidden(params, tokens_BT, window=window, segment_ids=ids_BT)
    assert_near(found, wanted, dtype="float32")


def test_they_come_in_order_and_by_kind(make_tiny):
    config, _, params = make_tiny("swax", periods=2)
    layers = layer_functions(config, params, window=4)
    names = [layer.name for layer in layers]
    assert names == [f"{i}_{kind}" for i, kind in enumerate(config.pattern * 2)]
    kernels = [layer.feed_forward.args[0] for layer in layers]
    wanted = params["periods"][f"1_{config.pattern[1]}"]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[1]), kernels[3], wanted
    )


def test_layers_of_a_kind_are_compiled_once(make_tiny):
    traced = []

    @jax.jit
    def apply(branch, x_BTD):
        traced.append(1)
        return branch(x_BTD)

    x_BTD = jnp.ones((1, T, 32))
    for periods in (3, 4):
        config, _, params = make_tiny("swa", periods=periods)
        for window in (4, 7):
            for layer in layer_functions(config, params, window=window):
                apply(layer.mixer, x_BTD)
    assert len(traced) == 1


def test_parameters_of_another_model_are_refused(make_tiny):
    config, _, _ = make_tiny("swa")
    _, _, params = make_tiny("swa", feed_forward_width=24)
    with pytest.raises(ValueError, match="do not fit the model, in a layer swa"):
        layer_functions(config, params, window=4)


def test_a_model_without_its_head_or_of_fewer_layers(make_tiny):
    config, _, params = make_tiny("swa")
    params = {name: part for name, part in params.items() if name != "head"}
    assert len(layer_functions(config, params, window=4)) == config.layers
    fewer, _, _ = make_tiny("swa", periods=1)
    with pytest.raises(ValueError, match=r"have \[3\] periods, the model has 1"):
        layer_functions(fewer, params, window=4)
