"""How far stacked windows see, in miniature: the grid, formulas, resuming, figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.stacked_windows import __main__ as command
from experiments.stacked_windows.config import (
    SIZES,
    Cell,
    Design,
    cell_model,
    training_flops,
    training_steps,
)
from experiments.stacked_windows.formulas import (
    FORMULAS,
    diffusion_tail,
    errors_of,
    horizons_of,
    tails_of,
)
from experiments.stacked_windows.measure import cell_reach, curve_distances
from experiments.stacked_windows.report import groups, tables, verdict, write
from experiments.stacked_windows.results import Outcome, Results, Stack
from experiments.stacked_windows.training import held_out_rows, scaled, text
from experiments.sweep import run
from experiments.sweep.run import BAD_INPUT, SUCCESS
from swa_jax.evaluation.influence import PathShares
from swa_jax.evaluation.reach import AveragingStack, tail
from swa_jax.models.language_model import language_model

QUICK = SIZES["quick"]
RUN = {"device": "cpu", "jax": "1", "jaxlib": "1", "numpy": "2", "text": "abc"}


def stack(value, names, *, beyond=0.0):
    return Stack(
        distances=(0, 1, 3, 6),
        tail=(1.0, value, value / 10, 0.001),
        mean=value,
        spread=1.0,
        horizon=4,
        horizons=dict.fromkeys(names, 8),
        errors=dict.fromkeys(names, value),
        beyond_reach=beyond,
    )


def outcome(cell, value=0.5, *, gain=0.2):
    layers = cell.design.window_layers
    return Outcome(
        stack=stack(value, FORMULAS, beyond=0.25 if cell.kind == "swax" else 0.0),
        branches=stack(value, ("diffusion", "average")),
        alpha_jacobian=(0.8,) * layers,
        alpha_stream=(0.7,) * layers,
        gains=(gain,) * layers,
        loss=2.5 if cell.state == "trained" else None,
        steps=3 if cell.state == "trained" else 0,
        seconds=1.5,
    )


def finished(path, size, **options):
    results = Results(path, size)
    for cell in size.cells:
        results.add(cell, outcome(cell, 0.5 + 0.1 * cell.seed, **options), RUN)
    return results


@pytest.mark.parametrize("name", list(SIZES))
def test_every_cell_is_a_model_and_trainings_cost_the_same(name):
    size = SIZES[name]
    assert len(size.cells) == len(set(size.cells))
    assert {cell.design for cell in size.cells if cell.state == "random"} == {
        *size.random,
        *size.trained,
    }
    for cell in size.cells:
        model = cell_model(size, cell.design)
        assert model.layers == cell.layers
        assert cell_reach(cell) + cell.window <= cell.design.measured_tokens
    if name != "quick":  # whose trainings have a few steps
        tokens = size.training.rows * size.training.seq_len
        costs = [
            tokens * training_steps(size, x) * training_flops(size, x)
            for x in size.trained
        ]
        assert max(costs) / min(costs) < 1.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2), "at least 2 tokens"),
        ((4, 0), "at least 1 layer"),
        ((4, 2, 0.0), "scale"),
        ((4, 3, 1.0, "swax"), "whole periods"),
    ],
)
def test_what_is_no_design_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Design(*arguments)


def test_a_grid_without_seeds_or_designs_is_refused():
    with pytest.raises(ValueError, match="at least one seed"):
        dataclasses.replace(QUICK, seeds=0)
    with pytest.raises(ValueError, match="0 and 0 designs"):
        dataclasses.replace(QUICK, random=(), trained=())


def test_the_scale_is_that_of_what_writes_to_the_stream():
    model = language_model(cell_model(QUICK, Design(4, 2, kind="swax")))
    params = jax.jit(model.init)(jax.random.key(0))
    found = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(
            lambda a, b: jnp.abs(b - a).max(), params, scaled(params, jnp.float32(3))
        )
    )
    changed = {jax.tree_util.keystr(path) for path, x in found if x > 0}
    writers = {
        f"['{m}']['{n}']" for m, n in (("mixer", "out"), ("feed_forward", "down"))
    }
    assert len(changed) == 4
    assert all(any(writer in name for writer in writers) for name in changed)
    out = ("periods", "0_swa", "mixer", "out", "kernel")
    before, after = params, scaled(params, jnp.float32(3))
    for name in out:
        before, after = before[name], after[name]
    np.testing.assert_allclose(after, 3 * before, rtol=1e-6)


def test_measured_rows_lie_within_documents():
    separator = text(QUICK).tokenizer.separator
    for tokens in (5, 300):
        rows = held_out_rows(QUICK, tokens)
        assert rows.shape == (QUICK.measuring.rows, tokens)
        assert not (rows == separator).any()
    assert (rows[0] != rows[1]).any()
    with pytest.raises(ValueError, match="no document of 100000000 tokens"):
        held_out_rows(QUICK, 10**8)


def test_formulas_of_an_averaging_stack_are_its_influence():
    shares = [PathShares(jacobian=0.9, stream=0.8, gain=0.1)] * 6
    found = tails_of(shares, 5)
    assert set(found) == set(FORMULAS)
    wanted = tail(AveragingStack(6, 5, 0.9).influence())
    np.testing.assert_allclose(found["binomial"], wanted, rtol=1e-12)
    other = tail(AveragingStack(6, 5, 0.8).influence())
    np.testing.assert_allclose(found["binomial_stream"], other, rtol=1e-12)
    assert found["single_path"][[0, 1, 5, 6]] == pytest.approx([1, 0.1, 0.1, 0.01])
    errors = errors_of(wanted, found)
    assert errors["binomial"] == pytest.approx(0, abs=1e-12)
    assert min(errors[n] for n in FORMULAS if n != "binomial") > 0.05
    assert horizons_of(found, 0.01)["binomial"] == AveragingStack(6, 5, 0.9).horizon(
        0.01
    )


def test_gains_without_an_own_path_leave_a_formula_out():
    shares = [PathShares(jacobian=-0.2, stream=0.8, gain=float("inf"))]
    assert set(tails_of(shares, 5)) == set(FORMULAS) - {"independent"}


def test_the_diffusive_tail_is_that_of_deep_averages():
    found = diffusion_tail(60, 8)
    wanted = tail(AveragingStack(60, 8, 0.0).influence())
    assert len(found) == len(wanted)
    # The deviation is W sqrt(L / 12), not sqrt(L (W^2 - 1) / 12).
    assert np.abs(found - wanted).max() < 0.01
    assert found[0] == 1.0


def test_errors_are_decades_where_there_is_influence():
    measured = np.array([1.0, 0.1, 0.01, 1e-5])
    tails = {"ten": 10 * measured, "zero": np.array([1.0, 0.1, 0.0, 0.0])}
    errors = errors_of(measured, tails)
    assert errors["ten"] == pytest.approx(1.0)
    assert errors["zero"] == pytest.approx(5.0)  # 0 and 10 decades
    with pytest.raises(ValueError, match="beyond the own token"):
        errors_of(np.array([1.0, 0.0]), tails)


def test_kept_distances_are_dense_near_and_reach_the_end():
    assert curve_distances(5) == [0, 1, 2, 3, 4]
    found = curve_distances(700)
    assert found[:4] == [0, 1, 2, 3]
    assert found[-1] == 699
    assert len(found) <= 49


def test_tables_and_figures_come_from_the_file_alone(tmp_path):
    path, size = tmp_path / "quick.jsonl", dataclasses.replace(QUICK, seeds=2)
    finished(path, size)
    paths = write(Results(path, size))
    assert [p.name for p in paths] == [
        "quick.md",
        "quick.svg",
        "quick_horizons.svg",
    ]
    first = [p.read_bytes() for p in paths]
    page = first[0].decode()
    assert "| random | swax | 4 | 2 | 1 | 0.25 (0.25 to 0.25) |" in page
    assert "| all | swa |  |  |  | 0 at most |" in page
    assert "| trained | binomial |" in page
    assert "2.500 (2.500 to 2.500)" in page
    write(Results(path, size))
    assert [p.read_bytes() for p in paths] == first


def test_unfinished_cells_and_lost_paths_leave_gaps(tmp_path):
    results = Results(tmp_path / "quick.jsonl", QUICK)
    with pytest.raises(ValueError, match="no finished cell"):
        write(results)
    for cell in QUICK.cells[:2]:
        results.add(cell, outcome(cell, gain=None), RUN)
    assert write(results)
    assert {state for state, _, _ in groups(results)} == {"random"}
    assert len(tables(results)) == 7


def test_a_verdict_is_over_models_of_windows_alone():
    cell = Cell("random", "swa", 4, 2, 1.0, 0)
    outcomes = [outcome(cell, 0.2), outcome(cell, 0.4)]
    assert verdict(outcomes, "binomial") == pytest.approx((0.3, 0.4, 2.0))
    assert verdict([], "binomial") is None


def test_options_choose_a_part_of_a_size():
    options = command.Options(random_only=True, seeds=5)
    size = command.chosen_size(options)
    assert (size.name, size.trained, size.seeds) == ("cpu", (), 5)
    assert command.chosen_size(command.Options(quick=True)) == QUICK


def test_bad_usage_is_one_line(tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path), "--seeds", "0"]
    assert command.main(arguments) == BAD_INPUT
    assert capsys.readouterr().err.startswith("stacked_windows: a grid wants")


def test_the_committed_cells_are_of_the_size():
    size = SIZES["cpu"]
    outcomes = Results(command.STUDY.results / "cpu.jsonl", size).outcomes
    assert len(outcomes) >= 64
    assert set(outcomes) <= set(size.cells)
    for cell, found in outcomes.items():
        assert (found.stack.beyond_reach == 0.0) == (cell.kind == "swa")


@pytest.mark.slow
def test_the_command_measures_once_and_plots_again(tmp_path, capsys, monkeypatch):
    arguments = ["--quick", "--workers", "1", "--out", str(tmp_path)]
    assert command.main([*arguments, "--dry-run"]) == SUCCESS
    assert not any(tmp_path.iterdir())
    assert command.main(arguments) == SUCCESS
    path = tmp_path / "quick.jsonl"
    found = Results(path, QUICK).outcomes
    assert set(found) == set(QUICK.cells)
    for cell, result in found.items():
        assert (result.stack.beyond_reach == 0.0) == (cell.kind == "swa")
        assert (result.loss is None) == (cell.state == "random")
    before = path.read_bytes()

    def run_locally(*_, **__):
        raise AssertionError("there is nothing left to measure")

    monkeypatch.setattr(run, "run_locally", run_locally)
    assert command.main(arguments) == SUCCESS
    assert command.main([*arguments, "--plot"]) == SUCCESS
    assert path.read_bytes() == before
    assert "written: " in capsys.readouterr().out
