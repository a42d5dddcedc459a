"""The folder that a token cache is built in, by one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swa_jax.data.one_move import unfinished_path
from swa_jax.data.sources.token_cache import LOCK_FILE, MANIFEST_FILE, PLAN_FILE


@contextmanager
def locked_folder(out: Path, /) -> Iterator[None]:
    """Holds the folder for this process; the lock ends with the process.

    Raises ValueError for a folder that holds something else than a token cache, of
    which nothing may be removed, and where another process holds it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the token cache")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    # All that is there when a process is killed before it has written the plan.
    before_the_plan = {LOCK_FILE, unfinished_path(out / PLAN_FILE).name}
    if not (found <= before_the_plan or found & {MANIFEST_FILE, PLAN_FILE}):
        raise ValueError(
            f"{out} holds something else than a token cache; give an empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another process is building the token cache {out}; wait for it"
            ) from None
        yield
    # The file stays: removing it would let two processes hold two locks of one name.
