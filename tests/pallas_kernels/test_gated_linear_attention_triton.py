"""The kernels of gated linear attention, interpreted, in tiles that divide a head; and
what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import backend
from pallas_kernels.gated_linear_attention import MOST_TOKENS, gated_linear_attention
from pallas_kernels.gated_linear_attention.reference import (
    gated_linear_attention_reference,
)
from pallas_kernels.gated_linear_attention.tiles import Tile, Tiles
from pallas_kernels.gated_linear_attention.triton import gated_linear_attention_triton
from tests.tolerances import assert_near

pytestmark = pytest.mark.slow  # as a whole

TILES = Tiles(64, *[Tile(keys=16, values=32, warps=4, stages=1)] * 5)


def arrays(seed, *, T, B=2, N=2, H=16, P=16, resets=True):
    """Returns q, k, v, log_decay and s in float32, and the resets."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: np.float32(rng.normal(size=shape))  # noqa: E731
    strength = rng.choice([1e-3, 0.03, 0.3, 3.0, 30.0], (B, T, N, H))
    log_decay = np.float32(-rng.exponential(size=(B, T, N, H)) * strength)
    floats = (
        normal(B, T, N, H),
        normal(B, T, N, H),
        normal(B, T, N, P),
        log_decay,
        normal(B, N, H, P),
    )
    return floats, rng.random((B, T)) < 1 / 32 if resets else None


def all_of(read, floats, resets_BT):
    """Returns out, the memory and the gradients of a random projection of them."""

    def loss(floats):
        q, k, v, log_decay, s = floats
        found = read(q, k, v, log_decay, resets_BT, s)
        rng = np.random.default_rng(9)
        wide = (x.astype(jnp.result_type(float)) for x in found)
        return sum(jnp.sum(x * rng.normal(size=x.shape)) for x in wide), found

    (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(floats)
    return found, gradients


@partial(jax.jit, static_argnames=("tiles",))
def kernels(floats, resets_BT, *, tiles):
    read = partial(gated_linear_attention_triton, scale=0.3, tiles=tiles)
    with backend.interpreted():
        return all_of(read, floats, resets_BT)


@jax.jit
def definition(floats, resets_BT):
    read = partial(gated_linear_attention_reference, scale=0.3)
    return all_of(read, floats, resets_BT)


def check(a, tiles):
    """Returns nothing; the kernels equal the definition in float64."""
    floats, resets_BT = a
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, "float64"), floats)
        wanted = definition(exact, resets_BT)
    assert_near(kernels(floats, resets_BT, tiles=tiles), wanted, dtype="float32")


@pytest.mark.parametrize(("chunk", "resets"), [(16, True), (32, False), (64, True)])
def test_tiles_that_divide_a_head_are_exact(chunk, resets):
    a = arrays(0, T=90, B=1, H=24, P=40, resets=resets)
    check(a, TILES._replace(chunk=chunk))


def test_a_run_of_strong_decays_keeps_the_digits_of_weak_ones():
    floats, resets_BT = arrays(1, T=64, resets=False)
    q, k, v, log_decay, s = floats
    log_decay = np.where(np.arange(64)[:, None, None] % 9 == 4, -100.0, -1e-2)
    log_decay = np.broadcast_to(np.float32(log_decay), q.shape)
    check(((q, k, v, log_decay, s), resets_BT), TILES)


def test_a_memory_that_is_empty_is_not_read():
    (q, k, v, log_decay, s), resets_BT = arrays(3, T=40)
    tokens = (q, k, v, log_decay, resets_BT)
    read = partial(gated_linear_attention_triton, scale=1.0, empty=True)
    with backend.interpreted():
        found = read(*tokens, np.full_like(s, np.nan))
    wanted = gated_linear_attention_reference(*tokens, np.zeros_like(s), scale=1.0)
    assert_near(found, wanted, dtype="float32")


def test_a_boundary_lets_nothing_through():
    (q, k, v, log_decay, s), _ = arrays(4, T=70)
    resets_BT = np.zeros((2, 70), bool)
    resets_BT[:, [30, 35]] = True

    def read(k, v, log_decay, s):
        arrays = (q, k, v, log_decay, resets_BT, s)
        with backend.interpreted():
            out, last = gated_linear_attention_triton(*arrays, scale=1.0, tiles=TILES)
        return jnp.sum(out[:, 35:]) + jnp.sum(last)

    gradients = jax.jit(jax.grad(read, argnums=(0, 1, 2, 3)))(k, v, log_decay, s)
    dk, dv, dlog_decay, ds = jax.tree.map(np.asarray, gradients)
    for leaf in (dk[:, :35], dv[:, :35], dlog_decay[:, :36], ds):
        np.testing.assert_array_equal(leaf, 0.0)
    assert (dv[:, 35:] != 0).any()
    assert (dlog_decay[:, 36:] != 0).any()


def test_float16_is_near():
    floats, resets_BT = arrays(5, T=40, H=16, P=8)
    *tokens, log_decay, s = floats
    narrow = (*(np.float16(x) for x in tokens), log_decay, s)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, "float64"), narrow)
        wanted = definition(exact, resets_BT)
    assert_near(kernels(narrow, resets_BT, tiles=TILES), wanted, dtype="float16")


@pytest.mark.parametrize(
    ("dtype", "widths", "message"),
    [
        ("float64", (16, 16), "float64"),
        ("float32", (130, 16), "128"),
        ("bfloat16", (260, 16), "256"),
        ("bfloat16", (16, 513), "512"),
    ],
)
def test_what_is_not_served_is_refused_by_name(dtype, widths, message):
    with jax.enable_x64(True):
        q = jnp.zeros((1, 20, 1, widths[0]), dtype)
        v = jnp.zeros((1, 20, 1, widths[1]), dtype)
        with (
            backend.interpreted(),
            pytest.raises(NotImplementedError, match=message),
        ):
            gated_linear_attention(q, q, v, q, implementation="triton")


def test_without_a_gpu_another_form_runs():
    q = jnp.zeros((1, 20, 1, 16))
    with pytest.raises(NotImplementedError, match="GPU"):
        gated_linear_attention(q, q, q, q, implementation="triton")
    assert gated_linear_attention(q, q, q, q)[0].shape == q.shape


@pytest.mark.parametrize(("T", "kernels"), [(MOST_TOKENS, 0), (MOST_TOKENS + 1, 3)])
def test_a_step_of_decoding_takes_the_plain_form(T, kernels):
    q = jnp.zeros((1, T, 1, 16))
    with backend.compiling_for("gpu"):
        program = str(jax.make_jaxpr(gated_linear_attention)(q, q, q, q))
    assert program.count("pallas_call[") == kernels
