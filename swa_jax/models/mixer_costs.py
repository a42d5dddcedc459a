"""What one mixer costs, in closed form: parameters, FLOPs per token, state bytes."""

from typing import NamedTuple

from swa_jax.layers.global_mixers.gla import DECAY_RANK
from swa_jax.layers.global_mixers.rwkv7 import low_ranks
from swa_jax.models.config import ModelConfig
from swa_jax.models.mixer_config import ATTENTION_KINDS, LayerKind

_DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
_FLOAT32_BYTES = 4

# FLOPs per token in units of N H P: 2 to write k v^T, 2 to decay, 2 to read; a delta
# rule also reads with the key (2), and RWKV-7 writes what it read by another one (2).
_MEMORY_FLOPS = {"gated_deltanet": 8, "rwkv7": 10}


class MixerCost(NamedTuple):
    """The cost of a mixer in one layer.

    `matmul`: parameters in matrix products; `vectors`: all others; `flops`: forward
    FLOPs/token beside 2 per parameter of `matmul`; `state_bytes`: of one sequence.
    """

    matmul: int
    vectors: int
    flops: int
    state_bytes: int


def global_cost(
    config: ModelConfig, mixer: str, /, *, seq_len: int, window: int
) -> MixerCost:
    """The cost of a global mixer with its input and output projections.

    Queries of "swa" read `window` keys, those of "attention" `seq_len`, not halved for
    causality; a "swa" cache holds window - 1 tokens, an "attention" cache `seq_len`.
    """
    if mixer in ATTENTION_KINDS:
        keys, tokens = seq_len, seq_len
        if mixer == "swa":
            keys, tokens = min(window, seq_len), window - 1
        return _attention_cost(config, keys=keys, tokens=tokens)
    if mixer == "mlstm":
        shape = config.mlstm.heads, config.mlstm_key_width, config.mlstm_value_width
    else:
        shape = config.recurrent_shape(mixer)
    heads, key, value = shape
    matmul, vectors = _memory_parameters(config, mixer, heads, key, value)
    sums = key + 1 if mixer == "mlstm" else 0  # the normaliser and its scale
    return MixerCost(
        matmul=matmul,
        vectors=vectors,
        flops=_MEMORY_FLOPS.get(mixer, 6) * heads * key * value,
        state_bytes=_FLOAT32_BYTES * heads * (key * value + sums),
    )


def local_cost(config: ModelConfig, kind: LayerKind, /, *, seq_len: int) -> MixerCost:
    """The cost of the local mixer of a layer; nothing where there is none.

    A convolution: 2 FLOPs per tap and channel. ShortSWA: 4 W per channel, like any
    attention (the zeros that fill up heads of the design "low_rank" count).
    """
    if kind.local is None:
        return MixerCost(0, 0, 0, 0)
    local, widths = config.local, config.local_widths(kind.mixer)
    channels, number = sum(widths), _DTYPE_BYTES[config.dtype]
    if kind.local != "short_swa":
        return MixerCost(
            matmul=0,
            vectors=channels * (local.taps + local.bias),
            flops=2 * local.taps * channels,
            state_bytes=(local.taps - 1) * channels * number,
        )
    matmul = {
        "full": 3 * sum(width * width for width in widths),
        "low_rank": 2 * channels * local.rank,
        "free": 0,
    }
    return MixerCost(
        matmul=matmul[local.design],
        vectors=channels * local.gate,
        flops=4 * min(local.window, seq_len) * channels,
        state_bytes=2 * (local.window - 1) * channels * number,
    )


def _attention_cost(config: ModelConfig, *, keys: int, tokens: int) -> MixerCost:
    heads, width = config.attention.heads, config.head_width
    both = 2 * heads + 2 * config.kv_heads  # query and out, key and value
    norms = 2 * width if config.attention.qk_norm else 0
    head_bytes = _DTYPE_BYTES[config.dtype] * width
    return MixerCost(
        matmul=config.d_model * both * width,
        vectors=norms + (heads if config.attention.sinks else 0),
        flops=4 * keys * heads * width,
        state_bytes=2 * tokens * config.kv_heads * head_bytes,
    )


def _memory_parameters(
    config: ModelConfig, mixer: str, heads: int, key: int, value: int
) -> tuple[int, int]:
    """Parameters in matrix products, and the others: gates' biases, decays, norms."""
    D, keys, values = config.d_model, heads * key, heads * value
    if mixer == "mamba2":
        return D * (3 * values + 2 * key + heads), 3 * heads + values
    if mixer == "rwkv7":
        rank, share_rank, gate_rank = low_ranks(D)
        low_rank = 2 * rank * (D + keys) + (share_rank + gate_rank) * (D + values)
        return D * (2 * keys + 2 * values) + low_rank, 5 * keys + 3 * values
    four_and_out = D * (2 * keys + 3 * values)
    gates, vectors = {
        "mlstm": (2 * D * heads, 2 * heads + values),
        "retnet": (0, values),
        "lightning": (0, values),
        "gla": (DECAY_RANK * (D + keys), keys + value),
        "gated_deltanet": (2 * D * heads, 2 * heads + value),
    }[mixer]
    return four_and_out + gates, vectors
