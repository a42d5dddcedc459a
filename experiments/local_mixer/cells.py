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
from .results import CHOSEN
from .tasks import text
from .training import Programs, compile_programs, train_cell

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def sweep_of(size: Size, arguments: Sequence[str], /) -> Sweep:
    """The sweep of a grid, for a command with these arguments."""
    run = functools.partial(run_cell, size=size, arguments=tuple(arguments))
    cells = {name_of(cell): cell for cell in size.cells}
    shared = {name: x for name, x in to_dict(size).items() if name not in CHOSEN}
    return Sweep("local_mixer", run, cells, shared)


def name_of(cell: Cell, /) -> str:
    """The name of a cell."""
    return cell_name(dataclasses.asdict(cell))


def platform_of(size: Size, /) -> Platform:
    """Where the cells of a grid run."""
    return "gpu" if size.name.startswith("gpu") else "cpu"


def run_cell(
    cell: Cell, _folder: Path, /, *, size: Size, arguments: Sequence[str]
) -> dict[str, Any]:
    """What a cell came to, and where: {"run": ..., "outcome": ...}."""
    device = find_device(platform_of(size))
    with jax.default_device(device):
        programs = _programs(size, cell.local, cell.mixer)
        outcome = train_cell(size, cell, programs)
    run = origin(size, device, arguments, text_too=cell.task == "code")
    return {"run": run, "outcome": dataclasses.asdict(outcome)}


@functools.lru_cache(maxsize=1)
def _programs(size: Size, local: str, mixer: str) -> Programs:
    """What a process has compiled last: it runs the cells of one model in a row."""
    return compile_programs(size, local, mixer)


def origin(
    size: Size, device: Any, arguments: Sequence[str], /, *, text_too: bool
) -> dict[str, Any]:
    """What a reader needs to judge the numbers and to make them again."""
    found = provenance(
        device_kind=device.device_kind, arguments=arguments, seed=0, packages=PACKAGES
    )
    command = ["python", "-m", "experiments.local_mixer", *arguments]
    fingerprint = text(size).fingerprint[:12] if text_too else None
    return found | {"command": shlex.join(command), "text": fingerprint}
