"""RWKV-7: a generalised delta rule with a decay per key channel."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.linear_attention import LinearAttentionState
from pallas_kernels.sharded import wkv7
from swa_jax.layers.branches import Branch, heads_of
from swa_jax.layers.first_values import FirstValues, with_first_values
from swa_jax.layers.initialization import input_std
from swa_jax.layers.linear import LowRank
from swa_jax.layers.normalization import HeadNorm, unit_length
from swa_jax.layers.statistics import spread

DECAY_BIAS = (-5.5, -0.5)  # over the channels of all heads, from the first to the last
SLOWEST = math.exp(-0.5)  # the largest decay of a token is exp(-SLOWEST)
KEY_REMOVAL = 0.85  # initial weight of the removal key
FIRST_SHARE = 1.0  # initially the first layer's share of the values, before the sigmoid
NORM_EPS = 1e-5  # times the width of a head


class RWKV7(nnx.Module):
    """y = (headnorm(h) + (sum_H r u k) v) gate, h_t = S_t^T r_t,
    S_t = diag(w_t) S_{t-1} - a_t c_t (c_t^T S_{t-1}) + k_t v_t^T,

    c the removal key of unit length, k the key scaled by the rate a in (0, 1) at which
    it is learned, w = exp(-exp(-1/2) sigmoid(.)); w, a and the gate are low-rank maps
    of the token. Behind a model's first such layer v is mixed with that one's,
    v + (v_first - v) s, the share s in (0, 1) a low-rank map too. The shift of tokens
    before the paper's projections is left out: the local mixer takes its place.
    Source: Peng et al. 2025, arXiv:2503.14456, eq. 3 to 17.
    """

    activation = False

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        key_width: int,
        value_width: int,
        rngs: nnx.Rngs,
    ):
        """`key_width`, `value_width`: of one head."""
        std, keys, values = input_std(width), heads * key_width, heads * value_width
        self.branches = (
            Branch("query", keys, std),
            Branch("key", keys, std),
            Branch("value", values, std),
        )
        self.output_width = values
        rank, share_rank, gate_rank = low_ranks(width)
        self.decay = LowRank(
            width,
            rank,
            np.linspace(*DECAY_BIAS, keys),
            activation=jnp.tanh,
            down_std=0.0,
            rngs=rngs,
        )
        self.rate = LowRank(width, rank, np.zeros(keys), down_std=0.0, rngs=rngs)
        self.first_share = LowRank(
            width, share_rank, np.full(values, FIRST_SHARE), down_std=0.0, rngs=rngs
        )
        self.gate = LowRank(
            width,
            gate_rank,
            None,
            outputs=values,
            activation=jax.nn.sigmoid,
            rngs=rngs,
        )
        self.removal = nnx.Param(jnp.full((keys,), KEY_REMOVAL, jnp.float32))
        self.replacement = nnx.Param(jnp.ones((keys,), jnp.float32))
        self.bonus = nnx.Param(jnp.zeros((keys,), jnp.float32))
        self.head_norm = HeadNorm(
            heads, value_width, eps=NORM_EPS * value_width, bias=True
        )
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
        dtype = branches["key"].dtype
        key_BTM = branches["key"].astype(jnp.float32)
        rate_BTM = jax.nn.sigmoid(self.rate(x_BTD))
        replacement_11M = self.replacement[...][None, None]
        k_BTM = key_BTM * (1 + (rate_BTM - 1) * replacement_11M)
        removal_BTNH = self._heads(key_BTM * self.removal[...][None, None])
        removal_BTNH = unit_length(removal_BTNH, eps=1e-12)
        arrays = (
            self._heads(branches["query"]),
            self._heads(self._log_decay(x_BTD)),
            self._heads(k_BTM.astype(dtype)),
            self._heads(branches["value"]),
            -removal_BTNH.astype(dtype),
            (removal_BTNH * self._heads(rate_BTM)).astype(dtype),
        )
        h_BTNP, new_state = wkv7(*arrays, state=state, segment_ids=segment_ids_BT)
        y_BTNP = self.head_norm(h_BTNP) + self._own(arrays[0], k_BTM, arrays[3])
        y_BTM = y_BTNP.reshape(*x_BTD.shape[:2], -1) * self.gate(x_BTD)
        return y_BTM, None if state is None else new_state

    def mix_values(
        self, value_BTM: jax.Array, x_BTD: jax.Array, first: FirstValues, /
    ) -> tuple[jax.Array, FirstValues]:
        """Returns the values with their share of the first layer's, and what goes to
        the next layer."""
        share_BTM = jax.nn.sigmoid(self.first_share(x_BTD))
        values = (self._heads(value_BTM), self._heads(share_BTM))
        value_BTNP, first = with_first_values(*values, first)
        return value_BTNP.reshape(value_BTM.shape), first

    def statistics(
        self, branches: dict[str, jax.Array], x_BTD: jax.Array, /, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns the decays of the memory and the rates of writing, in (0, 1)."""
        decay_BTM = jnp.exp(self._log_decay(x_BTD))
        rate_BTM = jax.nn.sigmoid(self.rate(x_BTD))
        return {**spread("decay", decay_BTM), **spread("rate", rate_BTM)}

    def _log_decay(self, x_BTD: jax.Array) -> jax.Array:
        return -SLOWEST * jax.nn.sigmoid(self.decay(x_BTD))

    def _own(self, r_BTNH, k_BTM, v_BTNP):
        """Returns the token's own value, weighed by its query, key and the bonus."""
        weighed_BTNH = self._heads(k_BTM * self.bonus[...][None, None])
        weight_BTN1 = jnp.sum(
            r_BTNH.astype(jnp.float32) * weighed_BTNH, axis=-1, keepdims=True
        )
        return weight_BTN1 * v_BTNP.astype(jnp.float32)

    def _heads(self, x_BTM: jax.Array) -> jax.Array:
        return heads_of(x_BTM, self.heads)


def low_ranks(width: int, /) -> tuple[int, int, int]:
    """Returns the ranks of decay and rate, of the share of the first values, and of the
    gate: multiples of 32 that grow with the width as in the authors' models."""
    wanted = (1.8 * width**0.5, 1.3 * width**0.5, 0.6 * width**0.8)
    both, share, gate = (max(32, 32 * round(rank / 32)) for rank in wanted)
    return both, share, gate
