"""A study in miniature, whose cells cost nothing: types, functions, a command."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.sweep.study import CellTask, Study
from experiments.sweep.study_command import StudyOptions, study_command
from experiments.sweep.table import Table


@dataclasses.dataclass(frozen=True)
class Cell:
    letter: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Size:
    name: str = "cpu"
    steps: int = 3
    letters: tuple[str, ...] = ("a", "b")
    seeds: int = 2

    @property
    def cells(self) -> list[Cell]:
        return [Cell(x, seed) for x in self.letters for seed in range(self.seeds)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    loss: float


class Losses(Table[Size, Cell, Outcome]):
    size_type, cell_type, outcome_type = Size, Cell, Outcome
    chosen = ("letters", "seeds")


def outcome(size: Size, cell: Cell) -> Outcome:
    if cell.letter == "x":
        raise ArithmeticError("x has no loss")
    return Outcome(size.steps / (1 + cell.seed))


def fingerprint(size: Size, cells: Sequence[Cell]) -> str | None:
    return "abc" if any(cell.letter == "a" for cell in cells) else None


def write(table: Losses) -> list[Path]:
    if not table.outcomes:
        raise ValueError(f"{table.path} has no finished cell")
    page = table.path.with_suffix(".md")
    page.write_text(str(len(table.outcomes)), encoding="utf-8")
    return [page]


@dataclasses.dataclass(frozen=True)
class Options(StudyOptions):
    """Say the loss of every letter.

    Attributes:
        letters: those to say.
    """

    letters: tuple[str, ...] = ("a", "b")


def study(results: Path, /) -> Study:
    task = CellTask("letters", outcome, fingerprint)
    return Study(task, lambda size: size.cells, Losses, write, results)


def chosen_size(options: Options, /) -> Size:
    seeds = 2 if options.seeds is None else options.seeds
    return Size(letters=options.letters, seeds=seeds)


def main(results: Path, arguments: Sequence[str]) -> int:
    return study_command(study(results), Options, chosen_size, arguments)
