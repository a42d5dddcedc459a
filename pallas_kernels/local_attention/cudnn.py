"""NVIDIA's cuDNN as a form of local attention, called through jax.nn."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.backend import target_platform

WIDEST = 128  # head width; wider heads need another GPU than cuDNN does


def local_attention_cudnn(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query_segments_BT: jax.Array | None,
    key_segments_BS: jax.Array | None,
    sinks_N: jax.Array | None,
    /,
    *,
    window: int | jax.Array | None,
    softcap: float | None,
) -> jax.Array:
    """Returns local attention by cuDNN; reference.py defines it.

    It serves a whole sequence in bfloat16 or float16. The gradients of two runs may
    differ in their last bits, unless XLA is told --xla_gpu_deterministic_ops=true.

    Raises:
      NotImplementedError: cuDNN does not serve the call, or is not installed.
    """
    if target_platform() != "gpu":
        raise NotImplementedError(
            f"needs a GPU, and the code is traced for {target_platform()!r}."
        )
    extras = (query_segments_BT, key_segments_BS, sinks_N, softcap)
    _check(q_BTNH, k_BSKH, window, extras)
    try:
        return jax.nn.dot_product_attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            is_causal=True,
            # Keys to the left of the query's own, which we count and jax.nn does not.
            local_window_size=None if window is None else (int(window) - 1, 0),
            implementation="cudnn",
        )
    except RuntimeError as error:  # jax's answer where the library is missing
        raise NotImplementedError(str(error)) from error


def _check(q_BTNH, k_BSKH, window, extras):
    """Returns nothing; raises NotImplementedError for what cuDNN does not serve."""
    if any(extra is not None for extra in extras):
        raise NotImplementedError("serves no segments, sinks or softcap.")
    if q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"serves bfloat16 and float16, not {q_BTNH.dtype}.")
    if q_BTNH.shape[1] != k_BSKH.shape[1]:
        raise NotImplementedError("wants as many queries as keys.")
    if q_BTNH.shape[1] % 2:  # jax finds out when it differentiates, which is too late
        raise NotImplementedError("wants an even number of tokens, for the gradients.")
    if window is not None and not isinstance(window, int | np.integer):
        raise NotImplementedError("wants a window that is known when it compiles.")
    width = q_BTNH.shape[-1]
    if width % 8 or width > WIDEST:
        raise NotImplementedError(
            f"wants a head width that is a multiple of 8 up to {WIDEST}; got {width}."
        )
