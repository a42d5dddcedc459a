"""What makes queries and keys of projections: a norm over each head, a rotation."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.rms_norm import rms_norm
from pallas_kernels.rotary import tables, turned


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Preparation:
    """q' = R(w q / sqrt(mean(q^2) + eps)), where R turns pair (q'_j, q'_{j + H/2}).

    No gradient reaches the tables; `rotation` makes them of positions.
    """

    cos_BTF: jax.Array
    """Of the angles, float32 (or float64), F = H / 2; batch 1 serves every row."""
    sin_BTF: jax.Array
    scale_H: jax.Array | None = None
    """w; None: no norm, q is rotated alone."""
    eps: float = dataclasses.field(default=1e-6, metadata={"static": True})


def rotation(positions_BT: jax.Array, /, *, width: int, theta: float) -> Preparation:
    """Returns the preparation that is `rotate` of heads of that width, and no norm."""
    return Preparation(*tables(positions_BT, width=width, theta=theta))


def prepared(x_BTNH: jax.Array, preparation: Preparation | None, /) -> jax.Array:
    """Returns x' in x's dtype, rounded once; x itself without a preparation."""
    if preparation is None:
        return x_BTNH
    y_BTNH = x_BTNH.astype(accumulation_dtype(x_BTNH.dtype))
    if preparation.scale_H is not None:
        y_BTNH = rms_norm(y_BTNH, preparation.scale_H, eps=preparation.eps)
    turns = jax.lax.stop_gradient((preparation.cos_BTF, preparation.sin_BTF))
    return turned(y_BTNH, *turns).astype(x_BTNH.dtype)


def check_preparation(
    operation: str, q_BTNH: jax.Array, preparation: Preparation, /
) -> None:
    """Returns nothing; the preparation fits the queries.

    Raises:
      ValueError: no Preparation, an odd head width, or arrays of another shape or
        dtype.
    """
    if not isinstance(preparation, Preparation):
        raise ValueError(
            f"{operation} wants preparation as a Preparation, or None; got "
            f"{type(preparation).__name__}."
        )
    B, T, _, H = q_BTNH.shape
    if H % 2:
        raise ValueError(
            f"{operation} rotates pairs, so it wants an even head width; got {H}."
        )
    turns = {"cos_BTF": preparation.cos_BTF, "sin_BTF": preparation.sin_BTF}
    for name, table in turns.items():
        if jnp.shape(table) not in ((B, T, H // 2), (1, T, H // 2)):
            raise ValueError(
                f"{operation} wants preparation.{name} of shape {(B, T, H // 2)}, or "
                f"of batch 1; got {jnp.shape(table)}."
            )
    scale_H = preparation.scale_H
    if scale_H is not None and jnp.shape(scale_H) != (H,):
        raise ValueError(
            f"{operation} wants preparation.scale_H of shape {(H,)}; got "
            f"{jnp.shape(scale_H)}."
        )
    for table in (*turns.values(), scale_H):
        if table is not None and jnp.result_type(table) not in (
            jnp.float32,
            jnp.float64,
        ):
            raise ValueError(
                f"{operation} wants the arrays of a preparation in float32 (or "
                f"float64); got {jnp.result_type(table)}."
            )
