"""Windowed attention that norms and rotates its queries, in every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.local_attention import Preparation, local_attention, prepared
from tests.pallas_kernels.test_local_attention import (
    EPS,
    FORMS,
    TABLES,
    arrays,
    attend,
    check_against_reference,
)
from tests.tolerances import assert_near


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
@pytest.mark.parametrize(
    ("preparation", "H"),
    [("rotation", 24), ("norm and rotation", 2), ("norm and rotation", 32)],
)
def test_queries_are_prepared_exactly(preparation, H, implementation, dtype):
    for T in (1, 130):
        a = arrays(T, T=T, H=H, past=20, segments=3, preparation=preparation)
        options = {"windows": [2, 40], "softcap": 8.0, "sinks": True}
        check_against_reference(a, dtype, implementation, **options)


def test_preparation_of_full_float32_and_of_narrow_dtypes():
    a = arrays(3, B=1, T=40, N=2, K=1, H=200, preparation="norm and rotation")
    check_against_reference(a, "float32", "triton", windows=[7], precision="highest")
    for dtype in ("bfloat16", "float16"):
        a = arrays(4, B=1, T=70, H=32, preparation="norm and rotation")
        check_against_reference(a, dtype, "triton", windows=[30])


def test_an_odd_head_has_no_pairs_to_rotate():
    a = {n: x[..., :3] if n in "qkv" else x for n, x in arrays(0, T=4, H=4).items()}
    cos = np.ones((1, 4, 1))
    with pytest.raises(ValueError, match="even head width; got 3"):
        attend({**a, "cos": cos, "sin": cos}, window=2)


def test_a_prepared_query_is_normed_then_turned_pair_by_pair():
    a = arrays(5, T=9, H=8, preparation="norm and rotation")
    mean = np.mean(a["q"] ** 2, axis=-1, keepdims=True)
    normed = a["scale"] * a["q"] / np.sqrt(mean + EPS)
    turns = (a["cos"] + 1j * a["sin"])[:, :, None]
    pairs = (normed[..., :4] + 1j * normed[..., 4:]) * turns
    wanted = np.concatenate([pairs.real, pairs.imag], axis=-1)
    with jax.enable_x64(True):
        exact = {name: jnp.asarray(x) for name, x in a.items()}
        tables = Preparation(*(exact[name] for name in TABLES), eps=EPS)
        assert_near(prepared(exact["q"], tables), wanted, dtype="float64")
        assert prepared(exact["q"], None) is exact["q"]


def tables(shape, dtype=np.float32):
    """Returns two tables of zeros."""
    return np.zeros(shape, dtype), np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("preparation", "message"),
    [
        (tables((2, 8, 2)), "as a Preparation"),
        (Preparation(*tables((2, 8, 4))), "cos_BTF of shape"),
        (Preparation(*tables((2, 7, 2))), "cos_BTF of shape"),
        (Preparation(*tables((1, 8, 2)), np.ones(3)), "scale_H of shape"),
        (Preparation(*tables((1, 8, 2), np.float16)), "in float32"),
    ],
)
def test_a_preparation_that_does_not_fit_is_named(preparation, message):
    q, k, v = (np.zeros((2, 8, heads, 4), np.float32) for heads in (4, 2, 2))
    with pytest.raises(ValueError, match=message):
        local_attention(q, k, v, window=4, preparation=preparation)
