"""The numbers of a size: lines of JSON, one for each run and each row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sweep.lines import (
    append_lines,
    check_same_configuration,
    check_same_origin,
    read_lines,
    write_lines,
)
from swa_jax.configuration import from_dict, to_dict

from .config import Layer, Size
from .rows import BlockRow, StepRow

# What all rows of one page must share.
SHARED = ("source", "device", "jax", "jaxlib")
# What a run may choose anew: how long it reads, and what it measures of the grid.
CHOSEN = ("readings", "mixers")


class Results:
    """The rows of a size, in a file to which a run adds."""

    def __init__(self, path: Path, size: Size, /):
        """Reads what the file has; a last line that was cut off does not count.

        Raises ValueError for a file of another configuration.
        """
        self.path = path
        self.size = size
        self.runs: list[dict[str, Any]] = []
        self.blocks: dict[tuple[Layer, str], BlockRow] = {}
        self.steps: dict[tuple[Layer, int], StepRow] = {}
        for line in read_lines(path):
            if "run" in line:
                self.runs.append(line["run"])
                old = from_dict(Size, line["run"]["size"])
                check_same_configuration(path, old, size, chosen=CHOSEN)
            elif "block" in line:
                self._keep(from_dict(BlockRow, line["block"]))
            else:
                self._keep(from_dict(StepRow, line["step"]))

    @property
    def rows(self) -> list[BlockRow | StepRow]:
        """All rows, in the order in which they were measured."""
        return [*self.blocks.values(), *self.steps.values()]

    @property
    def peak(self) -> float:
        """The fastest matmul of all runs, FLOP/s."""
        return max(run["matmul_flops_per_second"] for run in self.runs)

    def has_blocks(self, mixer: str, /) -> bool:
        """Returns whether every layer of a global mixer has been measured."""
        there = {layer.local for layer, _ in self.blocks if layer.mixer == mixer}
        return there >= set(self.size.locals_before(mixer))

    def has_steps(self, mixer: str, /) -> bool:
        """Returns whether the training steps of a global mixer have been measured."""
        return any(layer.mixer == mixer for layer, _ in self.steps)

    def begin(self, provenance: dict[str, Any], /) -> None:
        """Returns nothing; notes that the lines to come are of this run.

        Raises ValueError where they cannot stand on one page with those there.
        """
        check_same_origin(self.path, self.runs[-1:], provenance, names=SHARED)
        self.runs.append(provenance | {"size": to_dict(self.size)})
        # Written anew, because the last line may have been cut off.
        lines = [{"run": run} for run in self.runs]
        write_lines(self.path, [*lines, *map(_line, self.rows)])

    def add(self, rows: Sequence[BlockRow | StepRow], /) -> None:
        """Returns nothing; the rows are in the file."""
        for row in rows:
            self._keep(row)
        append_lines(self.path, map(_line, rows))

    def _keep(self, row: BlockRow | StepRow) -> None:
        if isinstance(row, BlockRow):
            self.blocks[row.layer, row.part] = row
        else:
            self.steps[row.layer, row.layers] = row


def _line(row: BlockRow | StepRow) -> dict[str, Any]:
    kind = "block" if isinstance(row, BlockRow) else "step"
    return {kind: to_dict(row)}
