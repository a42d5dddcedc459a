"""What a model is, as data: frozen dataclasses, checked when they are made.

Kernel choices, block sizes and meshes are not here: they say where a model runs,
not what it is.
"""

import dataclasses
from typing import Literal, get_args

from swa_jax.models.checks import (
    check_choice,
    check_count,
    check_optional_counts,
    check_part,
    check_positive,
)
from swa_jax.models.mixer_config import (
    ATTENTION_KINDS,
    AttentionConfig,
    LayerKind,
    LocalConfig,
    MLSTMConfig,
    RecurrentConfig,
    RecurrentShape,
    check_even_heads,
    layer_kind,
    recurrent_shape,
    short_swa_head_width,
)

__all__ = [
    "AttentionConfig",
    "ComputeDtype",
    "LocalConfig",
    "MLSTMConfig",
    "ModelConfig",
    "RecurrentConfig",
    "RematPolicy",
]

ComputeDtype = Literal["bfloat16", "float32"]
RematPolicy = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A language model: ``periods`` repetitions of ``pattern``, one mixer per layer.

    Attributes:
        vocab_size: number of token ids V.
        d_model: width D of the residual stream.
        pattern: mixers of one period, such as ("swa", "mlstm"). A kind is a global
            mixer ("swa", "attention", "mlstm", "mamba2", "retnet", "lightning", "gla",
            "gated_deltanet", "rwkv7"), or one behind a local mixer ("short_conv",
            "canon", "short_swa"), as in "short_swa+gla".
        periods: number of repetitions; layers = len(pattern) * periods.
        attention: read by the kinds "swa" and "attention".
        mlstm: read by the kind "mlstm".
        recurrent: read by the other recurrent kinds.
        local: read by the kinds with a local mixer.
        feed_forward_width: SwiGLU width F; None means 8/3 d_model, up to a multiple
            of 64.
        logit_softcap: c in c * tanh(logit / c); None leaves the logits as they are.
        norm_eps: added to the mean square in every RMS norm.
        dtype: of the computation, "bfloat16" or "float32"; parameters, gates,
            logits and memories are float32 either way.
        remat: what the backward pass computes again instead of keeping it: "none" of
            it, all of a period but the products with its matrices ("dots"), or the
            whole period ("full"). It changes memory and time, not the result.
    """

    vocab_size: int
    d_model: int
    pattern: tuple[str, ...]
    periods: int
    attention: AttentionConfig
    mlstm: MLSTMConfig
    recurrent: RecurrentConfig = dataclasses.field(default_factory=RecurrentConfig)
    local: LocalConfig = dataclasses.field(default_factory=LocalConfig)
    feed_forward_width: int | None = None
    logit_softcap: float | None = 30.0
    norm_eps: float = 1e-6
    dtype: ComputeDtype = "bfloat16"
    remat: RematPolicy = "none"

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "periods"):
            check_count(self, name)
        check_optional_counts(self, "feed_forward_width")
        if self.logit_softcap is not None:
            check_positive(self, "logit_softcap")
        check_positive(self, "norm_eps")
        check_choice(self, "dtype", get_args(ComputeDtype))
        check_choice(self, "remat", get_args(RematPolicy))
        _check_pattern(self.pattern)
        check_part(self, "attention", AttentionConfig)
        check_part(self, "mlstm", MLSTMConfig)
        check_part(self, "recurrent", RecurrentConfig)
        check_part(self, "local", LocalConfig)
        for kind in dict.fromkeys(self.kinds):
            _check_widths(self, kind.mixer)
            if kind.local == "short_swa":
                self.short_swa_head_width(kind.mixer)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The mixers of each layer of one period."""
        return tuple(layer_kind(name) for name in self.pattern)

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

    def recurrent_shape(self, mixer: str, /) -> RecurrentShape:
        """Heads and widths of a recurrent mixer other than the mLSTM."""
        return recurrent_shape(self.recurrent, mixer, d_model=self.d_model)

    def local_widths(self, mixer: str, /) -> tuple[int, ...]:
        """Widths of the branches that a local mixer in front of ``mixer`` acts on."""
        if mixer in ATTENTION_KINDS:
            query, key = self.attention.heads, self.kv_heads
            return tuple(n * self.head_width for n in (query, key, key))
        if mixer == "mlstm":
            heads, key = self.mlstm.heads, self.mlstm_key_width
            return heads * key, heads * key, heads * self.mlstm_value_width
        heads, key, value = self.recurrent_shape(mixer)
        if mixer == "mamba2":
            return heads * value, key, key
        return heads * key, heads * key, heads * value

    def short_swa_head_width(self, mixer: str, /) -> int:
        """Width of ShortSWA's heads in front of ``mixer``.

        Raises ValueError where the branches' widths allow none.
        """
        return short_swa_head_width(self.local, self.local_widths(mixer))


def _check_pattern(pattern: tuple[str, ...]) -> None:
    if not isinstance(pattern, tuple) or not pattern:
        raise ValueError(
            "ModelConfig.pattern must be a tuple of at least one layer kind, "
            f"got {pattern!r}"
        )
    for name in pattern:
        try:
            layer_kind(name)
        except ValueError as error:
            raise ValueError(f"ModelConfig.pattern: {error} in {pattern!r}") from None


def _check_widths(config: ModelConfig, mixer: str) -> None:
    if mixer in ATTENTION_KINDS:
        _check_attention_widths(config)
    if mixer == "mlstm":
        _check_mlstm_width(config, "key_factor")
        _check_mlstm_width(config, "value_factor")
    if mixer == "retnet":
        check_even_heads(mixer, config.recurrent_shape(mixer).key_width)


def _check_attention_widths(config: ModelConfig) -> None:
    if config.attention.head_width is not None:
        return
    if config.d_model % config.attention.heads:
        raise ValueError(
            "ModelConfig: d_model must be a multiple of attention.heads, got "
            f"d_model={config.d_model}, heads={config.attention.heads}; choose other "
            "heads or set attention.head_width"
        )
    if (config.d_model // config.attention.heads) % 2:
        raise ValueError(
            "ModelConfig: d_model / attention.heads, the head width, must be even, "
            f"since rotary embedding turns pairs, got d_model={config.d_model}, "
            f"heads={config.attention.heads}"
        )


def _check_mlstm_width(config: ModelConfig, name: str) -> None:
    width = getattr(config.mlstm, name) * config.d_model
    if width != round(width) or round(width) % config.mlstm.heads:
        raise ValueError(
            f"ModelConfig: mlstm.{name} * d_model must be a multiple of mlstm.heads, "
            f"got {width} for heads={config.mlstm.heads}"
        )
