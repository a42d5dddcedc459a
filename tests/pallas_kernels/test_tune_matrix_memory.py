"""The tuner on the matrix memory: interpreted kernels, and fakes that are quick."""

import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import backend
from pallas_kernels.matrix_memory import chunked
from pallas_kernels.matrix_memory.division import Read
from pallas_kernels.matrix_memory.memory import Writes
from pallas_kernels.matrix_memory.shipped import ON_CHIP, WRITTEN
from pallas_kernels.matrix_memory.tiles import Key, Tile, Tiles, read_table, write_table
from pallas_kernels.tune import __main__ as command
from pallas_kernels.tune import matrix_memory as space_of
from pallas_kernels.tune import matrix_memory_problem as problem_of
from pallas_kernels.tune import tuning, verdict
from pallas_kernels.tune.clock import Program
from pallas_kernels.tune.compiler import Compiler
from pallas_kernels.tune.matrix_memory import (
    PROGRAMS,
    Forward,
    Gradient,
    MatrixMemory,
    Size,
    fits,
    least_shared_memory,
)
from pallas_kernels.tune.race import Timing
from pallas_kernels.tune.report import Report, candidate_name
from pallas_kernels.tune.space import HOPPER, Limits

pytestmark = pytest.mark.slow  # as a whole

OPERATION = MatrixMemory()
ROW = Key(None, 16, 2, False)
LEAST = Tile(16, 16, 4, 1)
TILES = Tiles(16, 264, LEAST, 16, LEAST, LEAST, LEAST)
LATER = time.monotonic() + 1e6


# What is tried


@pytest.mark.parametrize("kernel", OPERATION.kernels)
def test_a_candidate_is_the_part_of_a_row_that_it_changes(kernel):
    for key, tiles in read_table().items():
        space = OPERATION.space(kernel, key, tiles, HOPPER)
        assert space.candidates[0] == OPERATION.candidate(kernel, tiles)
        assert OPERATION.with_candidate(kernel, tiles, space.candidates[0]) == tiles
        for candidate in space.candidates:
            made = OPERATION.with_candidate(kernel, tiles, candidate)
            assert OPERATION.candidate(kernel, made) == candidate
            assert made.read.keys == tiles.read.keys


def test_what_the_searches_change():
    tiles = OPERATION.with_candidate("forward", TILES, Forward(64, 32, 8, 2, WRITTEN))
    tiles = OPERATION.with_candidate("states", tiles, Tile(64, 128, 4, 3))
    tiles = OPERATION.with_candidate("dq", tiles, Gradient(32, 32, 4, 2))
    tiles = OPERATION.with_candidate("dkv", tiles, Gradient(128, 64, 8, 4))
    assert tiles == Tiles(
        chunk=64,
        programs=WRITTEN,
        read=Tile(16, 32, 8, 2),
        gradient_chunk=128,
        dq=Tile(16, 32, 4, 2),
        dkv=Tile(16, 64, 8, 4),
        states=Tile(64, 128, 4, 3),
    )


def test_the_forward_pass_moves_between_its_two_designs():
    default = TILES._replace(programs=100)
    space = OPERATION.space("forward", ROW._replace(width=128), default, HOPPER)
    start = space.candidates[0]
    around = space.around(start)
    assert {one.programs for one in around if one[:4] == start[:4]} == {
        ON_CHIP,
        WRITTEN,
    }
    assert start._replace(chunk=32) not in around, "of 264 programs, not of 100"
    assert {one.programs for one in space.landmarks} >= {ON_CHIP, WRITTEN}
    assert len({one[:4] for one in space.landmarks}) == 1
    again = space.around(Forward(32, 32, 4, 2, 264))
    assert Forward(64, 32, 8, 2, 264) in again, "a larger chunk with more warps"
    assert Forward(64, 16, 4, 2, 264) in again, "tokens for columns"
    assert Forward(32, 32, 4, 2, WRITTEN) in again


def test_blocks_are_no_wider_than_the_arrays():
    for kernel in OPERATION.kernels:
        for candidate in OPERATION.space(kernel, ROW, TILES, HOPPER).candidates:
            assert candidate.values <= 32
    for tile in OPERATION.space("states", ROW, TILES, HOPPER).candidates:
        assert tile.keys == 16


# Compiled for sm_90a by XLA of jax 0.10.2: kernel, width, bytes, candidate, bytes of
# shared memory, bytes spilled.
COMPILED = [
    ("forward", 128, 2, (64, 64, 8, 2, 264), 66_304, 0),
    ("forward", 128, 2, (64, 64, 8, 3, 264), 108_032, 0),
    ("forward", 128, 2, (128, 64, 4, 2, 264), 116_224, 2312),
    ("forward", 256, 2, (64, 64, 8, 3, 264), 189_952, 560),
    ("forward", 256, 2, (128, 64, 4, 2, 264), 198_144, 5724),
    ("forward", 128, 4, (32, 32, 8, 2, 264), 41_344, 0),
    ("dq", 128, 2, (32, 64, 4, 2), 24_576, 0),
    ("dq", 128, 2, (64, 64, 8, 3), 98_304, 0),
    ("dq", 256, 2, (64, 128, 8, 2), 196_608, 0),
    ("dq", 256, 2, (128, 64, 4, 2), 131_072, 7192),
    ("dq", 64, 2, (64, 128, 4, 2), 32_768, 0),
    ("dq", 128, 4, (64, 64, 8, 2), 98_304, 0),
    ("dkv", 128, 2, (32, 64, 4, 2), 45_056, 0),
    ("dkv", 128, 2, (64, 128, 8, 2), 180_224, 0),
    ("dkv", 128, 2, (128, 64, 4, 2), 172_032, 4280),
    ("dkv", 256, 2, (64, 64, 8, 2), 172_032, 0),
    ("dkv", 128, 4, (32, 32, 8, 2), 24_576, 824),
]


def compiled(kernel, numbers):
    return Forward(*numbers) if kernel == "forward" else Gradient(*numbers)


@pytest.mark.parametrize(
    ("kernel", "width", "size", "numbers", "shared", "_"), COMPILED
)
def test_shared_memory_is_not_overestimated(kernel, width, size, numbers, shared, _):
    key = Key(None, width, size, False)
    estimate = least_shared_memory(kernel, compiled(kernel, numbers), key)
    assert shared / 3 < estimate <= shared


@pytest.mark.parametrize(
    ("kernel", "width", "size", "numbers", "_", "spilled"), COMPILED
)
def test_what_spills_much_is_dropped(kernel, width, size, numbers, _, spilled):
    key = Key(None, width, size, False)
    kept = fits(kernel, compiled(kernel, numbers), key=key, limits=HOPPER)
    assert kept if spilled < 1000 else not kept


def test_what_exceeds_the_shared_memory_is_dropped():
    # XLA: "Shared memory size limit exceeded: requested 278528, available: 232448".
    wide = Key(None, 256, 2, False)
    assert not fits("dkv", Gradient(64, 128, 8, 2), key=wide, limits=HOPPER)
    assert fits("dkv", Gradient(64, 64, 8, 2), key=wide, limits=HOPPER)
    assert not fits("dkv", Gradient(64, 64, 8, 2), key=wide, limits=Limits(101_376))


def test_products_in_full_keep_to_small_chunks():
    precise = Key(None, 256, 4, True)
    assert fits("dq", Gradient(32, 16, 8, 1), key=precise, limits=HOPPER)
    assert not fits("dq", Gradient(64, 16, 8, 1), key=precise, limits=HOPPER)


def test_names_say_all_numbers():
    assert candidate_name(Forward(64, 32, 8, 2, 264)) == "64x32 8w 2s programs 264"
    assert candidate_name(Gradient(64, 32, 8, 2)) == "64x32 8w 2s"
    assert candidate_name(Tile(16, 32, 4, 1)) == "16x32 4w 1s"


# The problem, with interpreted kernels


def judged(problem, kernel, tiles):
    call = problem.call(kernel, tiles)
    program = Program(None, jax.jit(call.function), problem.operands(kernel, None))
    return verdict.verdict(program, problem.wanted(kernel), precise=True)


def test_the_kernels_agree_with_the_chunked_form():
    key = Key(None, 16, 4, True)
    with backend.interpreted():
        problem = OPERATION.confirmation(key, Size(20, 20, heads=2))
        assert judged(problem, "forward", TILES._replace(chunk=32)) is None
        assert judged(problem, "dkv", TILES) is None
    assert {name.removesuffix(" of plain rows") for name in problem.wanted("dq")} >= {
        *("dq", "dk", "dv", "dlog_i", "dlog_f", "dc")
    }
    assert {"dn of divided rows", "dm of divided rows"} < set(problem.wanted("dq"))
    for kernel in OPERATION.kernels:
        for right in problem.wanted(kernel).values():
            assert float(jnp.max(jnp.abs(right.array))) > 1e-9


@pytest.fixture
def without_reference(monkeypatch):
    """Problems without their right results, which take a while to compile."""
    monkeypatch.setattr(problem_of, "_right", lambda sets, shapes: [])


@pytest.mark.parametrize("above", [True, False])
def test_divisors_are_far_from_their_floor(without_reference, above):
    make = OPERATION.confirmation if above else OPERATION.problem
    problem = make(Key(None, 16, 2, False), Size(96, 96, heads=4))
    arrays = jax.tree.map(problem_of.wide, problem.sets[0][0])
    # With ones for values h is n . q over the divisor: one where that is |n . q|.
    ones_BTNP, memory = jnp.ones_like(arrays.v_BTNP), arrays.memory
    c_BNHP = jnp.broadcast_to(memory.n_BNH[..., None], memory.c_BNHP.shape)
    writes = Writes(arrays.log_i_BTN, arrays.log_f_BTN, arrays.resets_BT)
    rules = problem.shapes[0].rules._replace(eps=0.0)
    read = jax.jit(partial(chunked.matrix_memory_chunked, rules=rules))
    memory = memory._replace(c_BNHP=c_BNHP)
    (h_BTNP, _), _ = read(arrays.q_BTKH, arrays.k_BTKH, ones_BTNP, writes, memory)
    if above:
        np.testing.assert_allclose(h_BTNP, 1.0, rtol=1e-3)
    else:
        assert float(jnp.max(jnp.abs(h_BTNP))) < 0.1


def test_two_shapes_where_the_sequence_may_be_split(without_reference):
    assert OPERATION.size(65_536) == Size(65_536, 4096, 16)
    assert OPERATION.size(100) == Size(100, 100, 16)
    problem = OPERATION.problem(Key(None, 256, 4, True), Size(16, 8))
    many, one = problem.shapes
    assert (many.batch, many.tokens, many.heads) == (2, 8, 8)
    assert (one.batch, one.tokens, one.heads) == (1, 16, 8)
    shapes = {k: len(problem.operands(k, None)[0]) for k in OPERATION.kernels}
    assert shapes == {"forward": 2, "states": 2, "dq": 1, "dkv": 1}


# Rows, with a fake for the kernels


def fake_memory(
    q_BTKH, k_BTKH, v_BTNP, writes, memory, /, *, rules, tiles=None, wrong=None
):
    """Something with the arguments and results of the matrix memory, and no loop."""
    group = v_BTNP.shape[2] // q_BTKH.shape[2]
    wide = [x.astype(jnp.float32) for x in (q_BTKH, k_BTKH, v_BTNP)]
    dot_BTK = rules.scale * jnp.sum(wide[0] * wide[1], axis=-1)
    gate_BTN = jnp.exp(writes.log_i_BTN) * (9 + writes.log_f_BTN)
    h_BTNP = (jnp.repeat(dot_BTK, group, axis=2) * gate_BTN)[..., None] * wide[2]
    if wrong is not None and wrong(tiles, v_BTNP.shape):
        h_BTNP *= 1.1
    if tiles is not None:
        h_BTNP = h_BTNP.astype(v_BTNP.dtype)
    return Read(h_BTNP, None), jax.tree.map(lambda x: 2 * x, memory)


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A new device, a small space, tiny arrays, fakes, and a clock that likes columns,
    few warps' tiles and a split."""
    monkeypatch.setattr(space_of, "SIDES", (16, 32))
    monkeypatch.setattr(space_of, "WARPS", (4,))
    monkeypatch.setattr(space_of, "STAGES", (1,))
    monkeypatch.setattr(problem_of.chunked, "matrix_memory_chunked", fake_memory)
    monkeypatch.setattr(problem_of.triton, "matrix_memory_triton", fake_memory)
    jax.clear_caches()  # of what was traced without the fakes
    path = tmp_path / "tiles.json"
    write_table({ROW: TILES}, path)

    def clock(program, *_):
        candidate = program.candidate
        likes = 1.0 if getattr(candidate, "programs", WRITTEN) == WRITTEN else 0.5
        return 1e-3 / (candidate[0] ** 0.5 * candidate.values * likes)

    made = tuning.Setting(
        operation=OPERATION,
        device_kind="GPU 1",
        size=Size(24, 12, heads=4),
        limits=HOPPER,
        compiler=Compiler(2),
        timing=Timing(2, clock),
        deadline=LATER,
        table=path,
        report=Report(tmp_path / "report.json", Key._fields),
        write=True,
        again=False,
    )
    yield made
    made.compiler.close()
    jax.clear_caches()


def tuned(setting, kernels=OPERATION.kernels):
    return {one.kernel: one for one in tuning.tune([ROW], kernels, setting)}


BEST = Tile(16, 32, 4, 1)


def test_a_row_is_tuned_and_written(setting, capsys):
    found = tuned(setting)
    assert list(found) == list(OPERATION.kernels)
    assert found["forward"].chosen == Forward(32, 32, 4, 1, WRITTEN)
    assert found["dkv"].chosen == Gradient(32, 32, 4, 1)
    row = read_table(setting.table)[ROW._replace(device_kind="GPU 1")]
    assert row == Tiles(32, WRITTEN, BEST, 32, BEST, BEST, BEST)
    assert (
        "matrix_memory bfloat16 width 16: forward 32x32 4w 1s"
        in capsys.readouterr().err
    )
    report = json.loads(setting.report.path.read_text())
    assert [entry["kernel"] for entry in report] == list(OPERATION.kernels)
    assert report[0]["size"] == {"tokens": 24, "row": 12, "heads": 4}
    tried = [Forward(*trial["candidate"]) for trial in report[0]["candidates"]]
    assert {one.programs for one in tried} == set(PROGRAMS)
    assert tuned(setting) == {}, "the row is tuned"


def test_a_chunk_that_a_later_search_prefers_is_taken(setting):
    def clock(program, *_):
        seconds = {32: 1.0, 16: 1.1}[program.candidate[0]]
        return seconds / program.candidate.values

    setting.timing = Timing(2, clock)
    found = tuned(setting, ["dq"])
    assert found["dq"].chosen == Gradient(32, 32, 4, 1)
    setting.timing = Timing(2, lambda program, *_: 1.0 * program.candidate[0])
    setting.again = True
    found = tuned(setting, ["dkv"])
    assert found["dkv"].chosen == Gradient(16, 16, 4, 1)
    assert Gradient(32, 16, 4, 1) in found["dkv"].outcome.trials, "where dq left it"
    row = read_table(setting.table)[ROW._replace(device_kind="GPU 1")]
    assert row == TILES._replace(gradient_chunk=16, dq=BEST)


def lie(monkeypatch, wrong):
    made = partial(fake_memory, wrong=wrong)
    monkeypatch.setattr(problem_of.triton, "matrix_memory_triton", made)


def test_wrong_values_are_refused(setting, monkeypatch):
    lie(
        monkeypatch,
        lambda tiles, shape: tiles.chunk == 32 and tiles.programs == WRITTEN,
    )
    found = tuned(setting, ["forward"])["forward"]
    assert found.chosen == Forward(16, 32, 4, 1, WRITTEN)
    refusal = found.outcome.trials[Forward(32, 32, 4, 1, WRITTEN)].refusal
    assert refusal is not None
    assert refusal.reason == verdict.WRONG
    assert refusal.detail.startswith("h of many rows is off by ")


def test_values_that_are_wrong_on_one_long_row_alone_are_refused(setting, monkeypatch):
    lie(monkeypatch, lambda tiles, shape: tiles.chunk == 32 and shape[:2] == (1, 24))
    found = tuned(setting, ["forward"])["forward"]
    assert found.chosen == Forward(16, 32, 4, 1, WRITTEN)


def test_what_is_wrong_on_ragged_rows_alone_is_not_confirmed(setting, monkeypatch):
    lie(monkeypatch, lambda tiles, shape: tiles.states.values == 32 and shape[1] == 9)
    found = tuned(setting, ["states"])["states"]
    assert found.outcome.best == BEST
    assert found.chosen == LEAST


def test_what_does_not_compile_is_refused(setting, monkeypatch):
    def fail(*arrays, rules, tiles):
        raise RuntimeError("register spilling: 12 B in a_kernel")

    monkeypatch.setattr(problem_of.triton, "matrix_memory_triton", fail)
    before = setting.table.read_text()
    found = tuned(setting)
    assert list(found) == ["forward"]
    assert found["forward"].chosen is None
    trials = found["forward"].outcome.trials.values()
    reasons = {trial.refusal.reason for trial in trials if trial.refusal}
    assert reasons == {verdict.SPILLS}
    assert setting.table.read_text() == before


def test_a_row_whose_reference_does_not_run_is_passed_over(setting, monkeypatch):
    def fail(*arrays, rules):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(problem_of.chunked, "matrix_memory_chunked", fail)
    found = tuned(setting)
    assert all(one.chosen is None for one in found.values())
    assert list(found) == list(OPERATION.kernels)


def test_the_command_tunes_it(setting, monkeypatch, capsys):
    monkeypatch.setattr(command, "gpu_kind", lambda: "GPU 1")
    options = "--operation matrix_memory --widths 16 --dtypes bfloat16 --tokens 24"
    options += f" --kernels states --rounds 2 --table {setting.table}"
    assert command.main(options.split()) == 0
    said = capsys.readouterr()
    assert said.out.startswith("GPU 1, wall clock: CUPTI cannot be read")
    assert said.err.startswith("matrix_memory bfloat16 width 16: states 16x")
    (entry,) = json.loads((setting.table.with_name("tiles_report.json")).read_text())
    assert entry["size"] == {"tokens": 24, "row": 24, "heads": 16}
    assert ROW._replace(device_kind="GPU 1") in read_table(setting.table)
