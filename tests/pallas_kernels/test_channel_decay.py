"""Products under a decay per channel against the direct sum in float64, however strong
the decays are."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.channel_decay import (
    EMPTIED,
    channel_decay,
    products,
    products_before,
    read_before,
)
from tests.tolerances import assert_near

LENGTHS = [1, 7, 16, 17, 64, 70]
STRENGTHS = {"weak": [1e-4, 1e-2], "strong": [30.0, 50.0], "mixed": [1e-4, 0.1, 50.0]}


def arrays(seed, *, C, strength="mixed", H=6, leading=(2, 1)):
    """Returns rows, columns and log decays, each channel's of any of the strengths."""
    rng = np.random.default_rng(seed)
    shape = (*leading, C, H)
    rows, columns = rng.normal(size=(2, *shape))
    decay = -rng.choice(STRENGTHS[strength], shape) * rng.uniform(0.5, 1, shape)
    return {"rows": rows, "columns": columns, "decay": decay}


def blockwise(a):
    """Returns everything that the module makes of rows, columns and log decays."""
    decay = channel_decay(a["decay"])
    return {
        "products": products(decay, a["rows"], a["columns"]),
        "products_before": products_before(decay, a["rows"], a["columns"]),
        "read": decay.read_CH,
        "read_before": read_before(decay),
        "write": decay.write_CH,
        "keep": decay.keep_H,
    }


def direct(a):
    """Returns the same from a sum over every pair, in float64."""
    b_CH, C = jnp.cumsum(a["decay"], axis=-2), a["decay"].shape[-2]
    before_CH = b_CH - a["decay"]

    def weighted(to_CH, seen_CC):
        b_CCH = to_CH[..., :, None, :] - b_CH[..., None, :, :]
        w_CCH = jnp.exp(jnp.where(seen_CC[None, None, :, :, None], b_CCH, -jnp.inf))
        pairs_CCH = a["rows"][..., :, None, :] * a["columns"][..., None, :, :]
        return jnp.sum(pairs_CCH * w_CCH, axis=-1)

    return {
        "products": weighted(b_CH, np.tri(C, dtype=bool)),
        "products_before": weighted(before_CH, np.tri(C, k=-1, dtype=bool)),
        "read": jnp.exp(b_CH),
        "read_before": jnp.exp(before_CH),
        "write": jnp.exp(b_CH[..., -1:, :] - b_CH),
        "keep": jnp.exp(b_CH[..., -1, :]),
    }


def value_and_gradients(function, a, /):
    """Returns the function of `a` and the gradients of a random projection of it."""

    def loss(a):
        parts = function(a)
        rng = np.random.default_rng(1)
        wide = (p.astype(jnp.result_type(float)) for p in parts.values())
        return sum(jnp.sum(p * rng.normal(size=p.shape)) for p in wide), parts

    (_, parts), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(a)
    return parts, gradients


def check(a, dtype, /):
    """Returns nothing; the blockwise form in `dtype` is near the sum in float64."""
    with jax.enable_x64(True):
        narrow = {n: jnp.asarray(x, dtype) for n, x in a.items()}
        if dtype == "bfloat16":
            narrow["decay"] = jnp.asarray(a["decay"], "float32")
        exact = {n: x.astype("float64") for n, x in narrow.items()}
        found = value_and_gradients(blockwise, narrow)
        assert_near(found, value_and_gradients(direct, exact), dtype=dtype)


@pytest.mark.parametrize("C", LENGTHS)
def test_values_and_gradients_are_exact(C):
    check(arrays(C, C=C), "float64")


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_dtypes_are_near(strength, dtype):
    check(arrays(0, C=64, strength=strength), dtype)


def test_a_strong_decay_costs_the_weak_ones_no_digits():
    a = arrays(1, C=64)
    strong = np.random.default_rng(1).random(a["decay"].shape) < 0.2
    check({**a, "decay": np.where(strong, -1e4, a["decay"] / 100)}, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("log_decay", [0.0, -50.0, EMPTIED, -np.inf, "one"])
def test_no_decay_makes_anything_but_numbers(dtype, log_decay):
    a = {n: jnp.asarray(x, dtype) for n, x in arrays(2, C=70).items()}
    if log_decay == "one":
        decay = jnp.zeros((2, 1, 70, 6)).at[:, :, 33].set(EMPTIED)
    else:
        decay = jnp.full((2, 1, 70, 6), log_decay)
    for leaf in jax.tree.leaves(value_and_gradients(blockwise, a | {"decay": decay})):
        assert np.isfinite(np.float64(leaf)).all()


def test_an_emptied_memory_holds_exactly_nothing():
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(3, C=70).items()}
    a["decay"] = jnp.where(jnp.arange(70)[:, None] == 33, EMPTIED, a["decay"][0, 0])
    a |= {n: a[n][0, 0] for n in ("rows", "columns")}
    made = jax.tree.map(np.asarray, jax.jit(blockwise)(a))
    np.testing.assert_array_equal(made["products"][33:, :33], 0.0)
    np.testing.assert_array_equal(made["products_before"][34:, :33], 0.0)
    np.testing.assert_array_equal(made["read"][33:], 0.0)
    np.testing.assert_array_equal(made["write"][:33], 0.0)
    np.testing.assert_array_equal(made["keep"], 0.0)
    alone = blockwise({n: x[33:] for n, x in a.items()})
    assert_near(made["products"][33:, 33:], alone["products"], dtype="float32")
    assert_near(made["write"][33:], alone["write"], dtype="float32")


def sizes_of(jaxpr):
    """Yields the number of elements of every array that a jaxpr makes, nested ones
    included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes_of(inner)


def test_pairs_of_tokens_never_stand_beside_channels():
    C, H = 256, 32
    a = {n: x[0, 0] for n, x in arrays(4, C=C, H=H).items()}

    def loss(a):
        return sum(jnp.sum(part) for part in jax.tree.leaves(blockwise(a)))

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(a).jaxpr
    assert max(sizes_of(jaxpr)) <= C * 16 * H
