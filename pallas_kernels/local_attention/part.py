"""Attention of queries to one part of their keys, for rings of devices.

A softmax over keys that come in parts is the mean of the parts' outputs, weighted by
exp of their log-sum-exp; and given the log-sum-exp over all keys, the gradients of the
whole are sums of what each part gives (Liu et al. 2023, arXiv:2310.01889).
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.dispatch import dispatch
from pallas_kernels.local_attention.chunked import (
    attention_part_chunked,
    attention_part_gradients_chunked,
)
from pallas_kernels.local_attention.triton import (
    attention_part_gradients_triton,
    attention_part_triton,
)

NOTHING = -1e30  # below the log-sum-exp of a query that has read a key


class Part(NamedTuple):
    """How parts are computed; hashable."""

    softcap: float | None
    precise: bool
    implementation: str | None
    interpret: bool  # as the forward pass was told, see backend.call


def attention_part(
    *arrays: Any, part: Part, beyond: int
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH over these keys alone and the log-sum-exp of each query's
    logits, natural, float32 or wider, of shape BTN; below -1e19 where it sees no key.

    `arrays`: q_BTNH, k_BSKH, v_BSKH, query_segments_BT, key_segments_BS and sinks_N or
    None. Query t stands at the key position S - T + `beyond` + t and reads every key at
    or before it that has its segment id; from `beyond` = T on no key is after a query.

    Raises:
      NotImplementedError: no form serves the call.
    """
    options = {"softcap": part.softcap, "beyond": beyond}
    forms = {
        "triton": lambda: attention_part_triton(
            *arrays, precise=part.precise, **options
        ),
        "chunked": lambda: attention_part_chunked(*arrays, **options),
    }
    return _chosen(forms, part)


def attention_part_gradients(
    *arrays: Any, part: Part, beyond: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Returns what a part of the keys adds to dq_BTNH, its dk_BSKH and dv_BSKH, and
    dsinks_N (None without sinks).

    `arrays`: those of `attention_part`, then out_BTNH and lse_BTN over all keys, and
    dout_BTNH.
    """
    options = {"softcap": part.softcap, "beyond": beyond}
    forms = {
        "triton": lambda: attention_part_gradients_triton(
            *arrays, precise=part.precise, **options
        ),
        "chunked": lambda: attention_part_gradients_chunked(*arrays, **options),
    }
    return _chosen(forms, part)


def _chosen(forms, part):
    with backend.interpreted() if part.interpret else nullcontext():
        return dispatch("local_attention", forms, implementation=part.implementation)


def joined(
    left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array], /
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH, in the dtype of lse_BTN, and lse_BTN over two parts' keys."""
    lse_BTN = jnp.logaddexp(left[1], right[1])
    shares = (
        jnp.exp(part_BTN - lse_BTN)[..., None] * out_BTNH.astype(lse_BTN.dtype)
        for out_BTNH, part_BTN in (left, right)
    )
    return jnp.add(*shares), lse_BTN
