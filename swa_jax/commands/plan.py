"""``swax plan``: what a training step would be on a cluster, by compiling it."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from swa_jax.commands.plan_arguments import Plan
from swa_jax.planning.plan import make_plan
from swa_jax.planning.program import Request
from swa_jax.planning.report import (
    plan_to_dict,
    print_plan,
    print_search,
    search_to_dict,
)
from swa_jax.planning.search import search

SCREEN_WIDTH = 132  # columns, where the output is no terminal
Say = Callable[[int, int, str], None]


def print_plans(command: Plan, /) -> None:
    """Prints the plan of a run on a cluster, or the best of many with --search.

    Raises ValueError where the run does not fit the cluster's number of GPUs and where
    the compiler is not installed, ChildProcessError where the step does not compile.
    """
    # A GPU of this machine is none of the plan's, and JAX would take its memory.
    jax.config.update("jax_platforms", "cpu")
    if command.keep is not None and command.keep.is_file():
        raise ValueError(f"--keep: wanted a folder, got the file {command.keep}")
    request = Request(command.config, command.cluster)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = SCREEN_WIDTH
    if not command.search:
        with _progress() as say:
            say(0, 1, "compiling the step")
            plan = make_plan(request, command.assume, keep=command.keep)
        if command.json:
            print(json.dumps(plan_to_dict(plan), indent=2))
        else:
            print_plan(plan, console)
        return
    with _progress() as say:
        found = search(
            request,
            command.assume,
            limit=command.limit,
            seconds=60 * command.minutes,
            keep=command.keep,
            say=say,
        )
    if command.json:
        print(json.dumps(search_to_dict(found), indent=2))
    else:
        print_search(found, console, command.assume)


@contextlib.contextmanager
def _progress() -> Iterator[Say]:
    """Yields what shows progress on standard error: a bar on a terminal, else lines."""
    if not sys.stderr.isatty():
        yield lambda done, of, what: print(
            f"{done} of {of}: {what}", file=sys.stderr, flush=True
        )
        return
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"))
    columns += (TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, of, what: bar.update(
            task, completed=done, total=of, description=what
        )
