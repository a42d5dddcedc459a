"""The queries of a window-attention kernel: as they lie in memory, or prepared there.

A preparation (preparation.py) moves as many bytes as attention over a short window, so
the kernel that owns a query prepares it on the way in: forward and in `dq`, which also
turns the gradient back and leaves the prepared queries to the kernel of dk and dv. Keys
come prepared: several programs read them, and a cache keeps them.

A rotation turns a head's first half by its second. Values cannot be cut in a kernel, so
prepared queries and their keys are parts: the halves of the columns.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.local_attention import rows as shared
from pallas_kernels.local_attention.rows import Inputs, Keys, Rows, Sizes

Parts = tuple[jax.Array, ...]  # of columns: one, all of them; or two halves
HALVES = ((0, 2), (1, 2))


def load_queries(inputs: Inputs, rows: Rows, sizes: Sizes) -> Parts:
    """Returns the rows' queries in q's dtype, prepared if there is a preparation."""
    if inputs.turns is None:
        return (shared.load_rows(inputs.q_BTNH, rows, sizes),)
    first, second = _load_halves(inputs, rows, sizes)
    scales = _load_scales(inputs, sizes)
    if scales is not None:
        inverse_R1 = _inverse_rms((first, second), sizes)
        first, second = (
            scales[0] * (first * inverse_R1),
            scales[1] * (second * inverse_R1),
        )
    cos_RF, sin_RF = _load_turns(inputs, rows, sizes)
    turned = (first * cos_RF - second * sin_RF, second * cos_RF + first * sin_RF)
    return tuple(half.astype(inputs.q_BTNH.dtype) for half in turned)


def load_keys(inputs: Inputs, keys: Keys, sizes: Sizes) -> Parts:
    """Returns a block of keys in the parts of the queries."""
    count = sizes.parts
    return tuple(
        shared.load_keys(inputs.k_BSKH, keys, sizes, (number, count))
        for number in range(count)
    )


def products(q: Parts, k: Parts, sizes: Sizes) -> jax.Array:
    """Returns q . k of rows and keys, RC."""
    parts = zip(q, k, strict=True)
    dots = [backend.dot_transposed(x, y, precise=sizes.precise) for x, y in parts]
    return sum(dots[1:], dots[0])


def store(ref: Any, rows: Rows, parts: Parts, sizes: Sizes) -> None:
    """Returns nothing; writes parts of rows of an array of shape BTNH."""
    for number, part in enumerate(parts):
        shared.store_rows(ref, rows, part, sizes, (number, len(parts)))


def raw_gradient(
    inputs: Inputs, rows: Rows, dq: Parts, sizes: Sizes
) -> tuple[Parts, Parts | None]:
    """Returns the gradient of q from that of the prepared queries, and what these rows
    add to that of the norm's scale, of shape 1F each (None without a norm)."""
    if inputs.turns is None:
        return dq, None
    first, second = dq
    cos_RF, sin_RF = _load_turns(inputs, rows, sizes)
    dy = (first * cos_RF + second * sin_RF, second * cos_RF - first * sin_RF)
    scales = _load_scales(inputs, sizes)
    if scales is None:
        return dy, None
    x = _load_halves(inputs, rows, sizes)
    inverse_R1 = _inverse_rms(x, sizes)
    dscales = tuple(
        jnp.sum(d * (a * inverse_R1), axis=0, keepdims=True)
        for d, a in zip(dy, x, strict=True)
    )
    dnormed = tuple(w * d for w, d in zip(scales, dy, strict=True))
    mean_R1 = _sum(dnormed, x) * (inverse_R1 * inverse_R1 * (1 / sizes.H))
    dx = zip(dnormed, x, strict=True)
    return tuple(inverse_R1 * (d - a * mean_R1) for d, a in dx), dscales


def store_scale_gradient(ref: Any, index: Any, dscales: Parts, sizes: Sizes) -> None:
    """Returns nothing; writes the rows' share of the scale's gradient, at an index."""
    for number, dscale_1F in enumerate(dscales):
        columns_1F, inside_1F = shared.columns(sizes, (number, len(dscales)))
        backend.store(ref, (*index, columns_1F), dscale_1F, inside_1F)


def _load_halves(inputs, rows, sizes):
    """Returns the halves of the rows' raw queries, in float32."""
    return tuple(
        shared.load_rows(inputs.q_BTNH, rows, sizes, half).astype(jnp.float32)
        for half in HALVES
    )


def _load_turns(inputs, rows, sizes):
    """Returns cosine and sine of the rows' angles, RF each."""
    columns_1F, inside_1F = shared.columns(sizes, HALVES[0])
    *turns, _ = inputs.turns
    batch = rows.batch if turns[0].shape[0] > 1 else 0
    index = (batch, rows.tokens_R[:, None], columns_1F)
    seen = shared.both(rows.valid_R, inside_1F)
    return tuple(backend.load(table, index, seen) for table in turns)


def _load_scales(inputs, sizes):
    """Returns the halves of the norm's scale, 1F each; None without a norm."""
    scale_H = inputs.turns[-1]
    if scale_H is None:
        return None
    columns = (shared.columns(sizes, half) for half in HALVES)
    return tuple(backend.load(scale_H, (c,), inside) for c, inside in columns)


def _inverse_rms(x, sizes):
    """Returns 1 / sqrt(mean(x^2) + eps) of each row, R1."""
    return jax.lax.rsqrt(_sum(x, x) * (1 / sizes.H) + sizes.eps)


def _sum(x, y):
    """Returns x . y of each row of two arrays in halves, R1."""
    first, second = (
        jnp.sum(a * b, axis=1, keepdims=True) for a, b in zip(x, y, strict=True)
    )
    return first + second
