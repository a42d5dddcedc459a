"""What the Triton IR of the gated delta rule's kernels shows without a GPU: the rule of
test_triton_ir.py, for heads, chunks and blocks of columns that do not fill their tiles.
"""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.gated_delta_rule.triton import gated_delta_rule_triton
from pallas_kernels.inspect.accesses import ACCESSES
from pallas_kernels.inspect.triton_ir import operations, parse
from tests.pallas_kernels.test_matrix_memory_ir import (
    without_masks_of_columns,
    without_masks_of_tokens,
    without_the_last_token_for_others,
)
from tests.pallas_kernels.triton_programs import Program, is_unmasked, run_integers

CORRECTED = ["inverse", "product", "product", "walk"]
LAST = ["matrix_memory_dq", "matrix_memory_dkv", "product", "keys"]
KERNELS = [*CORRECTED, "matrix_memory_read", *CORRECTED, "local", "walk", *LAST]
OWN = {name for name in KERNELS if not name.startswith("matrix_memory")}
T, H, P = 150, 24, 72


def gradients_of():
    """Returns a function of all arrays that runs all kernels, and the arrays."""
    B, K, N = 2, 2, 4

    def total(q, k, v, log_decay, beta, resets, s):
        arrays = (q, k, v, log_decay, beta, resets, s)
        out, s = gated_delta_rule_triton(*arrays, scale=1.0, precise=False)
        return jnp.sum(out.astype(jnp.float32)) + jnp.sum(s)

    array = lambda *shape: jnp.ones(shape, jnp.bfloat16)  # noqa: E731
    tokens = array(B, T, K, H), array(B, T, K, H), array(B, T, N, P)
    gate, resets = jnp.zeros((B, T, N)), jnp.zeros((B, T), bool)
    gradients = jax.grad(total, argnums=(0, 1, 2, 3, 4, 6))
    return gradients, (*tokens, gate, gate, resets, jnp.ones((B, N, H, P)))


@pytest.fixture(scope="module")
def program():
    """Returns the program and its arguments."""
    function, arrays = gradients_of()
    return Program(function, *arrays), arrays


def test_no_active_lane_is_outside_and_each_output_is_written_once(program):
    lowered, arrays = program
    names = [k.name.removeprefix("gated_delta_rule_") for k in lowered.kernels]
    assert names == KERNELS
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
        loops = kernel.name.endswith(("inverse", "walk", "keys", "dq", "dkv"))
        assert loops == bool(control)
        # A chunk's gates are whole, and so is its inverse: they are padded. Nothing
        # else goes without a mask.
        for operation in filter(is_unmasked, text):
            shape = list(operation.operands[0].type.shape)
            assert len(shape) == 1 or shape == [64, 64]


@pytest.mark.parametrize(
    ("mistake", "caught"),
    [
        (without_masks_of_tokens, {"product", "walk", "local", "keys"}),
        (without_masks_of_columns, OWN),
        (without_the_last_token_for_others, OWN),
    ],
)
def test_a_mask_that_is_missing_is_found(monkeypatch, mistake, caught):
    jax.clear_caches()
    mistake(monkeypatch)
    function, arrays = gradients_of()
    calls = Program(function, *arrays).calls(*arrays)
    jax.clear_caches()
    wrong = {
        name
        for name, (kernel, integers) in zip(KERNELS, calls, strict=True)
        if run_integers(kernel, integers).wrong
    }
    assert wrong & OWN == caught
