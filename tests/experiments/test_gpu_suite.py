"""The GPU suite in miniature: on a CPU, our kernels interpreted, jax.nn for cuDNN."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.kernel_speed import __main__ as command
from experiments.kernel_speed.gpu import race, suite
from experiments.kernel_speed.gpu.accuracy import (
    equal_bits,
    largest_relative_difference,
)
from experiments.kernel_speed.gpu.clocks import Contender, Refusal
from experiments.kernel_speed.gpu.origin import origin, source_digest
from experiments.kernel_speed.gpu.programs import Forms
from experiments.kernel_speed.gpu.results import read_results
from experiments.kernel_speed.gpu.sizes import (
    APART,
    CHUNKED,
    CUDNN,
    FLEX,
    FUSED,
    OURS,
    QUICK,
    DecodeShape,
    Shape,
)
from pallas_kernels import backend

pytestmark = pytest.mark.slow  # as a whole

TINY = dataclasses.replace(
    QUICK.of("attention"),
    shapes=(Shape(32, 16, (5, None), tokens=64, query_heads=2, kv_heads=1),),
    decodes=(DecodeShape(2, 16, 16, query_heads=2, kv_heads=1),),
    reference_row=32,
    rope_row=32,
    matmul_size=32,
    rotated_bytes=5000,
    rounds=2,
    reading_seconds=0.0,
)
FORMS = Forms(peer="xla")


def run(folder, *, sizes=TINY, forms=FORMS, resume=False, budget=600.0, commit="c0"):
    """Returns the results and the lines of progress."""
    lines = []
    device = jax.devices("cpu")[0]
    provenance = origin(device, arguments=["--quick"], seed=0, commit=commit)
    # jax.nn's attention of bf16 arrays needs JAX's own rules of promotion.
    with backend.interpreted(), jax.numpy_dtype_promotion("standard"):
        results = suite.run(
            sizes,
            {**provenance, "commit": commit, "source": "a digest"},
            forms=forms,
            quick=True,
            seed=0,
            budget_seconds=budget,
            clock="kernels",
            folder=folder,
            resume=resume,
            progress=lines.append,
        )
    return results, lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder and the results of a whole run."""
    folder = tmp_path_factory.mktemp("gpu_suite")
    return folder, run(folder)[0]


def test_every_case_is_timed_checked_and_written(finished):
    folder, results = finished
    assert results.faults() == []
    content = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    assert len(content["races"]) == 4  # two windows, two parts
    for row in content["races"]:
        times = {time["contender"]: time for time in row["times"]}
        assert list(times) == [OURS, CUDNN, CHUNKED, FLEX, FUSED, APART]
        for name in (OURS, CUDNN, CHUNKED, FUSED, APART):
            assert times[name]["failure"] is None
            assert len(times[name]["wall_seconds"]) == 2
            assert times[name]["median_seconds"] > 0
        for name in (CUDNN, CHUNKED):
            assert times[name]["ratio"] > 0
            assert times[name]["difference"] < 2e-2
        assert row["repeatable"] is True
        assert 0 < row["error"] < 2e-2
        assert row["floor_seconds"] > 0
    (step,) = content["decodes"]
    assert step["time"]["failure"] is None
    assert step["share_of_floor"] > 0
    assert content["clock"].startswith("wall clock: CUPTI cannot be read")


def test_the_page_has_a_table_for_each_question(finished):
    folder, results = finished
    page = (folder / "gpu.md").read_text(encoding="utf-8")
    for title in (
        "Targets",
        "Attention, width 16, forward",
        "Attention, width 16, with gradients",
        "Decode",
        "Is it worth fusing rope and norm?",
        "Failed or refused",
        "Run",
    ):
        assert f"## {title}\n" in page
    flex = results.races[0].time_of(FLEX)
    if flex.failure is not None and flex.failure.startswith("not installed"):
        assert page.count("| not installed |") == 4
    plot = (folder / "gpu.svg").read_text(encoding="utf-8")
    for words in ("rows of 32", OURS, CUDNN, CHUNKED, "floor", "full"):
        assert f">{words}<" in plot


def test_numbers_come_back_from_the_file(finished):
    folder, results = finished
    found = read_results(folder / "gpu.json")
    assert found == results


@pytest.fixture
def rehearsed(finished, monkeypatch):
    """Makes every case give at once the row of the whole run; returns its results."""
    _, results = finished

    def races(shape, cases, setting):
        for window, part in cases:
            setting.progress(f"race: {window}, {part}")
            key = (shape.row, shape.width, window, part)
            yield next(row for row in results.races if row.key == key)

    def decode(shape, setting):
        setting.progress("decode")
        return results.decodes[0]

    monkeypatch.setattr(suite, "race_shape", races)
    monkeypatch.setattr(suite, "measure_decode", decode)
    monkeypatch.setattr(suite, "measure_peaks", lambda *_, **__: results.peaks)
    return results


def test_a_resumed_run_measures_what_lacks_alone(finished, rehearsed, tmp_path):
    folder, results = finished
    content = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    content["races"].pop(1)
    (tmp_path / "gpu.json").write_text(json.dumps(content), encoding="utf-8")
    again, lines = run(tmp_path, resume=True)
    assert [line for line in lines if line.startswith(("race", "decode"))] == [
        "race: 5, with gradients"
    ]
    assert again.races == [results.races[i] for i in (0, 2, 3, 1)]
    assert again.provenance["resumed"] == results.provenance["date"]
    assert again.notes == []


def test_another_commit_is_measured_anew(finished, rehearsed, tmp_path):
    folder, _ = finished
    text = (folder / "gpu.json").read_text(encoding="utf-8")
    (tmp_path / "gpu.json").write_text(text, encoding="utf-8")
    results, lines = run(tmp_path, resume=True, commit="c1")
    assert "not resumed, and measured anew: another commit" in lines
    assert len([line for line in lines if line.startswith("race")]) == 4
    assert len(results.races) == 4


def test_a_file_of_something_else_is_measured_anew(rehearsed, tmp_path):
    (tmp_path / "gpu.json").write_text('{"scaling": []}', encoding="utf-8")
    results, lines = run(tmp_path, resume=True)
    assert any("holds no results of the GPU suite" in line for line in lines)
    assert results.races == rehearsed.races


def test_a_spent_budget_is_said_and_nothing_starts(rehearsed, tmp_path):
    results, _ = run(tmp_path, budget=0.0)
    assert (results.races, results.decodes) == ([], [])
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "The budget of time is spent; --resume measures the other cases." in page
    assert not (tmp_path / "gpu.svg").exists()


def test_each_case_is_saved_before_the_next_one_starts(
    rehearsed, tmp_path, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "measure_decode", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert read_results(tmp_path / "gpu.json").races == rehearsed.races
    assert (tmp_path / "gpu.svg").exists()


def test_a_device_that_is_lost_ends_the_run(rehearsed, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_device_failure", lambda: "CUDA_ERROR_ILLEGAL_ADDRESS")
    results, _ = run(tmp_path)
    assert results.races == rehearsed.races[:1]
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "The device has stopped answering: CUDA_ERROR_ILLEGAL_ADDRESS." in page


def test_kernels_that_cannot_run_are_rows_and_an_exit_code(
    tmp_path, monkeypatch, capsys
):
    cpu = jax.devices("cpu")[0]
    monkeypatch.setattr(command, "find_device", lambda _: cpu)
    shape = dataclasses.replace(TINY.shapes[0], windows=(5,))
    monkeypatch.setattr(command, "QUICK", dataclasses.replace(TINY, shapes=(shape,)))
    arguments = ["--device", "gpu", "--quick", "--out", str(tmp_path)]
    assert command.main(arguments) == command.FAILED
    results = read_results(tmp_path / "gpu.json")
    for row in results.races:
        times = {time.contender: time for time in row.times}
        assert "needs a GPU" in (times[OURS].failure or "")
        assert "cuDNN" in (times[CUDNN].failure or "")
        assert (times[CHUNKED].median_seconds or 0.0) > 0
    assert "needs a GPU" in (results.decodes[0].time.failure or "")
    error = capsys.readouterr().err
    assert error.count("kernel_speed: rows of 32") == 2
    assert error.count("kernel_speed: decode, batch 2") == 1


def test_a_contender_without_finite_numbers_does_not_race():
    contenders = {
        OURS: Contender(lambda i: jnp.ones(3)),
        CUDNN: Contender(lambda i: jnp.full(3, jnp.nan)),
        CHUNKED: Refusal("too long"),
        FLEX: Contender(lambda i: jnp.full(3, 1.5)),
    }
    checked = race.check(contenders, jnp.full(3, 2.0))
    assert list(checked.working) == [OURS, FLEX]
    assert checked.refused[CHUNKED] == Refusal("too long")
    assert "not finite" in checked.refused[CUDNN].reason
    assert checked.differences == {FLEX: 0.5}
    assert checked.error == 0.5
    assert checked.repeatable


def test_a_kernel_that_wavers_is_found_out():
    results = iter([jnp.ones(3), jnp.ones(3).at[1].add(1e-6)])
    checked = race.check({OURS: Contender(lambda i: next(results))}, None)
    assert checked.repeatable is False
    assert not equal_bits(jnp.zeros(2), -jnp.zeros(2))


def test_differences_are_relative_to_the_largest_of_each_array():
    wanted = (jnp.array([1.0, -4.0]), jnp.array([100.0]))
    found = (jnp.array([1.5, -4.0]), jnp.array([101.0]))
    assert largest_relative_difference(found, wanted) == pytest.approx(0.125)


def test_the_digest_changes_with_the_kernels_and_their_tiles(tmp_path):
    folder = tmp_path / "pallas_kernels"
    folder.mkdir()
    digests = {source_digest(tmp_path)}
    for name in ("attention.py", "tiles.json", "notes.txt"):
        (folder / name).write_text("1", encoding="utf-8")
        digests.add(source_digest(tmp_path))
    (folder / "tiles.json").write_text("2", encoding="utf-8")
    digests.add(source_digest(tmp_path))
    assert len(digests) == 4  # the notes change nothing


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resume"],
        ["--operation", "attention"],
        ["--device", "gpu", "--peer-lengths", "64"],
    ],
)
def test_an_option_of_the_other_suite_is_refused_in_one_line(arguments, capsys):
    assert command.main([*arguments, "--quick"]) == command.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--device" in error
