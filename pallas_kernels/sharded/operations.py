"""The operations as a model calls them: on one device, or on the shards of a mesh.

Each has the signature and the result of the operation of its name, which documents it.
Within `laid_out`, batch and heads are cut over the mesh, and so are the tokens of a
call without a past.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from pallas_kernels import gated_delta_rule as _gated_delta_rule
from pallas_kernels import gated_linear_attention as _gated_linear_attention
from pallas_kernels import linear_attention as _linear_attention
from pallas_kernels import local_attention as _local_attention
from pallas_kernels import mlstm as _mlstm
from pallas_kernels import short_conv as _short_conv
from pallas_kernels import wkv7 as _wkv7
from pallas_kernels.sharded.channel_decay import gated_linear_attention_over
from pallas_kernels.sharded.delta_rule import gated_delta_rule_over, wkv7_over
from pallas_kernels.sharded.layout import current_layout, on_shards
from pallas_kernels.sharded.local_attention import local_attention_over
from pallas_kernels.sharded.scalar_decay import linear_attention_over, mlstm_over
from pallas_kernels.sharded.short_conv import short_conv_over


def _letters(kind: Any, *letters: str) -> Any:
    """Returns the letters of the dimensions of each field of a state."""
    return kind(*letters)


_WINDOW_CACHE = _letters(_local_attention.WindowCache, "BLKH", "BLKH", "BL", "B")
_MLSTM_STATE = _letters(_mlstm.MLSTMState, "BNHP", "BNH", "BN", "B")
_MEMORY = _letters(_linear_attention.LinearAttentionState, "BNHP", "B")
_TAIL = _letters(_short_conv.ShortConvState, "BLN", "BL")


def local_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    /,
    *,
    window: int | jax.Array | None,
    segment_ids: jax.Array | None = None,
    sinks: jax.Array | None = None,
    past: Any = None,
    preparation: _local_attention.Preparation | None = None,
    **options: Any,
) -> jax.Array:
    """Returns `local_attention` of the arguments."""
    layout = current_layout()
    arrays = {"q": q_BTNH, "k": k_BSKH, "v": v_BSKH}
    arrays |= {"segment_ids": segment_ids, "sinks": sinks, "past": past}
    arrays |= {"preparation": preparation}
    letters = {"q": "BTNH", "k": "BTKH", "v": "BTKH", "segment_ids": "BT"}
    letters |= {"sinks": "N", "past": jax.tree.map(_past_letters, past)}
    letters |= {"preparation": jax.tree.map(_table_letters, preparation)}
    single = partial(_local_attention.local_attention, **options)
    over = None
    if layout is not None and past is None and k_BSKH.shape[1] == q_BTNH.shape[1]:
        largest = layout.largest_window
        over = partial(_windowed, largest_window=largest, **options)
    return _with_window(single, over, arrays, letters, "BTNH", window)


def _past_letters(x):
    return "BLKH" if x.ndim == 4 else "BL"


def _table_letters(x):
    """Returns the letters of a preparation's array; tables of batch 1 are no batch."""
    if x.ndim == 1:
        return "H"
    return "BTF" if len(x) > 1 else "1TF"


def _windowed(*tokens, past, **options):
    """Returns `local_attention_over` of a call that has no past."""
    del past
    return local_attention_over(*tokens, **options)


def _with_window(
    single: Callable[..., Any],
    over: Callable[..., Any] | None,
    arrays: dict[str, Any],
    letters: dict[str, Any],
    outputs: Any,
    window: int | jax.Array | None,
    *,
    positional: int = 3,
) -> Any:
    """Returns `on_shards` with the window among the arrays, if it is one."""
    if isinstance(window, jax.Array):
        arrays, letters = arrays | {"window": window}, letters | {"window": ""}
    else:
        single = partial(single, window=window)
        over = None if over is None else partial(over, window=window)
    return on_shards(single, over, arrays, letters, outputs, positional=positional)


def local_attention_step(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    cache: _local_attention.WindowCache,
    /,
    *,
    window: int | jax.Array | None,
    sinks: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, _local_attention.WindowCache]:
    """Returns `local_attention_step` of the arguments; the tokens are never cut."""
    arrays = {"q": q_BTNH, "k": k_BTKH, "v": v_BTKH, "cache": cache}
    arrays |= {"sinks": sinks, "segment_ids": segment_ids}
    letters = {"q": "BTNH", "k": "BTKH", "v": "BTKH", "cache": _WINDOW_CACHE}
    letters |= {"sinks": "N", "segment_ids": "BT"}
    single = partial(_local_attention.local_attention_step, **options)
    outputs = ("BTNH", _WINDOW_CACHE)
    return _with_window(single, None, arrays, letters, outputs, window, positional=4)


def _recurrence(
    single: Callable[..., Any],
    over: Callable[..., Any],
    tokens: tuple[jax.Array, ...],
    letters: tuple[str, ...],
    memory: Any,
    /,
    **named: Any,
) -> Any:
    """Returns (out, state) of a recurrence over tokens with a memory of these letters;
    `named` are its state, segment_ids and log_write."""
    keys = [f"token_{index}" for index in range(len(tokens))]
    arrays = dict(zip(keys, tokens, strict=True)) | named
    all_letters = dict(zip(keys, letters, strict=True)) | {
        "state": memory,
        "segment_ids": "BT",
        "log_write": "BTN",
    }
    outputs = ("BTNP", memory)
    return on_shards(single, over, arrays, all_letters, outputs, positional=len(tokens))


def linear_attention(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTN: jax.Array,
    /,
    *,
    log_write: jax.Array | None = None,
    state: Any = None,
    segment_ids: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Returns `linear_attention` of the arguments."""
    return _recurrence(
        partial(_linear_attention.linear_attention, **options),
        partial(linear_attention_over, **options),
        (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN),
        ("BTKH", "BTKH", "BTNP", "BTN"),
        _MEMORY,
        log_write=log_write,
        state=state,
        segment_ids=segment_ids,
    )


def mlstm(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    i_BTN: jax.Array,
    f_BTN: jax.Array,
    /,
    *,
    state: Any = None,
    segment_ids: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Returns `mlstm` of the arguments."""
    return _recurrence(
        partial(_mlstm.mlstm, **options),
        partial(mlstm_over, **options),
        (q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN),
        ("BTNH", "BTNH", "BTNP", "BTN", "BTN"),
        _MLSTM_STATE,
        state=state,
        segment_ids=segment_ids,
    )


def gated_linear_attention(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTNH: jax.Array,
    /,
    *,
    state: Any = None,
    segment_ids: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Returns `gated_linear_attention` of the arguments."""
    return _recurrence(
        partial(_gated_linear_attention.gated_linear_attention, **options),
        partial(gated_linear_attention_over, **options),
        (q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH),
        ("BTNH", "BTNH", "BTNP", "BTNH"),
        _MEMORY,
        state=state,
        segment_ids=segment_ids,
    )


def gated_delta_rule(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTN: jax.Array,
    beta_BTN: jax.Array,
    /,
    *,
    state: Any = None,
    segment_ids: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Returns `gated_delta_rule` of the arguments."""
    return _recurrence(
        partial(_gated_delta_rule.gated_delta_rule, **options),
        partial(gated_delta_rule_over, **options),
        (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN),
        ("BTKH", "BTKH", "BTNP", "BTN", "BTN"),
        _MEMORY,
        state=state,
        segment_ids=segment_ids,
    )


def wkv7(
    *tokens: jax.Array,
    state: Any = None,
    segment_ids: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Returns `wkv7` of the arguments."""
    return _recurrence(
        partial(_wkv7.wkv7, **options),
        partial(wkv7_over, **options),
        tokens,
        ("BTNH", "BTNH", "BTNH", "BTNP", "BTNH", "BTNH"),
        _MEMORY,
        state=state,
        segment_ids=segment_ids,
    )


def short_conv(
    x_BTD: jax.Array,
    w_CD: jax.Array,
    /,
    *,
    bias: jax.Array | None = None,
    state: Any = None,
    segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Returns `short_conv` of the arguments; its channels are cut as heads are."""
    arrays = {"x": x_BTD, "w": w_CD, "bias": bias}
    arrays |= {"state": state, "segment_ids": segment_ids}
    letters = {"x": "BTN", "w": "CN", "bias": "N", "state": _TAIL, "segment_ids": "BT"}
    return on_shards(
        _short_conv.short_conv,
        short_conv_over,
        arrays,
        letters,
        ("BTN", _TAIL),
        positional=2,
    )
