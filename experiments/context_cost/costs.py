"""What a token costs in closed form, by the models' own account."""

import dataclasses
from collections.abc import Mapping

from experiments.kernel_speed.flops import visible_pairs
from swa_jax.models.accounting import Account, account
from swa_jax.models.presets import preset

from .config import Cell, Size, What
from .rows import Row

PARAMETER_BYTES = 4  # float32, whatever the compute dtype
TRAINING_FACTOR = 3  # the backward pass costs twice the forward pass


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What the machine does at best: FLOP/s of a matmul, bytes/s read from memory."""

    flops: float
    bytes: float


def cost_at(kind: str, size: str, context: int, /, *, window: int) -> Account:
    """Returns the account of KIND-SIZE on sequences of `context` tokens."""
    return account(preset(f"{kind}-{size}"), seq_len=context, window=window)


def floor_seconds(size: Size, row: Row, peaks: Peaks, /) -> float:
    """Returns the least seconds a call: its FLOPs at the peak of the matmul; decoding,
    where it is more, its bytes read from memory once.

    The account lets every query read a whole window, or the whole row; in training and
    in a prompt here it reads what it sees: the mean over the row, in whole tokens. A
    token that is decoded reads all kernels and the whole state.
    """
    if row.what == "decode":
        cost = cost_at(row.kind, size.model, row.context, window=size.window)
        numbers = PARAMETER_BYTES * cost.parameters.matmul + cost.state_bytes
        return row.tokens * max(cost.forward_flops / peaks.flops, numbers / peaks.bytes)
    seen = account(
        preset(f"{row.kind}-{size.model}"),
        seq_len=_mean_keys(row.context, row.context),
        window=_mean_keys(row.context, size.window),
    )
    factor = TRAINING_FACTOR if row.what == "train" else 1
    return factor * row.tokens * seen.forward_flops / peaks.flops


def call_tokens(size: Size, cell: Cell, /) -> int:
    """Returns the tokens of the shortest call of a cell."""
    if cell.what == "decode":
        return 1
    return cell.context * (size.rows(cell.context) if cell.what == "train" else 1)


def predicted_seconds(
    size: Size, kind: str, cell: Cell, rows: Mapping[tuple[What, str, int], Row], /
) -> float | None:
    """Returns the seconds of the shortest call of a cell, foreseen by FLOPs from the
    longest context below it that has been measured; None where none has."""
    shorter = [
        row
        for (what, other, context), row in rows.items()
        if (what, other) == (cell.what, kind) and context < cell.context and row.seconds
    ]
    if not shorter:
        return None
    last = max(shorter, key=lambda row: row.context)
    flops, known = (
        cost_at(kind, size.model, context, window=size.window).forward_flops
        for context in (cell.context, last.context)
    )
    assert last.token_seconds is not None
    return call_tokens(size, cell) * last.token_seconds.median * flops / known


def _mean_keys(tokens: int, window: int) -> int:
    return visible_pairs(tokens=tokens, window=window) // tokens
