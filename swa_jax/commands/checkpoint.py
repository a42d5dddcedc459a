"""Opening a trained run for a command."""

from pathlib import Path

from swa_jax.commands.errors import raised_by_us
from swa_jax.training.run import Run, open_run


def open_checkpoint(folder: Path, /, *, step: int | None) -> Run:
    """Returns the run of a folder after a step; None: the newest checkpoint.

    Raises what ``open_run`` raises, and ValueError for a checkpoint that the library
    under it cannot read.
    """
    try:
        return open_run(folder, step=step)
    except Exception as error:
        if raised_by_us(error):
            raise
        raise ValueError(
            f"the checkpoint in {folder} cannot be read, {type(error).__name__}: "
            f"{error}. It may be damaged: try an older one with --step, or train again"
        ) from error
