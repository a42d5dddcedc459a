"""The cases: what an mLSTM layer hands to its memory, drawn at random and rounded."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.mlstm import mlstm
from swa_jax.layers.global_mixers.mlstm import FORGET_GATE_BIAS
from swa_jax.layers.soft_cap import soft_cap

BEFORE = 256  # tokens, whose memory is the one before the first token
GATE_CAP = 15.0

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of tokens; `bias` is the input gate's, `dtype` that of q, k and v."""

    tokens: int
    bias: float
    dtype: Dtype
    seed: int
    heads: int
    key_width: int
    value_width: int

    def __str__(self) -> str:
        return f"T {self.tokens}, bias {self.bias:g}, {self.dtype}, seed {self.seed}"


Widths = tuple[int, int, int]  # heads, key width, value width


def widths_of(case: Case, /) -> Widths:
    """Returns what all rows of one page share."""
    return case.heads, case.key_width, case.value_width


class Inputs(NamedTuple):
    """What is differentiated: tokens in the dtype of the case; gates and the memory
    before the first token in float32."""

    q_BTNH: jax.Array
    k_BTNH: jax.Array
    v_BTNP: jax.Array
    i_BTN: jax.Array
    f_BTN: jax.Array
    c_BNHP: jax.Array
    n_BNH: jax.Array
    m_BN: jax.Array


def draw(case: Case, /) -> tuple[Inputs, jax.Array]:
    """Returns the inputs, and the weights_BTNP of the output in the losses.

    They are rounded before anything is computed with them: float64 sees the same.
    """
    random = np.random.default_rng((case.seed, case.tokens))
    before = _tokens(random, case, BEFORE)
    with jax.enable_x64(True):
        wide = (jnp.asarray(x, "float64") for x in before)
        _, state = mlstm(*wide, implementation="chunked")
        memory = [x.astype("float32") for x in state[:3]]
    inputs = Inputs(*_tokens(random, case, case.tokens), *memory)
    weights = random.standard_normal(inputs.v_BTNP.shape, dtype=np.float32)
    return inputs, jnp.asarray(weights).astype(case.dtype)


def _tokens(random, case, tokens):
    """Returns q, k, v and the soft-capped gates of as many tokens."""
    token = (1, tokens, case.heads)
    widths = (case.key_width, case.key_width, case.value_width)
    vectors = [random.standard_normal((*token, width), np.float32) for width in widths]
    noise = [random.standard_normal(token, np.float32) for _ in range(2)]
    biases = (case.bias, np.linspace(*FORGET_GATE_BIAS, case.heads))
    gates = [
        x + np.asarray(bias, "float32") for x, bias in zip(noise, biases, strict=True)
    ]
    return (
        *(jnp.asarray(x).astype(case.dtype) for x in vectors),
        *(soft_cap(jnp.asarray(x), cap=GATE_CAP) for x in gates),
    )
