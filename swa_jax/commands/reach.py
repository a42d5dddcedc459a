"""``swax reach``: how far stacked windows see in the averaging model, no JAX needed."""

import json
import math
from typing import Any

from rich.console import Console
from rich.table import Table

from swa_jax.evaluation.reach import AveragingStack, horizon_of, tail

WINDOWS_BACK = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # rows of the second table


def print_reach(
    *, layers: int, window: int, alpha: float, tolerance: float, as_json: bool
) -> None:
    """Prints reach, spread, hops and horizons of a stack, each with what it means.

    Raises ValueError for what is no stack and for a tolerance outside (0, 1).
    """
    stack = AveragingStack(layers, window, alpha)
    document = _document(stack, tolerance)
    if as_json:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(
        f"{layers:,} layers, a window of {window:,} tokens, the reading one included, "
        f"alpha {alpha:g}:\neach layer is alpha x + (1 - alpha) (mean of x over the "
        "window).\n"
    )
    console.print(_quantities(stack, document, tolerance))
    console.print(_distances(document))


def _document(stack: AveragingStack, tolerance: float) -> dict[str, Any]:
    """The numbers as JSON holds them; null is a horizon without end."""
    one_path = stack.single_path_horizon(tolerance)
    shares = tail(stack.influence())
    last = stack.farthest // stack.window + 1
    backs = [back for back in (0, *WINDOWS_BACK) if back <= last]
    return {
        "layers": stack.layers,
        "window": stack.window,
        "alpha": stack.alpha,
        "tolerance": tolerance,
        "reach_tokens": stack.reach,
        "layers_times_window": stack.rounded_reach,
        "mean_hops": stack.mean_hops,
        "spread_without_residual": stack.spread_without_residual,
        "spread_without_residual_by_diffusion": stack.diffusive_spread,
        "mean_distance": stack.mean_distance,
        "spread": stack.spread,
        "horizon": horizon_of(shares, tolerance),
        "horizon_by_single_path": one_path if math.isfinite(one_path) else None,
        "by_distance": [
            {
                "distance": back * stack.window,
                "share_from_there_or_beyond": _at(shares, back * stack.window),
                "single_path": stack.single_path(back * stack.window),
            }
            for back in backs
        ],
    }


def _at(shares: Any, distance: int) -> float:
    return float(shares[distance]) if distance < len(shares) else 0.0


def _quantities(
    stack: AveragingStack, document: dict[str, Any], tolerance: float
) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    one_path = document["horizon_by_single_path"]
    rows = (
        (
            f"{stack.reach:,}",
            "reach, L (W - 1) + 1: the tokens that can matter at all, the output's own "
            f"included (L W, often quoted, is {stack.rounded_reach:,})",
        ),
        (
            f"{stack.spread_without_residual:,.1f}",
            "spread if alpha were 0, sqrt(L (W^2 - 1) / 12): the standard deviation of "
            "the distance that the influence comes from (W sqrt(L / 12) is "
            f"{stack.diffusive_spread:,.1f})",
        ),
        (
            f"{stack.spread:,.1f}",
            "spread at this alpha, around a mean distance of "
            f"{stack.mean_distance:,.1f} tokens; a path hops "
            f"{stack.mean_hops:.3g} times on average, L (1 - alpha)",
        ),
        (
            f"{document['horizon']:,}",
            f"horizon, exact: less than {tolerance:g} of all the influence comes from "
            "this distance or beyond, all paths counted (hops are Binomial)",
        ),
        (
            "endless" if one_path is None else f"{one_path:,.1f}",
            "horizon by a single path, W ln(tolerance) / ln(1 - alpha): the rule of "
            "thumb, which knows no depth",
        ),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _distances(document: dict[str, Any]) -> Table:
    table = Table(
        title="\nshare of the influence from a distance or beyond",
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    for heading in ("distance (tokens)", "all paths", "(1 - alpha)^ceil(d / W)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["by_distance"]:
        table.add_row(
            f"{row['distance']:,}",
            f"{row['share_from_there_or_beyond']:.3g}",
            f"{row['single_path']:.3g}",
        )
    return table
