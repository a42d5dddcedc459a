"""The cells of a grid as a sweep: each in a process, with what it was made by."""

import dataclasses
import functools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.kernel_speed.devices import Platform, find_device
from experiments.kernel_speed.provenance import provenance
from experiments.sweep.grid import Sweep, cell_name
from swa_jax.configuration import to_dict

from .config import Cell, Size
from .measure import measure_cell
from .results import CHOSEN
from .training import text

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def sweep_of(size: Size, arguments: Sequence[str], /) -> Sweep:
    """The sweep of a grid, for a command with these arguments."""
    run = functools.partial(run_cell, size=size, arguments=tuple(arguments))
    cells = {name_of(cell): cell for cell in size.cells}
    shared = {name: x for name, x in to_dict(size).items() if name not in CHOSEN}
    return Sweep("stacked_windows", run, cells, shared)


def name_of(cell: Cell, /) -> str:
    """The name of a cell."""
    return cell_name(dataclasses.asdict(cell))


def platform_of(size: Size, /) -> Platform:
    """Where the cells of a grid run."""
    return "gpu" if size.name == "gpu" else "cpu"


def run_cell(
    cell: Cell, _folder: Path, /, *, size: Size, arguments: Sequence[str]
) -> dict[str, Any]:
    """What a cell came to, and where: {"run": ..., "outcome": ...}."""
    device = find_device(platform_of(size))
    with jax.default_device(device):
        outcome = measure_cell(size, cell)
    run = origin(size, device, arguments)
    return {"run": run, "outcome": dataclasses.asdict(outcome)}


def origin(size: Size, device: Any, arguments: Sequence[str], /) -> dict[str, Any]:
    """What a reader needs to judge the numbers and to make them again."""
    found = provenance(
        device_kind=device.device_kind, arguments=arguments, seed=0, packages=PACKAGES
    )
    command = ["python", "-m", "experiments.stacked_windows", *arguments]
    fingerprint = text(size).fingerprint[:12]
    return found | {"command": shlex.join(command), "text": fingerprint}
