"""What the mixers of a model are, as data: one frozen dataclass per family."""

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

from swa_jax.models.checks import (
    check_choice,
    check_count,
    check_optional_counts,
    check_positive,
    check_switch,
)

ATTENTION_KINDS = ("swa", "attention")
RECURRENT_KINDS = ("mamba2", "retnet", "lightning", "gla", "gated_deltanet", "rwkv7")
GLOBAL_KINDS = (*ATTENTION_KINDS, "mlstm", *RECURRENT_KINDS)
WIDEST_SHORT_SWA_HEAD = 64
LOCAL_KINDS = ("short_conv", "canon", "short_swa")
Gate = Literal["exp", "sigmoid"]
Design = Literal["full", "low_rank", "free"]


class LayerKind(NamedTuple):
    """The two mixers of a layer; `local` is None where there is only the global one."""

    local: str | None
    mixer: str


def layer_kind(name: str, /) -> LayerKind:
    """The mixers of a layer called "gla" or, with a local mixer, "short_swa+gla".

    Raises ValueError for another name.
    """
    local, plus, mixer = name.rpartition("+") if isinstance(name, str) else ("", "", "")
    if mixer not in GLOBAL_KINDS or (plus and local not in LOCAL_KINDS):
        raise ValueError(
            f"layer kinds are a global mixer of {GLOBAL_KINDS}, or LOCAL+GLOBAL with "
            f"LOCAL of {LOCAL_KINDS}, got {name!r}"
        )
    return LayerKind(local if plus else None, mixer)


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Softmax attention of the kinds "swa" (a window) and "attention" (all the past).

    Attributes:
        heads: number of query heads N.
        kv_heads: number of key/value heads K, a divisor of ``heads``; None means N.
        head_width: width H of a head, even; None means d_model / heads.
        rope_theta: base of the rotary angles (those of the kind "retnet" too).
        qk_norm: normalise every query and key head (RMS, with a weight).
        softcap: c in c * tanh(score / c); None leaves the scores as they are.
        sinks: learn one score per head that takes part in the softmax with no value.
    """

    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    softcap: float | None = None
    sinks: bool = False

    def __post_init__(self):
        check_count(self, "heads")
        check_optional_counts(self, "kv_heads", "head_width")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(
                "AttentionConfig: heads must be a multiple of kv_heads, got "
                f"heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.head_width is not None:
            check_even_heads("attention", self.head_width)
        check_positive(self, "rope_theta")
        if self.softcap is not None:
            check_positive(self, "softcap")
        check_switch(self, "qk_norm")
        check_switch(self, "sinks")


@dataclasses.dataclass(frozen=True)
class MLSTMConfig:
    """The matrix memory of the kind "mlstm".

    Attributes:
        heads: number of heads N.
        key_factor: query/key width of all heads together, in units of d_model.
        value_factor: value width of all heads together, in units of d_model.
        gate: input gate, "exp" (xLSTM) or "sigmoid" (mLSTMsig).
        gate_softcap: c in c * tanh(gate / c) on both gates' pre-activations.
    """

    heads: int
    key_factor: float = 0.5
    value_factor: float = 1.0
    gate: Gate = "exp"
    gate_softcap: float = 15.0

    def __post_init__(self):
        check_count(self, "heads")
        check_positive(self, "key_factor")
        check_positive(self, "value_factor")
        check_positive(self, "gate_softcap")
        check_choice(self, "gate", get_args(Gate))


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """The kinds "mamba2", "retnet", "lightning", "gla", "gated_deltanet" and "rwkv7".

    Every None is the kind's own habit (``recurrent_shape`` has the numbers).

    Attributes:
        heads: number of heads N.
        key_width: query/key width H of one head; of the state that all heads share in
            "mamba2".
        value_width: value width P of one head.
    """

    heads: int | None = None
    key_width: int | None = None
    value_width: int | None = None

    def __post_init__(self):
        check_optional_counts(self, "heads", "key_width", "value_width")


class RecurrentShape(NamedTuple):
    """N heads that read and write keys of width H and values of width P."""

    heads: int
    key_width: int
    value_width: int


def recurrent_shape(
    config: RecurrentConfig, kind: str, /, *, d_model: int
) -> RecurrentShape:
    """The heads and widths of a recurrent kind in a model of width ``d_model``.

    Where the config leaves them open: Mamba-2's state of 128 and heads of 64 over twice
    the width; RetNet's keys of 256 and values twice as wide; Lightning's and RWKV-7's
    heads of 128 and 64; GLA's 4 heads with keys of half the width; Gated DeltaNet's
    keys of 256 over three quarters of the width and values twice as wide.
    """
    widest, keys, values = {
        "mamba2": (32, 0.0, 2.0),
        "retnet": (256, 1.0, 2.0),
        "lightning": (128, 1.0, 1.0),
        "gla": (d_model // 4, 0.5, 1.0),
        "gated_deltanet": (342, 0.75, 1.5),
        "rwkv7": (64, 1.0, 1.0),
    }[kind]
    heads = config.heads or max(1, round(d_model / max(1, widest)))
    key_width = 128 if kind == "mamba2" else max(1, round(keys * d_model) // heads)
    value_width = max(1, round(values * d_model) // heads)
    return RecurrentShape(
        heads, config.key_width or key_width, config.value_width or value_width
    )


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """The local mixers "short_conv", "canon" and "short_swa", where a layer has one.

    Attributes:
        taps: tokens that a convolution reads, itself included, 2 to 4.
        bias: give the convolution a bias.
        window: tokens W that a query of ShortSWA reads, itself included.
        design: of ShortSWA, "full" (learned q, k, v), "low_rank" (learned q and k of
            ``rank`` numbers per head) or "free" (no parameters). The default is the one
            that no other beat at equal size (experiments/local_mixer).
        rank: of the design "low_rank", even, at most the head's width.
        gate: add ShortSWA to its input through a gate that starts at zero; without it
            ShortSWA's output replaces its input.
        head_width: of ShortSWA, even, a divisor of every branch; None means the widest
            one of at most 64.
        rope_theta: base of ShortSWA's rotary angles.
    """

    taps: int = 4
    bias: bool = False
    window: int = 128
    design: Design = "low_rank"
    rank: int = 16
    gate: bool = True
    head_width: int | None = None
    rope_theta: float = 10_000.0

    def __post_init__(self):
        for name in ("taps", "window", "rank"):
            check_count(self, name)
        check_choice(self, "taps", (2, 3, 4))
        check_switch(self, "bias")
        check_choice(self, "design", get_args(Design))
        check_switch(self, "gate")
        check_positive(self, "rope_theta")
        if self.rank % 2:
            raise ValueError(f"LocalConfig.rank must be even, got {self.rank}")
        check_optional_counts(self, "head_width")
        if self.head_width is not None:
            check_even_heads("short_swa", self.head_width)


def short_swa_head_width(config: LocalConfig, widths: tuple[int, ...], /) -> int:
    """The width of ShortSWA's heads on branches of the given widths.

    Raises ValueError where a branch is not made of whole heads, or the design
    "low_rank" has a rank beyond the head's width.
    """
    common = math.gcd(*widths)
    width = config.head_width
    if width is None:
        divisors = range(min(WIDEST_SHORT_SWA_HEAD, common), 0, -1)
        even = (w for w in divisors if common % w == 0 and w % 2 == 0)
        width = next(even, None)
    if width is None or common % width:
        raise ValueError(
            "ShortSWA's heads are of an even width that divides every branch, got "
            f"local.head_width={config.head_width} and branches of widths {widths}"
        )
    if config.design == "low_rank" and config.rank > width:
        raise ValueError(
            f"local.rank must be at most ShortSWA's head width {width} (branches of "
            f"widths {widths}), got {config.rank}"
        )
    return width


def check_even_heads(mixer: str, head_width: int, /) -> None:
    """Raises ValueError for a head whose channels are no pairs."""
    if head_width % 2:
        raise ValueError(
            f"{mixer}: rotary embedding turns pairs, so the head width must be "
            f"even, got {head_width=}"
        )
