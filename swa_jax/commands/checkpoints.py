"""``swax checkpoints``: what a run has saved, and whether it is whole."""

from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.manifest import total_bytes
from swa_jax.training.run import CHECKPOINT_FOLDER, read_config


class Found(NamedTuple):
    """What is on disk of a checkpoint."""

    size: int  # bytes
    damage: str | None
    loss: float | None  # validation, where there is one that can be trusted


def print_checkpoints(run: Path, /) -> None:
    """Prints a line for each checkpoint of a run, which may be in progress.

    Raises FileNotFoundError where there is no run, and then OSError if one is damaged.
    """
    read_config(run)
    with Checkpoints(run / CHECKPOINT_FOLDER) as checkpoints:
        looked_at = {step: _look_at(checkpoints, step) for step in checkpoints.steps()}
        best = checkpoints.best_step()
    found = {step: one for step, one in looked_at.items() if one is not None}
    if found:
        table = _table(found, best)
        Console(soft_wrap=True, highlight=False, markup=False).print(table)
    else:
        print(f"no checkpoint in {checkpoints.folder}")
    damage = {step: one.damage for step, one in found.items() if one.damage is not None}
    for step, words in damage.items():
        print(f"step {step}: {words}")
    if damage:
        raise OSError(
            f"{len(damage)} of {len(found)} checkpoints in {checkpoints.folder} are "
            "damaged"
        )


def _look_at(checkpoints: Checkpoints, step: int) -> Found | None:
    """What is on disk of a step; None where its run has removed it meanwhile."""
    folder = checkpoints.folder / str(step)
    size, damage, loss = 0, None, None
    try:
        size = total_bytes(folder)
        damage = checkpoints.damage(step)
        loss = checkpoints.record(step).validation_loss
    except (FileNotFoundError, ValueError) as error:
        damage = damage or str(error)
    return Found(size, damage, loss) if folder.is_dir() else None


def _table(found: dict[int, Found], best: int | None) -> Table:
    """A row for each checkpoint, in their order."""
    newest = max((step for step, one in found.items() if one.damage is None), default=0)
    table = Table("step", "bytes", "files", "validation loss", "", box=None)
    for step, (size, damage, loss) in found.items():
        marks = ("best" if step == best else "", "newest" if step == newest else "")
        table.add_row(
            str(step),
            f"{size:,}",
            "verified" if damage is None else "damaged",
            "-" if loss is None else f"{loss:.6g}",
            ", ".join(filter(None, marks)),
        )
    return table
