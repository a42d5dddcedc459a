"""The races of the matrix memory in miniature: interpreted kernels, on a CPU."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from experiments.kernel_speed.gpu import suite
from experiments.kernel_speed.gpu.accuracy import largest_relative_difference
from experiments.kernel_speed.gpu.clocks import Contender
from experiments.kernel_speed.gpu.matrix_memory import peers, programs, race
from experiments.kernel_speed.gpu.matrix_memory.peers import PEERS, MatrixPeer
from experiments.kernel_speed.gpu.programs import Forms
from experiments.kernel_speed.gpu.results import read_results
from experiments.kernel_speed.gpu.sizes import (
    CHUNKED,
    FORMS,
    ON_CHIP,
    OURS,
    QUICK,
    SIMPLE_GLA,
    WRITTEN,
    XL_CHUNK,
    MatrixShape,
    MatrixStep,
)
from experiments.kernel_speed.peer import PeerMissing
from pallas_kernels import backend

pytestmark = pytest.mark.slow  # as a whole

SHAPE = MatrixShape(80, 1, 16, 16, forms=("exp",), tokens=80)
SIZES = dataclasses.replace(
    QUICK.of("matrix-memory"),
    matrices=(SHAPE,),
    matrix_steps=(MatrixStep(2, 1, 16, 16),),
    errors=(MatrixShape(16, 1, 16, 16, forms=("linear",), tokens=16),),
    matmul_size=32,
    rotated_bytes=5000,
    rounds=2,
    reading_seconds=0.0,
)


def run(folder, *, sizes=SIZES, resume=False):
    """Returns the results and the lines of progress."""
    lines = []
    provenance = {"date": "today", "device": "cpu", "commit": "c0", "source": "s0"}
    with backend.interpreted():
        results = suite.run(
            sizes,
            provenance,
            forms=Forms(),
            quick=True,
            seed=0,
            budget_seconds=600.0,
            clock="wall",
            folder=folder,
            resume=resume,
            progress=lines.append,
        )
    return results, lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder and the results of a whole run."""
    folder = tmp_path_factory.mktemp("matrix_memory")
    return folder, run(folder)[0]


def test_every_case_is_timed_weighed_and_written(finished):
    folder, results = finished
    assert results.faults() == []
    content = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    forward, both = content["matrices"]
    assert (forward["part"], both["part"]) == ("forward", "with gradients")
    for row, designs in ((forward, [ON_CHIP, WRITTEN]), (both, [])):
        times = {time["contender"]: time for time in row["times"]}
        assert list(times) == [OURS, *designs, CHUNKED, XL_CHUNK]
        for name in (OURS, *designs, CHUNKED):
            assert times[name]["failure"] is None
            assert len(times[name]["wall_seconds"]) == 2
            assert times[name]["peak_bytes"] > 0
        for name in (*designs, CHUNKED):
            assert times[name]["ratio"] > 0
            assert times[name]["difference"] < 2e-2
        assert row["repeatable"] is True
        assert row["floor_seconds"] > 0
    (step,) = content["matrix_steps"]
    assert step["time"]["failure"] is None
    assert step["share_of_floor"] > 0


def test_errors_are_measured_against_float64_by_name(finished):
    _, results = finished
    rows = {row.contender: row for row in results.errors}
    assert list(rows) == [OURS, CHUNKED, SIMPLE_GLA]
    for name in (OURS, CHUNKED):
        assert list(rows[name].errors) == ["h", "dq", "dk", "dv", "dlog_decay"]
        assert all(0 < error < 2e-2 for error in rows[name].errors.values())


def test_the_page_has_a_table_for_each_question(finished):
    folder, results = finished
    page = (folder / "gpu.md").read_text(encoding="utf-8")
    for title in (
        "Linear attention: errors",
        "mLSTM, exponential gate, 1 x (16, 16), forward",
        "mLSTM, exponential gate, 1 x (16, 16), with gradients",
        "mLSTM: decode",
        "Failed or refused",
    ):
        assert f"## {title}\n" in page
    peer = results.matrices[0].time_of(XL_CHUNK)
    if peer.failure is not None and peer.failure.startswith("not installed"):
        assert page.count("| not installed |") == 2


def test_numbers_come_back_from_the_file(finished):
    folder, results = finished
    assert read_results(folder / "gpu.json") == results


def test_a_resumed_run_measures_what_lacks_alone(finished, tmp_path, monkeypatch):
    folder, results = finished
    monkeypatch.setattr(suite, "measure_peaks", lambda *_, **__: results.peaks)
    content = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    content["matrix_steps"].clear()
    (tmp_path / "gpu.json").write_text(json.dumps(content), encoding="utf-8")
    again, lines = run(tmp_path, resume=True)
    words = ("errors", "race", "step", "compiling")
    assert [line for line in lines if line.startswith(words)] == [
        "step: matrix memory, batch 2, 1 x (16, 16)"
    ]
    assert (again.matrices, again.errors) == (results.matrices, results.errors)
    assert len(again.matrix_steps) == 1


@pytest.mark.parametrize("form", FORMS)
def test_both_designs_and_ours_compute_the_same(form):
    shape = dataclasses.replace(SHAPE, forms=FORMS)
    *inputs, _ = programs.matrix_sets(shape, form, seed=0)[1]
    wanted = jax.jit(programs.operation(CHUNKED, form, Forms()))(*inputs)
    with backend.interpreted():
        for name in (OURS, ON_CHIP, WRITTEN):
            found = jax.jit(programs.operation(name, form, Forms()))(*inputs)
            assert largest_relative_difference(found, wanted) < 2e-2


def test_the_designs_differ_in_where_the_states_are():
    """One writes the states of the chunks to memory, one has no such kernel."""
    *inputs, _ = programs.matrix_sets(SHAPE, "exp", seed=0)[0]
    calls = []
    for name in (ON_CHIP, WRITTEN):
        with backend.compiling_for("gpu"):
            compute = programs.operation(name, "exp", Forms())
            text = str(jax.make_jaxpr(compute)(*inputs))
        calls.append(f"{SHAPE.row // 64 + 1},16,16]" in text.replace(" ", ""))
    assert calls == [False, True]


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_peer_is_said_plainly(form, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(PeerMissing, match="not installed: torch"):
        MatrixPeer(programs.matrix_sets(SHAPE, form, seed=0), form)


def torch_definition(torch, *, linear, stabilised):
    """Returns the quadratic definition in torch, of the peer's signature and layout."""

    def mlstm(q, k, v, i, f, *, autocast_kernel_dtype):
        assert autocast_kernel_dtype == torch.bfloat16
        log_i = i if stabilised else torch.nn.functional.logsigmoid(i)
        return quadratic(q, k, v, log_i, torch.nn.functional.logsigmoid(f), True)

    def simple_gla(q, k, v, *, g, scale):
        assert scale == q.shape[-1] ** -0.5
        q, k, v, g = (x.transpose(1, 2) for x in (q, k, v, g))
        return quadratic(q, k, v, torch.zeros_like(g), g, False).transpose(1, 2), None

    def quadratic(q, k, v, log_i, log_f, divided):
        sums = torch.cumsum(log_f, dim=-1)
        weights = sums[..., :, None] - sums[..., None, :] + log_i[..., None, :]
        lower = torch.ones(weights.shape[-2:]).tril().bool()
        weights = torch.exp(weights.masked_fill(~lower, -torch.inf))
        scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5 * weights
        h = scores @ v.float()
        if divided:
            h = h / scores.sum(-1, keepdim=True).abs().clamp(min=1.0)
        return h.to(v.dtype)

    return simple_gla if linear else mlstm


@pytest.mark.parametrize("form", FORMS)
def test_a_peer_gets_its_layout_and_gives_ours_back(form, monkeypatch):
    torch = pytest.importorskip("torch")
    path, name = peers.FUNCTIONS[form]
    stand_in = types.ModuleType(path)
    function = torch_definition(
        torch, linear=form == "linear", stabilised=form == "exp"
    )
    setattr(stand_in, name, function)
    monkeypatch.setitem(sys.modules, path, stand_in)
    shape = MatrixShape(40, 3, 16, 32, tokens=80)
    sets = programs.matrix_sets(shape, form, seed=0)
    peer = race.matrix_peer(sets, form)
    assert isinstance(peer, MatrixPeer)
    for part in ("forward", "with gradients"):
        contender = race.peer_contender(peer, part)
        assert isinstance(contender, Contender)
        assert contender.peak_bytes() is None  # on a CPU
        for i, arrays in enumerate(sets):
            ours = jax.jit(programs.program(CHUNKED, form, part, Forms()))(*arrays)
            theirs = contender.arrays(contender.launch(i))
            assert largest_relative_difference(theirs, ours) < 0.02


def test_a_peer_that_cannot_run_is_a_row_and_no_error(finished):
    _, results = finished
    for row in results.matrices:
        time = row.time_of(PEERS[row.form])
        assert time.failure is not None
        assert time.median_seconds is None


def test_a_gate_of_the_sets_stands_where_it_is_asked_for():
    shape = MatrixShape(512, 4, 16, 16, tokens=1024)
    for bias in (-10.0, 3.0):
        *_, i, f, _ = programs.matrix_sets(shape, "exp", seed=0, bias=bias)[0]
        assert abs(float(jnp.mean(i)) - bias) < 0.1
        assert abs(float(jnp.mean(f)) - 3.0) < 0.1
        assert i.dtype == f.dtype == jnp.float32
    *_, log_decay, _ = programs.matrix_sets(shape, "linear", seed=0)[0]
    assert float(jnp.max(log_decay)) < 0
