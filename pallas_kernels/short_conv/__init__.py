"""Depthwise causal convolution over a few tokens, state in and state out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.checks import check_floating, check_segment_ids, check_shapes
from pallas_kernels.dispatch import dispatch
from pallas_kernels.short_conv.chunked import short_conv_chunked
from pallas_kernels.short_conv.reference import short_conv_reference

__all__ = ["ShortConvState", "initial_state", "short_conv"]


class ShortConvState(NamedTuple):
    """The last L = C - 1 inputs, oldest first, with their segment ids (int32)."""

    x_BLD: jax.Array
    segment_ids_BL: jax.Array


def initial_state(
    *,
    batch: int,
    taps: int,
    channels: int,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> ShortConvState:
    """Returns a past of zeros, which adds nothing whatever segment follows."""
    return ShortConvState(
        jnp.zeros((batch, taps - 1, channels), dtype),
        jnp.zeros((batch, taps - 1), jnp.int32),
    )


def short_conv(
    x_BTD: jax.Array,
    w_CD: jax.Array,
    /,
    *,
    bias: jax.Array | None = None,
    state: ShortConvState | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, ShortConvState]:
    """Returns y_BTD, y_t = bias + sum_c w_c x_{t-(C-1)+c}, and the last C - 1 inputs.

    The last tap, w_{C-1}, weighs the token itself; each channel has taps of its own.
    Tokens before the first are zeros, or those of `state`.

    - `bias`: shape (D,).
    - `segment_ids`: integers of shape (B, T). Nothing crosses from one token to another
      where the id changes between them (the state's tokens included). Without ids the
      tokens continue the state's last segment.
    - `implementation`: None chooses; "chunked" is shifted multiply-adds; "reference" is
      the definition, quadratic in T.

    Sums are in float32 (float64 for float64). Exact gradients for all arrays.

    Raises:
      ValueError: shapes or dtypes other than the above.
    """
    x_BTD, w_CD, bias, state, segment_ids = jax.tree.map(
        jnp.asarray, (x_BTD, w_CD, bias, state, segment_ids)
    )
    size = _check(x_BTD, w_CD, bias, state, segment_ids)
    B, T = size["B"], size["T"]
    if state is None:
        options = {"channels": size["D"], "dtype": x_BTD.dtype}
        state = initial_state(batch=B, taps=size["C"], **options)
    ids_BS = _all_segment_ids(segment_ids, state.segment_ids_BL, (B, T))
    x_BSD = jnp.concatenate([state.x_BLD, x_BTD], axis=1)
    changes_BS = ids_BS[:, 1:] != ids_BS[:, :-1]
    runs_BS = jnp.pad(jnp.cumsum(changes_BS, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
    arrays = (x_BSD, w_CD, bias, runs_BS)
    y_BTD = dispatch(
        "short_conv",
        {
            "chunked": lambda: short_conv_chunked(*arrays),
            "reference": lambda: short_conv_reference(*arrays),
        },
        implementation=implementation,
    )
    return y_BTD, ShortConvState(x_BSD[:, T:], ids_BS[:, T:])


def _check(x_BTD, w_CD, bias, state, segment_ids):
    """Returns the size of each dimension; raises ValueError on a broken contract."""
    name = "short_conv"
    given = {"x_BTD": x_BTD, "w_CD": w_CD, "bias_D": bias}
    if state is not None:
        given["state.x_BLD"] = state.x_BLD
    size = check_shapes(name, given)
    check_floating(name, given)
    check_segment_ids(name, "segment_ids", segment_ids, x_BTD.shape[:2])
    if state is None:
        return size
    B, C = size["B"], size["C"]
    if size["L"] != C - 1:
        raise ValueError(
            f"{name} wants a state of {C - 1} tokens for {C} taps; "
            f"got state.x_BLD of shape {state.x_BLD.shape}."
        )
    check_segment_ids(name, "state.segment_ids_BL", state.segment_ids_BL, (B, C - 1))
    return size


def _all_segment_ids(segment_ids_BT, past_BL, shape):
    """Returns the ids of the state's tokens and the call's own, of shape BS."""
    if segment_ids_BT is None:
        last_B1 = past_BL[:, -1:] if past_BL.shape[1] else jnp.zeros_like(past_BL)
        if not past_BL.shape[1]:
            return jnp.zeros(shape, jnp.int32)
        segment_ids_BT = jnp.broadcast_to(last_B1, shape)
    return jnp.concatenate([past_BL, segment_ids_BT.astype(jnp.int32)], axis=1)
