"""Every layer knows how deep it stands, whichever way the model runs its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.models.block import block
from swa_jax.models.config import RecurrentConfig
from swa_jax.models.layer_functions import embedding_function, layer_functions
from swa_jax.models.periods import depths
from tests.tolerances import assert_near

T = 12


@pytest.mark.parametrize(("periods", "layers"), [(1, 1), (1, 3), (3, 1), (2, 3)])
def test_depths_go_from_the_first_layer_to_the_last(periods, layers):
    found = depths(periods, layers)
    assert found.shape == (periods, layers)
    assert found.dtype == jnp.float32
    wanted = np.arange(periods * layers) / max(periods * layers - 1, 1)
    np.testing.assert_allclose(found.ravel(), wanted, atol=1e-7)


@pytest.fixture(scope="module", params=[(1, 4), (2, 2), (4, 1)])
def lightning(make_tiny, request):
    """Returns a model of four layers, in so many periods of so many."""
    periods, layers = request.param
    return make_tiny(
        "swa",
        pattern=("lightning",) * layers,
        periods=periods,
        recurrent=RecurrentConfig(heads=2, key_width=8, value_width=8),
    )


def by_hand(tiny, tokens_BT, depths_L):
    """Returns x_BTD behind the layers, one by one at these depths."""
    x_BTD = tiny.params["embed"]["embedding"][tokens_BT]
    for number, depth in enumerate(depths_L):
        period, index = divmod(number, len(tiny.config.pattern))
        params = tiny.params["periods"][f"{index}_lightning"]
        layer = block(tiny.config, "lightning").bind(
            jax.tree.map(lambda leaf, period=period: leaf[period], params)
        )
        x_BTD, _, _ = layer(
            x_BTD,
            positions_BT=jnp.arange(T)[None],
            window=1,
            segment_ids_BT=None,
            state=None,
            depth=depth,
        )
    return x_BTD


def by_layer_inputs(tiny, tokens_BT, depths_L):
    """Returns the root mean square of what each layer reads."""
    inputs = (by_hand(tiny, tokens_BT, depths_L[:n]) for n in range(len(depths_L)))
    return [float(jnp.sqrt(jnp.mean(x_BTD**2))) for x_BTD in inputs]


def test_each_layer_has_its_depth(lightning):
    tokens_BT = jnp.asarray(
        np.random.default_rng(0).integers(0, 400, (2, T)), jnp.int32
    )
    model, params = lightning.model, lightning.params

    @jax.jit
    def by_layers(params):
        x_BTD = embedding_function(lightning.config, params)(tokens_BT)
        for layer in layer_functions(lightning.config, params, window=1):
            x_BTD = x_BTD + layer.mixer(x_BTD)
            x_BTD = x_BTD + layer.feed_forward(x_BTD)
        return x_BTD

    @jax.jit
    def apart(params):
        state = model.init_state(2, window=1, context=0)
        params, state = model.for_decoding(params, state)
        return model.hidden(params, tokens_BT, window=1, state=state)[0]

    def hidden_of(x_BTD):
        mean_BT1 = jnp.mean(x_BTD**2, axis=-1, keepdims=True)
        scale_11D = params["final_norm"]["scale"][None, None]
        return x_BTD / jnp.sqrt(mean_BT1 + lightning.config.norm_eps) * scale_11D

    wanted_BTD = hidden_of(by_hand(lightning, tokens_BT, [0, 1 / 3, 2 / 3, 1]))
    scanned_BTD, _ = jax.jit(model.hidden, static_argnames="window")(
        params, tokens_BT, window=1
    )
    for found_BTD in (scanned_BTD, apart(params), hidden_of(by_layers(params))):
        assert_near(found_BTD, wanted_BTD, dtype="float32")
    of_layers = by_layer_inputs(lightning, tokens_BT, [0, 1 / 3, 2 / 3, 1])
    found = model.statistics(params, tokens_BT, window=1)["lightning/input_rms_mean"]
    assert found == pytest.approx(np.mean(of_layers), rel=1e-5)
    alike_BTD = hidden_of(by_hand(lightning, tokens_BT, [0, 0, 0, 0]))
    assert jnp.max(jnp.abs(alike_BTD - wanted_BTD)) > 0.01
