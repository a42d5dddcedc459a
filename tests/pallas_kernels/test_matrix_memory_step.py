"""The decoding kernel of the matrix memory against the recurrence in float64."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pallas_kernels import backend
from pallas_kernels.inspect.accesses import ACCESSES
from pallas_kernels.inspect.triton_ir import operations, parse
from pallas_kernels.matrix_memory.blocks import Sizes
from pallas_kernels.matrix_memory.division import Read
from pallas_kernels.matrix_memory.memory import EMPTY, Memory, Rules, Writes
from pallas_kernels.matrix_memory.reference import matrix_memory_reference
from pallas_kernels.matrix_memory.shipped_step import decodings, step, step_shapes
from pallas_kernels.matrix_memory.triton_step import (
    PER_THREAD,
    PROGRAMS,
    matrix_memory_step,
    step_tile,
)
from tests.pallas_kernels.triton_programs import Program, lower_for_cuda, run_integers
from tests.tolerances import assert_near

LENGTHS = [1, 2, 5, 16]


class Form(NamedTuple):
    """A form of the recurrence; `keeps` says whether there is a normaliser."""

    gate: str = "exp"
    normalize: bool = True
    keeps: bool = True

    def rules(self, width) -> Rules:
        return Rules(width**-0.5, self.gate == "exp", self.normalize, eps=0.1)


FORMS = [
    Form(),
    Form("sigmoid"),
    Form("sigmoid", normalize=False),
    Form("sigmoid", normalize=False, keeps=False),
]


class Arrays(NamedTuple):
    """The arguments of a call."""

    q: Any
    k: Any
    v: Any
    writes: Writes
    memory: Memory


def arrays(
    seed, *, T, form=FORMS[0], B=2, N=4, K=2, H=24, P=40, input_bias=0.0, resets=()
):
    """Returns arguments in float32; the memory is emptied at the tokens `resets` of the
    first row. Positive keys and queries keep n . q away from zero, where h has a pole.
    """
    rng = np.random.default_rng(seed)
    normal = lambda *shape: np.float32(rng.normal(size=shape))  # noqa: E731
    log_i_BTN, log_f_BTN = normal(B, T, N) * 2 + input_bias, normal(B, T, N) + 3
    log_f_BTN = np.asarray(jax.nn.log_sigmoid(log_f_BTN))
    if form.gate == "sigmoid":
        log_i_BTN = np.asarray(jax.nn.log_sigmoid(log_i_BTN))
    resets_BT = None
    if resets:
        resets_BT = np.zeros((B, T), bool)
        resets_BT[0, list(resets)] = True
    memory = Memory(
        normal(B, N, H, P),
        np.abs(normal(B, N, H)) if form.keeps else None,
        normal(B, N) if form.gate == "exp" else None,
    )
    q, k = np.abs(normal(B, T, K, H)), np.abs(normal(B, T, K, H))
    made = Arrays(q, k, normal(B, T, N, P), Writes(log_i_BTN, log_f_BTN, None), memory)
    made = jax.tree.map(jnp.asarray, made)
    return made._replace(writes=made.writes._replace(resets_BT=resets_BT))


@partial(jax.jit, static_argnames="form")
def kernel(a, form=FORMS[0]):
    """Returns (h, memory) by the kernel, interpreted."""
    with backend.interpreted():
        return matrix_memory_step(*a, rules=form.rules(a.q.shape[-1]))


@partial(jax.jit, static_argnames="form")
def recurrence(a, form=FORMS[0]):
    """Returns (h, memory) by the definition."""
    return matrix_memory_reference(*a, rules=form.rules(a.q.shape[-1]))


def check_against_the_recurrence(a, form=FORMS[0], /, *, dtype="float32"):
    """Returns nothing; the kernel, on tokens in `dtype`, equals the definition on the
    same numbers in float64."""
    a = a._replace(**{name: getattr(a, name).astype(dtype) for name in "qkv"})
    with jax.enable_x64(True):
        wide = lambda x: x if x.dtype == bool else x.astype(jnp.float64)  # noqa: E731
        wanted_h, wanted = recurrence(jax.tree.map(wide, a), form)
        h, memory = kernel(a, form)
        assert h.h_BTNP.dtype == dtype
        assert {x.dtype.name for x in jax.tree.leaves(memory)} == {"float32"}
        assert_near(h, wanted_h, dtype=dtype)
        assert_near((h.one_BTN, memory), (wanted_h.one_BTN, wanted), dtype="float32")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", LENGTHS)
def test_the_kernel_is_the_recurrence(T, form):
    for resets in ((), {0, T // 2, T - 1}):
        a = arrays(T, T=T, form=form, resets=resets)
        check_against_the_recurrence(a, form)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("input_bias", [-10.0, 0.0, 3.0])
def test_narrow_dtypes_and_any_input_gate_are_near(dtype, input_bias):
    a = arrays(0, T=5, input_bias=input_bias, resets=(3,))
    check_against_the_recurrence(a, dtype=dtype)


@pytest.mark.parametrize(
    ("heads", "widths"),
    [
        ((1, 1), (1, 1)),
        ((3, 3), (16, 16)),
        ((6, 2), (80, 96)),
        ((5, 1), (33, 65)),
        ((2, 1), (128, 256)),
        ((1, 1), (256, 512)),
    ],
)
def test_any_width_and_group_is_served(heads, widths):
    (N, K), (H, P) = heads, widths
    a = arrays(1, T=2, B=1, N=N, K=K, H=H, P=P, resets=(1,))
    check_against_the_recurrence(a)


def test_two_hundred_steps_are_one_pass():
    a = arrays(2, T=200, H=16, P=16, resets=(90, 91))
    resets_BT = np.zeros((2, 200), bool)
    resets_BT[1, 70] = True
    a = a._replace(writes=a.writes._replace(resets_BT=resets_BT))
    tokens = a._replace(memory=None)
    tokens = jax.tree.map(lambda x: x.swapaxes(0, 1)[:, :, None], tokens)

    def one_token(memory, token):
        h, memory = kernel(token._replace(memory=memory))
        return memory, jax.tree.map(lambda x: x[:, 0], h)

    memory, h_TB = jax.lax.scan(one_token, a.memory, tokens)
    with jax.enable_x64(True):
        wide = lambda x: x if x.dtype == bool else x.astype(jnp.float64)  # noqa: E731
        wanted = recurrence(jax.tree.map(wide, a))
    h = jax.tree.map(lambda x: x.swapaxes(0, 1), h_TB)
    assert_near((h, memory), wanted, dtype="float32")


@pytest.mark.parametrize("form", [FORMS[0], FORMS[3]])
def test_a_reset_lets_nothing_through(form):
    a = arrays(3, T=5, form=form, resets=(2,))
    poison = jax.tree.map(lambda x: x.at[0].set(jnp.nan), a.memory)
    clean_h, clean = kernel(a, form)
    h, memory = kernel(a._replace(memory=poison), form)
    np.testing.assert_array_equal(h.h_BTNP[0, 2:], clean_h.h_BTNP[0, 2:])
    np.testing.assert_array_equal(memory.c_BNHP, clean.c_BNHP)
    assert np.isnan(h.h_BTNP[0, :2]).all()


def test_an_empty_memory_is_a_start():
    a = arrays(4, T=2)
    empty = jax.tree.map(jnp.zeros_like, a.memory)
    empty = empty._replace(m_BN=jnp.full_like(empty.m_BN, EMPTY))
    check_against_the_recurrence(a._replace(memory=empty))
    unscaled = empty._replace(m_BN=jnp.full_like(empty.m_BN, -jnp.inf))
    found = kernel(a._replace(memory=unscaled))
    assert_near(found, kernel(a._replace(memory=empty)), dtype="float32")


@pytest.mark.parametrize("form", FORMS[:2])
def test_extreme_gates_stay_finite(form):
    gates = itertools.product((-1e30, -1000.0, 90.0), (-1e30, -100.0, 0.0))
    for log_i, log_f in gates:
        a = arrays(5, T=3, B=1, form=form)
        log_i_BTN = jnp.full_like(a.writes.log_i_BTN, min(log_i, 0.0))
        if form.gate == "exp":
            log_i_BTN = jnp.full_like(a.writes.log_i_BTN, log_i)
        writes = Writes(log_i_BTN, jnp.full_like(log_i_BTN, log_f), None)
        for leaf in jax.tree.leaves(kernel(a._replace(writes=writes), form)):
            assert np.isfinite(leaf).all(), f"{log_i=}, {log_f=}"


def test_transformations_commute_with_a_step():
    a = arrays(6, T=2, resets=(1,))
    wanted = kernel(a)

    def one_row(a):
        found = kernel(jax.tree.map(lambda x: x[None], a))
        return jax.tree.map(lambda x: x[0], found)

    assert_near(jax.vmap(one_row)(a), wanted, dtype="float32")
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), a._replace(memory=None))
    shared = jax.vmap(lambda some: kernel(some._replace(memory=a.memory)))(twice)
    for i in range(2):
        found = jax.tree.map(lambda x, i=i: x[i], shared)
        assert_near(found, wanted, dtype="float32")


def test_rows_and_heads_may_be_sharded():
    a = arrays(7, T=2, resets=(1,))
    tokens, rows = PartitionSpec("b", None, "h"), PartitionSpec("b")
    heads = PartitionSpec("b", "h")
    memory = Memory(heads, heads, heads)
    sharded = jax.shard_map(
        kernel,
        mesh=jax.sharding.Mesh(np.reshape(jax.devices()[:4], (2, 2)), ("b", "h")),
        in_specs=(
            Arrays(tokens, tokens, tokens, Writes(tokens, tokens, rows), memory),
        ),
        out_specs=(Read(tokens, tokens), memory),
        check_vma=False,  # the interpreter does not pass the check
    )
    assert_near(jax.jit(sharded)(a), kernel(a), dtype="float32")


def call(a):
    return matrix_memory_step(*a, rules=FORMS[0].rules(a.q.shape[-1]))


def test_the_matrix_is_written_in_place_and_nothing_else_is():
    with backend.compiling_for("gpu"):
        text = lower_for_cuda(call, arrays(8, T=1)).as_text()
    (line,) = (line for line in text.splitlines() if "matrix_memory_step" in line)
    assert line.count("#stablehlo.output_operand_alias<") == 1
    assert "output_tuple_indices = [1], operand_index = 0" in line


@pytest.mark.parametrize(("H", "P", "T"), [(24, 40, 3), (64, 128, 1)])
def test_the_kernel_stays_inside_and_writes_every_output_once(H, P, T):
    a = arrays(9, T=T, N=6, H=H, P=P, resets=(0,))
    program = Program(call, a)
    ((found, integers),) = program.calls(a)
    assert found.name == "matrix_memory_step"
    accesses = run_integers(found, integers)
    assert accesses.wrong == []
    text = list(operations(parse(found).operation))
    assert len(accesses.reached) == sum(op.name in ACCESSES for op in text)
    assert bool(accesses.left) == (H == 24), "no mask is put to the test"


def test_programs_fill_the_gpu_and_their_registers_hold_the_block():
    rules = FORMS[0].rules(1)
    widths = [1, 16, 24, 64, 65, 128, 200, 256]
    for H, P, heads in itertools.product(widths, [*widths, 512], (1, 16, 64, 1024)):
        sizes = Sizes(heads // 4 or 1, 1, 1, 4, H, P, rules)
        tile = step_tile(sizes)
        # A thread that held what another holds could read what that one has written.
        assert tile.keys * tile.values >= 32 * tile.warps
        assert tile.keys * tile.values <= 32 * tile.warps * PER_THREAD
        assert tile.keys >= H
        filled = sizes.B * sizes.N * -(-P // tile.values) >= PROGRAMS
        assert filled or tile.values == 16


def zeros(*, B=1, T=1, N=1, H=8, P=8, dtype="float32", held="float32"):
    q, v = jnp.zeros((B, T, 1, H), dtype), jnp.zeros((B, T, N, P), dtype)
    gates = jnp.zeros((B, T, N))
    memory = Memory(*(jnp.zeros(s, held) for s in ((B, N, H, P), (B, N, H), (B, N))))
    return Arrays(q, q, v, Writes(gates, gates, None), memory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"T": 17}, "up to 16 tokens; got 17"),
        ({"H": 257}, "keys up to 256 .* got 257 and 8"),
        ({"P": 513}, "values up to 512 wide in float32; got 8 and 513"),
        ({"N": 65536, "H": 1, "P": 1}, "up to 65535 rows .* got 1 and 65536"),
        ({"B": 65536, "H": 1, "P": 1}, "up to 65535 rows .* got 65536 and 1"),
        ({"dtype": "float64"}, "got float64"),
        ({"held": "float64"}, "memory in float32; got float64"),
    ],
)
def test_what_the_kernel_refuses_is_named(change, message):
    with (
        jax.enable_x64(True),
        backend.interpreted(),
        pytest.raises(NotImplementedError, match=message),
    ):
        call(zeros(**change))


def test_the_kernel_refuses_machines_without_a_gpu():
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        call(zeros())


def test_shipped_steps_have_names_of_their_own_and_are_served():
    made = decodings()
    assert len({decoding.name for decoding in made}) == len(made)
    with backend.compiling_for("gpu"):
        for decoding in made:
            shapes = step_shapes(decoding)
            (h, one), memory = jax.eval_shape(step(decoding), *shapes)
            assert (one is not None) == decoding.normalize
            assert (h.shape, h.dtype) == (shapes[2].shape, decoding.dtype)
            assert jax.tree.map(jnp.shape, memory) == jax.tree.map(jnp.shape, shapes[4])
