"""``swax train``: a run from its configuration to its report."""

import sys
from pathlib import Path

from swa_jax.commands.evaluate import print_evaluation
from swa_jax.evaluation.final import evaluate_run, save_evaluation
from swa_jax.evaluation.report import render_report
from swa_jax.training.cluster import (
    from_first,
    is_first,
    joined,
    sign,
    stop_requests,
)
from swa_jax.training.cluster_config import ClusterConfig
from swa_jax.training.config import RunConfig
from swa_jax.training.interrupt import Stopped, until_stopped
from swa_jax.training.loop import train
from swa_jax.training.memory import memory_errors


def train_and_report(
    config: RunConfig,
    /,
    *,
    out: Path | None,
    resume: bool,
    cluster: ClusterConfig | None = None,
    note: str = "",
) -> None:
    """Trains, evaluates at the smallest and largest window, prints and reports.

    `cluster`: how this process finds the others of a run of several, of which process 0
    alone prints and writes. `note`: a line to print first.

    Raises ValueError and FileNotFoundError for a configuration, text or folder that
    does not serve, FloatingPointError for a loss that is not finite, and Stopped where
    a signal ended the run; its last step is saved.
    """
    with joined(cluster or ClusterConfig()):
        if note and is_first():
            print(note, file=sys.stderr)
        _train_and_report(config, out=out, resume=resume)


def _train_and_report(config: RunConfig, *, out: Path | None, resume: bool) -> None:
    folder = out
    if folder is None:
        name = from_first("name", lambda: str(new_run_folder(Path("runs"), config)))
        folder = Path(name)
    if is_first():
        print(f"run folder: {folder}", flush=True)
    result = train(config, out=folder, resume=resume)
    if result.stopped_by is not None:
        raise Stopped(
            f"step {result.step} is saved; go on with "
            f"`swax train --resume --out {folder}`",
            number=result.stopped_by,
        )
    sign("the last evaluation")
    with (
        stop_requests() as stop,  # everything is saved, and XLA hears no signal
        memory_errors(config, doing="evaluating", numbers=""),
    ):
        evaluation = until_stopped(
            lambda: evaluate_run(
                config, result.model, result.params, result.data, step=result.step
            ),
            stop,
        )
    if is_first():
        save_evaluation(folder, evaluation)
        print_evaluation(evaluation)
        print(f"report: {render_report(folder)}")


def new_run_folder(parent: Path, config: RunConfig, /) -> Path:
    """Returns a path that is still free: parent/PRESET-sSEED, then with -2, -3, ..."""
    name = f"{config.preset}-s{config.seed}"
    folder, count = parent / name, 1
    while folder.exists():
        count += 1
        folder = parent / f"{name}-{count}"
    return folder
