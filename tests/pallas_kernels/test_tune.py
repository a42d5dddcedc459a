"""The tuner on rows of the table: interpreted kernels, the files, the command."""

import argparse
import itertools
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import backend
from pallas_kernels.local_attention import triton, triton_backward
from pallas_kernels.local_attention.tiles import (
    Key,
    Tile,
    Tiles,
    read_table,
    write_table,
)
from pallas_kernels.tune import __main__ as command
from pallas_kernels.tune import local_attention as space_of
from pallas_kernels.tune import tuning, verdict
from pallas_kernels.tune.compiler import Compiler
from pallas_kernels.tune.local_attention import LocalAttention
from pallas_kernels.tune.local_attention_problem import Size
from pallas_kernels.tune.operations import OPERATIONS
from pallas_kernels.tune.race import Timing
from pallas_kernels.tune.report import Found, Report, refusals
from pallas_kernels.tune.search import Outcome, Trial
from pallas_kernels.tune.space import HOPPER
from pallas_kernels.tune.verdict import Refusal

pytestmark = pytest.mark.slow  # as a whole

ROW = Key(None, 16, 2, "short", False)
DEFAULT = Tile(16, 16, 4, 1)
FASTER = Tile(32, 16, 4, 1)
NEVER = time.monotonic() + 1e6
OPERATION = LocalAttention()
KERNELS = OPERATION.kernels


# Rows, with interpreted kernels


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A new device, four tiles, tiny arrays, and a clock that likes large tiles."""
    monkeypatch.setattr(space_of, "SIDES", (16, 32))
    monkeypatch.setattr(space_of, "WARPS", (4,))
    monkeypatch.setattr(space_of, "STAGES", (1,))
    path = tmp_path / "tiles.json"
    tiles = Tiles(DEFAULT, DEFAULT, DEFAULT)
    write_table({ROW: tiles, ROW._replace(window="long"): tiles}, path)
    made = tuning.Setting(
        operation=OPERATION,
        device_kind="GPU 1",
        size=Size(1, 40, heads=4, kv_heads=2),
        limits=HOPPER,
        compiler=Compiler(2),
        timing=Timing(2, lambda program, *_: 1e-3 / math.prod(program.candidate[:2])),
        deadline=NEVER,
        table=path,
        report=Report(tmp_path / "report.json", Key._fields),
        write=True,
        again=False,
    )
    yield made
    made.compiler.close()


def tuned(setting, kernels=KERNELS, table_rows=(ROW,)):
    with backend.interpreted():
        return {one.kernel: one for one in tuning.tune(table_rows, kernels, setting)}


def refusal_of(found, tile):
    refusal = found.outcome.trials[tile].refusal
    assert refusal is not None
    return refusal


def test_a_row_is_tuned_and_written_beside_the_others(setting, capsys):
    before = tuning.load_table(OPERATION, setting.table)
    found = tuned(setting)
    best = Tile(32, 32, 4, 1)
    assert {kernel: one.chosen for kernel, one in found.items()} == dict.fromkeys(
        KERNELS, best
    )
    after = tuning.load_table(OPERATION, setting.table)
    assert after == before | {ROW._replace(device_kind="GPU 1"): Tiles(*[best] * 3)}
    assert (
        "bfloat16 width 16 short: forward 32x32 4w 1s 0.25" in capsys.readouterr().err
    )
    report = json.loads(setting.report.path.read_text())
    assert [entry["kernel"] for entry in report] == list(KERNELS)
    assert all(len(entry["candidates"]) == 4 for entry in report)
    assert [entry["ratio"] for entry in report] == pytest.approx([0.25] * 3)
    assert tuned(setting) == {}, "the row is tuned"


def test_a_wrong_kernel_is_refused(setting, monkeypatch):
    dkv = triton_backward.key_gradients

    def wrong(inputs, lse, mean, dout, sizes, tile):
        dk, dv = dkv(inputs, lse, mean, dout, sizes, tile)
        return (dk * jnp.bfloat16(1.1), dv) if tile.rows == 32 else (dk, dv)

    monkeypatch.setattr(triton_backward, "key_gradients", wrong)
    found = tuned(setting, ["dkv"])["dkv"]
    assert found.chosen == Tile(16, 32, 4, 1)
    reason, detail = refusal_of(found, Tile(32, 32, 4, 1))
    assert reason == verdict.WRONG
    assert detail.startswith("dk is off by 0.")


def test_a_kernel_that_is_wrong_with_segments_alone_is_refused(setting, monkeypatch):
    dq = triton_backward.query_gradient

    def wrong(inputs, out, lse, dout, sizes, tile):
        found, mean = dq(inputs, out, lse, dout, sizes, tile)
        bad = tile.keys == 32 and inputs.query_segments_BT is not None
        return jnp.zeros_like(found) if bad else found, mean

    monkeypatch.setattr(triton_backward, "query_gradient", wrong)
    found = tuned(setting, ["dq"])["dq"]
    assert found.outcome.best == Tile(32, 32, 4, 1)
    assert found.chosen == FASTER


def test_a_kernel_that_does_not_repeat_itself_is_refused(setting, monkeypatch):
    forward, runs = triton.forward, itertools.count()

    def restless(inputs, sizes, tile):
        out, lse = forward(inputs, sizes, tile)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        noise = jax.pure_callback(lambda: np.float32(1e-5 * next(runs)), shape)
        return [out, lse + noise if tile.rows == 32 else lse]

    monkeypatch.setattr(triton, "forward", restless)
    found = tuned(setting, ["forward"])["forward"]
    assert found.chosen == Tile(16, 32, 4, 1)
    assert refusal_of(found, FASTER) == Refusal(verdict.REPEAT)


def test_a_kernel_that_does_not_compile_is_refused(setting, monkeypatch, capsys):
    def forward(inputs, sizes, tile):
        raise RuntimeError(f"Shared memory size limit exceeded: {tile}")

    monkeypatch.setattr(triton, "forward", forward)
    before = setting.table.read_text()
    found = tuned(setting)
    assert list(found) == ["forward"], "the gradients need a forward pass"
    assert refusals(list(found.values())) == {verdict.SHARED: 4}
    assert setting.table.read_text() == before
    assert "no tile that works (too much shared memory: " in capsys.readouterr().err


# Rows, without kernels


def finding(key, kernel, *, finished=True, chosen=FASTER):
    trials = {chosen: Trial(chosen, 1e-3, 0.5)}
    outcome = Outcome(trials, DEFAULT, chosen, finished)
    return Found(key, kernel, DEFAULT, chosen, outcome)


@pytest.fixture
def searched(monkeypatch):
    """The (window, kernels) that were searched, each at once."""
    seen = []

    def tune_row(key, kernels, setting):
        seen.append((key.window, list(kernels)))
        return [finding(key, kernel) for kernel in kernels]

    monkeypatch.setattr(tuning, "tune_row", tune_row)
    return seen


LONG = ROW._replace(window="long")


def test_a_later_call_goes_on(setting, searched):
    tuned(setting, table_rows=[ROW])
    tuned(setting, table_rows=[ROW, LONG])
    assert searched == [("short", list(KERNELS)), ("long", list(KERNELS))]
    setting.again = True
    tuned(setting, ["dq"], [LONG])
    assert searched[2:] == [("long", ["dq"])]


def test_what_the_budget_cut_is_searched_again(setting, searched, monkeypatch):
    key = ROW._replace(device_kind="GPU 1")
    cut = [finding(key, "forward"), finding(key, "dq", finished=False)]
    cut.append(finding(key, "dkv")._replace(chosen=None))
    tuning.write_row(key, cut, setting)
    tiles = tuning.load_table(OPERATION, setting.table)[key]
    assert tiles == Tiles(cut[0].chosen, cut[1].chosen, DEFAULT)
    setting.report = Report(
        setting.report.path, Key._fields
    )  # as another process reads it
    tuned(setting)
    assert searched == [("short", ["dq", "dkv"])]


def test_a_row_without_a_report_counts_as_tuned(setting, searched):
    tuned(setting)
    setting.report = Report(None, Key._fields)
    assert tuned(setting) == {}


def test_a_spent_budget_begins_no_row(setting, searched):
    setting.deadline = -1.0
    assert tuned(setting) == {}
    assert searched == []


def test_a_dry_run_leaves_the_table(setting, searched):
    before = setting.table.read_text()
    setting.write = False
    assert set(tuned(setting)) == set(KERNELS)
    assert setting.table.read_text() == before


def test_a_kill_between_rows_leaves_the_earlier_ones(setting, searched):
    run = tuning.tune([ROW, LONG], ["forward"], setting)
    next(run)
    del run  # nothing more of it happens
    table = tuning.load_table(OPERATION, setting.table)
    assert {key.window for key in table if key.device_kind == "GPU 1"} == {"short"}


def test_a_file_that_is_no_report_is_named(tmp_path):
    path = tmp_path / "report.json"
    for text in ("{", "[1]", '[{"kernel": "dq"}]'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"report\.json is no report"):
            Report(path, Key._fields)


# The command


def test_without_a_gpu_one_line_says_so(capsys):
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "needs a CUDA GPU" in said.err


def test_candidates_are_listed_without_a_gpu(capsys):
    options = ["--list", "--widths", "128", "--dtypes", "bfloat16", "--kernels", "dq"]
    assert command.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "local_attention bfloat16 width 128 short dq",
        "local_attention bfloat16 width 128 long dq",
        "matrix_memory bfloat16 width 128 dq",
    ]
    assert command.main([*options, "--operation", "matrix_memory"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[2:]


def test_an_operation_without_the_kernel_is_left_out(capsys):
    options = "--list --widths 64 --dtypes bfloat16 --kernels states"
    assert command.main(options.split()) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("matrix_memory bfloat16 width 64 states: ")


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
def test_the_most_useful_rows_come_first(operation):
    made = command._rows(operation, command._options([]))
    assert [key[1:3] for key in made[:1]] == [(128, 2)]
    assert {key.bytes for key in made[: len(made) // 3]} == {2}
    table = operation.table.read()
    assert set(made) == {key for key in table if key.device_kind is None}


def test_rows_come_in_the_order_asked_for():
    options = command._options(["--widths", "16", "64", "--windows", "long", "short"])
    made = command._rows(OPERATION, options)
    assert [(key.width, key.window) for key in made[:3]] == [
        (16, "long"),
        (16, "short"),
        (64, "long"),
    ]


def test_a_row_that_the_table_lacks_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(command, "table_rows", lambda *_, **__: [])
    options = ["--list", "--widths", "256", "--dtypes", "float32-highest"]
    assert command.main(options) == 2
    assert "no table has a row" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--rounds=0", "--tokens=x", "--widths=48"])
def test_a_wrong_option_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        command.main([option])
    assert "error: argument" in capsys.readouterr().err


def test_files_are_looked_at_before_the_search(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "gpu_kind", lambda: "GPU 1")
    one = ["--operation", "local_attention"]
    nowhere = str(tmp_path / "nowhere" / "report.json")
    assert command.main([*one, "--report", nowhere]) == 2
    assert "cannot write" in capsys.readouterr().err
    (tmp_path / "tiles.json").write_text('[{"width": 16}]')
    table = ["--table", str(tmp_path / "tiles.json")]
    assert command.main([*one, *table]) == 2
    assert "tiles.json has a row" in capsys.readouterr().err
    assert command.main(table) == 2
    assert "want one --operation" in capsys.readouterr().err


def test_the_command_tunes_writes_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "gpu_kind", lambda: "GPU 1")
    for name, numbers in {"SIDES": (64,), "WARPS": (4,), "STAGES": (2, 3)}.items():
        monkeypatch.setattr(space_of, name, numbers)
    path = tmp_path / "tiles.json"
    options = "--operation local_attention --widths 16 --dtypes bfloat16"
    options += " --windows short --kernels forward"
    options += f" --tokens 24 --rounds 2 --budget-seconds 300 --table {path}"
    with backend.interpreted():
        assert command.main(options.split()) == 0
    said = capsys.readouterr()
    assert said.out.startswith("GPU 1, wall clock: CUPTI cannot be read")
    assert said.err.startswith("local_attention bfloat16 width 16 short: forward ")
    new = set(read_table(path)) - set(read_table())
    assert new == {ROW._replace(device_kind="GPU 1")}
    (entry,) = json.loads((tmp_path / "tiles_report.json").read_text())
    assert entry["finished"]
    assert len(entry["candidates"]) == 2
    assert entry["size"] == {"batch": 1, "row": 24, "heads": 16, "kv_heads": 4}
    with backend.interpreted():
        assert command.main(options.split()) == 0
    assert "already tuned" in capsys.readouterr().err


def test_the_command_prints_what_it_found(setting, searched, capsys):
    assert command.run([([ROW], setting)], ["forward"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = " ".join(lines[2].split())
    assert words == "bfloat16 width 16 short forward 32x16 4w 1s 1000.0 0.500 1 0"
    assert lines[-1] == "refused: none"


def test_operations_share_the_budget(setting, monkeypatch):
    now, given = [100.0], []

    def tune(rows, kernels, setting):
        given.append(setting.deadline - now[0])
        now[0] += 10  # each ends early
        yield from ()

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(command, "tune", tune)
    setting.deadline = 400.0
    assert command.run([([ROW], setting)] * 3, ["forward"]) == 0
    assert given == [100.0, 145.0, 280.0]


def test_a_lost_device_ends_the_command_with_what_was_found(
    setting, searched, capsys, monkeypatch
):
    def lost(*_):
        raise verdict.DeviceLostError("illegal address")
        yield

    monkeypatch.setattr(command, "tune", lost)
    assert command.run([([ROW], setting)], ["forward"]) == 1
    assert "the device is lost" in capsys.readouterr().err


def test_the_limits_are_the_device_s():
    device = argparse.Namespace(shared_memory_per_block_optin=101_376)
    assert command.limits_of(device).shared_memory == 101_376
    assert command.limits_of(object()) == HOPPER
