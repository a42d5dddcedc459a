"""``swax checkpoints``: what a run has saved, and whether it is whole."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.manifest import total_bytes
from swa_jax.training.run import CHECKPOINT_FOLDER, read_config


def print_checkpoints(run: Path, /) -> None:
    """Prints a line for each checkpoint of a run.

    Raises FileNotFoundError where there is no run, and then OSError if one is damaged.
    """
    read_config(run)
    with Checkpoints(run / CHECKPOINT_FOLDER) as checkpoints:
        steps = checkpoints.steps()
        damage = {step: checkpoints.damage(step) for step in steps}
        whole = [step for step in steps if damage[step] is None]
        marks = {checkpoints.best_step(): "best"}
        if whole:
            marks[whole[-1]] = ", ".join(filter(None, (marks.get(whole[-1]), "newest")))
        table = Table("step", "bytes", "files", "validation loss", "", box=None)
        for step in steps:
            table.add_row(
                str(step),
                f"{total_bytes(checkpoints.folder / str(step)):,}",
                "verified" if damage[step] is None else "damaged",
                _loss(checkpoints, step),
                marks.get(step, ""),
            )
    if steps:
        Console(soft_wrap=True, highlight=False, markup=False).print(table)
    else:
        print(f"no checkpoint in {checkpoints.folder}")
    for step in sorted(set(steps) - set(whole)):
        print(f"step {step}: {damage[step]}")
    if len(whole) < len(steps):
        raise OSError(
            f"{len(steps) - len(whole)} of {len(steps)} checkpoints in "
            f"{checkpoints.folder} are damaged"
        )


def _loss(checkpoints: Checkpoints, step: int) -> str:
    """The validation loss of a checkpoint, "-" where there is none to be trusted."""
    try:
        loss = checkpoints.record(step).validation_loss
    except ValueError:
        return "-"
    return "-" if loss is None else f"{loss:.6g}"
