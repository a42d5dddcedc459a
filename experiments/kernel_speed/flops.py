"""Counts of the floating-point operations that an operation cannot do without."""

# Forward: q k^T and p v. Backward: q k^T again, dp, dv, dq, dk; 5 matmuls beside 2.
ATTENTION_GRADIENT_FACTOR = 3.5
# Two matmuls of the backward pass for each one of the forward pass, none again.
MLSTM_GRADIENT_FACTOR = 3.0
MLSTM_CHUNK = 64  # tokens


def visible_pairs(*, tokens: int, window: int | None) -> int:
    """Returns the number of (query, key) pairs with 0 <= t - s < window."""
    W = tokens if window is None else min(window, tokens)
    return tokens * W - W * (W - 1) // 2


def attention_flops(
    *, tokens: int, window: int | None, heads: int, width: int, gradients: bool
) -> float:
    """Returns 4 H FLOPs per visible pair and head, times 3.5 with gradients."""
    factor = ATTENTION_GRADIENT_FACTOR if gradients else 1.0
    pairs = visible_pairs(tokens=tokens, window=window)
    return factor * 4.0 * width * heads * pairs


def mlstm_flops(
    *, tokens: int, heads: int, key_width: int, value_width: int, gradients: bool
) -> float:
    """Returns the FLOPs of the chunkwise matmuls, times 3 with gradients.

    Per head: 2 (H + P) for each pair of tokens inside a chunk of 64, and 4 H P per
    token to read the memory before the chunk and to write the next one.
    """
    whole, rest = divmod(tokens, MLSTM_CHUNK)
    pairs = whole * visible_pairs(tokens=MLSTM_CHUNK, window=None)
    pairs += visible_pairs(tokens=rest, window=None)
    factor = MLSTM_GRADIENT_FACTOR if gradients else 1.0
    within = 2.0 * (key_width + value_width) * pairs
    memory = 4.0 * key_width * value_width * tokens
    return factor * heads * (within + memory)
