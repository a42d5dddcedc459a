"""The short convolution: every implementation against the float64 definition."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.short_conv import ShortConvState, short_conv
from tests.tolerances import assert_near

IMPLEMENTATIONS = ["chunked", "reference"]
LENGTHS = [1, 2, 3, 7, 63, 64, 65, 130]
jitted = jax.jit(short_conv, static_argnames="implementation")


def arrays(seed, *, B=2, T=65, D=3, C=4):
    """Returns x, taps, bias and a past, in float64."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(B, T, D)),
        "w": rng.normal(size=(C, D)),
        "bias": rng.normal(size=(D,)),
        "past": rng.normal(size=(B, C - 1, D)),
    }


@partial(jax.jit, static_argnums=3)
def value_and_gradients(a, ids, past_ids, implementation):
    """Returns (y, last inputs) and the gradients of a random projection of y."""

    def loss(a):
        state = ShortConvState(a["past"], past_ids)
        y, state = short_conv(
            a["x"],
            a["w"],
            bias=a["bias"],
            state=state,
            segment_ids=ids,
            implementation=implementation,
        )
        weights = np.random.default_rng(9).normal(size=y.shape)
        wide = y.astype(jnp.result_type(float))
        return jnp.sum(wide * weights), (y, state.x_BLD)

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(a)
    return out, gradients


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize(
    ("taps", "dtype"),
    [(1, "float64"), (4, "float64"), (7, "float64"), (4, "float32"), (3, "bfloat16")],
)
def test_values_and_gradients_against_the_reference(T, taps, dtype):
    a = arrays(T, T=T, C=taps)
    rng = np.random.default_rng(T)
    ids = np.sort(rng.integers(0, 4, size=(2, T + taps - 1)), axis=1).astype(np.int32)
    past_ids, ids = ids[:, : taps - 1], ids[:, taps - 1 :]
    with jax.enable_x64(True):
        narrow = {n: jnp.asarray(x, dtype) for n, x in a.items()}
        exact = {n: x.astype("float64") for n, x in narrow.items()}
        wanted = value_and_gradients(exact, ids, past_ids, "reference")
        found = value_and_gradients(narrow, ids, past_ids, "chunked")
        assert found[0][0].dtype == dtype
        assert_near(found, wanted, dtype=dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_jacobian_has_exactly_the_taps_as_support(implementation):
    a = arrays(0, B=1, T=20, D=1)
    conv = lambda x: short_conv(x, a["w"], implementation=implementation)[0]  # noqa: E731
    read = jax.jit(jax.jacrev(lambda x: conv(x)[0, :, 0]))
    jacobian = read(jnp.asarray(a["x"]))
    lag_TS = np.arange(20)[:, None] - np.arange(20)[None, :]
    reads_TS = np.asarray(jacobian)[:, 0, :, 0] != 0
    np.testing.assert_array_equal(reads_TS, (lag_TS >= 0) & (lag_TS < 4))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cuts", [(1,), (2, 3), (30,)])
def test_pieces_with_the_state_equal_one_piece(implementation, cuts):
    a = arrays(1, T=40)
    ids = np.sort(np.random.default_rng(1).integers(0, 4, (2, 40))).astype(np.int32)
    options = {"bias": a["bias"], "implementation": implementation}
    whole, last = jitted(a["x"], a["w"], segment_ids=ids, **options)
    state: Any = None
    pieces = []
    for start, stop in zip((0, *cuts), (*cuts, 40), strict=True):
        part = {"state": state, "segment_ids": ids[:, start:stop]}
        piece, state = jitted(a["x"][:, start:stop], a["w"], **part, **options)
        pieces.append(piece)
    assert_near(jnp.concatenate(pieces, axis=1), whole, dtype="float32")
    np.testing.assert_array_equal(state.x_BLD, last.x_BLD)
    np.testing.assert_array_equal(state.segment_ids_BL, last.segment_ids_BL)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_packed_document_equals_the_document_alone(implementation):
    a = arrays(2, T=30)
    ids = np.repeat(np.arange(3, dtype=np.int32), [2, 18, 10])[None].repeat(2, 0)
    options = {"bias": a["bias"], "implementation": implementation}
    packed, _ = jitted(a["x"], a["w"], segment_ids=ids, **options)
    for start, stop in ((0, 2), (2, 20), (20, 30)):
        alone, _ = jitted(a["x"][:, start:stop], a["w"], **options)
        assert_near(packed[:, start:stop], alone, dtype="float32")


def test_agrees_with_lax_convolution():
    a = {n: jnp.asarray(x, jnp.float32) for n, x in arrays(3).items()}
    wanted = jax.lax.conv_general_dilated(
        a["x"],
        a["w"][:, None],
        window_strides=(1,),
        padding=[(3, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=3,
    )
    found, _ = short_conv(a["x"], a["w"])
    assert_near(found, wanted, dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.zeros((4, 2), np.float32)}, "w_CD"),
        ({"bias": np.zeros(2, np.float32)}, "bias_D"),
        ({"segment_ids": np.zeros((2, 5), np.int32)}, "segment_ids of shape"),
        ({"x": np.zeros((2, 8, 3), np.int32)}, "floating"),
        (
            {
                "state": ShortConvState(
                    np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.int32)
                )
            },
            "state of 3 tokens",
        ),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_a_broken_contract_is_named(change, message):
    given = {
        "x": np.zeros((2, 8, 3), np.float32),
        "w": np.zeros((4, 3), np.float32),
        **change,
    }
    x, w = given.pop("x"), given.pop("w")
    with pytest.raises(ValueError, match=message):
        short_conv(x, w, **given)
