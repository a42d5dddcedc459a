"""The memory between two pieces of a sequence, and the rules by which it is read."""

from typing import Any, NamedTuple

import jax

# The logarithm of the scale of an empty memory. Finite, so that differences of two such
# scales are numbers; exp(EMPTY - m) is exactly zero for every scale m that occurs.
EMPTY = -1e30
LARGEST_EXPONENT = 80.0  # exp(80) is finite in float32; h is zero there in any case


class Memory(NamedTuple):
    """C exp(-m), the sum n exp(-m) of the written keys, and the logarithm m of the
    scale, in the dtype of accumulation.

    `n_BNH` is None where no normaliser is kept, `m_BN` where nothing is stabilised.
    """

    c_BNHP: jax.Array
    n_BNH: Any
    m_BN: Any


class Rules(NamedTuple):
    """What is read: h_t = scale C_t^T q_t, divided where `normalize` (reference.py)."""

    scale: float
    stabilise: bool  # hold the memory in the scale of its running maximum
    normalize: bool
    eps: float = 0.0
    precise: bool = True  # float32 products in full, where they could go by TF32


class Writes(NamedTuple):
    """Logarithms of the gates, and where the memory is emptied before its token is
    written (None: nowhere)."""

    log_i_BTN: jax.Array
    log_f_BTN: jax.Array
    resets_BT: Any
