"""The grid of local mixers in miniature: equal sizes, resuming, verdicts, figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.local_mixer import __main__ as command
from experiments.local_mixer.config import DESIGNS, LOCALS, MIXERS, SIZES, Cell
from experiments.local_mixer.models import cell_cost, cell_model
from experiments.local_mixer.report import tables, write
from experiments.local_mixer.results import Outcome, Results
from experiments.local_mixer.scores import accuracy_by_distance, comparisons, score
from experiments.local_mixer.tasks import ARRAYS, held_out, training_batches
from experiments.local_mixer.training import octave, train_step
from experiments.sweep import run
from experiments.sweep.run import BAD_INPUT, SUCCESS
from swa_jax.models.language_model import language_model
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.step import initial_state

QUICK = SIZES["quick"]
ONE = ["--quick", "--mixers", "attention", "--locals", "none", "--tasks", "recall"]
RUN = {"device": "cpu", "jax": "1", "jaxlib": "1", "numpy": "2", "text": "abc"}


def outcome(accuracy, *, bits=None, by_distance=None):
    return Outcome(1.0, accuracy, bits, by_distance or {}, [2.0, 1.0], 3.5)


def finished(path, size, value):
    """Returns results in which every cell has the accuracy that `value` gives it."""
    results = Results(path, size)
    for cell in size.cells:
        x = value(cell)
        bits = x if cell.task == "code" else None
        asked = {"1": [10, 10], "16": [20, round(20 * x)]}
        results.add(cell, outcome(x, bits=bits, by_distance=asked), RUN)
    return results


@pytest.mark.parametrize("name", ["cpu", "gpu", "designs", "quick"])
def test_all_models_of_a_size_have_as_many_parameters(name):
    size = SIZES[name]
    costs = [cell_cost(size, *pair) for pair in size.models]
    counts = [cost.parameters for cost in costs]
    each = 3 * size.shape.d_model * size.shape.layers  # of one unit of width
    assert max(counts) - min(counts) <= each
    assert max(counts) / min(counts) < 1.01
    assert len({cost.feed_forward_width for cost in costs}) > 1


def test_the_reference_has_the_width_that_the_size_gives():
    for size in SIZES.values():
        cost = cell_cost(size, "none", "attention")
        assert cost.feed_forward_width == size.shape.feed_forward_width


def test_flops_can_be_matched_instead():
    size = dataclasses.replace(SIZES["cpu"], match="flops")
    flops = [cell_cost(size, *pair).forward_flops for pair in size.models]
    assert max(flops) / min(flops) < 1.01


def test_every_pair_and_design_is_a_model_of_its_kind():
    size = SIZES["cpu"]
    assert cell_model(size, "canon", "gla").pattern == 2 * ("canon+gla",)
    assert cell_model(size, "none", "mlstm").pattern == 2 * ("mlstm",)
    for name, design in DESIGNS.items():
        model = cell_model(SIZES["designs"], name, "attention")
        assert model.pattern == 2 * ("short_swa+attention",)
        assert model.local.design == design


def test_mixers_that_leave_no_feed_forward_are_refused():
    shape = dataclasses.replace(SIZES["cpu"].shape, feed_forward_width=8)
    size = dataclasses.replace(SIZES["cpu"], shape=shape)
    with pytest.raises(ValueError, match="alone have more parameters"):
        cell_model(size, "short_swa_full", "gated_deltanet")


def test_a_grid_goes_model_by_model():
    size = SIZES["cpu"]
    assert len(size.cells) == len(set(size.cells)) == 5 * 4 * 3 * 3
    assert {(cell.local, cell.mixer) for cell in size.cells[:9]} == {("none", "mamba2")}
    assert size.locals == LOCALS
    assert size.mixers == MIXERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"locals": ("conv",)}, "locals wants some of none, .*short_swa_free; got"),
        ({"mixers": ()}, "mixers wants some of"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"code": dataclasses.replace(QUICK.code, seq_len=64)}, "one length"),
        ({"shape": dataclasses.replace(QUICK.shape, vocab_size=256)}, "at least 257"),
    ],
)
def test_a_wrong_grid_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QUICK, **changes)


def test_a_test_of_rows_left_over_is_refused():
    with pytest.raises(ValueError, match="multiple of rows, got test_rows=5, rows=2"):
        dataclasses.replace(QUICK.training, test_rows=5)


def test_options_choose_a_part_of_a_size():
    options = command.Options(mixers=("gla",), seeds=5, match="flops")
    size = command.chosen_size(options)
    assert (size.name, size.mixers, size.seeds) == ("cpu-flops", ("gla",), 5)
    assert size.locals == LOCALS
    assert command.chosen_size(command.Options(quick=True)) == QUICK
    with pytest.raises(ValueError, match="workers"):
        command.Options(workers=0)


@pytest.mark.parametrize("task", ["recall", "copy", "code"])
def test_batches_of_every_task_have_one_form(task):
    batches = training_batches(QUICK, task, 0)
    assert len(batches) == QUICK.training.steps
    sample = held_out(QUICK, task)
    for batch, rows in ((batches[0], 2), (sample.batch, 4)):
        assert tuple(batch) == ARRAYS
        assert all(array.shape == (rows, 32) for array in batch.values())
        assert batch["weights"].dtype == np.float32
        assert (batch["weights"] > 0).any()
        assert (batch["weights"] <= batch["segment_ids"]).all()
    other = training_batches(QUICK, task, 1)
    assert any(
        (a["tokens"] != b["tokens"]).any() for a, b in zip(batches, other, strict=True)
    )
    if task == "code":
        # Every byte is a token; a separator has none.
        assert 0 < (sample.bytes or 0) <= sample.batch["weights"].sum()
    else:
        assert sample.bytes is None
        assert (
            (np.asarray(sample.distances) > 0) == (sample.batch["weights"] > 0)
        ).all()


def test_a_step_learns_from_what_is_asked_alone():
    model = language_model(cell_model(QUICK, "none", "attention"))
    optimizer = make_optimizer(QUICK.training.optimizer, steps=4)
    state = initial_state(model, optimizer, seed=0)
    batch = jax.tree.map(jnp.asarray, training_batches(QUICK, "recall", 0)[0])
    step = jax.jit(lambda s, b: train_step(s, b, model=model, optimizer=optimizer))
    after, loss = step(state, batch)
    asked = batch["weights"] > 0
    answered = batch | {"targets": jnp.where(asked, batch["targets"], 7)}
    jax.tree.map(np.testing.assert_array_equal, (after, loss), step(state, answered))
    assert float(loss) == pytest.approx(np.log(257), rel=0.2)
    assert int(after.step) == 1


def test_octaves_begin_at_powers_of_two():
    found = octave(np.array([1, 2, 3, 4, 7, 8, 126, 127, 128]))
    assert found.tolist() == [1, 2, 2, 4, 4, 8, 64, 64, 128]


def test_better_means_every_seed(tmp_path):
    grid = dataclasses.replace(QUICK, seeds=3)

    def value(cell: Cell) -> float:
        base = 0.5 + 0.01 * cell.seed
        if cell.local == "short_swa":
            base += {"recall": 0.1, "copy": 0.02, "code": 0.1}[cell.task]
        return base

    results = finished(tmp_path / "quick.jsonl", grid, value)
    found = comparisons(results, "short_swa", "none")
    verdicts = {x.task: x.verdict for x in found}
    # More bits per byte are worse.
    assert verdicts == {"recall": "better", "copy": "no difference", "code": "worse"}
    gains = {x.task: x.gain for x in found}
    assert gains == pytest.approx({"recall": 0.1, "copy": 0.02, "code": -0.1})
    assert score(results, "recall", "none", "gla") == pytest.approx((0.51, 0.5, 0.52))
    by_distance = accuracy_by_distance(results, "recall", "none", "gla")
    assert by_distance[1] == (1.0, 1.0, 1.0)
    assert by_distance[16] == (0.5, 0.5, 0.5)


def test_a_diverged_cell_loses(tmp_path):
    results = finished(tmp_path / "quick.jsonl", QUICK, lambda cell: 0.5)
    cell = next(c for c in QUICK.cells if (c.task, c.local) == ("code", "short_swa"))
    results.outcomes[cell] = dataclasses.replace(outcome(0.0), loss=None)
    found = {x.mixer: x for x in comparisons(results, "short_swa", "none")[-2:]}
    assert found[cell.mixer].verdict == "worse"
    assert write(results)


def test_tables_and_figures_come_from_the_file_alone(tmp_path):
    path = tmp_path / "quick.jsonl"
    finished(path, QUICK, lambda cell: 0.25 if cell.local == "none" else 0.75)
    paths = write(Results(path, QUICK))
    assert [p.name for p in paths] == [
        "quick.md",
        "quick_scores.svg",
        "quick_recall_by_distance.svg",
    ]
    first = [p.read_bytes() for p in paths]
    page = first[0].decode()
    assert "| short_swa against none | 4 | 2 | 0 |" in page
    assert "| gla | 0.250 (0.250 to 0.250) | 0.750 (0.750 to 0.750) |" in page
    write(Results(path, QUICK))
    assert [p.read_bytes() for p in paths] == first


def test_unfinished_cells_leave_gaps(tmp_path):
    results = Results(tmp_path / "quick.jsonl", QUICK)
    with pytest.raises(ValueError, match="no finished cell"):
        write(results)
    results.add(QUICK.cells[0], outcome(0.5, by_distance={"1": [2, 1]}), RUN)
    assert write(results)
    recall = next(t for t in tables(results) if t.title == "Accuracy of recall")
    assert recall.rows[1] == ("attention", "-", "-")


@pytest.mark.slow
def test_the_command_trains_once_and_plots_again(tmp_path, capsys, monkeypatch):
    arguments = [*ONE, "--out", str(tmp_path)]
    assert command.main([*arguments, "--dry-run"]) == SUCCESS
    assert not any(tmp_path.iterdir())
    assert command.main(arguments) == SUCCESS
    path = tmp_path / "quick.jsonl"
    first = Results(path, QUICK).outcomes
    assert list(first) == [Cell("recall", "none", "attention", 0)]
    before = path.read_bytes()

    def run_locally(*_, **__):
        raise AssertionError("there is nothing left to train")

    monkeypatch.setattr(run, "run_locally", run_locally)
    assert command.main(arguments) == SUCCESS
    assert command.main([*arguments, "--plot"]) == SUCCESS
    assert path.read_bytes() == before
    assert "written: " in capsys.readouterr().out
    # The command was killed between a cell's result and the line for it.
    path.unlink()
    assert command.main(arguments) == SUCCESS
    assert Results(path, QUICK).outcomes == first


def test_the_committed_cells_are_finished(capsys):
    path = command.STUDY.results / "cpu.jsonl"
    results = Results(path, SIZES["cpu"])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(results.outcomes) == sum('"cell"' in line for line in lines) >= 39
    assert command.main(["--dry-run"]) == SUCCESS
    told = capsys.readouterr().out
    assert told.count("finished  task=") == len(results.outcomes)
    assert f"180 cells, {180 - len(results.outcomes)} to run" in told


def test_bad_usage_is_one_line(tmp_path, capsys):
    arguments = [*ONE, "--out", str(tmp_path), "--mixers", "rnn"]
    assert command.main(arguments) == BAD_INPUT
    assert capsys.readouterr().err.startswith("local_mixer: mixers wants some of")
