"""``swax tokenize``: a token cache from text, in parallel, with its progress."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from swa_jax.data.corpus import LeftOut
from swa_jax.data.sources.token_cache import verify_token_cache
from swa_jax.data.tokenize import CacheConfig, build_token_cache
from swa_jax.data.tokenize import Progress as State
from swa_jax.data.workers import resident_memory, worker_memory

_BAR_SECONDS, _LINE_SECONDS = 0.25, 5.0  # between two looks


def tokenize(
    paths: Sequence[str], /, *, out: Path, config: CacheConfig, workers: int
) -> None:
    """Builds a token cache, or goes on with one, and says what is in it.

    Raises ValueError and FileNotFoundError for what does not serve.
    """
    with _Display() as display:
        manifest = build_token_cache(
            paths, out=out, config=config, workers=workers, report=display.show
        )
    print(display.last_line())
    _print_manifest(out, manifest)


def verify(path: Path, /) -> None:
    """Reads a whole cache, and says what is in it; raises ValueError for a bad file."""
    _print_manifest(path, verify_token_cache(path))
    print("every file has its checksum")


def _print_manifest(path: Path, manifest: dict[str, Any]) -> None:
    tokenizer = manifest["tokenizer"]
    print(
        f"{path}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens "
        f"of {manifest['text_bytes']:,} bytes of text, in {len(manifest['shards']):,} "
        "shards"
    )
    print(
        f"tokenizer: {tokenizer['vocab_size']:,} pieces, separator "
        f"{tokenizer['separator']!r}"
        + ("" if tokenizer["exact"] else "; it does not keep every byte of text")
    )
    if line := str(LeftOut(**manifest["left_out"])):
        print(line)


class _Display:
    """A progress bar on a terminal, elsewhere a line now and then; on stderr."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._console, self._bar = console, None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=1.0, numbers="")
        self._phase, self._begin, self._next = "", 0.0, -math.inf
        self._state: State | None = None
        self._largest = 0  # bytes of memory of all processes
        self._seconds = 0.0

    def __enter__(self) -> "_Display":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, state: State) -> None:
        """Takes how far the work is; shows it when it is due."""
        now = time.monotonic()
        if state.phase != self._phase:
            self._phase, self._begin, self._next = state.phase, now, now
        self._state, self._seconds = state, now - self._begin
        if now < self._next:
            return
        self._next = now + (_LINE_SECONDS if self._bar is None else _BAR_SECONDS)
        done = state.bytes / max(1, state.total_bytes)
        numbers = self._numbers(state)
        if self._bar is None:
            self._console.print(f"{state.phase}: {done:.1%}  {numbers}", markup=False)
        else:
            self._bar.update(
                self._task, description=state.phase, completed=done, numbers=numbers
            )

    def last_line(self) -> str:
        """What the whole work took."""
        if self._state is None or self._state.phase != "tokenizing":
            return "the token cache is complete already"
        return (
            f"tokenized {self._state.new_tokens:,} tokens in {self._seconds:,.1f} s, "
            f"{self._rate(self._state):,.0f} tokens/s; memory at most "
            f"{self._largest / 2**20:,.0f} MiB"
        )

    def _numbers(self, state: State) -> str:
        main, workers = resident_memory(), worker_memory()
        self._largest = max(self._largest, main + sum(workers))
        memory = f"memory {main / 2**20:,.0f} MiB"
        if workers:
            memory += f" + {len(workers)} x {max(workers) / 2**20:,.0f} MiB"
        if state.phase != "tokenizing":
            return f"{state.bytes / 1e6:,.0f} MB  {memory}"
        return f"{state.tokens:,} tokens  {self._rate(state):,.0f} tokens/s  {memory}"

    def _rate(self, state: State) -> float:
        return state.new_tokens / max(self._seconds, 1e-9)
