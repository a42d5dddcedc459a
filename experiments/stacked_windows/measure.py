"""The influence in one model, measured, and beside it what the formulas say."""

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from swa_jax.evaluation.influence import (
    PathShares,
    influence_by_distance,
    layer_inputs,
    path_shares,
    squared_norms,
    stack_stages,
)
from swa_jax.evaluation.reach import AveragingStack, horizon_of, tail
from swa_jax.models.layer_functions import (
    LayerFunctions,
    embedding_function,
    layer_functions,
)

from .config import Cell, Size, cell_model
from .formulas import diffusion_tail, errors_of, horizons_of, tails_of
from .results import Outcome, Stack
from .training import cell_params, held_out_rows

POINTS = 48  # distances of a curve that is kept, at most


def measure_cell(size: Size, cell: Cell, /) -> Outcome:
    """The outcome of a cell, a pure function of both but for the seconds."""
    begin = time.perf_counter()
    trained = cell_params(size, cell)
    config = dataclasses.replace(cell_model(size, cell.design), dtype="float32")
    layers = layer_functions(config, trained.params, window=cell.window)
    tokens_BT = held_out_rows(size, cell.design.measured_tokens)
    x_BTD = embedding_function(config, trained.params)(tokens_BT)
    key = jax.random.key(cell.seed)
    shares = _shares(size, cell, layers, x_BTD, key)
    whole, branches = (
        _influence(size, layers, x_BTD, key, residual=residual)
        for residual in (True, False)
    )
    formulas, gains = tails_of(shares, cell.window), [x.gain for x in shares]
    without = {
        "diffusion": diffusion_tail(len(shares), cell.window),
        "average": tail(AveragingStack(len(shares), cell.window, 0.0).influence()),
    }
    return Outcome(
        stack=_stack(size, whole, formulas, reach=cell_reach(cell)),
        branches=_stack(size, branches, without, reach=cell_reach(cell)),
        alpha_jacobian=_digits(share.jacobian for share in shares),
        alpha_stream=_digits(share.stream for share in shares),
        gains=tuple(_digit(g) if math.isfinite(g) else None for g in gains),
        loss=None if trained.loss is None else _digit(trained.loss),
        steps=trained.steps,
        seconds=round(time.perf_counter() - begin, 2),
    )


def cell_reach(cell: Cell, /) -> int:
    """The tokens that the windows of a model reach, L (W - 1) + 1."""
    return cell.design.window_layers * (cell.window - 1) + 1


def _shares(
    size: Size, cell: Cell, layers: tuple[LayerFunctions, ...], x_BTD: Any, key: Any
) -> list[PathShares]:
    """The measures of alpha of every layer with a window."""
    inputs = layer_inputs(layers, x_BTD)
    query = x_BTD.shape[1] - 1
    return [
        path_shares(
            layer,
            inputs[number],
            (query,),
            window=cell.window,
            probes=size.measuring.probes,
            key=jax.random.fold_in(key, number),
        )
        for number, layer in enumerate(layers)
        if layer.name.endswith("_swa")
    ]


def _influence(
    size: Size, layers: tuple[LayerFunctions, ...], x_BTD: Any, key: Any, *, residual
) -> NDArray[np.float64]:
    query = x_BTD.shape[1] - 1
    stages = stack_stages(layers, residual=residual)
    probes = size.measuring.probes
    squares = squared_norms(stages, x_BTD, (query,), probes=probes, key=key)
    return influence_by_distance(squares, (query,))


def _stack(
    size: Size,
    influence: NDArray[np.float64],
    formulas: dict[str, NDArray[np.float64]],
    *,
    reach: int,
) -> Stack:
    """The measured tail with its moments, and the formulas' horizons and errors."""
    shares = influence / influence.sum()
    measured, distances = tail(influence), np.arange(len(influence))
    mean = float(shares @ distances)
    kept = curve_distances(len(influence))
    tolerance = size.measuring.tolerance
    return Stack(
        distances=tuple(kept),
        tail=_digits(measured[kept]),
        mean=_digit(mean),
        spread=_digit(math.sqrt(float(shares @ (distances - mean) ** 2))),
        horizon=horizon_of(measured, tolerance),
        horizons=horizons_of(formulas, tolerance),
        errors={n: _digit(x) for n, x in errors_of(measured, formulas).items()},
        beyond_reach=_digit(measured[reach]) if reach < len(measured) else 0.0,
    )


def curve_distances(count: int, /) -> list[int]:
    """Distances from 0 to count - 1, all of the near ones and fewer of the far ones."""
    steps = np.geomspace(1, max(count - 1, 1), POINTS)
    return sorted({0, *(round(float(step)) for step in steps if step < count)})


def _digits(values: Any) -> tuple[float, ...]:
    return tuple(_digit(value) for value in values)


def _digit(value: float) -> float:
    """The value with four digits."""
    return float(f"{value:.4g}")
