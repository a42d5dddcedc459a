"""Mamba-2: the scalar-gated state space model (SSD)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.linear_attention import LinearAttentionState
from pallas_kernels.sharded import linear_attention
from swa_jax.layers.branches import Branch, heads_of
from swa_jax.layers.initialization import input_std
from swa_jax.layers.linear import Linear
from swa_jax.layers.normalization import RMSNorm
from swa_jax.layers.statistics import spread

DECAY_RANGE = (1.0, 16.0)  # of A, uniform


class Mamba2(nnx.Module):
    """y = norm((h + D v) silu(gate)), h_t = S_t^T q_t,
    S_t = exp(-dt_t A) S_{t-1} + dt_t k_t v_t^T, dt = softplus(x W_dt + b).

    In the paper's letters q is C, k is B, v is x and the gate z: all heads share one
    query and one key, of the width of the state.
    Source: Dao and Gu 2024, arXiv:2405.21060, sections 5 to 7.
    """

    activation = True

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        key_width: int,
        value_width: int,
        norm_eps: float,
        rngs: nnx.Rngs,
    ):
        """`key_width`: of the state; `value_width`: of one head."""
        std, inner = input_std(width), heads * value_width
        self.branches = (
            Branch("value", inner, std),
            Branch("key", key_width, std),
            Branch("query", key_width, std),
            Branch("gate", inner, std, local=False),
        )
        self.output_width = inner
        key = rngs.params()
        options = {"std": std, "dtype": jnp.float32, "rngs": rngs}
        self.step = Linear(
            width, heads, bias=step_bias(rngs.params(), heads), **options
        )
        self.log_decay = nnx.Param(
            jnp.log(jax.random.uniform(key, (heads,), jnp.float32, *DECAY_RANGE))
        )
        self.skip = nnx.Param(jnp.ones((heads,), jnp.float32))
        self.out_norm = RMSNorm(inner, eps=norm_eps)
        self.heads = heads

    def __call__(
        self,
        branches: dict[str, jax.Array],
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array | None,
        segment_ids_BT: jax.Array | None,
        depth: float | jax.Array,
        state: LinearAttentionState | None,
    ) -> tuple[jax.Array, LinearAttentionState | None]:
        """Returns y_BTM in float32 and the memory after the last token."""
        del positions_BT, window, depth
        v_BTNP = heads_of(branches["value"], self.heads)
        step_BTN = self.step(x_BTD)
        h_BTNP, new_state = linear_attention(
            heads_of(branches["query"], 1),
            heads_of(branches["key"], 1),
            v_BTNP,
            self._log_decay(step_BTN),
            log_write=log_softplus(step_BTN),
            scale=1.0,
            state=state,
            segment_ids=segment_ids_BT,
        )
        skip_11N1 = self.skip[...][None, None, :, None]
        y_BTNP = h_BTNP.astype(jnp.float32) + skip_11N1 * v_BTNP.astype(jnp.float32)
        gate_BTM = jax.nn.silu(branches["gate"].astype(jnp.float32))
        y_BTM = self.out_norm(y_BTNP.reshape(gate_BTM.shape) * gate_BTM)
        return y_BTM, None if state is None else new_state

    def statistics(
        self, branches: dict[str, jax.Array], x_BTD: jax.Array, /, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns the decays of the memory, in (0, 1), and the step sizes."""
        step_BTN = self.step(x_BTD)
        decay_BTN = jnp.exp(self._log_decay(step_BTN))
        return {
            **spread("decay", decay_BTN),
            **spread("step", jax.nn.softplus(step_BTN)),
        }

    def _log_decay(self, step_BTN: jax.Array) -> jax.Array:
        return -jnp.exp(self.log_decay[...])[None, None] * jax.nn.softplus(step_BTN)


def step_bias(
    key: jax.Array, heads: int, /, *, shortest: float = 1e-3, longest: float = 0.1
) -> jax.Array:
    """Returns b with softplus(b) log-uniform between the two step sizes."""
    low, high = math.log(shortest), math.log(longest)
    dt_N = jnp.exp(jax.random.uniform(key, (heads,), jnp.float32, low, high))
    return dt_N + jnp.log(-jnp.expm1(-dt_N))  # the inverse of softplus


def log_softplus(x: jax.Array, /) -> jax.Array:
    """Returns log(log(1 + exp(x))), also where softplus(x) underflows.

    Below -15 softplus(x) is exp(x) to float32, so that its logarithm is x.
    """
    small = x < -15.0
    return jnp.where(small, x, jnp.log(jax.nn.softplus(jnp.where(small, 0.0, x))))
