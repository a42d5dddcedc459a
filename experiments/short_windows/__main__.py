"""The command `python -m experiments.short_windows`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.sweep.study import CellTask, Study
from experiments.sweep.study_command import Names, StudyOptions, study_command

from .config import SIZES, Size
from .corpus import fingerprint
from .models import arm_model, arms_of
from .report import write
from .results import Results
from .training import train_cell

STUDY = Study(
    task=CellTask("short_windows", train_cell, fingerprint),
    cells=lambda size: size.cells,
    table=Results,
    write=write,
    results=Path(__file__).parent / "results",
)


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Train every arm, and compare what they remember.

    Attributes:
        size: cpu or gpu.
        arms: names of arms; none given: all.
    """

    size: Literal["cpu", "gpu"] = "cpu"
    arms: Names = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code, as `study_command`."""
    return study_command(STUDY, Options, chosen_size, arguments)


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    size = SIZES["quick" if options.quick else options.size]
    known = arms_of(size)
    arms = options.arms or size.arms or tuple(known)
    if unknown := sorted(set(arms) - set(known)):
        raise ValueError(
            f"--arms: wanted some of {', '.join(known)}; got {', '.join(unknown)}"
        )
    seeds = size.seeds if options.seeds is None else options.seeds
    size = dataclasses.replace(size, arms=arms, seeds=seeds)
    for arm in arms:
        arm_model(size, arm)  # one that is too large is told at once
    return size


if __name__ == "__main__":
    sys.exit(main())
