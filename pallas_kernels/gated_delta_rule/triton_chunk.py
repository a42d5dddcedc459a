"""What the gated delta rule does within each chunk by itself, as Pallas kernels for
GPUs: the inverse of its triangular system, and products of a chunk's square matrix with
its tokens. A program owns a chunk of one head.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.gated_delta_rule.tiles import Tile
from pallas_kernels.matrix_memory import blocks
from pallas_kernels.matrix_memory.blocks import Sizes, Tokens, Weights


def inverses(
    k_BTKH: jax.Array, weights: Weights, beta_BNT, sizes: Sizes, tile: Tile, chunk: int
) -> jax.Array:
    """Returns (I + L)^{-1} of every chunk, BNT'C in the dtype of the keys, where
    L_ts = beta_t exp(b_t - b_s) k_t . k_s for s < t of one run."""
    J = weights.keep_BNJ.shape[2]
    (inverse_BNTC,) = backend.call(
        partial(_inverse_kernel, sizes=sizes, chunk=chunk),
        (k_BTKH, weights, beta_BNT),
        outputs=[backend.Output((*beta_BNT.shape, chunk), k_BTKH.dtype)],
        grid=(J, sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="gated_delta_rule_inverse",
        interpret=sizes.interpret,
    )
    return inverse_BNTC


def _inverse_kernel(k_BTKH, weights, beta_BNT, inverse_BNTC, *, sizes, chunk):
    number, head, batch = (pl.program_id(axis) for axis in range(3))
    here = blocks.chunk_of(batch, head, number, sizes, chunk)
    precise = sizes.rules.precise
    keys = blocks.columns_of(0, sizes.key_width, sizes.H)
    k_CH = blocks.load_tokens(k_BTKH, here, here.key_head, keys)
    beta_C = blocks.load_scalars(beta_BNT, here)
    t_C = jnp.arange(chunk, dtype=jnp.int32)
    strict_CC = backend.dot_transposed(k_CH, k_CH, precise=precise)
    strict_CC *= blocks.within(weights, here, transposed=False) * beta_C[:, None]
    strict_CC = jnp.where(t_C[:, None] > t_C[None, :], strict_CC, 0.0)
    apart_CC = jnp.bitwise_xor(t_C[:, None], t_C[None, :])

    def doubled(level, inverse_CC):
        """Returns the inverses of the blocks twice as wide (see unit_lower.py): below
        the diagonal, `apart` is 2^level up to 2^(level + 1) in their corners."""
        corner_CC = jnp.right_shift(apart_CC, level) == 1
        corner_CC = jnp.where(corner_CC, strict_CC, 0.0)
        corner_CC = backend.dot(corner_CC, inverse_CC, precise=precise)
        return inverse_CC - backend.dot(inverse_CC, corner_CC, precise=precise)

    inverse_CC = jnp.where(apart_CC == 0, 1.0, 0.0)
    inverse_CC -= jnp.where(apart_CC == 1, strict_CC, 0.0)  # of blocks two tokens wide
    levels = jnp.int32(chunk.bit_length() - 1)
    inverse_CC = jax.lax.fori_loop(jnp.int32(1), levels, doubled, inverse_CC)
    index = (batch, head, here.tokens_C[:, None], t_C[None, :])
    backend.store(inverse_BNTC, index, inverse_CC)


def times_inverse(
    inverse_BNTC: jax.Array,
    x_BTNX: jax.Array,
    weights_BNT: jax.Array | None,
    sizes: Sizes,
    tile: Tile,
    *,
    transposed: bool = False,
) -> jax.Array:
    """Returns A x of every chunk, BTNX in the dtype of x, the tokens of x weighted;
    `transposed`: A^T x. The heads of x are those of the values or of the keys."""
    matrix = _inverse_transposed if transposed else _inverse
    operands = (inverse_BNTC, x_BTNX, weights_BNT)
    return _products(
        operands, matrix, sizes, tile, inverse_BNTC.shape[-1], name="product"
    )


def times_scores(
    tokens: Tokens, weights: Weights, x_BTNP, sizes: Sizes, tile: Tile, chunk: int
) -> jax.Array:
    """Returns sum_t scale exp(b_t - b_s) (q_t . k_s) x_t over t >= s of the chunk, of
    every token s, BTNP: what arrives at the corrected values from the chunk's out."""
    operands = ((tokens, weights), x_BTNP, None)
    return _products(operands, _scores_transposed, sizes, tile, chunk, name="local")


def _products(operands, matrix, sizes, tile, chunk, *, name):
    """Returns the products of the chunks' matrices with the tokens."""
    _, x_BTNX, _ = operands
    width = max(16, pl.next_power_of_2(x_BTNX.shape[3]))
    tile = tile._replace(values=min(tile.values, width))
    column_blocks = pl.cdiv(x_BTNX.shape[3], tile.values)
    kernel = partial(
        _product_kernel, matrix=matrix, sizes=sizes, tile=tile, chunk=chunk
    )
    shape = (sizes.B, sizes.T, sizes.N, x_BTNX.shape[3])
    (y_BTNX,) = backend.call(
        kernel,
        operands,
        outputs=[backend.Output(shape, x_BTNX.dtype)],
        grid=(column_blocks * pl.cdiv(sizes.T, chunk), sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name=f"gated_delta_rule_{name}",
        interpret=sizes.interpret,
    )
    return y_BTNX


def _product_kernel(source, x_BTNX, weights_BNT, y_BTNX, *, matrix, sizes, tile, chunk):
    piece, head, batch = (pl.program_id(axis) for axis in range(3))
    column_blocks = pl.cdiv(x_BTNX.shape[3], tile.values)
    number = jax.lax.div(piece, jnp.int32(column_blocks))
    block = piece - number * column_blocks
    here = blocks.chunk_of(batch, head, number, sizes, chunk)
    columns = blocks.columns_of(block * tile.values, tile.values, x_BTNX.shape[3])
    matrix_CC = matrix(source, here, sizes, chunk).astype(x_BTNX.dtype)
    x_head = jax.lax.div(head, jnp.int32(sizes.N // x_BTNX.shape[2]))
    x_CX = blocks.load_tokens(x_BTNX, here, x_head, columns)
    if weights_BNT is not None:
        weights_C = blocks.load_scalars(weights_BNT, here)
        x_CX = (x_CX.astype(jnp.float32) * weights_C[:, None]).astype(x_BTNX.dtype)
    y_CX = backend.dot(matrix_CC, x_CX, precise=sizes.rules.precise)
    blocks.store_tokens(y_BTNX, here, columns, y_CX)


def _inverse(inverse_BNTC, here, sizes, chunk):
    """Returns A of a chunk."""
    del sizes
    s_C = jnp.arange(chunk, dtype=jnp.int32)
    index = (here.batch, here.head, here.tokens_C[:, None], s_C[None, :])
    return backend.load(inverse_BNTC, index)


def _inverse_transposed(inverse_BNTC, here, sizes, chunk):
    """Returns A^T of a chunk."""
    del sizes
    s_C = jnp.arange(chunk, dtype=jnp.int32)
    index = (here.batch, here.head, here.tokens_C[None, :], s_C[:, None])
    return backend.load(inverse_BNTC, index)


def _scores_transposed(source, here, sizes, chunk):
    """Returns the weight of token s in out at t, keys by queries."""
    del chunk
    tokens, weights = source
    keys = blocks.columns_of(0, sizes.key_width, sizes.H)
    q_CH = blocks.load_tokens(tokens.q_BTKH, here, here.key_head, keys)
    k_CH = blocks.load_tokens(tokens.k_BTKH, here, here.key_head, keys)
    scores_CC = backend.dot_transposed(k_CH, q_CH, precise=sizes.rules.precise)
    return scores_CC * blocks.within(weights, here, transposed=True) * sizes.rules.scale
