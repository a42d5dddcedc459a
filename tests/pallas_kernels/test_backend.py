"""The backend of the kernels: when they run, and what they cannot serve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import backend
from pallas_kernels.local_attention import local_attention


def test_the_target_is_the_default_backend_unless_told():
    assert backend.target_platform() == "cpu"
    with backend.compiling_for("gpu"):
        assert backend.target_platform() == "gpu"
        assert backend.device_kind() is None
    assert backend.target_platform() == "cpu"
    with jax.default_device(jax.devices("cpu")[1]):
        assert backend.target_platform() == "cpu"


def test_precision_follows_the_argument_and_then_the_context():
    assert not backend.multiplies_in_full(None)
    assert backend.multiplies_in_full("highest")
    with jax.default_matmul_precision("float32"):
        assert backend.multiplies_in_full(None)
    with pytest.raises(ValueError, match="precision is None or"):
        backend.multiplies_in_full("exact")


def call(*, H=8, N=2, dtype="float32", **options):
    q = np.zeros((1, 4, N, H), dtype)
    k = np.zeros((1, 4, 1, H), dtype)
    with backend.interpreted():
        return local_attention(q, k, k, window=2, implementation="triton", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"H": 257}, "heads up to 256 wide; got 257"),
    ],
)
def test_what_the_kernels_refuse_is_named(change, message):
    with pytest.raises(NotImplementedError, match=message):
        call(**change)


def test_the_kernels_refuse_float64_and_machines_without_a_gpu():
    with (
        jax.enable_x64(True),
        pytest.raises(NotImplementedError, match="got float64"),
    ):
        call(dtype="float64")
    q = jnp.zeros((1, 4, 1, 8))
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        local_attention(q, q, q, window=2, implementation="triton")
    assert local_attention(q, q, q, window=2).shape == q.shape
