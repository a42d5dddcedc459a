"""What the Triton IR of the kernels shows without a GPU.

The rule: in no program of the grid does an active lane of a load or store, one that its
mask does not switch off, lie outside of the array; and each element of an output is
written by one program, once. It is shown by running the integers of the IR (addresses,
masks, bounds of loops) at sizes that fit no block, and at windows that bring programs
into every loop. What that rests on is checked too: every load and store of the text is
reached, and the arrays along tokens do have lanes outside, which only a mask stops.
Without a mask stand only loads of whole blocks, in the inner one of the three loops.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.inspect.accesses import ACCESSES
from pallas_kernels.inspect.triton_ir import operations, parse
from pallas_kernels.local_attention import Preparation, local_attention, rows
from pallas_kernels.local_attention.step import local_attention_step, window_cache
from tests.pallas_kernels.triton_programs import Program, is_unmasked, run_integers

KERNELS = ["forward", "dq", "dkv"]  # of local_attention, in the order of their calls


class Sizes(NamedTuple):
    """A call of local_attention, in the names of the README."""

    T: int
    S: int
    H: int
    B: int = 2
    N: int = 4
    K: int = 2
    segments: bool = True
    raw: bool = False  # the kernels norm and rotate the queries


def attention_arrays(sizes: Sizes):
    """Returns the window and the arrays of a call, of any values."""
    B, T, S, N, K, H = (getattr(sizes, name) for name in "BTSNKH")
    key = jax.random.key(0)
    q, k, v = (
        jax.random.normal(key, shape, jnp.bfloat16)
        for shape in ((B, T, N, H), (B, S, K, H), (B, S, K, H))
    )
    ids = np.sort(np.random.default_rng(0).integers(0, 3, (B, max(T, S))), axis=1)
    segment_ids = jnp.asarray(ids, jnp.int32) if sizes.segments else None
    preparation = None
    if sizes.raw:
        turns = jax.random.normal(key, (1, T, H // 2))
        preparation = Preparation(turns, turns, jnp.ones(H))
    return q, k, v, segment_ids, jnp.zeros(N), preparation


def attention_gradients(window, q, k, v, segment_ids, sinks, preparation):
    """Returns the gradients of a sum of local_attention; runs all of its kernels."""

    def total(q, k, v, sinks, preparation):
        out = local_attention(
            q,
            k,
            v,
            window=window,
            segment_ids=segment_ids,
            sinks=sinks,
            preparation=preparation,
            implementation="triton",
        )
        return jnp.sum(out.astype(jnp.float32))

    return jax.grad(total, argnums=(0, 1, 2, 3, 4))(q, k, v, sinks, preparation)


CALLS = {
    "a ragged head, segments": Sizes(T=100, S=100, H=24),
    "more keys than queries": Sizes(T=70, S=300, H=32, B=1, segments=False),
    "more queries than keys": Sizes(T=140, S=77, H=16, B=1, N=3, K=1),
    "raw queries of a ragged head": Sizes(T=100, S=130, H=24, raw=True),
    "whole blocks": Sizes(T=300, S=300, H=32, B=1, N=2, K=1, segments=False),
}
WINDOWS = (1, 40, 1000)


@pytest.fixture(scope="module")
def programs():
    """Returns a function from the name of a call to its program, lowered once."""
    known = {}

    def program(name):
        if name not in known:
            arrays = attention_arrays(CALLS[name])
            known[name] = Program(attention_gradients, jnp.int32(1), *arrays), arrays
        return known[name]

    return program


@pytest.mark.parametrize("name", CALLS)
def test_no_active_lane_is_outside_and_each_output_is_written_once(programs, name):
    program, arrays = programs(name)
    left = [set() for _ in KERNELS]
    for window in WINDOWS:
        calls = program.calls(jnp.int32(window), *arrays)
        for i, (kernel, integers) in enumerate(calls):
            found = run_integers(kernel, integers)
            assert found.wrong == []
            left[i] |= found.left
    T, S, H = (getattr(CALLS[name], letter) for letter in "TSH")
    for i, kernel in enumerate(program.kernels):
        along_tokens = {j for j, s in enumerate(kernel.shapes) if set(s[1:]) & {T, S}}
        of_a_head = {j for j, s in enumerate(kernel.shapes) if s[-1] == H}
        masked = along_tokens | (of_a_head if H == 24 else set())
        assert left[i] == masked, "no mask is put to the test"


def test_every_load_and_store_is_reached(programs):
    program, arrays = programs("whole blocks")
    reached = [set() for _ in KERNELS]
    for window in WINDOWS:
        calls = program.calls(jnp.int32(window), *arrays)
        for i, (kernel, integers) in enumerate(calls):
            reached[i] |= run_integers(kernel, integers).reached
    for i, kernel in enumerate(program.kernels):
        assert kernel.name == f"local_attention_{KERNELS[i]}"
        module = parse(kernel)
        text = [op for op in operations(module.operation) if op.name in ACCESSES]
        assert reached[i] == set(range(len(text)))


@pytest.mark.parametrize("name", ["a ragged head, segments", "whole blocks"])
def test_loops_are_counted_and_loads_without_a_mask_are_in_the_inner_one(
    programs, name
):
    program, _ = programs(name)
    for kernel in program.kernels:
        module = parse(kernel)
        text = list(operations(module.operation))
        control = [op for op in text if op.name.startswith(("scf.", "cf."))]
        loops = [op for op in control if op.name != "scf.yield"]
        assert [loop.name for loop in loops] == ["scf.for"] * 3
        inner = set(operations(loops[1]))
        assert {op for op in text if is_unmasked(op)} <= inner


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_the_decode_kernel_stays_inside_too(new_tokens):
    B, T, N, K, H = 3, new_tokens, 6, 2, 24
    cache = window_cache(B, window=30, kv_heads=K, head_width=H, dtype=jnp.bfloat16)
    q = jnp.ones((B, T, N, H), jnp.bfloat16)
    k = jnp.ones((B, T, K, H), jnp.bfloat16)

    def step(window, q, k, v, cache):
        return local_attention_step(
            q, k, v, cache, window=window, implementation="triton"
        )

    program = Program(step, jnp.int32(1), q, k, k, cache)
    (kernel,) = program.kernels
    module, reached = parse(kernel), set()
    text = list(operations(module.operation))
    assert [op.name for op in text if op.name.startswith("scf.")] == [
        "scf.for",
        "scf.yield",
    ]
    for tokens in (0, 20, 1000):
        cache = cache._replace(tokens_B=jnp.asarray([tokens, 5, 0], jnp.int32))
        ((_, integers),) = program.calls(jnp.int32(30), q, k, k, cache)
        found = run_integers(kernel, integers)
        assert found.wrong == []
        reached |= found.reached
    assert len(reached) == sum(op.name in ACCESSES for op in text)


def without_row_masks(monkeypatch):
    monkeypatch.setattr(rows, "both", lambda valid_R, inside_1H: inside_1H)


def without_column_masks(monkeypatch):
    columns = rows.columns
    monkeypatch.setattr(rows, "columns", lambda *sizes: (columns(*sizes)[0], None))


def without_any_mask(monkeypatch):
    monkeypatch.setattr(rows, "both", lambda valid_R, inside_1H: None)


def without_masks_of_keys(monkeypatch):
    block = rows.key_block
    monkeypatch.setattr(
        rows, "key_block", lambda *a, ragged, **k: block(*a, ragged=False, **k)
    )


def without_edge_blocks(monkeypatch):
    def phases(visits, body, carry):
        step = lambda j, carry: body(j, carry, edge=False)  # noqa: E731
        return jax.lax.fori_loop(0, visits.count, step, carry)

    monkeypatch.setattr(rows, "phases", phases)


@pytest.mark.parametrize(
    ("mistake", "caught"),
    [
        (without_row_masks, {"forward", "dq", "dkv"}),
        (without_column_masks, {"forward", "dq", "dkv"}),
        (without_any_mask, {"forward", "dq", "dkv"}),
        (without_masks_of_keys, {"forward", "dq", "dkv"}),
        (without_edge_blocks, {"forward", "dq"}),  # rows are masked in every loop
    ],
)
def test_a_mask_that_is_missing_is_found(monkeypatch, mistake, caught):
    jax.clear_caches()
    mistake(monkeypatch)
    arrays = attention_arrays(CALLS["a ragged head, segments"])
    program = Program(attention_gradients, jnp.int32(1), *arrays)
    calls = program.calls(jnp.int32(1000), *arrays)
    wrong = {
        name
        for name, (kernel, integers) in zip(KERNELS, calls, strict=True)
        if run_integers(kernel, integers).wrong
    }
    jax.clear_caches()
    assert wrong == caught
