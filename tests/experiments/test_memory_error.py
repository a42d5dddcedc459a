"""The error table at tiny sizes: errors, layout of the peers, resuming, claims."""

import dataclasses
import json
import math
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kernel_speed.gpu import torch_tensors
from experiments.kernel_speed.peer import PeerMissing
from experiments.memory_error import __main__ as command
from experiments.memory_error import published, suite
from experiments.memory_error.cases import Case, draw, widths_of
from experiments.memory_error.claims import ROUNDING, judge, medians, ratios
from experiments.memory_error.errors import Error, error, errors_of, largest
from experiments.memory_error.ours import check_truth, measure_ours, measure_truth
from experiments.memory_error.outputs import (
    GRADIENTS,
    LOSSES,
    VALUES,
    Outputs,
    cotangents,
)
from experiments.memory_error.report import write
from experiments.memory_error.results import Results, Row

pytestmark = pytest.mark.slow  # as a whole

CASE = Case(70, 0.0, "float32", 0, heads=2, key_width=4, value_width=3)
SIZES = ["--heads", "2", "--key-width", "4", "--value-width", "3", "--seeds", "1"]


@pytest.fixture(scope="module")
def truth():
    """Returns the outputs of CASE in float64."""
    return measure_truth(*draw(CASE))


def test_the_inputs_are_rounded_before_anything_is_computed():
    inputs, weights = draw(dataclasses.replace(CASE, dtype="bfloat16", bias=-10.0))
    assert {x.dtype.name for x in (*inputs[:3], weights)} == {"bfloat16"}
    assert {x.dtype.name for x in inputs[3:]} == {"float32"}
    assert -12.5 < float(jnp.mean(inputs.i_BTN)) < -7.5  # soft-capped at 15
    assert float(jnp.max(jnp.abs(inputs.c_BNHP))) > 0
    again, _ = draw(dataclasses.replace(CASE, dtype="bfloat16", bias=-10.0))
    jax.tree.map(np.testing.assert_array_equal, inputs, again)


@pytest.mark.parametrize("bias", [-10.0, 0.0, 3.0])
def test_the_truth_is_the_recurrence(bias):
    assert check_truth(dataclasses.replace(CASE, bias=bias)) <= 1e-11


def test_a_wrong_truth_is_refused(monkeypatch):
    from experiments.memory_error import ours

    monkeypatch.setattr(ours, "SAME", -1.0)
    with pytest.raises(FloatingPointError, match="no truth"):
        check_truth(CASE)


@pytest.mark.parametrize("form", ["chunked", "reference", "triton"])
def test_our_forms_are_near_in_float32_and_not_exact(form, truth):
    found = errors_of(measure_ours(form, *draw(CASE)), truth)
    assert {group: tuple(names) for group, names in found.items()} == {
        "values": VALUES,
        **dict.fromkeys(LOSSES, GRADIENTS),
    }
    assert 1e-9 < largest(found) < 1e-3


@pytest.mark.parametrize("form", ["chunked", "reference"])
def test_our_forms_hand_over_a_wide_output(form):
    from experiments.memory_error import ours

    inputs, weights = draw(dataclasses.replace(CASE, dtype="bfloat16"))
    for how in ({"wide": True}, {"norm_eps": 1e-6}):
        read = partial(ours._read, implementation=form, **how)
        assert jax.eval_shape(read, inputs)[0].dtype == jnp.float32
    assert {x.dtype for x in cotangents(inputs.v_BTNP, weights).values()} == {
        jnp.dtype("bfloat16")
    }


def test_the_recurrence_in_pieces_is_the_recurrence(truth, monkeypatch):
    from experiments.memory_error import ours

    monkeypatch.setattr(ours, "PIECE", 32)  # two pieces and a rest of 6 tokens
    jax.clear_caches()
    found = measure_truth(*draw(CASE), implementation="reference")
    assert largest(errors_of(found, truth)) <= 1e-11


@pytest.mark.parametrize(
    ("form", "tokens"),
    [
        ("triton", 1025),
        ("triton-highest", 64),
        ("xl_chunk", 64),
        ("native_custbw", 70),
        ("native_autograd", 8256),
    ],
)
def test_what_a_device_cannot_do_is_refused(form, tokens):
    inputs, weights = draw(dataclasses.replace(CASE, tokens=tokens))
    measure = published.measure_published if "_" in form else measure_ours
    with pytest.raises((NotImplementedError, PeerMissing)):  # without torch
        measure(form, inputs, weights)


def test_a_cotangent_behind_the_norm_is_orthogonal_to_the_output():
    inputs, weights = draw(CASE)
    found = cotangents(1e3 * inputs.v_BTNP, weights)
    np.testing.assert_array_equal(found["projection"], weights)
    along = jnp.sum(found["norm"] * 1e3 * inputs.v_BTNP, axis=-1)
    assert float(jnp.max(jnp.abs(along))) < 1e-5


def test_an_error_is_relative_to_the_largest_value():
    wanted = np.array([3.0, -4.0])
    nothing = np.zeros(2)
    found = error(np.array([3.0, -3.0]), wanted, least=nothing)
    assert found[:2] == (0.25, 0.2)
    assert found.p99 == pytest.approx(0.99 * 0.2 * math.sqrt(2), rel=1e-3)
    assert error(nothing, nothing, least=nothing) == Error(0.0, 0.0, 0.0)
    assert error(wanted, nothing, least=nothing) == Error(*[math.inf] * 3)
    assert error(wanted, nothing, least=np.array([8.0, 7.0])).max == 0.5
    lost = error(np.array([np.nan, 1.0]), wanted, least=nothing)
    assert lost == Error(*[math.inf] * 3)
    with pytest.raises(ValueError, match="shape"):
        error(wanted[:1], wanted, least=nothing)


def test_the_memory_is_compared_in_the_scale_of_the_truth(truth):
    shifted = dict(truth.values)
    shifted["m"] = truth.values["m"] + math.log(2)
    shifted["c"], shifted["n"] = truth.values["c"] / 2, truth.values["n"] / 2
    found = errors_of(Outputs(shifted, truth.gradients), truth)["values"]
    assert found["c"].max < 1e-15
    assert found["n"].max < 1e-15
    assert found["m"].max > 1e-3


@pytest.mark.slow
def test_a_missing_peer_is_a_line_of_the_page(tmp_path, monkeypatch):
    def load(module):
        raise PeerMissing(f"not installed: {module}")

    monkeypatch.setattr(torch_tensors, "load", load)
    arguments = ["--lengths", "64", "--biases", "-10", "0", "--dtypes", "float32"]
    arguments += ["--implementations", "chunked", "native_custbw", *SIZES]
    assert command.main([*arguments, "--out", str(tmp_path)]) == command.SUCCESS
    first, *rows = (tmp_path / "cpu.jsonl").read_text(encoding="utf-8").splitlines()
    run = json.loads(first)["run"]
    assert run["jax"] == jax.__version__
    assert run["command"].startswith("python -m experiments.memory_error --lengths 64")
    assert run["truth_check_bias_-10"] <= 1e-11
    assert [json.loads(row)["bias"] for row in rows] == [-10.0, 0.0]
    page = (tmp_path / "cpu.md").read_text(encoding="utf-8")
    assert "| native_custbw | 2 | not installed: torch" in page
    assert "| 64 | -10 | chunked | " in page
    assert "not measured" in page


def test_a_published_form_is_given_its_own_layout(monkeypatch):
    torch = pytest.importorskip("torch")
    case = dataclasses.replace(CASE, tokens=64, dtype="bfloat16")
    inputs, weights = draw(case)

    def form(q, k, v, i, f, *, c_initial, n_initial, m_initial, **options):
        assert q.shape == k.shape == (1, 2, 64, 4)
        assert i.shape == f.shape == (1, 2, 64)
        assert q.dtype == f.dtype == options["autocast_kernel_dtype"] == torch.float32
        assert options["return_last_states"]
        h = v * f[..., None] + q[..., :3]
        return h, (c_initial, n_initial, m_initial[..., None])

    package = types.SimpleNamespace(get_mlstm_kernel=lambda name: form)
    monkeypatch.setattr(published, "load", lambda name: package)
    found = published.measure_published("native_custbw", inputs, weights)
    v, f, w = (
        np.asarray(x, np.float64) for x in (inputs.v_BTNP, inputs.f_BTN, weights)
    )
    assert found.values["h"].shape == (1, 64, 2, 3)
    assert found.values["m"].shape == (1, 2)
    gradients = found.gradients["projection"]
    np.testing.assert_allclose(gradients["df"], np.sum(v * w, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(gradients["dv"], f[..., None] * w, rtol=1e-2)
    np.testing.assert_array_equal(gradients["dm"], 0.0)


def row(form, rms, *, p99=None, tokens=65_536, dtype="float32", seed=0):
    """Returns a row whose errors are all alike."""
    groups = {"values": VALUES, **dict.fromkeys(LOSSES, GRADIENTS)}
    errors = {
        group: {name: Error(2 * rms, rms, p99 or rms) for name in names}
        for group, names in groups.items()
    }
    case = dataclasses.replace(CASE, tokens=tokens, dtype=dtype, seed=seed)
    return Row(case, form, 1.0, errors)


def verdicts(*rows):
    return {claim.text: claim.verdict for claim in judge(rows)}


def test_claims_are_judged_against_the_published_gradient():
    theirs = row("native_custbw", 1e-5)
    better = verdicts(row("chunked", 1e-6), theirs)
    assert better["chunked / native_custbw, float32: no entry worse"] == "holds"
    df = "chunked / native_custbw, float32: df ten times nearer at T 65536"
    assert better[df] == "holds"
    equal = verdicts(row("chunked", 2e-5), theirs)
    assert equal["chunked / native_custbw, float32: no entry worse"] == "holds"
    assert equal[df] == "misses"
    lucky = verdicts(row("chunked", 9e-5, p99=1e-5), theirs)
    assert lucky["chunked / native_custbw, float32: no entry worse"] == "holds"
    worse = verdicts(row("chunked", 2.1e-5), theirs)
    assert worse["chunked / native_custbw, float32: no entry worse"] == "misses"
    assert worse["chunked / xl_chunk, float32: no entry worse"] == "not measured"
    short = verdicts(
        row("chunked", 1e-6, tokens=64), row("native_custbw", 1e-5, tokens=64)
    )
    assert short[df] == "not measured"
    narrow = verdicts(
        row("chunked", 1e-2, dtype="bfloat16"),
        row("native_custbw", 1e-3, dtype="bfloat16"),
    )
    assert set(narrow.values()) == {"not measured"}  # it computes in float32


def test_seeds_are_aggregated_by_the_median_and_rounding_is_no_merit():
    rows = [row("chunked", rms, seed=i) for i, rms in enumerate([1e-6, 3e-6, 9e-6])]
    entries = medians([*rows, row("native_custbw", 1e-9)])
    (found,) = entries.values()
    assert found["chunked"]["norm"]["dq"] == Error(6e-6, 3e-6, 3e-6)
    worst = ratios(entries, "chunked", "native_custbw")
    assert {ratio.rms for ratio in worst} == {3e-6 / ROUNDING}


def test_a_finished_cell_is_not_measured_again(tmp_path, monkeypatch):
    path = tmp_path / "cpu.jsonl"
    run = {"source": "a", "device": "cpu", "date": "then"}
    results = Results(path, run)
    assert suite.measure(CASE, ["chunked"], results, progress=print) == {}
    with path.open("a", encoding="utf-8") as file:
        file.write('{"tokens": 70, "bias"')  # a run that was killed
    resumed = Results(path, {**run, "date": "now"})
    assert resumed.rows == results.rows
    assert resumed.provenance["resumed"] == "then"
    monkeypatch.setattr(suite, "measure_truth", None)  # would raise
    assert suite.measure(CASE, ["chunked"], resumed, progress=print) == {}
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert Results(path, {**run, "source": "b"}).rows == []
    path.write_text("nothing of ours", encoding="utf-8")
    assert Results(path, run).rows == []


def test_a_page_has_the_rows_of_one_width(tmp_path):
    results = Results(tmp_path / "cpu.jsonl", {"device": "cpu"})
    for width in (4, 8):
        case = dataclasses.replace(CASE, key_width=width)
        results.add(dataclasses.replace(row("chunked", 10.0**-width), case=case))
    page = write(results, widths_of(CASE), suite.Failures()).read_text("utf-8")
    assert "| 70 | 0 | chunked | 2e-4 / 1e-4 |" in page
    assert "1e-8" not in page


def test_only_a_peer_may_fail(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("first line\nsecond line")

    results = Results(tmp_path / "cpu.jsonl", {})
    monkeypatch.setattr(suite, "measure_published", broken)
    failures = suite.measure(CASE, ["native_custbw"], results, progress=print)
    assert failures == {("native_custbw", "RuntimeError: first line"): 1}
    monkeypatch.setattr(suite, "measure_ours", broken)
    with pytest.raises(RuntimeError):
        suite.measure(CASE, ["chunked"], results, progress=print)


def test_long_rows_are_drawn_once():
    found = suite.cases(
        lengths=[65_536, 64],
        biases=[0.0],
        dtypes=["float32"],
        seeds=2,
        heads=1,
        key_width=2,
        value_width=2,
    )
    assert [(case.tokens, case.seed) for case in found] == [
        (64, 0),
        (64, 1),
        (65536, 0),
    ]


@pytest.mark.parametrize(
    "arguments",
    [["--implementations", "fast"], ["--lengths", "0"], ["--seeds", "0"]],
)
def test_a_bad_argument_is_refused_in_one_line(arguments, capsys):
    assert command.main(arguments) == command.BAD_INPUT
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
