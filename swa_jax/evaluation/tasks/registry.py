"""The tasks by their names. Nothing here imports JAX before a task is made."""

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from swa_jax.evaluation.tasks.task import Task

# name -> module below swa_jax.evaluation.tasks, and the function there that makes the
# task of some choices
TASKS = {
    "needle": "needle:needle",
    "recall": "synthetic:recall",
    "copy": "synthetic:plain_copy",
    "selective_copy": "synthetic:selective_copy",
    "induction": "synthetic:induction",
    "parity": "synthetic:parity",
    "permutations": "synthetic:permutation_composition",
    "positions": "held_out:positions",
    "perplexity": "held_out:perplexity",
    "context": "context:context",
    "influence": "influence:influence",
}


class Choices(NamedTuple):
    """What a user says of all tasks."""

    windows: tuple[int, ...]  # tokens
    lengths: tuple[int, ...]  # tokens, of a row or a haystack
    rows: int = 64  # of a synthetic cell
    max_tokens: int = 2**17  # of held-out text, of a cell
    seed: int = 0


def names_in(words: Iterable[str], /) -> tuple[str, ...]:
    """Returns the names of tasks that stand in words, apart by commas, each once.

    Raises ValueError for one that is no task.
    """
    names = [name for word in words for name in word.split(",") if name]
    for name in names:
        if name not in TASKS:
            raise ValueError(
                f"--tasks: {name[:80]!r} is no task; wanted some of {', '.join(TASKS)}"
            )
    return tuple(dict.fromkeys(names))


def make_task(name: str, choices: Choices, /) -> "Task":
    """Returns the task of a name. Raises ValueError where no cell fits the choices."""
    module, _, function = TASKS[name].partition(":")
    imported = importlib.import_module(f"swa_jax.evaluation.tasks.{module}")
    return getattr(imported, function)(choices)
