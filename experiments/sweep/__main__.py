"""The command `python -m experiments.sweep`: a grid of training runs."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from swa_jax.commands.arguments import arguments_of, asks_for_help, parse, print_help
from swa_jax.commands.train_arguments import used_variables

from .folder import SweepFolder, sweep_folder
from .options import Placement
from .run import SUCCESS, guarded, print_failures, print_plan, run_sweep
from .summary import write_summary
from .train_grid import train_sweep


@dataclasses.dataclass(frozen=True)
class Options(Placement):
    """Train a grid of runs, here or as a Slurm array, and compare them.

    Every other flag is one of `swax train` (its --help lists them) and is the same for
    all cells. The same command again runs what is missing.

    Attributes:
        grid: axes: a dotted setting of a run and its values, as in seed=0,1,2 or
            windows.probabilities="0.5 0.5,0 1". A value of several words has spaces
            between them.
        out: folder of the sweep: a run folder for each cell, summary.jsonl, summary.md.
        windows: windows (tokens) to evaluate all cells at; none given: for each cell
            the smallest and the largest that it was trained with.
    """

    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="AXIS=A,B...")] = ()
    out: Path | None = None
    windows: tuple[int, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all ran, 1 a cell failed, 2 bad usage, 130 Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if asks_for_help(arguments):
        print_help(Options, program="python -m experiments.sweep")
        return SUCCESS
    return guarded("sweep", lambda: _main(arguments))


def _main(arguments: list[str]) -> int:
    own, others = divided(arguments)
    options = parse(Options, own)
    if options.out is None:
        raise ValueError("--out: missing; wanted the folder of the sweep")
    sweep = train_sweep(options.grid, others, os.environ, windows=options.windows)
    if used := used_variables(os.environ):
        print(f"settings from the environment: {', '.join(used)}", file=sys.stderr)
    if options.dry_run:
        print_plan(SweepFolder(options.out, sweep), options)
        return SUCCESS
    with sweep_folder(options.out, sweep) as folder:
        try:
            report = run_sweep(folder, options)
        finally:
            paths = write_summary(folder)
        for path in paths:
            print(f"written: {path}")
        print_failures(report, arguments, program="sweep")
    return report.exit_code


def divided(words: Sequence[str], /) -> tuple[list[str], list[str]]:
    """The words of the sweep's own flags, and those of `swax train`'s."""
    flags = {argument.flag for argument in arguments_of(Options)}
    own, others = [], []
    taking = others
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            mine = name in flags or name == "--no-dry-run"
            taking = own if mine else others
        taking.append(word)
    return own, others


if __name__ == "__main__":
    sys.exit(main())
