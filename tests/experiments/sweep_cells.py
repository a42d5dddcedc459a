"""Cells of sweeps that take no time, for processes that import them."""

import os
import signal
import time
from pathlib import Path

from experiments.sweep.grid import Sweep
from swa_jax.training.interrupt import Stopped, stop_on_signals


def run(cell: dict, folder: Path) -> dict:
    """Returns the square of the cell's number, or does what the cell asks for."""
    print(f"number {cell['number']} in process {os.getpid()}", flush=True)
    with (folder / "attempts").open("a") as file:
        file.write("x\n")
    # Faults that can be mended: while the file is there, the cell has them.
    if "while" not in cell or Path(cell["while"]).exists():
        _misbehave(cell.get("fault"), folder)
    return {"square": cell["number"] ** 2, "process": os.getpid()}


def _misbehave(fault: str | None, folder: Path) -> None:
    if fault == "raise":
        raise RuntimeError("the number is\x1b[2J odd")
    if fault == "exit":
        os._exit(7)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "meet":  # another cell that is under way
        _wait_for("*/attempts", 2, folder)
    if fault == "last":  # of six
        _wait_for("*/result.json", 5, folder)
    if fault == "hang":
        (folder / "hanging").touch()
        time.sleep(60)


def _wait_for(pattern: str, count: int, folder: Path) -> None:
    end = time.monotonic() + 30
    while len(list(folder.parent.glob(pattern))) < count:
        if time.monotonic() > end:
            raise RuntimeError("nobody came")
        time.sleep(0.01)


def cores(cell: dict, folder: Path) -> dict:
    """Returns the cores that the cell's process may run on, once two are under way."""
    (folder / "attempts").touch()
    _wait_for("*/attempts", 2, folder)
    return {"cores": sorted(os.sched_getaffinity(0))}


def not_a_number(cell: dict, folder: Path) -> dict:
    """Returns a result that JSON does not have."""
    return {"loss": float("nan")}


def save_and_go_on(cell: dict, folder: Path) -> dict:
    """Counts to the cell's number in the folder, and stops as a training does.

    Half way it gets the signal that Slurm sends before the time is over.
    """
    path, wanted = folder / "counted", cell["number"]
    with stop_on_signals() as stop:
        while (count := len(path.read_text()) if path.exists() else 0) < wanted:
            if stop.number is not None:
                (folder / "saved").write_text(str(count))
                raise Stopped("saved", number=stop.number)
            path.write_text("x" * (count + 1))
            if count + 1 == wanted // 2:
                os.kill(os.getpid(), signal.SIGUSR2)
    return {"counted": count, "process": os.getpid()}


def sweep(count: int = 4, *, function=run, shared=None, **faults: str) -> Sweep:
    """Returns a sweep of numbered cells; faults by name, as in `number_2="raise"`."""
    cells = {f"number={n}": {"number": n} for n in range(count)}
    for name, fault in faults.items():
        cells[name.replace("_", "=")]["fault"] = fault
    return Sweep("tiny", function, cells, shared or {"size": 1})
