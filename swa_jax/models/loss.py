"""The loss of a language model, whole or in chunks of tokens."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

# Logits that stand in memory at once where the caller names no chunk: 1 GiB of float32.
# Every chunk reads and writes the gradient of the head once, so that shorter chunks
# cost time.
LOGITS_AT_ONCE = 2**28
CHUNK_STEP = 64  # tokens; a chunk of this many or more is a multiple of it

Head = Callable[[Any, jax.Array], jax.Array]


def next_token_nll(logits_BTV: jax.Array, targets_BT: jax.Array, /) -> jax.Array:
    """Returns the negative log likelihood of each target, nats per token, float32.

    nll_bt = logsumexp_v logits_btv - logits_bt[target_bt]; nothing is masked or
    averaged. A target outside 0..V-1 gives NaN.

    Raises:
      ValueError: targets that are no integers, or shapes that do not belong together.
    """
    _check_targets(logits_BTV, targets_BT, "logits (B, T, V)")
    log_z_BT, target_BT = _log_z_and_target(logits_BTV, targets_BT)
    return log_z_BT - target_BT


def chunked_loss(
    head: Head,
    params: Any,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    /,
    *,
    chunk: int | None = None,
    z_loss: float = 0.0,
    row_sharding: NamedSharding | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted loss, and nll_BT of every target as `next_token_nll` has it.

    loss = sum_bt w_bt (nll_bt + z_loss log_z_bt^2), log_z = logsumexp_v logits, both in
    float32, logits_BTV = head(params, x_BTD). A token of weight 0 is left out whatever
    its target. z_loss: de Brébisson and Vincent 2016, arXiv:1604.08859.

    The logits of `chunk` tokens of every row are there at once, forward and backward:
    where a gradient is asked for, each chunk's is computed along with its loss, so that
    nothing is computed twice. None chooses by `default_chunk`. `row_sharding` says over
    which devices the rows, and the tokens of each, lie in blocks: each then takes its
    own, chunk by chunk, and the gradients of the head are summed over the devices once,
    at the end.
    Gradients flow to `params` and `x_BTD` and from the loss alone.

    Raises:
      ValueError: targets that are no integers, shapes that do not belong together, or a
        chunk below 1.
    """
    _check_arguments(x_BTD, targets_BT, weights_BT, chunk)
    grid = (1, 1) if row_sharding is None else _grid(row_sharding, targets_BT.shape)
    length = targets_BT.shape[1] // grid[1]
    if chunk is None:
        vocabulary = jax.eval_shape(head, params, x_BTD).shape[-1]
        held = len(x_BTD) // grid[0]
        chunk = default_chunk(rows=held, length=length, vocabulary=vocabulary)
    weights_BT = jax.lax.stop_gradient(weights_BT.astype(jnp.float32))
    mesh = None if row_sharding is None else row_sharding.mesh

    def loss_of(*arrays_BT):
        chunks = [_cut(array, min(chunk, length)) for array in arrays_BT]
        sums: Any = _sum_of_chunks(head, z_loss, mesh, params, *chunks)
        loss, nll_JBC = sums
        nll_BT = jnp.moveaxis(nll_JBC, 0, 1).reshape(len(arrays_BT[0]), -1)
        return loss, nll_BT[:, :length]

    arrays = (x_BTD, targets_BT, weights_BT)
    if row_sharding is None:
        loss, nll_BT = loss_of(*arrays)
    else:
        loss, nll_BT = _over_blocks(loss_of, row_sharding, grid, *arrays)
    return loss, jax.lax.stop_gradient(nll_BT)


def _over_blocks(loss_of, row_sharding, grid, *arrays_BT):
    """Returns the sum of the blocks' losses, and all nll_BT: a block is what one device
    holds, and stays there."""
    rows, tokens = grid
    B, T = arrays_BT[0].shape[:2]
    axes = _axes(row_sharding.spec[0])
    if tokens > 1:
        axes += _axes(row_sharding.spec[1])
    blocks = NamedSharding(row_sharding.mesh, PartitionSpec(axes))

    def cut(array_BT):
        rest = array_BT.shape[2:]
        array = array_BT.reshape(rows, B // rows, tokens, T // tokens, *rest)
        array = jnp.swapaxes(array, 1, 2).reshape(
            rows * tokens, B // rows, T // tokens, *rest
        )
        return jax.lax.with_sharding_constraint(array, blocks)

    losses_X, nll_XBT = jax.vmap(loss_of, spmd_axis_name=axes)(*map(cut, arrays_BT))
    nll = nll_XBT.reshape(rows, tokens, B // rows, T // tokens)
    return jnp.sum(losses_X), jnp.swapaxes(nll, 1, 2).reshape(B, T)


def _grid(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the number of blocks of rows, and of tokens: 1 where they do not divide
    the tokens."""
    mesh = sharding.mesh.shape
    rows, tokens, *_ = (
        math.prod(mesh[axis] for axis in _axes(axes)) for axes in (*sharding.spec, None)
    )
    return rows, 1 if shape[1] % tokens else tokens


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the axes of one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def default_chunk(*, rows: int, length: int, vocabulary: int) -> int:
    """Returns the tokens of each row whose logits may stand in memory at once.

    `rows` are those of one device. The whole row where LOGITS_AT_ONCE allows it.
    """
    fits = max(1, LOGITS_AT_ONCE // (rows * vocabulary))
    if fits >= length:
        return length
    return fits - fits % CHUNK_STEP if fits >= CHUNK_STEP else fits


def _cut(array_BT: jax.Array, chunk: int) -> jax.Array:
    """Returns (J, B, chunk, ...): the tokens in chunks, the last one filled with 0."""
    rows, length, *rest = array_BT.shape
    missing = -length % chunk
    padding = [(0, 0), (0, missing)] + [(0, 0)] * len(rest)
    whole = jnp.pad(array_BT, padding) if missing else array_BT
    return jnp.moveaxis(whole.reshape(rows, -1, chunk, *rest), 1, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sum_of_chunks(
    head, z_loss, mesh, params, x_JBCD, targets_JBC, weights_JBC
) -> tuple[jax.Array, jax.Array]:
    def add(loss, piece):
        part, nll_BC = _chunk_loss(head, z_loss, mesh, params, *piece)
        return loss + part, nll_BC

    params = _gathered(params, mesh)
    return jax.lax.scan(add, jnp.float32(0), (x_JBCD, targets_JBC, weights_JBC))


def _forward(head, z_loss, mesh, params, x_JBCD, targets_JBC, weights_JBC):
    """Returns the loss, and the gradients that it has: they are all that is kept."""

    def add(carry, piece):
        value_and_grad = jax.value_and_grad(
            partial(_chunk_loss, head, z_loss, mesh), argnums=(0, 1), has_aux=True
        )
        (part, nll_BC), (grad, grad_x_BCD) = value_and_grad(params, *piece)
        carry = jax.tree.map(jnp.add, carry, (part, grad))
        return _in_place(carry, mesh), (nll_BC, grad_x_BCD)

    params = _gathered(params, mesh)
    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    chunks = (x_JBCD, targets_JBC, weights_JBC)
    (loss, grad), (nll_JBC, grad_x_JBCD) = jax.lax.scan(add, zero, chunks)
    return (loss, nll_JBC), (grad, grad_x_JBCD)


def _backward(head, z_loss, mesh, gradients, cotangents):
    """Returns the gradients, which are linear in the loss's cotangent."""
    del head, z_loss, mesh
    cotangent = cotangents[0]

    def scaled(gradient):
        return (cotangent * gradient.astype(jnp.float32)).astype(gradient.dtype)

    return *jax.tree.map(scaled, gradients), None, None


_sum_of_chunks.defvjp(_forward, _backward)


def _gathered(params, mesh):
    """Returns the head's parameters, whole along their inputs (the first axis) on every
    device: gathered once here, they are not gathered again for every chunk.

    Within the rule of differentiation, so that their gradient stays cut.
    """
    if mesh is None:
        return params

    def gather(array):
        free = [PartitionSpec.UNCONSTRAINED] * (array.ndim - 1)
        sharding = NamedSharding(mesh, PartitionSpec(None, *free))
        return jax.lax.with_sharding_constraint(array, sharding)

    return jax.tree.map(lambda x: gather(x) if x.ndim > 1 else x, params)


def _in_place(tree, mesh):
    """Returns the arrays of a block, kept on the block's device.

    The vmap over blocks turns the constraint into one on the axis of blocks; the
    partitioner would otherwise rather move logits than a sharded head.
    """
    if mesh is None:
        return tree

    def keep(array):
        free = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * array.ndim)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, free))

    return jax.tree.map(keep, tree)


def _chunk_loss(head, z_loss, mesh, params, x_BCD, targets_BC, weights_BC):
    """Returns the weighted loss of some tokens, and the nll of each of them."""
    logits_BCV = _in_place(head(params, x_BCD), mesh)
    log_z_BC, target_BC = _log_z_and_target(logits_BCV, targets_BC)
    nll_BC = log_z_BC - target_BC
    cost_BC = nll_BC + z_loss * jnp.square(log_z_BC) if z_loss else nll_BC
    counted_BC = weights_BC != 0
    return jnp.sum(jnp.where(counted_BC, weights_BC * cost_BC, 0.0)), nll_BC


def _log_z_and_target(logits_BTV, targets_BT):
    """Returns logsumexp over the vocabulary and the target's logit, both float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    known_BT = (targets_BT >= 0) & (targets_BT < logits_BTV.shape[-1])
    index_BT1 = jnp.where(known_BT, targets_BT, 0)[..., None]
    target_BT = jnp.take_along_axis(logits_BTV, index_BT1, axis=-1)[..., 0]
    target_BT = jnp.where(known_BT, target_BT, jnp.nan)
    return jax.nn.logsumexp(logits_BTV, axis=-1), target_BT


def _check_targets(array_BTX: jax.Array, targets_BT: jax.Array, wanted: str) -> None:
    """Returns nothing; raises ValueError for targets that do not belong to an array."""
    if not jnp.issubdtype(targets_BT.dtype, jnp.integer):
        raise ValueError(
            f"the loss wants targets in an integer dtype; got {targets_BT.dtype}."
        )
    if array_BTX.ndim != 3 or array_BTX.shape[:2] != targets_BT.shape:
        raise ValueError(
            f"the loss wants {wanted} and targets (B, T); got "
            f"{array_BTX.shape} and {targets_BT.shape}."
        )


def _check_arguments(
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int | None,
) -> None:
    """Returns nothing; raises ValueError for what does not belong together."""
    if chunk is not None and chunk < 1:
        raise ValueError(
            f"chunked_loss wants a chunk of at least 1 token; got {chunk=}"
        )
    _check_targets(x_BTD, targets_BT, "hidden states (B, T, D)")
    if weights_BT.shape != targets_BT.shape:
        raise ValueError(
            "chunked_loss wants a weight for each target; got shapes "
            f"{weights_BT.shape} and {targets_BT.shape}."
        )
