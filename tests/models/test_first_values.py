"""RWKV-7's later layers read the first one's values, whichever way a model runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.layers.first_values import none_yet
from swa_jax.models.block import block
from swa_jax.models.config import RecurrentConfig
from swa_jax.models.layer_functions import layer_functions
from tests.tolerances import assert_near

T = 12
SHAPE = RecurrentConfig(heads=2, key_width=8, value_width=8)
PATTERNS = [
    (1, ("rwkv7",) * 3),
    (3, ("rwkv7",)),
    (2, ("swa", "rwkv7")),
    (2, ("canon+rwkv7", "swa", "rwkv7")),
]


@pytest.fixture(scope="module", params=PATTERNS)
def tiny(make_tiny, request):
    periods, pattern = request.param
    return make_tiny("swa", pattern=pattern, periods=periods, recurrent=SHAPE)


@pytest.fixture(scope="module")
def tokens_BT():
    return jnp.asarray(np.random.default_rng(0).integers(0, 400, (2, T)), jnp.int32)


def layer_by_layer(tiny, params, tokens_BT):
    """Returns x_BTD behind the layers, and the values that the last one hands on."""
    x_BTD = params["embed"]["embedding"][tokens_BT]
    first = none_yet((2, T, SHAPE.heads, SHAPE.value_width), "float32")
    for period in range(tiny.config.periods):
        for name, kind in zip(params["periods"], tiny.config.pattern, strict=True):
            of_layer = jax.tree.map(lambda x, i=period: x[i], params["periods"][name])
            x_BTD, _, first = block(tiny.config, kind).bind(of_layer)(
                x_BTD,
                positions_BT=jnp.arange(T)[None],
                window=3,
                segment_ids_BT=None,
                state=None,
                first_values=first,
            )
    return x_BTD, first


def hidden(tiny, params, tokens_BT):
    run = jax.jit(tiny.model.hidden, static_argnames="window")
    return run(params, tokens_BT, window=3)[0]


def test_scanned_and_apart_they_are_the_layers_one_by_one(tiny, tokens_BT):
    x_BTD, first = layer_by_layer(tiny, tiny.params, tokens_BT)
    assert first.there
    mean_BT1 = jnp.mean(x_BTD**2, axis=-1, keepdims=True)
    scale_11D = tiny.params["final_norm"]["scale"][None, None]
    wanted_BTD = x_BTD / jnp.sqrt(mean_BT1 + tiny.config.norm_eps) * scale_11D

    @jax.jit
    def apart(params):
        state = tiny.model.init_state(2, window=3, context=0)
        params, state = tiny.model.for_decoding(params, state)
        return tiny.model.hidden(params, tokens_BT, window=3, state=state)[0]

    assert_near(hidden(tiny, tiny.params, tokens_BT), wanted_BTD, dtype="float32")
    assert_near(apart(tiny.params), wanted_BTD, dtype="float32")


def with_silent_first_layer(tiny, *, value, share):
    """Returns parameters of a model whose first layer with values writes nothing to the
    stream: `value` is added to its value kernel, and `share` to the bias of all shares.
    """
    params = jax.tree.map(jnp.asarray, tiny.params)
    layers = [layer for name, layer in params["periods"].items() if "rwkv7" in name]
    for layer in layers:
        layer["mixer"]["global_mixer"]["first_share"]["up"]["bias"] += share
    first = layers[0]["mixer"]
    first["out"]["kernel"] = first["out"]["kernel"].at[0].set(0.0)
    values = first["branches"]["value"]
    values["kernel"] = values["kernel"].at[0].add(value)
    return params


def test_the_first_layers_values_reach_the_others_beside_the_stream(tiny, tokens_BT):
    def change(share):
        without, with_value = (
            hidden(tiny, with_silent_first_layer(tiny, **options), tokens_BT)
            for options in ({"value": x, "share": share} for x in (0.0, 1.0))
        )
        return float(jnp.max(jnp.abs(with_value - without)))

    assert change(share=0.0) > 0.01
    assert change(share=-1e4) == 0.0


def test_layers_that_read_more_than_the_stream_are_refused(tiny):
    with pytest.raises(ValueError, match="read the values of the first one too"):
        layer_functions(tiny.config, tiny.params, window=3)


def test_a_single_layer_reads_the_stream_alone(make_tiny):
    tiny = make_tiny("swa", pattern=("swa", "rwkv7"), periods=1, recurrent=SHAPE)
    assert len(layer_functions(tiny.config, tiny.params, window=3)) == 2
