"""What the Triton IR of the kernels of gated linear attention shows without a GPU: the
rule of test_triton_ir.py, for tokens and columns that do not fill their tiles.
"""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.gated_linear_attention import (
    blocks,
    triton_backward,
    triton_read,
    triton_scores,
    triton_states,
)
from pallas_kernels.gated_linear_attention.triton import gated_linear_attention_triton
from pallas_kernels.inspect.accesses import ACCESSES
from pallas_kernels.inspect.triton_ir import operations, parse
from tests.pallas_kernels.triton_programs import Program, is_unmasked, run_integers

FORWARD = ["scores", "states", "read"]  # in order of their calls
BACKWARD = ["scores", "states", "states", "read", "dscores", "read", "read"]
KERNELS = [*FORWARD, *BACKWARD, "gradients"]
MODULES = (triton_backward, triton_read, triton_scores, triton_states)
T, H, P = 150, 24, 72


def gradients_of():
    """Returns a function of all arrays that runs all kernels, and the arrays."""
    B, N = 2, 2

    def total(q, k, v, log_decay, s, resets):
        tokens = (q, k, v, log_decay, resets, s)
        out, last = gated_linear_attention_triton(*tokens, scale=1.0)
        return jnp.sum(out.astype(jnp.float32)) + jnp.sum(last)

    q, v = (jnp.ones((B, T, N, X), jnp.bfloat16) for X in (H, P))
    decay, s = jnp.zeros((B, T, N, H)), jnp.ones((B, N, H, P))
    arrays = (q, q, v, decay, s, jnp.zeros((B, T), bool))
    return jax.grad(total, argnums=(0, 1, 2, 3, 4)), arrays


@pytest.fixture(scope="module")
def program():
    """Returns the program and its arguments."""
    function, arrays = gradients_of()
    return Program(function, *arrays), arrays


def test_no_active_lane_is_outside_and_each_output_is_written_once(program):
    lowered, arrays = program
    names = [kernel.name for kernel in lowered.kernels]
    assert names == [f"gated_linear_attention_{name}" for name in KERNELS]
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
        # A chunk's scores are whole: they are padded. Nothing else goes without a mask.
        for operation in filter(is_unmasked, text):
            tokens, *columns = operation.operands[0].type.shape
            assert tokens in (16, 64)
            assert columns in ([], [16], [64])


def without_masks_of_tokens(monkeypatch):
    tokens_of = blocks.tokens_of
    monkeypatch.setattr(
        blocks, "tokens_of", lambda *a: tokens_of(*a)._replace(valid_C=None)
    )


def without_masks_of_columns(monkeypatch):
    for module in MODULES:
        columns_of = module.columns_of
        monkeypatch.setattr(
            module,
            "columns_of",
            lambda *a, made=columns_of: made(*a)._replace(inside_X=None),
        )


def without_the_last_token_for_others(monkeypatch):
    monkeypatch.setattr(blocks, "existing", lambda token, sizes: token)


@pytest.mark.parametrize(
    ("mistake", "caught"),
    [
        (without_masks_of_tokens, {"scores", "read", "gradients"}),  # they write tokens
        (without_masks_of_columns, set(KERNELS)),
        (without_the_last_token_for_others, {"scores", "gradients"}),
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
    assert wrong == caught
