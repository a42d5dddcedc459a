"""The command `python -m experiments.stacked_windows`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.sweep.study import CellTask, Study
from experiments.sweep.study_command import StudyOptions, study_command

from .config import SIZES, Size
from .measure import measure_cell
from .report import write
from .results import Results
from .training import fingerprint

STUDY = Study(
    task=CellTask("stacked_windows", measure_cell, fingerprint),
    cells=lambda size: size.cells,
    table=Results,
    write=write,
    results=Path(__file__).parent / "results",
)


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Measure the influence of inputs on outputs by distance, against every formula.

    Attributes:
        size: cpu or gpu: the grid.
        random_only: leave out the trained models.
    """

    size: Literal["cpu", "gpu"] = "cpu"
    random_only: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code, as `study_command`."""
    return study_command(STUDY, Options, chosen_size, arguments)


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    size = SIZES["quick" if options.quick else options.size]
    if options.random_only:
        size = dataclasses.replace(size, trained=())
    if options.seeds is not None:
        size = dataclasses.replace(size, seeds=options.seeds)
    return size


if __name__ == "__main__":
    sys.exit(main())
