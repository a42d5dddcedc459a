"""Compiled programs, kept on the disk of the node for the runs that come later."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from swa_jax.training.runtime_config import DEFAULT_CACHE, NO_CACHE

_FOLDER, _ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
_HIT = "/jax/compilation_cache/cache_hits"


def default_folder() -> Path:
    """The folder for this user's programs: in XDG_CACHE_HOME, by default ~/.cache.

    Its name holds the user's number, for whoever writes into a folder of programs can
    have them run, and the node's name: a home may be that of many nodes, whose programs
    differ.
    """
    parent = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(parent) if os.path.isabs(parent) else Path.home() / ".cache"
    return base / "swa_jax" / f"programs-{os.getuid()}-{platform.node()}"


@contextmanager
def compilation_cache(
    setting: str, /, *, say: Callable[[str], None]
) -> Iterator[Path | str | None]:
    """The folder that JAX keeps compiled programs in while the block runs, or None.

    `setting` is RuntimeConfig.compilation_cache. A folder that JAX is already told of
    (JAX_COMPILATION_CACHE_DIR) stands in place of the default one. One that cannot be
    used is said, and nothing is kept.
    """
    before = {name: getattr(jax.config, name) for name in (_FOLDER, _ENABLED)}
    folder: Path | str | None = None
    if setting == DEFAULT_CACHE and before[_FOLDER]:
        folder = before[_FOLDER]
    elif setting != NO_CACHE:
        folder = _usable(setting, say)
    _set({_FOLDER: None if folder is None else str(folder), _ENABLED: True}, before)
    try:
        yield folder
    finally:
        _set(before, {name: getattr(jax.config, name) for name in before})


def _set(values: dict, now: dict) -> None:
    if values == now:
        return
    for name, value in values.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()  # which is bound to the folder that it first met


def _usable(setting: str, say: Callable[[str], None]) -> Path | str | None:
    """The folder, made if it has to be; None, which is said, where it is of no use."""
    if "://" in setting:
        say(
            f"warning: the compilation cache {setting} is on a remote file system: XLA "
            "then does not keep what it tunes on a GPU, and tunes again in every run. "
            "A folder of the node's own is faster"
        )
        return setting
    folder = Path(setting)
    try:
        default = setting == DEFAULT_CACHE
        folder = default_folder() if default else folder.expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if setting == DEFAULT_CACHE and folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to somebody else")
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not writable")
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        reason = getattr(error, "strerror", None) or str(error)
        say(
            f"warning: no compilation cache in {folder} ({reason}): programs are "
            "compiled anew. Name a writable folder with --runtime.compilation-cache, "
            "or none"
        )
        return None
    return folder.absolute()


class CacheUse:
    """Whether programs came from the cache while `watching_cache` ran."""

    def __init__(self):
        self.hits = 0

    def heard(self, event: str, **_: str | int) -> None:
        """Takes one of JAX's events."""
        self.hits += event == _HIT


@contextmanager
def watching_cache() -> Iterator[CacheUse]:
    """What JAX says about its cache while the block runs."""
    use = CacheUse()
    listener = use.heard  # one object: it is found again by its identity
    jax.monitoring.register_event_listener(listener)
    try:
        yield use
    finally:
        jax.monitoring.unregister_event_listener(listener)
