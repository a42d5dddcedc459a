"""One cell, in the process that runs it: a worker here, or a job of Slurm's."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swa_jax.configuration import plain
from swa_jax.data.one_move import write_in_one_move
from swa_jax.training.lock import locked

from .folder import RESULT_FILE


def run_cell(
    run: Callable[[Any, Path], dict[str, Any]], cell: Any, folder: Path, /
) -> None:
    """Returns once result.json is in the cell's folder; runs nothing if it is there.

    Raises what `run` raises, ValueError where another process runs the cell, and
    ValueError or TypeError for a result that is no JSON (NaN is none).
    """
    result_path = folder / RESULT_FILE
    if result_path.is_file():
        return
    with locked(folder):
        if result_path.is_file():
            return
        begin = time.perf_counter()
        result = run(cell, folder)
        seconds = round(time.perf_counter() - begin, 2)
        values = {"cell": plain(cell), "seconds": seconds, "result": result}
        text = json.dumps(values, allow_nan=False) + "\n"
        write_in_one_move(result_path, text)
