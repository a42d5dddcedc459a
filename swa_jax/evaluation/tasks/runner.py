"""Tasks, cell by cell: what is done is kept, and what is kept is not done again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from swa_jax.evaluation.tasks.progress import CellProgress
from swa_jax.evaluation.tasks.results import (
    TASKS_FOLDER,
    Line,
    Origin,
    ResultFile,
    finite,
    results_path,
)
from swa_jax.evaluation.tasks.rows_on_devices import everywhere
from swa_jax.evaluation.tasks.task import Subject, Task, settings_of
from swa_jax.training.lock import locked


def run_tasks(
    tasks: Sequence[Task],
    subject: Subject,
    folder: Path,
    /,
    *,
    origin: Origin,
    console: Console | None = None,
) -> dict[str, list[Line]]:
    """Returns the results of each task, by its name, in the order of its cells.

    A cell whose result is in `folder`/tasks/NAME.jsonl, of this model and these
    settings, is not judged again; that of any other is appended there at once. So an
    evaluation that was killed goes on where it was, and its file is that of one that
    was not. `console`: where progress is shown; None: standard error.

    Raises ValueError where another process evaluates this run, or where a file there is
    no file of results; what a task raises; and KeyboardInterrupt, with what is saved.
    """
    subject = subject._replace(params=everywhere(subject.params))
    with locked(folder / TASKS_FOLDER, doing="evaluates tasks"):
        return {
            task.name: _run_task(task, subject, folder, origin, console)
            for task in tasks
        }


def _run_task(
    task: Task, subject: Subject, folder: Path, origin: Origin, console: Console | None
) -> list[Line]:
    lines, path = [], results_path(folder, task.name)
    cells = task.cells()
    wanted = [_line(task, origin, cell) for cell in cells]
    with ResultFile(path) as file:
        done = sum(file.find(line) is not None for line in wanted)
        progress = CellProgress(task.name, cells, done=done, console=console)
        try:
            with progress:
                for line in wanted:
                    found = file.find(line)
                    if found is None:
                        result = finite(task.judge(subject, line["cell"]))
                        found = file.add({**line, "result": result})
                        progress.judged(found)
                    lines.append(found)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{progress.done} of {len(wanted)} cells of {task.name} are in {path}; "
                "the same command goes on"
            ) from None
    return lines


def _line(task: Task, origin: Origin, cell: Any) -> Line:
    """Returns the line of a cell but for its result."""
    return {
        "task": task.name,
        "run": origin.run,
        "step": origin.step,
        "settings": settings_of(task),
        "cell": dict(cell),
    }
