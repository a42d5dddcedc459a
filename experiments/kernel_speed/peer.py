"""The peers: jax.nn's attention, and mLSTM of the package mlstm_kernels if it is here.

mlstm_kernels is raced, never needed and never copied.
"""

import sys
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp

from .cases import Case

PEER_CHUNK = 64  # tokens


class PeerMissing(Exception):
    """The peer cannot be imported; the message says why."""


def jax_attention_case(case: Case, /, *, window: int | None) -> Case:
    """Returns jax.nn.dot_product_attention on the inputs of a local_attention case."""
    local_window_size = None if window is None else (window - 1, 0)

    def function(q_BTNH, k_BTNH, v_BTNH):
        return jax.nn.dot_product_attention(
            q_BTNH,
            k_BTNH,
            v_BTNH,
            is_causal=True,
            local_window_size=local_window_size,
        )

    return Case(function, case.inputs, case.cotangent)


def peer_mlstm_case(case: Case, /) -> Case:
    """Returns mlstm_kernels' native chunkwise form on the inputs of an mlstm case.

    Its layout is (B, N, T, ...); the inputs are laid out so before any clock starts.

    Raises:
      PeerMissing: mlstm_kernels, or something that it needs, is not installed.
    """
    chunkwise = load_peer_mlstm()

    def function(q_BNTH, k_BNTH, v_BNTP, i_BNT, f_BNT):
        return chunkwise(q_BNTH, k_BNTH, v_BNTP, i_BNT, f_BNT, chunk_size=PEER_CHUNK)

    inputs = tuple(swap_heads_and_tokens(array) for array in case.inputs)
    return Case(function, inputs, swap_heads_and_tokens(case.cotangent))


def swap_heads_and_tokens(x_BTN: jax.Array, /) -> jax.Array:
    """Returns an array of shape BTN... as BNT..., and the other way round."""
    return jnp.swapaxes(x_BTN, 1, 2)


def load_peer_mlstm() -> Callable[..., jax.Array]:
    """Returns mlstm_kernels' native JAX chunkwise mLSTM, gradients by autodiff.

    Raises:
      PeerMissing: mlstm_kernels, or something that it needs, is not installed.
    """
    # The package imports its Triton bindings everywhere, and they refuse a machine
    # without a GPU. The native form does not use them.
    stand_in = "jax_triton" not in sys.modules
    if stand_in:
        sys.modules["jax_triton"] = types.ModuleType("jax_triton")
    try:
        from mlstm_kernels.jax.chunkwise.native import (  # pyright: ignore[reportMissingImports]
            mlstm_chunkwise__native_autograd,
        )
    except ModuleNotFoundError as error:
        package = (error.name or "mlstm_kernels").partition(".")[0]
        raise PeerMissing(f"{package} is not installed here ({error})") from error
    except ImportError as error:
        raise PeerMissing(f"mlstm_kernels cannot be imported here: {error}") from error
    finally:
        if stand_in:
            del sys.modules["jax_triton"]
    return mlstm_chunkwise__native_autograd
