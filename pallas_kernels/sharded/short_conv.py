"""The short convolution over a sequence that is cut over an axis of a mesh."""

import jax
import jax.numpy as jnp

from pallas_kernels.checks import check_floating, check_segment_ids, check_shapes
from pallas_kernels.sharded.prefix import from_left, of_last_shard, shards
from pallas_kernels.short_conv import ShortConvState, initial_state, short_conv


def short_conv_over(
    x_BTD: jax.Array,
    w_CD: jax.Array,
    /,
    *,
    axis: str,
    bias: jax.Array | None = None,
    state: ShortConvState | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, ShortConvState]:
    """Returns what `short_conv` does of the whole sequence: this shard's part of y_BTD,
    and the last C - 1 inputs, the same on every shard.

    For the inside of a jax.shard_map whose mesh axis `axis` cuts T of `x_BTD` and
    `segment_ids`; the other arrays are whole on every shard. Across the axis go the
    last C - 1 inputs of each shard, one hop; more hops where a shard has fewer.

    Raises:
      ValueError: `axis` is no axis here, or what `short_conv` refuses.
    """
    if shards(axis) > 1:
        x_BTD, w_CD = jnp.asarray(x_BTD), jnp.asarray(w_CD)
        state = _before(x_BTD, w_CD, state, segment_ids, axis=axis)
    y_BTD, state = short_conv(
        x_BTD,
        w_CD,
        bias=bias,
        state=state,
        segment_ids=segment_ids,
        implementation=implementation,
    )
    return y_BTD, of_last_shard(state, axis=axis)


def _before(x_BTD, w_CD, state, segment_ids, *, axis):
    """Returns the C - 1 tokens before this shard's first."""
    size = _check(x_BTD, w_CD, state, segment_ids)
    taps = size["C"]
    if state is None:
        options = {"channels": size["D"], "dtype": x_BTD.dtype}
        state = initial_state(batch=size["B"], taps=taps, **options)
    if taps == 1:
        return state
    if segment_ids is None:  # the tokens continue the state's last segment
        ids_BL = jnp.broadcast_to(state.segment_ids_BL[:, -1:], (size["B"], taps - 1))
    else:
        ids_BL = _last(segment_ids.astype(jnp.int32), taps - 1, axis=axis)
    near = ShortConvState(_last(x_BTD, taps - 1, axis=axis), ids_BL)
    # The state and the sequence behind it, counted from the state's first token.
    places_L = jnp.arange(taps - 1, dtype=jnp.int32)
    number_L = jax.lax.axis_index(axis) * size["T"] + places_L

    def joined(near_BLX, start_BLX):
        start_BLX = jnp.take(start_BLX, jnp.minimum(number_L, taps - 2), axis=1)
        from_state_L = (number_L < taps - 1).reshape(-1, *(1,) * (near_BLX.ndim - 2))
        return jnp.where(from_state_L[None], start_BLX, near_BLX)

    return jax.tree.map(joined, near, state)


def _last(x_BTX, length, *, axis):
    """Returns the last `length` tokens of the shards to the left, zeros where there are
    fewer."""
    T = x_BTX.shape[1]
    pieces, missing, hops = [], length, 1
    while missing > 0 and hops < shards(axis):
        piece = x_BTX[:, -min(T, missing) :]
        pieces.insert(0, from_left(piece, axis=axis, hops=hops))
        missing, hops = missing - T, hops + 1
    padding = [(0, 0)] * x_BTX.ndim
    padding[1] = (max(missing, 0), 0)
    return jnp.pad(jnp.concatenate(pieces, axis=1), padding)


def _check(x_BTD, w_CD, state, segment_ids):
    """Returns the size of each dimension; raises ValueError on what would not reach the
    checks of the operation itself."""
    name = "short_conv"
    size = check_shapes(name, {"x_BTD": x_BTD, "w_CD": w_CD})
    check_floating(name, {"x_BTD": x_BTD, "w_CD": w_CD})
    B, T, L, D = size["B"], size["T"], size["C"] - 1, size["D"]
    check_segment_ids(name, "segment_ids", segment_ids, (B, T))
    if state is not None:
        if state.x_BLD.shape != (B, L, D):
            raise ValueError(
                f"{name} wants a state of {L} tokens for {L + 1} taps, of shape "
                f"{(B, L, D)}; got state.x_BLD of shape {state.x_BLD.shape}."
            )
        check_floating(name, {"x_BTD": x_BTD, "state.x_BLD": state.x_BLD})
        check_segment_ids(name, "state.segment_ids_BL", state.segment_ids_BL, (B, L))
    return size
