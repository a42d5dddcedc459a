"""What a layer costs in closed form, by the models' own account."""

import dataclasses
from typing import NamedTuple

from experiments.kernel_speed.cases import Part
from experiments.kernel_speed.flops import visible_pairs
from swa_jax.models.accounting import KindCost, account

from .config import CONV, Layer, Size, with_layer

PARAMETER_BYTES = 4  # float32, whatever the compute dtype
GRADIENT_FACTOR = 3  # two matmuls of the backward pass for each one of the forward


class Added(NamedTuple):
    """What a local mixer adds to a layer; the same beside what ShortConv adds.

    FLOPs/token forward; bytes of one sequence's state.
    """

    parameters: int
    flops: int
    state_bytes: int


def layer_cost(size: Size, layer: Layer, /) -> KindCost:
    """Returns the cost of the layer, feed-forward and norms included."""
    model = with_layer(size.model, layer)
    return account(model, seq_len=size.tokens, window=size.window).kinds[0]


def added(size: Size, layer: Layer, beside: str = CONV, /) -> Added:
    """Returns the layer's cost less that of the layer with another local mixer."""
    cost, other = layer_cost(size, layer), layer_cost(size, Layer(layer.mixer, beside))
    return Added(
        cost.parameters - other.parameters,
        cost.forward_flops - other.forward_flops,
        cost.state_bytes - other.state_bytes,
    )


def floor_flops(size: Size, layer: Layer, part: Part, /) -> float:
    """Returns the FLOPs of one row that no implementation of the layer can leave out.

    The account lets every query read a whole window, or the whole row; here it reads
    what it sees: the mean over the row, rounded down to whole tokens.
    """
    model = with_layer(size.model, layer)
    local_window = _mean_keys(size.tokens, model.local.window)
    model = dataclasses.replace(
        model, local=dataclasses.replace(model.local, window=local_window)
    )
    seen = account(
        model,
        seq_len=_mean_keys(size.tokens, size.tokens),
        window=_mean_keys(size.tokens, size.window),
    )
    factor = GRADIENT_FACTOR if part == "with gradients" else 1
    return float(factor * size.tokens * seen.kinds[0].forward_flops)


def _mean_keys(tokens: int, window: int) -> int:
    return visible_pairs(tokens=tokens, window=window) // tokens
