"""What a model costs, in closed form: parameters, FLOPs per token, state bytes.

FLOPs follow the convention that reproduces the SWAX paper's figures (arXiv:2509.24552).
Forward, per token:

    2 x parameters of all matrix products (the head included, the input embedding not)
    + 4 N H S          per softmax attention layer that reads S keys, not halved for
                       causality: S = the sequence, or the window if it is shorter
    + 6 N H P          per mLSTM layer, and per layer of linear attention; 8 for Gated
                       DeltaNet, 10 for RWKV-7
    + 2 per tap and channel of a convolution in front, 4 W per channel of ShortSWA

The backward pass costs twice the forward pass. Norms, activations, rotary embedding and
softmax are not counted.
"""

import dataclasses

from swa_jax.models.config import ModelConfig
from swa_jax.models.mixer_config import layer_kind
from swa_jax.models.mixer_costs import MixerCost, global_cost, local_cost


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    Attributes:
        total: all of them.
        embedding: of the input embedding.
        head: of the output projection, which is not tied to the embedding.
        non_embedding: neither of these two; total = embedding + head + non_embedding.
        matmul: in matrix products: every kernel, the head's too.
    """

    total: int
    embedding: int
    head: int
    non_embedding: int
    matmul: int


@dataclasses.dataclass(frozen=True)
class KindCost:
    """The cost of all the layers of one kind together, feed-forward and norms included.

    Attributes:
        kind: such as "swa" or "short_swa+gla".
        layers: number of layers of the kind.
        parameters: number of parameters.
        forward_flops: FLOPs/token.
        state_bytes: bytes that one sequence carries from token to token.
    """

    kind: str
    layers: int
    parameters: int
    forward_flops: int
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class Account:
    """The cost of a model at one sequence length and window.

    Attributes:
        seq_len: tokens of a sequence.
        window: tokens that a query of a "swa" layer reads.
        parameters: numbers of parameters.
        forward_flops: FLOPs/token.
        training_flops: FLOPs/token, forward and backward.
        remat_flops: further FLOPs/token that rematerialisation spends; 0 without it.
        state_bytes: bytes that one sequence of that length carries to the next token.
        kinds: the same by kind of layer; embedding, head and final norm are in none.
    """

    seq_len: int
    window: int
    parameters: ParameterCount
    forward_flops: int
    training_flops: int
    remat_flops: int
    state_bytes: int
    kinds: tuple[KindCost, ...]


def account(config: ModelConfig, /, *, seq_len: int, window: int) -> Account:
    """The cost of a model on sequences of ``seq_len`` tokens, every part of it.

    Raises ValueError for a length or window below 1.
    """
    lengths = {"seq_len": seq_len, "window": window}
    return Account(
        **lengths,
        parameters=parameter_count(config),
        forward_flops=forward_flops_per_token(config, **lengths),
        training_flops=training_flops_per_token(config, **lengths),
        remat_flops=remat_flops_per_token(config, **lengths),
        state_bytes=state_bytes(config, window=window, context=seq_len),
        kinds=tuple(
            _kind_cost(config, kind, **lengths) for kind in _layers_by_kind(config)
        ),
    )


def parameter_count(config: ModelConfig, /) -> ParameterCount:
    """The numbers of parameters: those of the tree that ``init`` makes."""
    layers = [
        (count, _layer_cost(config, kind, seq_len=1, window=1))
        for kind, count in _layers_by_kind(config).items()
    ]
    matmul = sum(count * cost.matmul for count, cost in layers)
    vectors = sum(count * cost.vectors for count, cost in layers)
    non_embedding = matmul + vectors + config.d_model  # and the final norm
    embedding = config.vocab_size * config.d_model
    return ParameterCount(
        total=non_embedding + 2 * embedding,
        embedding=embedding,
        head=embedding,
        non_embedding=non_embedding,
        matmul=matmul + embedding,
    )


def forward_flops_per_token(
    config: ModelConfig, /, *, seq_len: int, window: int
) -> int:
    """The FLOPs/token of a forward pass over ``seq_len`` tokens.

    A window beyond the sequence counts as the sequence. Raises ValueError for a length
    or window below 1.
    """
    head = 2 * config.vocab_size * config.d_model
    return head + _layers_forward_flops(config, seq_len=seq_len, window=window)


def training_flops_per_token(
    config: ModelConfig, /, *, seq_len: int, window: int
) -> int:
    """The FLOPs/token of a forward and a backward pass: three times the forward's.

    What rematerialisation recomputes is no use to the model and is not in it
    (``remat_flops_per_token`` has it).
    """
    return 3 * forward_flops_per_token(config, seq_len=seq_len, window=window)


def remat_flops_per_token(config: ModelConfig, /, *, seq_len: int, window: int) -> int:
    """The FLOPs/token that rematerialisation adds to training, 0 if it is off.

    "full" computes each period once more in the backward pass, "dots" what is no
    product with a matrix of parameters; the head is computed once.
    """
    layers = _layers_forward_flops(config, seq_len=seq_len, window=window)
    if config.remat == "none":
        return 0
    if config.remat == "full":
        return layers
    count = parameter_count(config)
    return layers - 2 * (count.matmul - count.head)


def state_bytes(
    config: ModelConfig, /, *, window: int, context: int, batch: int = 1
) -> int:
    """The bytes of what ``batch`` sequences carry from one token to the next.

    Keys and values of window - 1 tokens per "swa" layer and of ``context`` tokens per
    "attention" layer, in the compute dtype; the memory of every recurrent layer in
    float32; what a local mixer keeps, in the compute dtype.
    Not counted are segment ids (4 bytes a cached token, and 4 a memory), positions, and
    the slots of ``init_state`` for the 16 new tokens of a step, which carry nothing.

    Raises ValueError for a number below 1.
    """
    _check_at_least_one(window=window, context=context, batch=batch)
    return batch * sum(
        layers * _layer_cost(config, kind, seq_len=context, window=window).state_bytes
        for kind, layers in _layers_by_kind(config).items()
    )


def _layers_by_kind(config: ModelConfig) -> dict[str, int]:
    """Numbers of layers, in the order in which the pattern first names the kinds."""
    pattern = config.pattern
    return {kind: pattern.count(kind) * config.periods for kind in pattern}


def _kind_cost(
    config: ModelConfig, kind: str, *, seq_len: int, window: int
) -> KindCost:
    layers = _layers_by_kind(config)[kind]
    cost = _layer_cost(config, kind, seq_len=seq_len, window=window)
    return KindCost(
        kind=kind,
        layers=layers,
        parameters=layers * (cost.matmul + cost.vectors),
        forward_flops=layers * (2 * cost.matmul + cost.flops),
        state_bytes=layers * cost.state_bytes,
    )


def _layers_forward_flops(config: ModelConfig, *, seq_len: int, window: int) -> int:
    _check_at_least_one(seq_len=seq_len, window=window)
    return sum(
        _kind_cost(config, kind, seq_len=seq_len, window=window).forward_flops
        for kind in _layers_by_kind(config)
    )


def _layer_cost(
    config: ModelConfig, kind: str, *, seq_len: int, window: int
) -> MixerCost:
    """The cost of one layer: its mixers, its feed-forward and its two norms."""
    mixers = layer_kind(kind)
    parts = (
        global_cost(config, mixers.mixer, seq_len=seq_len, window=window),
        local_cost(config, mixers, seq_len=seq_len),
        MixerCost(3 * config.d_model * config.hidden_width, 2 * config.d_model, 0, 0),
    )
    return MixerCost(*(sum(numbers) for numbers in zip(*parts, strict=True)))


def _check_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {name}={number}")
