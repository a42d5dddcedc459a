"""How far a model sees in held-out text, and how far its windows would by formula."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
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
from swa_jax.evaluation.tasks.held_out import held_out_rows
from swa_jax.evaluation.tasks.registry import Choices
from swa_jax.evaluation.tasks.task import AXIS, Cell, Subject
from swa_jax.models.layer_functions import (
    LayerFunctions,
    embedding_function,
    layer_functions,
)

WINDOWED = "swa"  # how the names of layers with a window end


@dataclass(frozen=True)
class Influence:
    """The influence on the last token of rows of held-out text, by distance.

    From the embedded inputs to the residual stream behind the last layer, residual
    paths included (`swa_jax/evaluation/influence.py`). A row is read as one document.
    """

    lengths: tuple[int, ...] = field(metadata=AXIS)
    """Tokens of a row."""
    windows: tuple[int, ...] = field(metadata=AXIS)
    """Tokens; of two at least, or nothing tells a layer's two paths apart."""
    rows: int = 4
    """Rows of a cell."""
    probes: int = 16
    """Random cotangents of each row."""
    tolerance: float = 0.01
    """The share of all the influence that lies beyond a horizon."""
    seed: int = 0
    """Of the probes."""

    @property
    def name(self) -> str:
        """What `swax eval --tasks` calls it."""
        return "influence"

    def cells(self) -> Sequence[Cell]:
        """Returns every length with every window."""
        return [
            {"length": length, "window": window}
            for length in self.lengths
            for window in self.windows
        ]

    def judge(self, subject: Subject, cell: Cell, /) -> dict[str, Any]:
        """Returns how far the model sees in a cell, in tokens, and the formulas.

        - "horizon": the smallest distance from which, or beyond, less than the
          tolerance of the influence comes; "mean" and "spread" of the distances.
        - "reach" of the windows by themselves, and the share "beyond_reach"; None where
          no layer has a window.
        - "alpha" and "alpha_stream": means over the layers with a window, of
          `PathShares`; the horizons of the averaging model at the first:
          "binomial_horizon" of its exact form, "single_path_horizon".
        - "tail": the share of the influence from each of the "distances" or beyond.

        Raises ValueError for a subject without a config.
        """
        if subject.config is None:
            raise ValueError("influence wants a subject with the model's config")
        config = dataclasses.replace(subject.config, dtype="float32")
        rows = held_out_rows(
            subject, length=cell["length"], max_tokens=self.rows * cell["length"]
        )
        layers = layer_functions(config, subject.params, window=cell["window"])
        x_BTD = embedding_function(config, subject.params)(rows["tokens"])
        key, query = jax.random.key(self.seed), cell["length"] - 1
        squares = squared_norms(
            stack_stages(layers), x_BTD, (query,), probes=self.probes, key=key
        )
        influence_D = influence_by_distance(squares, (query,))
        shares = self._shares(layers, x_BTD, cell["window"], key)
        return _seen(influence_D, self.tolerance) | _by_formula(
            shares, tail(influence_D), cell["window"], self.tolerance
        )

    def _shares(
        self, layers: Sequence[LayerFunctions], x_BTD: Any, window: int, key: Any
    ) -> list[PathShares]:
        """Returns the measures of alpha of every layer with a window."""
        inputs, query = layer_inputs(layers, x_BTD), x_BTD.shape[1] - 1
        return [
            path_shares(
                layer,
                inputs[number],
                (query,),
                window=window,
                probes=self.probes,
                key=jax.random.fold_in(key, number),
            )
            for number, layer in enumerate(layers)
            if layer.name.endswith(WINDOWED)
        ]


def _seen(influence_D: NDArray[np.float64], tolerance: float) -> dict[str, Any]:
    """Returns what is measured of the whole model."""
    tail_D, distances_D = tail(influence_D), np.arange(len(influence_D))
    shares_D = influence_D / influence_D.sum()
    mean = float(shares_D @ distances_D)
    octaves = 1 << np.arange(int(distances_D[-1]).bit_length())
    return {
        "horizon": horizon_of(tail_D, tolerance),
        "mean": mean,
        "spread": float(np.sqrt(shares_D @ (distances_D - mean) ** 2)),
        "distances": [0, *octaves.tolist()],
        "tail": [1.0, *tail_D[octaves].tolist()],
    }


def _by_formula(
    shares: Sequence[PathShares],
    tail_D: NDArray[np.float64],
    window: int,
    tolerance: float,
) -> dict[str, Any]:
    """Returns what the layers with a window come to by themselves, None without any."""
    names = ("reach", "beyond_reach", "alpha", "alpha_stream")
    names += ("binomial_horizon", "single_path_horizon")
    if not shares:
        return dict.fromkeys(names)
    alpha = fmean(share.jacobian for share in shares)
    stack = AveragingStack(len(shares), window, min(1.0, max(0.0, alpha)))
    beyond = float(tail_D[stack.reach]) if stack.reach < len(tail_D) else 0.0
    values = (stack.reach, beyond, alpha, fmean(share.stream for share in shares))
    values += (stack.horizon(tolerance), stack.single_path_horizon(tolerance))
    return dict(zip(names, values, strict=True))


def influence(choices: Choices, /) -> Influence:
    """Returns the influence by distance, at the windows with more than one token.

    Raises ValueError where none has.
    """
    windows = tuple(window for window in choices.windows if window > 1)
    if not windows:
        raise ValueError(
            f"influence wants a window of at least 2 tokens, got {choices.windows}"
        )
    lengths = tuple(length for length in choices.lengths if length > 1)
    if not lengths:
        raise ValueError(
            f"influence wants rows of at least 2 tokens, got {choices.lengths}"
        )
    return Influence(lengths, windows, seed=choices.seed)
