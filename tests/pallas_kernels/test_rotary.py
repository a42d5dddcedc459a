import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.rotary import angles, rotate


def exact_angles(positions, *, width, theta):
    frequency = np.float64(theta) ** (-np.arange(0, width, 2) / width)
    return positions.astype(np.float64)[..., None] * frequency


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("width", [8, 64, 128])
def test_angles_stay_exact_up_to_four_million(theta, width):
    rng = np.random.default_rng(0)
    ends = np.array([0, 1, 1023, 1024, 1_000_000, 2**22 - 1])
    positions_BT = np.concatenate([ends, rng.integers(0, 2**22, 2000)])[None]
    actual = angles(jnp.asarray(positions_BT, jnp.int32), width=width, theta=theta)
    exact = exact_angles(positions_BT, width=width, theta=theta)
    difference = np.asarray(actual, np.float64) - exact
    difference -= 2 * np.pi * np.round(difference / (2 * np.pi))
    assert np.max(np.abs(difference)) < 1e-4


def test_the_halves_of_a_head_are_pairs():
    x_BTNH = np.random.default_rng(1).standard_normal((2, 5, 3, 8)).astype(np.float32)
    positions_BT = np.array([[0, 1, 2, 3, 4], [7, 7, 30, 2000, 0]], np.int32)
    angle = exact_angles(positions_BT, width=8, theta=100.0)[:, :, None]
    pairs = (x_BTNH[..., :4] + 1j * x_BTNH[..., 4:]) * np.exp(1j * angle)
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    actual = rotate(jnp.asarray(x_BTNH), jnp.asarray(positions_BT), theta=100.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("shift", [1, 1000, 1_000_000])
def test_only_differences_of_positions_count(shift):
    rng = np.random.default_rng(2)
    q, k = jnp.asarray(rng.standard_normal((2, 1, 50, 2, 64)), jnp.float32)

    def scores(start):
        positions_BT = jnp.arange(50)[None] + start
        rotated = [rotate(x, positions_BT, theta=10_000.0) for x in (q, k)]
        return jnp.einsum("btnh,bsnh->bnts", *rotated)

    np.testing.assert_allclose(scores(shift), scores(0), rtol=0, atol=2e-3)


def test_the_rotation_is_rounded_once_to_the_dtype_of_its_input():
    x = jax.random.normal(jax.random.key(0), (1, 40, 2, 16))
    x = x.astype(jnp.bfloat16)
    positions_BT = jnp.arange(40)[None] + 100_000
    y = rotate(x, positions_BT, theta=10_000.0)
    exact = rotate(x.astype(jnp.float32), positions_BT, theta=10_000.0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
