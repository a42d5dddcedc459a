import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.models.loss import next_token_nll


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
