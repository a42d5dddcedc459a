"""A study's table and command: resuming, provenance, refusals, failures."""

import dataclasses
import json

import pytest

from experiments.sweep import run, study_command
from experiments.sweep.run import BAD_INPUT, FAILED, SUCCESS
from experiments.sweep.study import origin, platform_of
from tests.experiments.study_cells import Cell, Losses, Outcome, Size, main, study

RUN = {"device": "cpu", "jax": "1", "jaxlib": "1", "numpy": "2", "text": "abc"}


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_table_goes_on_behind_a_line_that_was_cut_off(tmp_path):
    path, size = tmp_path / "cpu.jsonl", Size()
    table = Losses(path, size)
    first, second, third, _ = size.cells
    table.add(first, Outcome(0.5), RUN | {"date": "today"})
    table.add(second, Outcome(0.25), RUN | {"date": "a second later"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"cell": {"let')  # a command was killed here
    again = Losses(path, size)
    assert (
        again.outcomes
        == table.outcomes
        == {
            first: Outcome(0.5),
            second: Outcome(0.25),
        }
    )
    again.add(third, Outcome(1.0), RUN | {"command": "another"})
    kinds = [next(iter(line)) for line in lines_of(path)]
    assert kinds == ["run", "run", "cell", "cell", "cell"]
    assert len(Losses(path, size).outcomes) == 3


def test_a_larger_part_of_the_grid_has_the_same_table(tmp_path):
    path = tmp_path / "cpu.jsonl"
    Losses(path, Size()).add(Cell("a", 0), Outcome(0.5), RUN)
    assert len(Losses(path, Size(letters=("a", "b", "c"), seeds=5)).outcomes) == 1


def test_what_does_not_belong_together_is_refused(tmp_path):
    path = tmp_path / "cpu.jsonl"
    Losses(path, Size()).add(Cell("a", 0), Outcome(0.5), RUN)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="steps differ"):
        Losses(path, Size(steps=5))
    table = Losses(path, Size())
    for name in ("device", "jax", "jaxlib", "numpy", "text"):
        with pytest.raises(ValueError, match=f"made with {name} .*would differ"):
            table.add(Cell("a", 1), Outcome(0.5), RUN | {name: "another"})
    assert path.read_bytes() == before
    table.check(RUN | {"text": None})  # a run that read no text


def test_the_origin_says_what_a_cell_was_made_by(tmp_path):
    task, size = study(tmp_path).task, Size()
    found = origin(task, size, size.cells, ["--seeds", "2"])
    assert found["command"] == "python -m experiments.letters --seeds 2"
    assert found["text"] == "abc"
    assert origin(task, size, [Cell("b", 0)], [])["text"] is None
    assert platform_of(Size(name="gpu-flops")) == "gpu"
    assert platform_of(size) == "cpu"


def test_a_command_fills_its_table_once_and_writes_again(tmp_path, capsys, monkeypatch):
    assert main(tmp_path, ["--dry-run"]) == SUCCESS
    assert "4 cells, 4 to run" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    assert main(tmp_path, ["--plot"]) == BAD_INPUT
    assert "has no finished cell" in capsys.readouterr().err
    arguments = ["--workers", "1"]
    assert main(tmp_path, arguments) == SUCCESS
    path = tmp_path / "cpu.jsonl"
    found = Losses(path, Size()).outcomes
    assert found == {x: Outcome(3 / (1 + x.seed)) for x in Size().cells}
    assert [next(iter(line)) for line in lines_of(path)] == ["run", *["cell"] * 4]
    before = path.read_bytes()

    def run_locally(*_, **__):
        raise AssertionError("there is nothing left to run")

    monkeypatch.setattr(run, "run_locally", run_locally)
    assert main(tmp_path, arguments) == SUCCESS
    assert main(tmp_path, ["--plot"]) == SUCCESS
    assert path.read_bytes() == before
    assert (tmp_path / "cpu.md").read_text() == "4"
    # The command was killed between a cell's result and the line for it.
    path.unlink()
    assert main(tmp_path, arguments) == SUCCESS
    assert Losses(path, Size()).outcomes == found


def test_a_cell_that_fails_is_told_and_nothing_is_lost(tmp_path, capsys, monkeypatch):
    arguments = ["--letters", "a", "x", "--seeds", "1", "--workers", "1"]
    assert main(tmp_path, arguments) == FAILED
    told = capsys.readouterr()
    assert "1 failed. The same command runs what is missing" in told.err
    assert "--retry letter=x,seed=0" in told.err
    assert "x has no loss" in told.err
    assert list(Losses(tmp_path / "cpu.jsonl", Size()).outcomes) == [Cell("a", 0)]
    # Cells of another version do not join them.
    other = {"device": "cpu", "jax": "0"}
    monkeypatch.setattr(study_command, "origin", lambda *_: other)
    assert main(tmp_path, arguments) == BAD_INPUT
    assert "this run would differ" in capsys.readouterr().err


def test_quick_results_go_to_a_temporary_folder(tmp_path, capsys):
    assert main(tmp_path, ["--quick", "--letters", "b", "--workers", "1"]) == SUCCESS
    assert not any(tmp_path.iterdir())
    assert "written: " in capsys.readouterr().out


def test_only_the_named_fields_may_change(tmp_path):
    sweep = study(tmp_path).sweep(Size(), [])
    assert sweep.shared == {"name": "cpu", "steps": 3}
    assert list(sweep.cells) == [
        f"letter={x.letter},seed={x.seed}" for x in Size().cells
    ]
    assert dataclasses.asdict(sweep.cells["letter=b,seed=1"]) == {
        "letter": "b",
        "seed": 1,
    }
