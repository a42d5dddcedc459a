"""A grid of training runs: axes, what is refused, the summary, two tiny runs."""

import dataclasses
import json

import pytest

from experiments.sweep import __main__ as command
from experiments.sweep.folder import SweepFolder, sweep_folder
from experiments.sweep.options import Placement
from experiments.sweep.run import BAD_INPUT, SUCCESS, run_sweep
from experiments.sweep.summary import spread, write_summary
from experiments.sweep.train_grid import axes_of, train_sweep
from swa_jax.configuration import to_dict
from swa_jax.training.config import WindowSchedule
from swa_jax.training.recipes import recipe
from tests.experiments.sweep_losses import losses
from tests.training.tiny import MODEL, run_config, write_corpus

GRID = ("windows.windows=4 32,32", "seed=0,1,2")
WORDS = ("--steps", "7", "--windows.probabilities", "none")


def test_axes_are_settings_of_a_run_and_the_rest_is_alike():
    sweep = train_sweep(GRID, WORDS, {"SWAX_OPTIMIZER__PEAK_LR": "1e-2"})
    assert list(sweep.cells) == [
        f"windows.windows={windows},seed={seed}"
        for windows in ("4_32", "32")
        for seed in (0, 1, 2)
    ]
    expected = dataclasses.replace(
        (base := recipe("swax-nano")),
        steps=7,
        seed=1,
        optimizer=dataclasses.replace(base.optimizer, peak_lr=1e-2),
        windows=WindowSchedule((32,)),
    )
    assert sweep.cells["windows.windows=32,seed=1"].config == expected
    assert sweep.shared["settings"]["steps"] == 7
    assert "seed" not in sweep.shared["settings"]
    assert "windows" not in sweep.shared["settings"]["windows"]
    axes = axes_of(sweep, "windows.windows=4_32,seed=2")
    assert axes == {"windows.windows": [4, 32], "seed": 2}


def test_a_preset_and_any_kind_of_value_is_an_axis():
    grid = [
        "preset=swax-nano,transformer-nano",
        "optimizer.peak-lr=1e-3,0.002",
        "windows.probabilities=none,0.5 0.5",
        "model.attention.qk_norm=true,false",
    ]
    sweep = train_sweep(grid, [], {})
    assert len(sweep.cells) == 16
    name = (
        "preset=transformer-nano,optimizer.peak_lr=0.001,"
        "windows.probabilities=0.5_0.5,model.attention.qk_norm=false"
    )
    config = sweep.cells[name].config
    assert config.preset == "transformer-nano"
    assert config.model.pattern == recipe("transformer-nano").model.pattern
    assert config.windows.probabilities == (0.5, 0.5)
    assert config.model.attention.qk_norm is False


@pytest.mark.parametrize(
    ("grid", "words", "message"),
    [
        ([], [], "--grid: missing; wanted axes such as seed=0,1,2"),
        (["seed"], [], "axes such as seed=0,1,2, got 'seed'"),
        (["seed=0,,1"], [], "axes such as"),
        (["sed=0"], [], "no setting 'sed'; the nearest are seed"),
        (["out=a,b"], [], "no setting 'out'"),
        (["windows=4"], [], "no setting 'windows'"),
        (["seed=0", "seed=1"], [], "seed is given twice"),
        (["seed=0,x"], [], "--seed: wanted int, got 'x'"),
        (["seed=0,1"], ["--seed", "3"], "--seed: given twice"),
        (["optimizer.peak_lr=0.5,0.50"], [], "two cells are the same"),
        (["seed=0"], ["--stpes", "3"], "--stpes: no such flag; the nearest"),
        (["windows.windows=0"], [], "at least one window of at least 1"),
        (["seed=0", "windows.windows=32"], [], r"--grid seed=0 windows.windows=32: .*"),
    ],
)
def test_what_is_no_grid_is_refused(grid, words, message):
    with pytest.raises(ValueError, match=message):
        train_sweep(grid, words, {})


def test_the_flags_of_a_sweep_and_of_a_run_may_stand_in_any_order():
    words = "--steps 5 --grid seed=0,1 --data.path x y --out=o --windows 4 8"
    own, others = command.divided([*words.split(), "--dry_run", "--seed=3"])
    assert own == "--grid seed=0,1 --out=o --windows 4 8 --dry_run".split()  # noqa: SIM905
    assert others == "--steps 5 --data.path x y --seed=3".split()  # noqa: SIM905


def test_a_dry_run_and_bad_usage_touch_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    words = [*WORDS, "--grid", *GRID, "--out", str(out), "--dry-run"]
    assert command.main(words) == SUCCESS
    assert "6 cells, 6 to run" in capsys.readouterr().out
    assert command.main([*words, "--retry", "seed=9"]) == BAD_INPUT
    assert command.main(words[:2]) == BAD_INPUT
    assert command.main([*words[:-1], "--resume"]) == BAD_INPUT
    assert command.main([*words, "--windows", "0"]) == BAD_INPUT
    assert command.main([*words, "--workers", "0"]) == BAD_INPUT
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in told] == ["sweep:"] * 5
    assert not out.exists()
    with pytest.raises(SystemExit):
        raise SystemExit(command.main(["--help"]))
    assert "--partition" in capsys.readouterr().out


def test_the_summary_has_mean_and_spread_over_the_seeds(tmp_path):
    sweep = train_sweep(GRID, WORDS, {})
    sweep = dataclasses.replace(sweep, run=losses)
    with sweep_folder(tmp_path, sweep) as folder:
        some = [name for name in sweep.cells if name != "windows.windows=32,seed=2"]
        run_sweep(folder, Placement(retry=tuple(some)))
        first, second = write_summary(folder)
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    assert [line["cell"] for line in lines[:5]] == some
    assert lines[0]["axes"] == {"windows.windows": [4, 32], "seed": 0}
    assert lines[0]["windows"]["4"] == {"loss": 0.25, "bits_per_byte": 0.125}
    both, alone = lines[5:]
    assert (both["group"], both["seeds"]) == ({"windows.windows": [4, 32]}, [0, 1, 2])
    assert both["windows"]["32"]["bits_per_byte"] == {
        "mean": 1.125,
        "deviation": 0.125,
        "low": 1.0,
        "high": 1.25,
        "number": 3,
    }
    assert (alone["seeds"], list(alone["windows"])) == ([0, 1], ["32"])
    page = second.read_text()
    assert "# 5 of 6 cells" in page
    assert "| windows.windows | seeds | at window 4 | at window 32 |" in page
    assert "| 4_32 | 0 1 2 | 0.2500 ± 0.1250 (0.1250 to 0.3750) | 1.1250" in page
    assert "| 32 | 0 1 | - | 1.0625 ± 0.0884 (1.0000 to 1.1250) |" in page


def test_a_spread_of_one_has_no_deviation():
    assert spread([3.0])["deviation"] is None


def test_runs_of_other_settings_are_refused_by_name(tmp_path):
    sweep = train_sweep(GRID, WORDS, {})
    with sweep_folder(tmp_path, sweep):
        pass
    SweepFolder(tmp_path, train_sweep((GRID[0], "seed=3"), WORDS, {}))
    with pytest.raises(ValueError, match=r"settings.steps is 7 there and 8 here"):
        SweepFolder(tmp_path, train_sweep(GRID, ["--steps", "8", *WORDS[2:]], {}))
    with pytest.raises(ValueError, match=r"axes is \['windows.windows', 'seed'\]"):
        SweepFolder(tmp_path, train_sweep(["seed=0"], WORDS, {}))


@pytest.mark.slow
def test_two_tiny_runs_are_trained_once_and_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    config = run_config(
        write_corpus(tmp_path / "corpus"),
        model=dataclasses.replace(MODEL, pattern=("swa",), periods=1),
        steps=2,
        windows=WindowSchedule((32,)),
    )
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(to_dict(config)))
    out = tmp_path / "out"
    words = ["--config", str(settings), "--grid", "seed=0,1", "--out", str(out)]
    words += ["--windows", "8"]
    assert command.main(words) == SUCCESS
    lines = [json.loads(x) for x in (out / "summary.jsonl").read_text().splitlines()]
    assert [line.get("cell") for line in lines] == ["seed=0", "seed=1", None]
    assert list(lines[2]["windows"]) == ["8"]
    assert lines[2]["windows"]["8"]["loss"]["number"] == 2
    # A cell that was cut off after its last checkpoint goes on with its run.
    cell = out / "cells" / "seed=1"
    (cell / "result.json").unlink()
    (cell / "run" / "evaluation.json").unlink()
    assert command.main(words) == SUCCESS
    again = [json.loads(x) for x in (out / "summary.jsonl").read_text().splitlines()]
    assert again[0] == lines[0]
    assert again[1]["windows"] == lines[1]["windows"]
    assert "has all its 2 steps" in (cell / "log.txt").read_text()
    assert "written: " in capsys.readouterr().out
