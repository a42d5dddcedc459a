"""The targets of the matrix memory are judged by the worst row length and bias."""

import dataclasses

import pytest

from experiments.kernel_speed.gpu.claims import judge
from experiments.kernel_speed.gpu.floors import Peaks
from experiments.kernel_speed.gpu.matrix_memory.errors import error_keys
from experiments.kernel_speed.gpu.matrix_memory.peers import PEERS
from experiments.kernel_speed.gpu.matrix_memory.programs import names_of
from experiments.kernel_speed.gpu.matrix_memory.rows import (
    ErrorRow,
    MatrixRow,
    matrix_keys,
)
from experiments.kernel_speed.gpu.results import GpuResults
from experiments.kernel_speed.gpu.sizes import OURS, GpuSizes, MatrixShape
from experiments.kernel_speed.gpu.times import Time

SIZES = dataclasses.replace(
    GpuSizes().of("matrix-memory"),
    matrices=(MatrixShape(512, 16, 128, 256), MatrixShape(8192, 16, 128, 256)),
)
LIMITS = {"forward": 1 / 3, "with gradients": 0.5}


def race(form, shape, part, *, worse=1.0, memory=1.0, ours=None):
    """A row at the limits of speed and memory, or `worse` times beyond."""
    limit = 0.9 if form == "linear" else LIMITS[part]
    times = [
        Time(OURS, ours, median_seconds=1.0, peak_bytes=round(1000 * memory)),
        Time(PEERS[form], median_seconds=1.0, ratio=limit * worse, peak_bytes=1000),
    ]
    return MatrixRow(form, shape, part, 1.0, 1, times, repeatable=True)


def errors(form, shape, bias, *, error=0.01, df=0.001):
    """The rows of ours and the peer at the limits of the errors."""
    names = names_of(form, "with gradients")
    found = dict.fromkeys(names, error)
    if "df" in found:
        found["df"] = df
    theirs = {name: 0.005 if name != "df" else 0.01 for name in names}
    return [
        ErrorRow(form, shape, bias, OURS, found),
        ErrorRow(form, shape, bias, PEERS[form], theirs),
    ]


def results():
    rows = [race(*key) for key in matrix_keys(SIZES.matrices)]
    found = [row for key in error_keys(SIZES.errors) for row in errors(*key)]
    return GpuResults(
        {}, False, Peaks(1.0, 1.0), "a clock", matrices=rows, errors=found
    )


def verdicts(found):
    return {
        claim.text: claim.verdict
        for claim in judge(found, SIZES)
        if "ours" in claim.text or "matrix memory" in claim.text
    }


def missed(found):
    return [text for text, verdict in verdicts(found).items() if verdict == "misses"]


def test_every_target_holds_at_its_limit():
    found = verdicts(results())
    steps = [text for text, verdict in found.items() if verdict != "holds"]
    assert steps == []
    # Three forms and two parts; memory of two forms; bits; three of errors.
    assert len(found) == 6 + 4 + 1 + 3
    assert results().faults() == []


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        (0, {"worse": 1.01}, "ours / xl_chunk, exp gate, 16 x (128, 256), forward"),
        (
            3,
            {"worse": 1.01},
            "ours / xl_chunk, sigmoid gate, 16 x (128, 256), with gradients",
        ),
        (
            5,
            {"worse": 1.01},
            "ours / simple_gla, linear attention, 16 x (128, 256), with gradients",
        ),
        (
            1,
            {"memory": 1.01},
            "memory, ours / xl_chunk, exp gate, 16 x (128, 256), with gradients",
        ),
    ],
)
def test_one_row_beyond_a_limit_misses(place, changes, words):
    found = results()
    key = matrix_keys(SIZES.matrices)[place]
    found.matrices[place] = race(*key, **changes)
    assert missed(found) == [words]


def test_a_failure_of_ours_misses_and_is_a_fault():
    found = results()
    key = matrix_keys(SIZES.matrices)[0]
    failed = dataclasses.replace(race(*key, ours="out of memory"), repeatable=None)
    found.matrices[0] = failed
    assert len(missed(found)) == 3  # time, memory, equal bits
    assert found.faults() == [
        "matrix memory, exp, rows of 512, 16 x (128, 256), forward: out of memory"
    ]


def test_a_missing_peer_leaves_its_targets_open():
    found = results()
    gone = "not installed: torch"
    found.matrices = [
        dataclasses.replace(row, times=[row.times[0], Time(PEERS[row.form], gone)])
        for row in found.matrices
    ]
    found.errors = [
        row if row.contender == OURS else dataclasses.replace(row, failure=gone)
        for row in found.errors
    ]
    open_ones = {t for t, verdict in verdicts(found).items() if verdict != "holds"}
    assert missed(found) == []
    assert len(open_ones) == 6 + 4 + 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"error": 0.0101}, "matrix memory: error of h or a gradient, ours / xl_chunk"),
        (
            {"df": 0.00101},
            "matrix memory: error of the forget gate's gradient, ours / xl_chunk",
        ),
    ],
)
def test_an_error_beyond_a_limit_misses(changes, words):
    found = results()
    keys = error_keys(SIZES.errors)
    found.errors[2:4] = errors(*keys[1], **changes)
    assert missed(found) == [words]


def test_a_large_error_of_ours_is_a_fault():
    found = results()
    found.errors[-2:] = errors(*error_keys(SIZES.errors)[-1], error=0.021)
    assert missed(found) == [
        "matrix memory: largest error against float64, of the largest value"
    ]
    (fault,) = found.faults()
    assert fault.endswith("bias 0, errors: h 2.1e-02")
