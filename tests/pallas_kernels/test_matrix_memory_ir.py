"""What the Triton IR of the matrix memory's kernels shows without a GPU: the rule of
test_triton_ir.py, for heads, chunks and blocks of columns that do not fill their tiles.
"""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.inspect.accesses import ACCESSES
from pallas_kernels.inspect.triton_ir import operations, parse
from pallas_kernels.matrix_memory import blocks
from pallas_kernels.matrix_memory.division import joined
from pallas_kernels.matrix_memory.memory import Memory, Rules, Writes
from pallas_kernels.matrix_memory.shipped import ON_CHIP, WRITTEN
from pallas_kernels.matrix_memory.tiles import tiles_for
from pallas_kernels.matrix_memory.triton import matrix_memory_triton
from tests.pallas_kernels.triton_programs import Program, is_unmasked, run_integers

KERNELS = ["states", "read", "states", "states", "dq", "dkv"]  # in order of their calls
DESIGNS = {"on chip": ON_CHIP, "in spans": 30, "written": WRITTEN}
T, H, P = 150, 24, 72


def gradients_of(programs):
    """Returns a function of all arrays that runs all kernels, and the arrays."""
    B, K, N = 2, 2, 4
    tiles = tiles_for(width=H, dtype="bfloat16", device_kind=None)
    rules = Rules(1.0, stabilise=True, normalize=True, eps=1e-6)

    def total(q, k, v, log_i, log_f, resets, memory):
        h, last = matrix_memory_triton(
            q,
            k,
            v,
            Writes(log_i, log_f, resets),
            memory,
            rules=rules,
            tiles=tiles._replace(programs=programs),
        )
        h = joined(h, jnp.float32)
        return jnp.sum(h) + sum(map(jnp.sum, jax.tree.leaves(last)))

    array = lambda *shape: jnp.ones(shape, jnp.bfloat16)  # noqa: E731
    tokens = array(B, T, K, H), array(B, T, K, H), array(B, T, N, P)
    gate, resets = jnp.zeros((B, T, N)), jnp.zeros((B, T), bool)
    memory = Memory(jnp.ones((B, N, H, P)), jnp.ones((B, N, H)), jnp.zeros((B, N)))
    gradients = jax.grad(total, argnums=(0, 1, 2, 3, 4, 6))
    return gradients, (*tokens, gate, gate, resets, memory)


@pytest.fixture(scope="module", params=DESIGNS)
def program(request):
    """Returns the program of a design and its arguments."""
    function, arrays = gradients_of(DESIGNS[request.param])
    return Program(function, *arrays), arrays


def test_no_active_lane_is_outside_and_each_output_is_written_once(program):
    lowered, arrays = program
    assert [k.name for k in lowered.kernels] == [f"matrix_memory_{k}" for k in KERNELS]
    for kernel, integers in lowered.calls(*arrays):
        found = run_integers(kernel, integers)
        assert found.wrong == [], kernel.name
        outputs = range(len(kernel.shapes) - kernel.outputs, len(kernel.shapes))
        ragged = {i for i in outputs if T in kernel.shapes[i][1:2]}
        assert ragged <= found.left, "no mask is put to the test"
        module = parse(kernel)  # kept, as its operations need it
        text = operations(module.operation)
        assert found.reached == set(range(sum(op.name in ACCESSES for op in text)))


def test_loops_are_counted_and_what_may_be_ragged_is_masked(program):
    lowered, _ = program
    for kernel in lowered.kernels:
        module = parse(kernel)
        text = list(operations(module.operation))
        control = {op.name for op in text if op.name.startswith(("scf.", "cf."))}
        assert control <= {"scf.for", "scf.yield"}
        # A chunk's gates are whole: they are padded. Nothing else goes without a mask.
        for operation in filter(is_unmasked, text):
            assert len(operation.operands[0].type.shape) == 1


def without_masks_of_tokens(monkeypatch):
    chunk_of = blocks.chunk_of
    monkeypatch.setattr(
        blocks, "chunk_of", lambda *a: chunk_of(*a)._replace(valid_C=None)
    )


def without_masks_of_columns(monkeypatch):
    columns_of = blocks.columns_of
    monkeypatch.setattr(
        blocks, "columns_of", lambda *a: columns_of(*a)._replace(inside_X=None)
    )


def without_the_last_token_for_others(monkeypatch):
    chunk_of = blocks.chunk_of

    def chunk(*arguments):
        made = chunk_of(*arguments)
        return made._replace(existing_C=made.tokens_C)

    monkeypatch.setattr(blocks, "chunk_of", chunk)


@pytest.mark.parametrize(
    ("mistake", "caught"),
    [
        (without_masks_of_tokens, {"read", "dq", "dkv"}),  # which write tokens
        (without_masks_of_columns, set(KERNELS)),
        (without_the_last_token_for_others, set(KERNELS)),
    ],
)
def test_a_mask_that_is_missing_is_found(monkeypatch, mistake, caught):
    jax.clear_caches()
    mistake(monkeypatch)
    function, arrays = gradients_of(WRITTEN)
    calls = Program(function, *arrays).calls(*arrays)
    jax.clear_caches()
    wrong = {
        name
        for name, (kernel, integers) in zip(KERNELS, calls, strict=True)
        if run_integers(kernel, integers).wrong
    }
    assert wrong == caught
