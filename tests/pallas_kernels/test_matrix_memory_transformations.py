"""The kernels of the matrix memory, interpreted, under vmap and scan; those of linear
attention over a mesh are in test_recurrences.py."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import backend
from pallas_kernels.matrix_memory.division import joined
from pallas_kernels.matrix_memory.memory import Writes
from pallas_kernels.matrix_memory.reference import matrix_memory_reference
from pallas_kernels.matrix_memory.shipped import WRITTEN
from pallas_kernels.matrix_memory.triton import matrix_memory_triton
from tests.pallas_kernels.test_matrix_memory_triton import (
    EXP,
    arrays,
    split,
    tiles_of,
)
from tests.tolerances import assert_near


@pytest.mark.slow
def test_transformations_commute_with_the_kernels():
    floats, resets_BT = split(arrays(5, T=20, B=2))
    rules, tiles = EXP.rules(16), tiles_of(WRITTEN)

    def loss(floats, resets_BT):
        q, k, v, log_i, log_f, memory = floats
        with backend.interpreted():
            writes = Writes(log_i, log_f, resets_BT)
            h, _ = matrix_memory_triton(
                q, k, v, writes, memory, rules=rules, tiles=tiles
            )
        return jnp.sum(joined(h) ** 2)

    wanted = jax.jit(jax.value_and_grad(loss))(floats, resets_BT)
    rows = jax.tree.map(lambda x: x[:, None], (floats, resets_BT))

    def mapped(floats):
        return jnp.sum(jax.vmap(loss)(floats, rows[1]))

    def scanned(floats):
        body = lambda total, row: (total + loss(*row), None)  # noqa: E731
        return jax.lax.scan(body, jnp.float32(0), (floats, rows[1]))[0]

    for function in (mapped, jax.checkpoint(mapped), scanned):
        value, gradient = jax.jit(jax.value_and_grad(function))(rows[0])
        gradient = jax.tree.map(lambda x: x[:, 0], gradient)
        assert_near((value, gradient), wanted, dtype="float32")


@pytest.mark.parametrize("T", [4, 20])  # a step, chunks
def test_what_examples_share_gets_its_gradient_once(T):
    q, k, v, writes, memory = arrays(12, T=T, B=3, resets=False)
    shared = jax.tree.map(lambda x: x[:1], (k, v, *writes[:2], memory))

    @partial(jax.jit, static_argnames="function")
    def gradients(shared, q, function):
        def loss(shared, q):
            k, v, log_i, log_f, memory = shared
            writes = Writes(log_i, log_f, None)
            h, last = function(q[None], k, v, writes, memory, rules=EXP.rules(16))
            wide = jax.tree.leaves((joined(h), last))
            return sum(jnp.sum(jnp.sin(x)) for x in wide)

        mapped = jax.vmap(loss, in_axes=(None, 0))
        return jax.grad(lambda shared: jnp.sum(mapped(shared, q)))(shared)

    with backend.interpreted():
        found = gradients(shared, q, matrix_memory_triton)
    wanted = gradients(shared, q, matrix_memory_reference)
    assert_near(found, wanted, dtype="float32")
