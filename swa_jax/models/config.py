"""What a model is, as data: frozen dataclasses, checked when they are made.

Kernel choices, block sizes and meshes are not here: they say where a model runs,
not what it is.
"""

import dataclasses
from typing import Literal, get_args

LAYER_KINDS = ("swa", "attention", "mlstm")
ATTENTION_KINDS = ("swa", "attention")
Gate = Literal["exp", "sigmoid"]
ComputeDtype = Literal["bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Softmax attention of the kinds "swa" (a window) and "attention" (all the past).

    Attributes:
        heads: number of query heads N.
        kv_heads: number of key/value heads K, a divisor of ``heads``; None means N.
        head_width: width H of a head, even; None means d_model / heads.
        rope_theta: base of the rotary angles.
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
        _check_count(self, "heads")
        if self.kv_heads is not None:
            _check_count(self, "kv_heads")
            if self.heads % self.kv_heads:
                raise ValueError(
                    "AttentionConfig: heads must be a multiple of kv_heads, got "
                    f"heads={self.heads}, kv_heads={self.kv_heads}"
                )
        if self.head_width is not None:
            _check_count(self, "head_width")
            _check_even_head_width(self.head_width)
        _check_positive(self, "rope_theta")
        if self.softcap is not None:
            _check_positive(self, "softcap")
        _check_switch(self, "qk_norm")
        _check_switch(self, "sinks")


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
        _check_count(self, "heads")
        _check_positive(self, "key_factor")
        _check_positive(self, "value_factor")
        _check_positive(self, "gate_softcap")
        _check_choice(self, "gate", get_args(Gate))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A language model: ``periods`` repetitions of ``pattern``, one mixer per layer.

    Attributes:
        vocab_size: number of token ids V.
        d_model: width D of the residual stream.
        pattern: mixers of one period, of the kinds "swa", "attention" and "mlstm".
        periods: number of repetitions; layers = len(pattern) * periods.
        attention: read by the kinds "swa" and "attention".
        mlstm: read by the kind "mlstm".
        feed_forward_width: SwiGLU width F; None means 8/3 d_model, up to a multiple
            of 64.
        logit_softcap: c in c * tanh(logit / c); None leaves the logits as they are.
        norm_eps: added to the mean square in every RMS norm.
        dtype: of the computation, "bfloat16" or "float32"; parameters, gates,
            logits and memories are float32 either way.
        remat: recompute each period in the backward pass instead of keeping it.
    """

    vocab_size: int
    d_model: int
    pattern: tuple[str, ...]
    periods: int
    attention: AttentionConfig
    mlstm: MLSTMConfig
    feed_forward_width: int | None = None
    logit_softcap: float | None = 30.0
    norm_eps: float = 1e-6
    dtype: ComputeDtype = "bfloat16"
    remat: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "periods"):
            _check_count(self, name)
        if self.feed_forward_width is not None:
            _check_count(self, "feed_forward_width")
        if self.logit_softcap is not None:
            _check_positive(self, "logit_softcap")
        _check_positive(self, "norm_eps")
        _check_choice(self, "dtype", get_args(ComputeDtype))
        _check_switch(self, "remat")
        _check_pattern(self.pattern)
        _check_part(self, "attention", AttentionConfig)
        _check_part(self, "mlstm", MLSTMConfig)
        if any(kind in ATTENTION_KINDS for kind in self.pattern):
            _check_attention_widths(self)
        if "mlstm" in self.pattern:
            _check_mlstm_width(self, "key_factor")
            _check_mlstm_width(self, "value_factor")

    @property
    def layers(self) -> int:
        """Number of layers (mixer and feed-forward together count as one)."""
        return len(self.pattern) * self.periods

    @property
    def hidden_width(self) -> int:
        """Width F of the SwiGLU, in numbers: ``feed_forward_width`` or its default."""
        if self.feed_forward_width is not None:
            return self.feed_forward_width
        return 64 * -(-8 * self.d_model // (3 * 64))

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads K of the attention layers."""
        return self.attention.kv_heads or self.attention.heads

    @property
    def head_width(self) -> int:
        """Width H of one head of the attention layers."""
        return self.attention.head_width or self.d_model // self.attention.heads

    @property
    def mlstm_key_width(self) -> int:
        """Query/key width H of one mLSTM head."""
        return round(self.mlstm.key_factor * self.d_model) // self.mlstm.heads

    @property
    def mlstm_value_width(self) -> int:
        """Value width P of one mLSTM head."""
        return round(self.mlstm.value_factor * self.d_model) // self.mlstm.heads


def _check_count(config, name: str) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{_field(config, name)} must be an integer >= 1, got {value!r}"
        )


def _check_positive(config, name: str) -> None:
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise ValueError(
            f"{_field(config, name)} must be a finite number > 0, got {value!r}"
        )


def _check_switch(config, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ValueError(f"{_field(config, name)} must be True or False, got {value!r}")


def _check_choice(config, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(
            f"{_field(config, name)} must be one of {choices}, got {value!r}"
        )


def _check_part(config, name: str, part: type) -> None:
    value = getattr(config, name)
    if not isinstance(value, part):
        raise ValueError(
            f"{_field(config, name)} must be a {part.__name__}, got {value!r}"
        )


def _check_pattern(pattern: tuple[str, ...]) -> None:
    if not isinstance(pattern, tuple) or not pattern:
        raise ValueError(
            "ModelConfig.pattern must be a tuple of at least one layer kind, "
            f"got {pattern!r}"
        )
    for kind in pattern:
        if kind not in LAYER_KINDS:
            raise ValueError(
                f"ModelConfig.pattern: layer kinds are {LAYER_KINDS}, got {kind!r} "
                f"in {pattern!r}"
            )


def _check_attention_widths(config: ModelConfig) -> None:
    if config.attention.head_width is not None:
        return
    if config.d_model % config.attention.heads:
        raise ValueError(
            "ModelConfig: d_model must be a multiple of attention.heads, got "
            f"d_model={config.d_model}, heads={config.attention.heads}; choose other "
            "heads or set attention.head_width"
        )
    _check_even_head_width(config.d_model // config.attention.heads)


def _check_even_head_width(head_width: int) -> None:
    if head_width % 2:
        raise ValueError(
            "attention: rotary embedding turns pairs, so the head width must be "
            f"even, got {head_width=}"
        )


def _check_mlstm_width(config: ModelConfig, name: str) -> None:
    width = getattr(config.mlstm, name) * config.d_model
    if width != round(width) or round(width) % config.mlstm.heads:
        raise ValueError(
            f"ModelConfig: mlstm.{name} * d_model must be a multiple of mlstm.heads, "
            f"got {width} for heads={config.mlstm.heads}"
        )


def _field(config, name: str) -> str:
    return f"{type(config).__name__}.{name}"
