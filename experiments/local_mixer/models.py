"""The model of a cell, made as large as the others by its feed-forward's width."""

import dataclasses
import functools
from collections.abc import Callable

from swa_jax.models.accounting import forward_flops_per_token, parameter_count
from swa_jax.models.config import (
    AttentionConfig,
    MLSTMConfig,
    ModelConfig,
    RecurrentConfig,
)

from .config import DESIGNS, Match, Shape, Size

REFERENCE = ("none", "attention")  # whose feed-forward's width the size gives


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the model of a cell costs, by the models' own account."""

    feed_forward_width: int
    parameters: int
    forward_flops: int
    """FLOPs/token at the length of the rows."""


@functools.cache
def cell_model(size: Size, local: str, mixer: str, /) -> ModelConfig:
    """The model of a pair of mixers, with as many parameters as the reference.

    (Or FLOPs/token, if the size matches those.) The feed-forward's width is the one
    that comes nearest. Raises ValueError where the mixers alone have more.
    """

    def count(model: ModelConfig) -> int:
        return _count(size, model)

    wanted = count(_model(size.shape, *REFERENCE))
    fitted = with_count(_model(size.shape, local, mixer), wanted, count)
    if fitted is None:
        raise ValueError(
            f"{local} and {mixer} alone have more {size.match} than the model of "
            f"{REFERENCE} with its feed-forward ({wanted}); raise "
            "shape.feed_forward_width."
        )
    return fitted


def with_count(
    model: ModelConfig, wanted: int, count: Callable[[ModelConfig], int], /
) -> ModelConfig | None:
    """The model with the feed-forward's width whose count comes nearest to `wanted`.

    `count` is linear in the width. None where the mixers alone have more.
    """
    least, wider = (
        dataclasses.replace(model, feed_forward_width=width) for width in (1, 2)
    )
    width = 1 + round((wanted - count(least)) / (count(wider) - count(least)))
    return dataclasses.replace(model, feed_forward_width=width) if width > 0 else None


def cell_cost(size: Size, local: str, mixer: str, /) -> Cost:
    """What the model of a pair of mixers costs. Raises ValueError as `cell_model`."""
    model = cell_model(size, local, mixer)
    return Cost(
        model.hidden_width,
        parameter_count(model).total,
        forward_flops_per_token(model, seq_len=size.seq_len, window=size.seq_len),
    )


def _count(size: Size, model: ModelConfig) -> int:
    match: Match = size.match
    if match == "parameters":
        return parameter_count(model).total
    return forward_flops_per_token(model, seq_len=size.seq_len, window=size.seq_len)


def _model(shape: Shape, local: str, mixer: str) -> ModelConfig:
    """The model at the reference's feed-forward width."""
    design = DESIGNS.get(local, shape.local.design)
    kind = "short_swa" if local in DESIGNS else local
    factor = shape.heads * shape.head_width / shape.d_model
    return ModelConfig(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        # One period: a scan over so few layers costs a CPU half a step's time more.
        pattern=(mixer if local == "none" else f"{kind}+{mixer}",) * shape.layers,
        periods=1,
        attention=AttentionConfig(heads=shape.heads, head_width=shape.head_width),
        mlstm=MLSTMConfig(heads=shape.heads, key_factor=factor, value_factor=factor),
        recurrent=RecurrentConfig(
            heads=shape.heads * (2 if mixer == "mamba2" else 1),
            key_width=shape.head_width,
            value_width=shape.head_width,
        ),
        local=dataclasses.replace(shape.local, design=design),
        feed_forward_width=shape.feed_forward_width,
        logit_softcap=None,
        dtype=shape.dtype,
    )
