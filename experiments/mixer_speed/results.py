"""The numbers of a size: lines of JSON, one for each run and each row."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swa_jax.configuration import differences, from_dict, to_dict

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
        for line in _lines(path):
            if "run" in line:
                self.runs.append(line["run"])
                _check_same(path, from_dict(Size, line["run"]["size"]), size)
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
        for run in self.runs[-1:]:
            other = [name for name in SHARED if run.get(name) != provenance.get(name)]
            if other:
                was = ", ".join(f"{name} {run.get(name)}" for name in other)
                raise ValueError(
                    f"{self.path} was measured with {was}; this run would differ. Move "
                    "the file away, or choose another --out."
                )
        self.runs.append(provenance | {"size": to_dict(self.size)})
        # Written anew, because the last line may have been cut off.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"run": run}) for run in self.runs]
        text = "".join(f"{line}\n" for line in [*lines, *map(_line, self.rows)])
        self.path.write_text(text, encoding="utf-8")

    def add(self, rows: Sequence[BlockRow | StepRow], /) -> None:
        """Returns nothing; the rows are in the file."""
        for row in rows:
            self._keep(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{_line(row)}\n" for row in rows))

    def _keep(self, row: BlockRow | StepRow) -> None:
        if isinstance(row, BlockRow):
            self.blocks[row.layer, row.part] = row
        else:
            self.steps[row.layer, row.layers] = row


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _check_same(path: Path, old: Size, new: Size) -> None:
    changed = dict.fromkeys(name.partition(".")[0] for name in differences(old, new))
    other = [name for name in changed if name not in CHOSEN]
    if other:
        raise ValueError(
            f"{path} was measured with another configuration ({', '.join(other)} "
            "differ); move it away, or choose another --out."
        )


def _line(row: BlockRow | StepRow) -> str:
    kind = "block" if isinstance(row, BlockRow) else "step"
    return json.dumps({kind: to_dict(row)}, allow_nan=False)
