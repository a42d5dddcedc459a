"""ShortSWA: attention over a short window, on the branches of a mixer."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.local_attention import prepared, rotation
from pallas_kernels.local_attention.step import WindowCache
from pallas_kernels.rotary import rotate, turn_back
from swa_jax.layers.attend import attend
from swa_jax.layers.branches import heads_of
from swa_jax.layers.linear import Linear

Design = Literal["full", "low_rank", "free"]


class ShortSWA(nnx.Module):
    """y = x + g SWA(x) on branches x that lie next to each other, each of whole heads.

    Where Zhang 2025 ("Rethinking SWA") leaves the attention open, three designs:

    - "full": queries, keys and values are learned maps of their branch;
    - "low_rank": queries and keys are maps of their head to `rank` numbers, filled up
      with zeros to the head's width; the values are the branch;
    - "free": no parameters. Queries, keys and values are the rotated branch, and the
      sum is turned back by the query's angle: y_t = sum_s p_ts R_{s-t} x_s.

    The gate g, one number per channel, starts at zero: then the mixer starts as the
    identity. Without it y = SWA(x).
    """

    activation = False

    def __init__(
        self,
        widths: tuple[int, ...],
        *,
        window: int,
        head_width: int,
        design: Design,
        rank: int,
        gate: bool,
        rope_theta: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`widths`: of the branches, multiples of the head width."""
        self.heads = sum(widths) // head_width

        def learned() -> Any:
            if design == "full":
                return _PerBranch(widths, dtype=dtype, rngs=rngs)
            shape = (self.heads, head_width, rank)
            return _PerHead(shape, dtype=dtype, rngs=rngs)

        self.query = None if design == "free" else learned()
        self.key = None if design == "free" else learned()
        self.value = learned() if design == "full" else None
        width = sum(widths)
        self.gate = nnx.Param(jnp.zeros((width,), jnp.float32)) if gate else None
        self.design: Design = design
        self.window = window
        self.rope_theta = rope_theta

    def __call__(
        self,
        x_BTM: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None,
        state: WindowCache | None,
    ) -> tuple[jax.Array, WindowCache | None]:
        """Returns y_BTM in x's dtype and the ring of the last tokens."""
        q_BTNH, k_BTNH, v_BTNH, preparation = self._tokens(x_BTM, positions_BT)
        out_BTNH, state = attend(
            q_BTNH,
            k_BTNH,
            v_BTNH,
            state,
            segment_ids=segment_ids_BT,
            preparation=preparation,
            window=self.window,
        )
        if self.design == "free":
            out_BTNH = turn_back(out_BTNH, positions_BT, theta=self.rope_theta)
        y_BTM = out_BTNH.reshape(x_BTM.shape)
        if self.gate is None:
            return y_BTM, state
        gate_11M = self.gate[...].astype(x_BTM.dtype)[None, None]
        return x_BTM + gate_11M * y_BTM, state

    def _tokens(self, x_BTM, positions_BT):
        """Returns queries, keys and values, N heads each, and what is left to be done
        to the queries."""
        x_BTNH = heads_of(x_BTM, self.heads)

        def turned(x_BTNH):
            return rotate(x_BTNH, positions_BT, theta=self.rope_theta)

        if self.query is None or self.key is None:
            rotated_BTNH = turned(x_BTNH)
            return rotated_BTNH, rotated_BTNH, rotated_BTNH, None
        if self.value is None:
            q_BTNR, k_BTNR = turned(self.query(x_BTNH)), turned(self.key(x_BTNH))
            return *_filled_up(q_BTNR, k_BTNR, x_BTNH.shape[-1]), x_BTNH, None
        q_BTNH, k_BTNH, v_BTNH = (
            heads_of(role(x_BTM), self.heads)
            for role in (self.query, self.key, self.value)
        )
        turns = rotation(positions_BT, width=x_BTNH.shape[-1], theta=self.rope_theta)
        return q_BTNH, prepared(k_BTNH, turns), v_BTNH, turns


def _filled_up(q_BTNR, k_BTNR, width):
    """Returns queries and keys with zeros up to the head's width, and scores as they
    would be for heads of width R."""
    rank = q_BTNR.shape[-1]
    zeros = ((0, 0), (0, 0), (0, 0), (0, width - rank))
    q_BTNR = (q_BTNR * math.sqrt(width / rank)).astype(q_BTNR.dtype)
    return jnp.pad(q_BTNR, zeros), jnp.pad(k_BTNR, zeros)


class _PerBranch(nnx.Module):
    """y = x W, one square W for each branch."""

    def __init__(self, widths: tuple[int, ...], *, dtype, rngs: nnx.Rngs):
        for index, width in enumerate(widths):
            std = 1 / math.sqrt(width)
            linear = Linear(width, width, std=std, dtype=dtype, rngs=rngs)
            setattr(self, f"branch_{index}", linear)
        self.ends = tuple(sum(widths[: index + 1]) for index in range(len(widths) - 1))

    def __call__(self, x_BTM: jax.Array, /) -> jax.Array:
        parts = jnp.split(x_BTM, self.ends, axis=-1)
        mapped = [getattr(self, f"branch_{i}")(part) for i, part in enumerate(parts)]
        return jnp.concatenate(mapped, axis=-1)


class _PerHead(nnx.Module):
    """y_n = x_n W_n: every head of its own."""

    def __init__(self, shape: tuple[int, int, int], *, dtype, rngs: nnx.Rngs):
        std = 1 / math.sqrt(shape[1])
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x_BTNH: jax.Array, /) -> jax.Array:
        return jnp.einsum(
            "btnh,nhr->btnr",
            x_BTNH.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            precision="highest" if self.dtype == jnp.float32 else None,
            preferred_element_type=self.dtype,
        )
