"""The running scale of the matrix memory against its recurrence, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.matrix_memory.memory import EMPTY
from pallas_kernels.matrix_memory.running_scale import BLOCK, running_scale
from tests.tolerances import assert_near

LENGTHS = [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK - 7, BLOCK**2 + 3]


def arrays(seed, T, decay):
    """Returns log i and log f, of shape BNT, and m, of shape BN, in float64."""
    random = np.random.default_rng(seed)
    log_i_BNT = random.normal(size=(2, 3, T)) * 5
    log_f_BNT = -np.abs(random.normal(size=(2, 3, T))) * decay
    return log_i_BNT, log_f_BNT, random.normal(size=(2, 3))


def resets(seed, T, share):
    """Returns where the memory is emptied, of shape BT; None where it never is."""
    return np.random.default_rng(seed).random((2, T)) < share if share else None


def token_by_token(log_i_BNT, log_f_BNT, resets_BT, m_BN):
    """Returns the scale as it is defined."""
    if resets_BT is not None:
        log_f_BNT = jnp.where(resets_BT[:, None], EMPTY, log_f_BNT)

    def step(m_BN, gates):
        log_i_BN, log_f_BN = gates
        m_BN = jnp.maximum(jnp.maximum(log_f_BN + m_BN, log_i_BN), EMPTY)
        return m_BN, m_BN

    gates = (jnp.moveaxis(x_BNT, 2, 0) for x_BNT in (log_i_BNT, log_f_BNT))
    _, m_TBN = jax.lax.scan(step, jnp.asarray(m_BN), tuple(gates))
    return jnp.moveaxis(m_TBN, 0, 2)


def value_and_gradients(form, gates, resets_BT, weights_BNT):
    """Returns the scale, and the gradients of its weighted sum in the gates and m."""

    def scale(log_i_BNT, log_f_BNT, m_BN):
        return form(log_i_BNT, log_f_BNT, resets_BT, m_BN)

    m_BNT, pullback = jax.vjp(scale, *gates)
    return m_BNT, pullback(weights_BNT)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_values_and_gradients_are_exact(T, share):
    jitted = jax.jit(value_and_gradients, static_argnums=0)
    for decay in (0.01, 1.0, 20.0):
        gates = arrays(T, T, decay)
        weights_BNT = np.random.default_rng(1).normal(size=gates[0].shape)
        rest = (gates, resets(T, T, share), weights_BNT)
        with jax.enable_x64(True):
            found, wanted = jitted(running_scale, *rest), jitted(token_by_token, *rest)
        assert_near(found, wanted, dtype="float64")


def test_float32_is_near_for_the_strongest_decays():
    log_i, log_f, m = arrays(0, 5 * BLOCK, 50.0)
    narrow = jax.jit(running_scale)(
        *(jnp.asarray(x, jnp.float32) for x in (log_i, log_f)),
        None,
        jnp.asarray(m, jnp.float32),
    )
    with jax.enable_x64(True):
        wanted = token_by_token(log_i, log_f, None, m)
    np.testing.assert_allclose(narrow, wanted, rtol=1e-6, atol=1e-4)


def test_an_empty_memory_has_the_scale_of_its_first_token():
    log_i, log_f, m = (x.astype(np.float32) for x in arrays(0, 3, 1.0))
    found = running_scale(log_i, log_f, None, np.full_like(m, -np.inf))
    np.testing.assert_allclose(found[..., 0], log_i[..., 0], rtol=1e-6)


def test_a_nan_of_a_later_block_stays_there():
    log_i, log_f, m = (x.astype(np.float32) for x in arrays(0, 3 * BLOCK, 1.0))
    log_f[..., 2 * BLOCK] = np.nan
    found = np.asarray(running_scale(log_i, log_f, None, m))
    assert np.isfinite(found[..., : 2 * BLOCK]).all()
    assert np.isnan(found[..., 2 * BLOCK :]).all()
