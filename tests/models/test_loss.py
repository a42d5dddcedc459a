"""The loss against float64, and its chunks against the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swa_jax.layers.soft_cap import soft_cap
from swa_jax.models.loss import (
    CHUNK_STEP,
    LOGITS_AT_ONCE,
    chunked_loss,
    default_chunk,
    next_token_nll,
)
from tests.tolerances import assert_near


def test_values_in_nats():
    rng = np.random.default_rng(0)
    logits_BTV = 5 * rng.standard_normal((2, 3, 7))
    targets_BT = rng.integers(0, 7, (2, 3))
    probability_BTV = np.exp(logits_BTV)
    probability_BTV /= probability_BTV.sum(axis=-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probability_BTV, targets_BT[..., None], -1))
    nll_BT = next_token_nll(
        jnp.asarray(logits_BTV, jnp.float32), jnp.asarray(targets_BT, jnp.int32)
    )
    np.testing.assert_allclose(nll_BT, expected[..., 0], rtol=1e-5)


def test_uniform_and_large_logits():
    targets_BT = jnp.array([[2, 0]], jnp.int32)
    uniform_BTV = jnp.full((1, 2, 16), 1e4, jnp.bfloat16)
    nll_BT = next_token_nll(uniform_BTV, targets_BT)
    assert nll_BT.dtype == jnp.float32
    np.testing.assert_allclose(nll_BT, np.log(16), rtol=1e-3)


def test_gradient_is_probability_minus_one_hot():
    logits_BTV = jax.random.normal(jax.random.key(0), (1, 2, 5))
    targets_BT = jnp.array([[3, 1]], jnp.int32)
    grad = jax.grad(lambda x: next_token_nll(x, targets_BT).sum())(logits_BTV)
    expected = jax.nn.softmax(logits_BTV) - jax.nn.one_hot(targets_BT, 5)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_outside_the_vocabulary_gives_nan(target):
    targets_BT = jnp.array([[target, 1]], jnp.int32)
    nll_BT = next_token_nll(jnp.zeros((1, 2, 5)), targets_BT)
    np.testing.assert_array_equal(np.isnan(nll_BT), [[True, False]])


def test_wrong_arguments():
    logits_BTV = jnp.zeros((1, 2, 5))
    with pytest.raises(ValueError, match="integer dtype; got float32"):
        next_token_nll(logits_BTV, jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"got \(1, 2, 5\) and \(1, 3\)"):
        next_token_nll(logits_BTV, jnp.zeros((1, 3), jnp.int32))


CAP = 3.0


def head(params, x_BTD, /):
    """A head with a soft-cap, so that its gradient is no single product."""
    return soft_cap((x_BTD @ params["kernel"]).astype(jnp.float32), cap=CAP)


def example(batch, length, vocabulary, *, width=5, seed=0):
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.standard_normal((width, vocabulary))}
    x_BTD = 2 * rng.standard_normal((batch, length, width))
    targets_BT = rng.integers(0, vocabulary, (batch, length))
    weights_BT = rng.integers(0, 3, (batch, length)) / 7.0
    return params, x_BTD, targets_BT.astype(np.int32), weights_BT


def by_hand(params, x_BTD, targets_BT, weights_BT, *, z_loss):
    """Returns loss, nll_BT and both gradients in float64."""
    raw_BTV = x_BTD @ params["kernel"]
    logits_BTV = CAP * np.tanh(raw_BTV / CAP)
    log_z_BT = np.log(np.exp(logits_BTV).sum(-1))
    nll_BT = (
        log_z_BT - np.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    )
    loss = np.sum(weights_BT * (nll_BT + z_loss * log_z_BT**2))
    probability_BTV = np.exp(logits_BTV - log_z_BT[..., None])
    slope_BTV = probability_BTV * (1 + 2 * z_loss * log_z_BT[..., None])
    slope_BTV -= np.eye(logits_BTV.shape[-1])[targets_BT]
    slope_BTV *= weights_BT[..., None] * (1 - np.tanh(raw_BTV / CAP) ** 2)
    kernel = np.einsum("btd,btv->dv", x_BTD, slope_BTV)
    return loss, nll_BT, {"kernel": kernel}, slope_BTV @ params["kernel"].T


def float32(tree):
    return jax.tree.map(
        lambda a: jnp.asarray(a, np.int32 if a.dtype == np.int32 else np.float32), tree
    )


@settings(max_examples=10)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    vocabulary=st.integers(1, 40),
    chunk=st.integers(1, 80),
    z_loss=st.sampled_from([0.0, 0.01]),
)
def test_chunks_of_any_length_have_the_values_and_gradients_of_the_whole(
    batch, length, vocabulary, chunk, z_loss
):
    arrays = example(batch, length, vocabulary)

    def loss(params, x_BTD, targets_BT, weights_BT):
        return chunked_loss(
            head, params, x_BTD, targets_BT, weights_BT, chunk=chunk, z_loss=z_loss
        )

    (value, nll_BT), grads = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    )(*float32(arrays))
    wanted = by_hand(*arrays, z_loss=z_loss)
    # Values cancel: a row of one id has a loss of exactly 0.
    np.testing.assert_allclose(value, wanted[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(nll_BT, wanted[1], rtol=2e-6, atol=2e-6)
    assert_near(grads, (wanted[2], wanted[3]), dtype="float32")


def test_a_loss_without_gradients_is_the_same():
    arrays = example(3, 21, 30)
    loss, nll_BT = chunked_loss(head, *float32(arrays), chunk=8, z_loss=0.01)
    wanted = by_hand(*arrays, z_loss=0.01)
    np.testing.assert_allclose(loss, wanted[0], rtol=2e-6)
    np.testing.assert_allclose(nll_BT, wanted[1], rtol=2e-6, atol=2e-6)


def test_the_cotangent_scales_the_gradients_and_bfloat16_stays():
    params, x_BTD, targets_BT, weights_BT = float32(example(2, 9, 11))
    x_BTD = x_BTD.astype(jnp.bfloat16)

    def rounded_head(params, x_BTD, /):
        return (x_BTD @ params["kernel"].astype(jnp.bfloat16)).astype(jnp.float32)

    def loss(params, x_BTD, factor):
        arrays = (params, x_BTD, targets_BT, weights_BT)
        return factor * chunked_loss(rounded_head, *arrays, chunk=4)[0]

    once = jax.grad(loss, argnums=(0, 1))(params, x_BTD, 1.0)
    thrice = jax.grad(loss, argnums=(0, 1))(params, x_BTD, 3.0)
    assert once[0]["kernel"].dtype == jnp.float32
    assert once[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(thrice[0]["kernel"], 3 * once[0]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(
        np.float32(thrice[1]), 3 * np.float32(once[1]), rtol=0.01
    )


def test_a_token_of_weight_zero_counts_for_nothing_whatever_its_target():
    params, x_BTD, targets_BT, weights_BT = float32(example(2, 9, 11))
    weights_BT = weights_BT.at[0, 3].set(0.0)

    @jax.jit
    @jax.value_and_grad
    def loss(params, target, weights_BT):
        targets = targets_BT.at[0, 3].set(target)
        return chunked_loss(head, params, x_BTD, targets, weights_BT, chunk=2)[0]

    wanted, wanted_grad = loss(params, 0, weights_BT)
    for target in (5, -1, 11):
        value, grad = loss(params, target, weights_BT)
        np.testing.assert_array_equal(value, wanted)
        np.testing.assert_array_equal(grad["kernel"], wanted_grad["kernel"])
    assert np.isnan(loss(params, -1, weights_BT + 1.0)[0])


def test_the_default_chunk_is_the_row_where_it_fits():
    assert default_chunk(rows=16, length=256, vocabulary=2048) == 256
    chunk = default_chunk(rows=4, length=4096, vocabulary=50_304)
    assert chunk % CHUNK_STEP == 0
    assert 4 * chunk * 50_304 <= LOGITS_AT_ONCE < 4 * (chunk + CHUNK_STEP) * 50_304
    assert default_chunk(rows=10**6, length=8, vocabulary=10**6) == 1
    few = default_chunk(rows=2**12, length=4096, vocabulary=2**13)
    assert few == 8


def test_rows_on_several_devices_make_longer_chunks():
    params, x_BTD, targets_BT, weights_BT = float32(example(4, 2, 7))
    shapes = []

    def watching(params, x_BTD, /):
        shapes.append(x_BTD.shape)
        # As many logits as one token of a row may have, were there one device.
        vocabulary = LOGITS_AT_ONCE // 4
        return jnp.broadcast_to(x_BTD[..., :1], (*x_BTD.shape[:2], vocabulary))

    mesh = Mesh(np.array(jax.devices()[:2]).reshape(2, 1), ("data", "fsdp"))
    blocks = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    for row_sharding, shape in ((None, (4, 1, 5)), (blocks, (2, 2, 5))):
        shapes.clear()
        jax.eval_shape(
            partial(chunked_loss, watching, row_sharding=row_sharding),
            params, x_BTD, targets_BT, weights_BT,
        )  # fmt: skip
        assert shape in shapes


def test_wrong_arguments_of_chunks():
    params, x_BTD, targets_BT, weights_BT = float32(example(2, 9, 11))
    with pytest.raises(ValueError, match="at least 1 token; got chunk=0"):
        chunked_loss(head, params, x_BTD, targets_BT, weights_BT, chunk=0)
    with pytest.raises(ValueError, match="a weight for each target"):
        chunked_loss(head, params, x_BTD, targets_BT, weights_BT[:1])
    with pytest.raises(ValueError, match=r"hidden states .* got \(2, 9, 5\)"):
        chunked_loss(head, params, x_BTD, targets_BT[:, :3], weights_BT[:, :3])
