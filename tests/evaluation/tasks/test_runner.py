"""Cells are judged once, whatever ends the process; what is kept is what is shown."""

import io
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swa_jax.evaluation.tasks.registry import TASKS, Choices, make_task, names_in
from swa_jax.evaluation.tasks.results import (
    Origin,
    ResultFile,
    origin_of,
    read_results,
    results_path,
)
from swa_jax.evaluation.tasks.runner import run_tasks
from swa_jax.evaluation.tasks.task import AXIS, Cell, Subject, settings_of
from swa_jax.training.lock import locked
from tests.training.tiny import run_config

ORIGIN = Origin("a" * 16, 100)
SUBJECT: Any = Subject(None, {}, None, 0, None)  # type: ignore[arg-type]
judged: list[int] = []  # cells, in this process


@dataclass(frozen=True)
class Squares:
    """Squares numbers; stops or sleeps at one of them."""

    numbers: tuple[int, ...] = field(metadata=AXIS)
    scale: float = 1.0
    stop_at: int | None = field(default=None, metadata=AXIS)
    seconds: float = field(default=0.0, metadata=AXIS)
    name: str = "squares"

    def cells(self) -> list[Cell]:
        return [{"number": number, "parts": [number, "x"]} for number in self.numbers]

    def judge(self, subject: Subject, cell: Cell, /) -> dict[str, Any]:
        number = cell["number"]
        if number == self.stop_at:
            raise KeyboardInterrupt
        judged.append(number)
        time.sleep(self.seconds)
        return {"square": self.scale * number**2 / 3, "nothing": [math.nan]}


WHOLE = Squares((1, 2, 3, 4, 5))


def run(folder: Path, task: Squares, origin: Origin = ORIGIN) -> list[dict]:
    """Returns the results; `judged` has the cells that were new."""
    judged.clear()
    console = Console(file=io.StringIO())
    return run_tasks([task], SUBJECT, folder, origin=origin, console=console)[task.name]


def content(folder: Path) -> bytes:
    return results_path(folder, "squares").read_bytes()


def test_an_interrupted_evaluation_goes_on_and_ends_as_one_that_was_not(tmp_path):
    whole = run(tmp_path / "whole", WHOLE)
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt, match=r"2 of 5 cells .* command goes on"):
        run(part, Squares(WHOLE.numbers, stop_at=3))
    assert content(tmp_path / "whole").startswith(content(part))
    # As kill -9 in the middle of a line leaves it.
    with results_path(part, "squares").open("ab") as file:
        file.write(b'{"task": "squares", "run": "aaaa')
    assert len(read_results(results_path(part, "squares"))) == 2
    assert run(part, WHOLE) == whole
    assert judged == [3, 4, 5]
    assert content(part) == content(tmp_path / "whole")
    assert run(part, WHOLE) == whole
    assert judged == []


def test_a_killed_process_leaves_whole_lines_and_another_one_goes_on(tmp_path):
    script = (
        "from pathlib import Path\n"
        "from tests.evaluation.tasks.test_runner import Squares, run\n"
        f"run(Path({str(tmp_path)!r}), Squares((1, 2, 3, 4, 5), seconds=0.3))\n"
    )
    root = Path(__file__).parents[3]
    variables = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen([sys.executable, "-c", script], env=variables, cwd=root)
    path = results_path(tmp_path, "squares")
    end = time.monotonic() + 120
    while not (path.exists() and b"\n" in path.read_bytes()):
        assert time.monotonic() < end
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = len(read_results(path))
    assert 1 <= done < 5
    lines = run(tmp_path, WHOLE)
    assert judged == [1, 2, 3, 4, 5][done:]
    assert lines == run(tmp_path / "whole", WHOLE)
    assert path.read_bytes() == content(tmp_path / "whole")


def test_a_line_says_all_that_it_depends_on(tmp_path):
    [line] = run(tmp_path, Squares((2,)))
    assert line == {
        "task": "squares",
        "run": ORIGIN.run,
        "step": 100,
        "settings": {"name": "squares", "scale": 1.0},
        "cell": {"number": 2, "parts": [2, "x"]},
        "result": {"square": 4 / 3, "nothing": [None]},
    }


def test_another_model_or_setting_is_judged_anew_and_a_longer_axis_is_not(tmp_path):
    run(tmp_path, WHOLE)
    run(tmp_path, Squares((0, 1, 2)))
    assert judged == [0]
    run(tmp_path, Squares((1, 2), scale=2.0))
    assert judged == [1, 2]
    run(tmp_path, Squares((1, 2), scale=2.0), Origin("b" * 16, 200))
    assert judged == [1, 2]
    latest = read_results(results_path(tmp_path, "squares"))
    assert [(line["step"], line["cell"]["number"]) for line in latest] == [
        (200, 1),
        (200, 2),
    ]
    assert run(tmp_path, WHOLE)[1]["result"]["square"] == 4 / 3
    assert judged == []


def test_of_one_cell_the_later_setting_is_shown(tmp_path):
    run(tmp_path, Squares((1, 2)))
    run(tmp_path, Squares((1,), scale=3.0))
    latest = read_results(results_path(tmp_path, "squares"))
    squares = {line["cell"]["number"]: line["result"]["square"] for line in latest}
    assert squares == {1: 1.0, 2: 4 / 3}
    assert read_results(tmp_path / "nothing.jsonl") == []


def test_the_origin_tells_models_apart():
    config = run_config()
    origins = {
        origin_of(config, "text", 3),
        origin_of(config, "text", 3),
        origin_of(config, "text", 6),
        origin_of(config, "other", 3),
        origin_of(run_config(steps=13), "text", 3),
    }
    assert len(origins) == len({origin.run for origin in origins}) == 4


def test_one_process_at_a_time(tmp_path):
    with (
        locked(tmp_path / "tasks", doing="evaluates tasks"),
        pytest.raises(ValueError, match=r"in use: process \d+ .* evaluates tasks"),
    ):
        run(tmp_path, WHOLE)
    assert judged == []


@pytest.mark.parametrize("broken", ["not JSON", "[1]", '{"task": "squares"}'])
def test_a_line_that_is_no_result_is_named(tmp_path, broken):
    run(tmp_path, Squares((1,)))
    path = results_path(tmp_path, "squares")
    with path.open("a") as file:
        file.write(f"{broken}\n")
    for read in (read_results, ResultFile):
        with pytest.raises(ValueError, match=r"squares.jsonl, line 2: wanted an obj"):
            read(path)


def test_progress_is_lines_where_there_is_no_terminal(tmp_path):
    shown = io.StringIO()
    run(tmp_path, Squares((1,)))
    for terminal in (False, True):
        console = Console(file=shown, force_terminal=terminal, width=100)
        run_tasks([WHOLE], SUBJECT, tmp_path, origin=ORIGIN, console=console)
        if not terminal:
            lines = shown.getvalue().splitlines()
            assert lines[0] == "squares 1/5  from before"
            assert lines[-1] == "squares 5/5  number 5 parts [5, 'x']  0 s left"
            assert len(lines) == 3  # the first that is new, and the last
    assert "\x1b[" in shown.getvalue()


def test_names_of_tasks():
    assert names_in(["recall,copy", "parity", "copy"]) == ("recall", "copy", "parity")
    assert names_in([",", ""]) == ()
    with pytest.raises(ValueError, match=r"--tasks: 'needles' is no task; wanted some"):
        names_in(["recall,needles"])


def test_every_task_of_the_table_can_be_made():
    choices = Choices(windows=(16, 32), lengths=(256,))
    for name in TASKS:
        task = make_task(name, choices)
        assert task.name == name
        cells = task.cells()
        assert {cell["window"] for cell in cells} == {16, 32}
        grown = make_task(name, choices._replace(windows=(16, 32, 64)))
        assert settings_of(task) == settings_of(grown)
