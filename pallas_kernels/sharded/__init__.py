"""The operations on a mesh of devices, each shard computed where it lies."""

from pallas_kernels.sharded.layout import (
    SEQUENCE_AXIS,
    Layout,
    heads_are_cut,
    laid_out,
    placed,
    tokens_are_cut,
)
from pallas_kernels.sharded.operations import (
    gated_delta_rule,
    gated_linear_attention,
    linear_attention,
    local_attention,
    local_attention_step,
    mlstm,
    short_conv,
    wkv7,
)

__all__ = [
    "SEQUENCE_AXIS",
    "Layout",
    "gated_delta_rule",
    "gated_linear_attention",
    "heads_are_cut",
    "laid_out",
    "linear_attention",
    "local_attention",
    "local_attention_step",
    "mlstm",
    "placed",
    "short_conv",
    "tokens_are_cut",
    "wkv7",
]
