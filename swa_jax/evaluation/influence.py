"""How much an output owes to each input before it: norms of Jacobians by distance.

The influence of position s on position t is the Frobenius norm of the D x D Jacobian
d y_t / d x_s. Along any chain of functions x_BTD -> x_BTD (a layer, a mixer without its
residual path, a whole stack) it is found by pulling cotangents back from y_t: with all
basis vectors it is exact, and with standard normal u it is estimated from
E ||u^T J||^2 = ||J||_F^2 (Hutchinson), whose error falls with the root of their number.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from numpy.typing import NDArray

from swa_jax.models.layer_functions import LayerFunctions

Stage = Callable[[jax.Array], jax.Array]  # x_BTD -> y_BTD, rows apart


class PathShares(NamedTuple):
    """What stands for alpha of the averaging model in one layer of a real one.

    `jacobian`: `own_path_share` of the layer's Jacobian. `stream`: `stream_share` of
    the residual stream and the mixer's branch. `gain`: `hop_gain` of the Jacobian.
    """

    jacobian: float
    stream: float
    gain: float


def squared_norms(
    stages: Sequence[Stage],
    x_BTD: jax.Array,
    queries: Sequence[int],
    /,
    *,
    probes: int | None,
    key: jax.Array | None = None,
) -> NDArray[np.float64]:
    """Returns the squares of the norms ||d y_t / d x_s||_F, by row, query t and s: BQT.

    `stages` are applied one after the other. `probes`: random cotangents for each row
    and query, drawn from `key`; None: the D basis vectors, exact. Memory grows with the
    probes and not with the stages' number but for their inputs; a stage that is a
    `Partial` of arrays is compiled once for all that differ in the arrays alone.
    Raises ValueError for positions outside the row, no stage and no probe.
    """
    _check(stages, x_BTD, queries, probes=probes, key=key)
    B, T, D = x_BTD.shape
    parts = [
        stage if isinstance(stage, Partial) else Partial(stage) for stage in stages
    ]
    inputs = [x_BTD]
    for part in parts[:-1]:
        inputs.append(_apply(part, inputs[-1]))
    found = []
    for number, t in enumerate(queries):
        u_PBD = _basis(B, D, x_BTD.dtype)
        if probes is not None and key is not None:
            shape = (probes, B, D)
            of_query = jax.random.fold_in(key, number)
            u_PBD = jax.random.normal(of_query, shape, x_BTD.dtype)
        g_PBTD = jnp.zeros((len(u_PBD), B, T, D), x_BTD.dtype).at[:, :, t].set(u_PBD)
        for part, x in zip(parts[::-1], inputs[::-1], strict=True):
            g_PBTD = _pull(part, x, g_PBTD)
        squares = np.square(np.asarray(g_PBTD, np.float64)).sum(axis=(0, -1))
        found.append(squares if probes is None else squares / probes)
    return np.stack(found, axis=1)


def influence_by_distance(
    squares_BQT: NDArray[np.float64], queries: Sequence[int], /
) -> NDArray[np.float64]:
    """Returns the influence at the distances 0 ... max(queries) (tokens): the root of
    the mean square over the rows and over the queries that have so much past."""
    farthest = max(queries)
    sums, counts = np.zeros(farthest + 1), np.zeros(farthest + 1)
    for squares_BT, t in zip(np.moveaxis(squares_BQT, 1, 0), queries, strict=True):
        sums[: t + 1] += squares_BT[:, t::-1].mean(axis=0)
        counts[: t + 1] += 1
    return np.sqrt(sums / counts)


def layer_stages(layer: LayerFunctions, /, *, residual: bool = True) -> list[Partial]:
    """Returns a layer's two branches as stages; not `residual`: x + f(x) is f(x)."""
    branches = [layer.mixer, layer.feed_forward]
    return [Partial(plus_input, f) for f in branches] if residual else branches


def stack_stages(
    layers: Sequence[LayerFunctions], /, *, residual: bool = True
) -> list[Partial]:
    """Returns the stages of a whole stack, from the embedded inputs to the residual
    stream behind the last layer; without `residual`, of the branches alone."""
    return [s for layer in layers for s in layer_stages(layer, residual=residual)]


def layer_inputs(
    layers: Sequence[LayerFunctions], x_BTD: jax.Array, /
) -> list[jax.Array]:
    """Returns what each layer reads, and behind it what the last one writes."""
    found = [x_BTD]
    for layer in layers:
        for stage in layer_stages(layer):
            x_BTD = _apply(stage, x_BTD)
        found.append(x_BTD)
    return found


def path_shares(
    layer: LayerFunctions,
    x_BTD: jax.Array,
    queries: Sequence[int],
    /,
    *,
    window: int,
    probes: int | None,
    key: jax.Array | None = None,
) -> PathShares:
    """Returns the measures of alpha of a layer with a window, at the stream x_BTD that
    it reads; the Jacobian is that of the whole layer, feed-forward included."""
    squares = squared_norms(layer_stages(layer), x_BTD, queries, probes=probes, key=key)
    of_layer = influence_by_distance(squares, queries)
    return PathShares(
        own_path_share(of_layer, window=window),
        stream_share(x_BTD, _apply(layer.mixer, x_BTD)),
        hop_gain(of_layer, window=window),
    )


def own_path_share(influence_D: NDArray[np.floating], /, *, window: int) -> float:
    """Returns alpha as the averaging model would have it from one layer's influence.

    There the own token has the share p = I(0) / sum_d I(d) = alpha + (1 - alpha) / W of
    the influence, so alpha = (p - 1 / W) / (1 - 1 / W); below zero where a layer makes
    less of its own token than of the others. Raises ValueError for a window of one
    token, in which nothing tells the two paths apart, and for no influence.
    """
    total = _total(influence_D, window)
    width = min(window, len(influence_D))
    own = float(influence_D[0]) / total
    return (own - 1 / width) / (1 - 1 / width)


def hop_gain(influence_D: NDArray[np.floating], /, *, window: int) -> float:
    """Returns how much larger one layer's hop is than its own path, (1 - alpha) / alpha
    in the averaging model: W h / sqrt(I(0)^2 - h^2).

    h is the root mean square of I(d) over 1 <= d < W. What reaches the own token by
    the hop is taken out as if it stood at a right angle to the own path. Infinite where
    nothing is left. Raises ValueError as `own_path_share`.
    """
    _total(influence_D, window)
    width = min(window, len(influence_D))
    square = float(np.mean(np.square(influence_D[1:width])))
    own = float(influence_D[0]) ** 2 - square
    return width * float(np.sqrt(square / own)) if own > 0 else float("inf")


def stream_share(x_BTD: Any, branch_BTD: Any, /) -> float:
    """Returns ||x|| / (||x|| + ||f(x)||), the share of the residual stream's length
    that a branch f leaves in place; norms over all tokens. It looks at the values and
    not at what they depend on. Raises ValueError where both are zero."""
    lengths = [
        float(np.linalg.norm(np.ravel(np.asarray(a)))) for a in (x_BTD, branch_BTD)
    ]
    if not sum(lengths) > 0.0:
        raise ValueError("a share of two lengths wants one above zero, got zeros")
    return lengths[0] / sum(lengths)


def plus_input(branch: Stage, x_BTD: jax.Array, /) -> jax.Array:
    """Returns x + f(x)."""
    return x_BTD + branch(x_BTD)


def _check(
    stages: Sequence[Stage],
    x_BTD: jax.Array,
    queries: Sequence[int],
    *,
    probes: int | None,
    key: jax.Array | None,
) -> None:
    T = x_BTD.shape[1]
    if not stages or not queries or not all(0 <= t < T for t in queries):
        raise ValueError(
            f"influence wants at least one function, and queries within 0 ... {T - 1}; "
            f"got {len(stages)} functions, queries {tuple(queries)}."
        )
    if probes is not None and (probes < 1 or key is None):
        raise ValueError(
            "influence by random probes wants at least one, and a key to draw them; "
            f"got {probes=}, key={'none' if key is None else 'given'}."
        )


def _total(influence_D: NDArray[np.floating], window: int) -> float:
    total = float(np.sum(influence_D))
    if min(window, len(influence_D)) < 2 or not total > 0.0:
        raise ValueError(
            "the two paths of a layer are told apart by influence above zero on a "
            f"window of at least 2 tokens; got {window=}, {len(influence_D)} "
            f"distances, their sum {total}."
        )
    return total


def _basis(rows: int, width: int, dtype: Any) -> jax.Array:
    """Returns every basis vector for every row, PBD with P = D."""
    return jnp.broadcast_to(jnp.eye(width, dtype=dtype)[:, None], (width, rows, width))


@jax.jit
def _apply(stage: Partial, x_BTD: jax.Array) -> jax.Array:
    return stage(x_BTD)


@jax.jit
def _pull(stage: Partial, x_BTD: jax.Array, g_PBTD: jax.Array) -> jax.Array:
    """Returns the cotangents of a stage's input for those of its output.

    One after the other: beside each other they would want the memory of P backward
    passes.
    """
    _, pull = jax.vjp(stage, x_BTD)
    return jax.lax.map(lambda g_BTD: pull(g_BTD)[0], g_PBTD)
