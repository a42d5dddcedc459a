"""A grid of training runs: `swax train`, once for each combination of settings."""

import dataclasses
import difflib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swa_jax.commands.evaluate import evaluate_folder
from swa_jax.commands.text_values import takes_many
from swa_jax.commands.train import train_and_report
from swa_jax.commands.train_arguments import Train, train_arguments
from swa_jax.configuration import leaf_hints, plain
from swa_jax.evaluation.final import MAX_TOKENS
from swa_jax.evaluation.run_record import EVALUATION_FILE
from swa_jax.training.config import RunConfig
from swa_jax.training.run import CONFIG_FILE

from .grid import Sweep, cell_name

RUN_FOLDER = "run"  # of a cell's folder
NOT_FOR_CELLS = ("out", "resume", "dry_run")

Axes = dict[tuple[str, ...], list[str]]  # texts of the values, by the field's path


@dataclasses.dataclass(frozen=True)
class TrainCell:
    """A training run of the grid, and the windows (tokens) to evaluate it at.

    No windows: the smallest and the largest that it was trained with.
    """

    config: RunConfig
    windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.windows, default=1) < 1:
            raise ValueError(f"--windows wants tokens, at least 1; got {self.windows}")


def train_cell(cell: TrainCell, folder: Path, /) -> dict[str, Any]:
    """The run's last losses by window; goes on with the run that the folder has."""
    run = folder / RUN_FOLDER
    resume = (run / CONFIG_FILE).is_file()
    train_and_report(cell.config, out=run, resume=resume)
    if cell.windows:
        evaluate_folder(run, step="newest", windows=cell.windows, max_tokens=MAX_TOKENS)
    evaluation = json.loads((run / EVALUATION_FILE).read_text(encoding="utf-8"))
    kept = ("loss", "bits_per_byte")
    return {
        "step": evaluation["step"],
        "windows": {
            window: {name: values[name] for name in kept}
            for window, values in evaluation["windows"].items()
        },
    }


def train_sweep(
    grid: Sequence[str],
    words: Sequence[str],
    environment: Mapping[str, str],
    /,
    *,
    windows: tuple[int, ...] = (),
) -> Sweep:
    """The sweep of axes such as "seed=0,1,2", over the settings of `swax train`.

    `words` are flags of `swax train`. A value of several words has spaces between them,
    as in "windows.windows=128 2048,2048". Raises ValueError and FileNotFoundError, with
    one line, for what `swax train` does not take.
    """
    axes = read_axes(grid)
    cells: dict[str, TrainCell] = {}
    for texts in itertools.product(*axes.values()):
        asked = _asked(dict(zip(axes, texts, strict=True)), words, environment)
        for name in NOT_FOR_CELLS:
            if getattr(asked, name):
                raise ValueError(f"--{name.replace('_', '-')} is not for single cells")
        values = {".".join(path): _value(asked.config, path) for path in axes}
        name = cell_name(values)
        if name in cells:
            raise ValueError(f"--grid: two cells are the same, {name}; leave one out")
        cells[name] = TrainCell(asked.config, windows)
    return Sweep("sweep", train_cell, cells, _shared(axes, cells, windows))


def axes_of(sweep: Sweep, name: str, /) -> dict[str, Any]:
    """The values of a cell on the grid's axes, by the dotted names of the fields."""
    config = sweep.cells[name].config
    return {
        axis: plain(_value(config, tuple(axis.split("."))))
        for axis in sweep.shared["axes"]
    }


def read_axes(grid: Sequence[str], /) -> Axes:
    """The axes of a grid; raises ValueError for one that is no field of a run's."""
    fields = leaf_hints(RunConfig)
    names = [".".join(path) for path in fields]
    axes: Axes = {}
    for word in grid:
        name, equals, text = word.partition("=")
        texts = text.split(",")
        if not equals or not all(x.strip() for x in texts):
            raise ValueError(f"--grid wants axes such as seed=0,1,2, got {word[:80]!r}")
        path = tuple(name.replace("-", "_").split("."))
        if path not in fields:
            near = difflib.get_close_matches(
                ".".join(path)[:80], names, n=3, cutoff=0.5
            )
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise ValueError(f"--grid: a run has no setting {name[:80]!r}{hint}")
        if path in axes:
            raise ValueError(f"--grid: {name} is given twice; give it once")
        axes[path] = texts
    if not axes:
        raise ValueError("--grid: missing; wanted axes such as seed=0,1,2")
    return axes


def _asked(
    texts: Mapping[tuple[str, ...], str],
    words: Sequence[str],
    environment: Mapping[str, str],
) -> Train:
    """What one cell asks of `swax train`; an error says which cell it is of."""
    try:
        return train_arguments([*words, *_flags(texts)], environment)
    except ValueError as error:
        place = " ".join(f"{'.'.join(path)}={text}" for path, text in texts.items())
        raise ValueError(f"--grid {place}: {error}") from None


def _flags(texts: Mapping[tuple[str, ...], str]) -> list[str]:
    """The flags of `swax train` that give an axis' values."""
    hints, flags = leaf_hints(RunConfig), []
    for path, text in texts.items():
        flag = "--" + ".".join(path).replace("_", "-")
        if takes_many(hints[path]):
            flags += [flag, *text.split()]
        else:
            flags.append(f"{flag}={text.strip()}")
    return flags


def _value(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _shared(
    axes: Axes, cells: Mapping[str, TrainCell], windows: tuple[int, ...]
) -> dict[str, Any]:
    """What is alike in all cells: fields that no axis has, or their presets' if that
    is an axis."""
    names = [".".join(path) for path in axes]
    shared: dict[str, Any] = {"axes": names, "evaluated_windows": list(windows)}
    if "preset" in names:
        return shared
    settings = plain(next(iter(cells.values())).config)
    for path in axes:
        *parts, last = path
        inner = settings
        for part in parts:
            inner = inner[part]
        del inner[last]
    return shared | {"settings": settings}
