"""Causal sliding-window softmax attention, of a sequence and step by step."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.backend import multiplies_in_full
from pallas_kernels.checks import (
    check_floating,
    check_segment_ids,
    check_shapes,
    check_window,
)
from pallas_kernels.dispatch import dispatch
from pallas_kernels.local_attention.chunked import local_attention_chunked
from pallas_kernels.local_attention.cudnn import local_attention_cudnn
from pallas_kernels.local_attention.preparation import (
    Preparation,
    check_preparation,
    prepared,
    rotation,
)
from pallas_kernels.local_attention.reference import local_attention_reference
from pallas_kernels.local_attention.step import (
    WindowCache,
    local_attention_step,
    window_cache,
)
from pallas_kernels.local_attention.triton import local_attention_triton

__all__ = [
    "Past",
    "Preparation",
    "WindowCache",
    "local_attention",
    "local_attention_step",
    "prepared",
    "rotation",
    "window_cache",
]


class Past(NamedTuple):
    """The keys and values of the P tokens before the call's own, oldest first.

    The last W - 1 tokens make a sequence in two pieces equal to one piece. A negative
    segment id marks an empty slot that no query reads.
    """

    k_BPKH: jax.Array
    v_BPKH: jax.Array
    segment_ids_BP: jax.Array | None = None


def local_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    /,
    *,
    window: int | jax.Array | None,
    segment_ids: jax.Array | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    past: Past | None = None,
    preparation: Preparation | None = None,
    precision: Literal["highest"] | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Returns the attention of each query over its window of keys, of shape BTNH.

    out_t = sum_s p_ts v_s with p_ts proportional to exp(q_t . k_s / sqrt(H)) over the
    keys with 0 <= t - s < window (the query's own token included), in the query's
    segment. Queries are aligned with the end of the keys: query t stands at the key
    position S - T + t, whatever T and S. A query that sees no key returns zeros.

    - `window`: tokens, at least 1; None is full causal attention. A traced int32 scalar
      serves every window with one compilation, and costs what its value costs.
    - `segment_ids`: integers of shape (B, max(T, S)); the last T are the queries', the
      last S the keys'. Keys with a negative id are never read.
    - `softcap`: c > 0 turns a logit x into c tanh(x / c).
    - `sinks`: a logit per query head, shape (N,), that joins the softmax without a
      value (Agarwal et al. 2025, arXiv:2508.10925).
    - `past`: tokens before k and v; its segment ids are given exactly when
      `segment_ids` is.
    - `preparation`: q is not the queries yet but what an RMS norm and a rotation make
      them of; keys come prepared. The GPU kernels do it on their way, where XLA would
      read and write all queries once more.
    - `precision`: "highest" multiplies float32 arrays in full. None leaves that to
      jax.default_matmul_precision in the GPU kernels, which round them to TF32 unless
      it says "highest"; the other forms always multiply in full.
    - `implementation`: None chooses; "triton" runs Pallas kernels on a GPU; "cudnn" is
      NVIDIA's, which goes first where the window is None; "chunked" is plain JAX at a
      cost of O(T W); "reference" is the definition.

    N is a multiple of K: query heads n*G to n*G + G - 1 read key/value head n. Sums and
    the softmax are in float32 (float64 for float64). Gradients are exact for q, k, v,
    the past, the sinks and the norm's scale; forward-mode differentiation needs the
    reference.

    Raises:
      ValueError: shapes, dtypes or values other than the above.
      NotImplementedError: the named implementation does not serve the call.
    """
    q_BTNH, k_BSKH, v_BSKH, segment_ids, sinks, past, preparation = jax.tree.map(
        jnp.asarray, (q_BTNH, k_BSKH, v_BSKH, segment_ids, sinks, past, preparation)
    )
    _check(q_BTNH, k_BSKH, v_BSKH, window, segment_ids, softcap, sinks, past)
    if preparation is not None:
        check_preparation("local_attention", q_BTNH, preparation)
    T = q_BTNH.shape[1]
    query_segments_BT = key_segments_BS = None
    if segment_ids is not None:
        query_segments_BT = segment_ids[:, segment_ids.shape[1] - T :]
        key_segments_BS = segment_ids[:, segment_ids.shape[1] - k_BSKH.shape[1] :]
    if past is not None:
        k_BSKH = jnp.concatenate([past.k_BPKH, k_BSKH], axis=1)
        v_BSKH = jnp.concatenate([past.v_BPKH, v_BSKH], axis=1)
        if key_segments_BS is not None and past.segment_ids_BP is not None:
            key_segments_BS = jnp.concatenate(
                [past.segment_ids_BP.astype(key_segments_BS.dtype), key_segments_BS], 1
            )
    arrays = (k_BSKH, v_BSKH, query_segments_BT, key_segments_BS, sinks)
    options = {"window": window, "softcap": softcap}

    def after_preparation(form):
        return lambda: form(prepared(q_BTNH, preparation), *arrays, **options)

    forms = {
        "triton": lambda: local_attention_triton(
            q_BTNH,
            *arrays,
            **options,
            precise=multiplies_in_full(precision),
            preparation=preparation,
        ),
        "cudnn": after_preparation(local_attention_cudnn),
        "chunked": after_preparation(local_attention_chunked),
        "reference": after_preparation(local_attention_reference),
    }
    if window is None:  # a well-kept library beats our kernel at all the pairs
        forms = {"cudnn": forms["cudnn"], **forms}
    return dispatch("local_attention", forms, implementation=implementation)


def _check(q_BTNH, k_BSKH, v_BSKH, window, segment_ids, softcap, sinks, past):
    """Returns nothing; raises ValueError where the public contract is broken."""
    name = "local_attention"
    arrays = {"q_BTNH": q_BTNH, "k_BSKH": k_BSKH, "v_BSKH": v_BSKH}
    shapes = {**arrays, "sinks_N": sinks}
    if past is not None:
        arrays |= {"past.k_BPKH": past.k_BPKH, "past.v_BPKH": past.v_BPKH}
        shapes |= {"past.k_BLKH": past.k_BPKH, "past.v_BLKH": past.v_BPKH}
    size = check_shapes(name, shapes)
    check_floating(name, arrays)
    if size["N"] % size["K"]:
        raise ValueError(
            f"{name} wants the number of query heads to be a multiple of the number of "
            f"key/value heads; got N = {size['N']}, K = {size['K']}."
        )
    check_window(name, window)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name} wants softcap > 0 or None; got {softcap=}.")
    length = max(size["T"], size["S"])
    check_segment_ids(name, "segment_ids", segment_ids, (size["B"], length))
    if past is None:
        return
    if (past.segment_ids_BP is None) != (segment_ids is None):
        raise ValueError(
            f"{name} wants past.segment_ids_BP exactly when segment_ids is given; give "
            "both or neither."
        )
    shape = (size["B"], size["L"])
    check_segment_ids(name, "past.segment_ids_BP", past.segment_ids_BP, shape)
