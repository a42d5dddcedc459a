"""The command `python -m experiments.local_mixer`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.sweep.study import CellTask, Study
from experiments.sweep.study_command import Names, StudyOptions, study_command

from .config import SIZES, Match, Size, Task
from .models import cell_model
from .report import write
from .results import Results
from .tasks import fingerprint
from .training import train_cell

STUDY = Study(
    task=CellTask("local_mixer", train_cell, fingerprint),
    cells=lambda size: size.cells,
    table=Results,
    write=write,
    results=Path(__file__).parent / "results",
)


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Train every local mixer in front of every global one, and compare.

    Attributes:
        size: cpu and gpu: the grid; designs: those of ShortSWA, on a CPU. With `match`
            the results are named by both.
        locals: local mixers; none given: the size's.
        mixers: global mixers; none given: the size's.
        tasks: recall, copy, code; none given: all.
        match: what all models have alike; not given: the size's, parameters.
    """

    size: Literal["cpu", "gpu", "designs"] = "cpu"
    locals: Names = ()
    mixers: Names = ()
    tasks: Annotated[tuple[Task, ...], tyro.conf.arg(metavar="[...]")] = ()
    match: Match | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code, as `study_command`."""
    return study_command(STUDY, Options, chosen_size, arguments)


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    size = SIZES["quick" if options.quick else options.size]
    if options.match not in (None, size.match):
        size = dataclasses.replace(
            size, name=f"{size.name}-{options.match}", match=options.match
        )
    names = ("locals", "mixers", "tasks", "seeds")
    given = {name: getattr(options, name) for name in names}
    changed = {name: value for name, value in given.items() if value not in ((), None)}
    size = dataclasses.replace(size, **changed)
    for local, mixer in size.models:
        cell_model(size, local, mixer)  # a mixer that is too large is told at once
    return size


if __name__ == "__main__":
    sys.exit(main())
