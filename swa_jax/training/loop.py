"""The training loop: the one file of the project that has side effects on purpose."""

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swa_jax.configuration import from_dict
from swa_jax.data.batches import TrainIterator, train_iterator
from swa_jax.data.pipeline import TextData, load_text_data
from swa_jax.data.tokenizer import load_tokenizer
from swa_jax.models.language_model import Model
from swa_jax.training.batch_schedule import row_offset, rows_at, stages_from
from swa_jax.training.checkpoint import (
    Checkpoints,
    check_same_run,
    check_same_text,
)
from swa_jax.training.cluster import (
    check_same,
    end_when_hung,
    from_first,
    is_first,
    sign,
    stop_requests,
)
from swa_jax.training.compilation_cache import compilation_cache
from swa_jax.training.config import RunConfig
from swa_jax.training.incidents import LossSpike, NonFiniteLoss
from swa_jax.training.interrupt import StopRequest, until_stopped
from swa_jax.training.lock import check_free
from swa_jax.training.memory import describe_memory, memory_errors
from swa_jax.training.metrics import Display, MetricsLog, NoLog
from swa_jax.training.performance import (
    CompiledStep,
    describe_totals,
    throughput_of,
    write_performance,
)
from swa_jax.training.placement import placing, process_share
from swa_jax.training.program import STEP_ARRAYS, Program, compile_step, prepare
from swa_jax.training.provenance import describe_changes, provenance
from swa_jax.training.recorder import Recorder
from swa_jax.training.run import (
    CHECKPOINT_FOLDER,
    TOKENIZER_FILE,
    begin_folder,
    check_folder,
    check_same_everywhere,
    held_folder,
)
from swa_jax.training.sharding import batch_sharding
from swa_jax.training.step import TrainState
from swa_jax.training.step_profile import StepProfile
from swa_jax.training.window_schedule import window_at

INEXACT = (
    "the tokenizer does not keep every byte, so bits per byte are right over the whole "
    "text and approximate for a part"
)

__all__ = ["LossSpike", "NonFiniteLoss", "TrainResult", "train"]


class TrainResult(NamedTuple):
    """A run after its last step, or after the step at which a signal stopped it."""

    params: Any  # their running mean, where the optimizer keeps one
    config: RunConfig
    model: Model
    data: TextData
    step: int  # completed optimizer steps, all of them saved
    stopped_by: int | None  # the signal that stopped it


class Start(NamedTuple):
    """Where a run begins or goes on."""

    state: TrainState
    completed: int  # optimizer steps
    validated: bool  # whether the validation due at that step is done
    notes: tuple[str, ...]  # for the person who watches


def train(
    config: RunConfig, *, out: Path, resume: bool = False, data: TextData | None = None
) -> TrainResult:
    """The trained parameters, with the run's record in the folder `out`.

    `data` None: loaded as `config.data` says. With `resume` the run goes on from its
    newest checkpoint that verifies (from the start where there is none at all) and ends
    with bitwise the parameters of an uninterrupted run on the same devices. Ctrl-C and
    SIGTERM save a checkpoint and return early; before the first step, where there is
    nothing to save, they raise Stopped. All processes of a run call it (`joined`), on
    folders that all of them see, and return after the same step.

    Raises NonFiniteLoss; SaveFailed; ValueError for a folder in use, for a resumed run
    with another configuration or text and for checkpoints of which none verifies;
    FileNotFoundError where there is nothing to resume.
    """
    out = Path(out)
    end_when_hung(config.runtime.hang_seconds)
    check_same_everywhere(config)
    from_first("the run folder", partial(_check_before, out, config, resume))
    sign("loading the text")
    data = _load(config, out) if data is None else data
    check_same("text", data.fingerprint)
    notes: list[str] = []
    with (
        stop_requests() as stop,
        compilation_cache(config.runtime.compilation_cache, say=notes.append),
    ):
        program = prepare(config, data)
        with held_folder(out, config, data.tokenizer, resume=resume):
            return _train(program, out, stop, notes)


def _check_before(out: Path, config: RunConfig, resume: bool) -> None:
    check_free(out)
    check_folder(out, config, resume=resume)


def _load(config: RunConfig, out: Path) -> TextData:
    """The text of a run, with the tokenizer that it may have begun with."""
    saved, tokenizer = out / TOKENIZER_FILE, None
    if saved.exists():
        tokenizer = load_tokenizer(saved, separator=config.data.separator)
    return load_text_data(config.data, seed=config.seed, tokenizer=tokenizer)


def _batches(program: Program) -> TrainIterator:
    config = program.config
    index, count = process_share(program.mesh, batch_sharding(program.mesh))
    return train_iterator(
        program.data,
        rows_of_step=partial(rows_of_step, config),
        seed=config.seed,
        workers=config.data.workers,
        process_index=index,
        process_count=count,
    )


def _train(
    program: Program, out: Path, stop: StopRequest, notes: list[str]
) -> TrainResult:
    config, data = program.config, program.data
    with (
        Checkpoints(
            out / CHECKPOINT_FOLDER, keep=config.checkpoint.keep
        ) as checkpoints,
        closing(_batches(program)) as batches,
    ):
        with memory_errors(config, doing="making the state", numbers=""):
            start = until_stopped(lambda: _start(program, checkpoints, batches), stop)
        if is_first():  # only now is it sure to go on
            begin_folder(out, config, data.tokenizer)
        with (
            _log(out, start) as log,
            Display(
                steps=config.steps,
                completed_steps=start.completed,
                seconds=config.logging.console_seconds,
                quiet=not is_first(),
            ) as display,
        ):
            for line in (*notes, *start.notes, _describe_text(data)):
                display.message(line)
            recorder = Recorder(
                program,
                checkpoints=checkpoints,
                log=log,
                display=display,
                stop=stop,
                documents_of=batches.documents_of,
                throughput=throughput_of(config, devices=program.mesh.size),
            )
            state, completed = _measured_steps(
                program, out, start, batches, recorder, stop
            )
    return TrainResult(
        state.averaged, config, program.model, data, completed, stop.number
    )


def _log(out: Path, start: Start) -> MetricsLog:
    """The log of a run's first process; the others write none."""
    if not is_first():
        return NoLog()
    return MetricsLog(out, completed_steps=start.completed, validated=start.validated)


def _describe_text(data: TextData) -> str:
    """A line on the size of both splits and on the files that were left out."""
    train, validation = data.train_size, data.validation_size
    skipped = str(data.skipped)
    return (
        f"text: {train.documents:,} documents to train on ({train.tokens:,} tokens), "
        f"{validation.documents:,} held out ({validation.tokens:,} tokens)"
        + (f"; {skipped}" if skipped else "")
        + ("" if data.tokenizer.exact else f"; {INEXACT}")
    )


def _start(program: Program, checkpoints: Checkpoints, batches: TrainIterator) -> Start:
    """Where to begin or go on; moves the iterator there."""
    config = program.config
    sign("verifying the checkpoints")
    completed = from_first("the step to go on from", checkpoints.latest_step)
    if completed is None:
        return Start(program.initial(), 0, validated=True, notes=())
    saved = checkpoints.record(completed)
    saved_config = from_dict(RunConfig, saved.config)
    check_same_run(saved_config, config)
    check_same_text(saved.data["fingerprint"], program.data.fingerprint)
    batches.set_state(saved.data["iterator"])
    state = checkpoints.restore(program.abstract, step=completed)
    from_first("setting aside", partial(checkpoints.set_aside_after, completed))
    changes = describe_changes(
        {**saved.provenance, "mesh": str(saved_config.mesh)},
        {**provenance(), "mesh": str(config.mesh)},
    )
    return Start(
        state,
        completed,
        validated=saved.validation_loss is not None or not _due(completed, config),
        notes=(*checkpoints.notes, *([changes] if changes else [])),
    )


def rows_of_step(config: RunConfig, step: int, /) -> tuple[int, int]:
    """The rows of all steps before this one, and its own."""
    where = {"step": step, "steps": config.steps}
    return row_offset(config.batch, **where), rows_at(config.batch, **where)


def rows_to_come(config: RunConfig, completed: int, /) -> tuple[int, ...]:
    """The numbers of rows that the steps of a run from some step on have."""
    return stages_from(config.batch, step=completed, steps=config.steps)


def _due(completed: int, config: RunConfig) -> bool:
    """Whether a step ends in a validation."""
    return completed == config.steps or completed % config.logging.validation_every == 0


def _is_saved(completed: int, config: RunConfig) -> bool:
    """Whether a step ends in a checkpoint."""
    return completed == config.steps or completed % config.checkpoint.every == 0


def _measured_steps(
    program: Program,
    out: Path,
    start: Start,
    batches: TrainIterator,
    recorder: Recorder,
    stop: StopRequest,
) -> tuple[TrainState, int]:
    """What `all_steps` returns, with performance.json beside and a profile, if asked
    for; raises OutOfMemory."""
    display, config = recorder.display, program.config
    if not start.validated:  # a signal came in the middle of it
        with memory_errors(config, doing="validating", numbers=""):
            recorder.validate_saved(start.completed, start.state)
    if start.completed == config.steps:
        display.message(f"the run in {out} has all its {config.steps} steps")
        return start.state, start.completed
    compiled = {
        rows: _compiled(program, rows, display, stop)
        for rows in rows_to_come(config, start.completed)
    }
    _write_performance(out, program, compiled, {})
    plan = describe_memory(compiled[max(compiled)].memory, None)
    steps = config.runtime.profile_steps if is_first() else None
    with (
        memory_errors(config, doing="training", numbers=plan),
        StepProfile(steps, folder=out, say=display.message) as profile,
    ):
        state, completed = all_steps(
            program, compiled, start, batches, recorder, profile, stop
        )
    if stop:
        recorder.stopped(completed)
    totals = recorder.throughput.of_the_run()
    _write_performance(out, program, compiled, totals)
    if line := describe_totals(totals):
        display.message(line)
    return state, completed


def _write_performance(
    out: Path,
    program: Program,
    compiled: Mapping[int, CompiledStep],
    totals: Mapping[str, float],
) -> None:
    if is_first():
        devices = program.mesh.size
        write_performance(out, compiled.values(), totals, devices=devices)


def _compiled(
    program: Program, rows: int, display: Display, stop: StopRequest
) -> CompiledStep:
    sign(f"compiling the step of {rows} rows")
    return compile_step(program, rows, say=display.message, stop=stop)


def all_steps(
    program: Program,
    compiled: Mapping[int, CompiledStep],
    start: Start,
    batches: TrainIterator,
    recorder: Recorder,
    profile: StepProfile,
    stop: StopRequest,
) -> tuple[TrainState, int]:
    """The state after the last step, or after the one at which a signal asked to stop.

    A step's metrics are fetched after the next step is on its way, so that the device
    does not wait for the host. The request to stop is read once a step, so that the
    loop ends after no other step than one that it has saved.
    """
    config, place = program.config, placing(program.mesh, STEP_ARRAYS)
    state, completed, stopping = start.state, start.completed, stop.point("the steps")
    while completed < config.steps and not stopping:
        window = window_at(
            config.windows, step=completed, steps=config.steps, seed=config.seed
        )
        with recorder.throughput.waiting_for_input():
            rows = next(batches)
        with profile.step(completed + 1):
            batch = place(rows)
            step = compiled[len(batch["tokens"])]
            state, metrics = step.call(
                state, batch, np.int32(window), program.token_bytes_V
            )
        completed += 1
        if completed % config.logging.statistics_every == 0:
            found = step.statistics(state.params, batch, np.int32(window))
            metrics = metrics._replace(statistics=metrics.statistics | found)
        recorder.step_done(completed, window, metrics)
        profile.started(completed, metrics)
        loss = recorder.validate(completed, state) if _due(completed, config) else None
        stopping = stop.point(f"step {completed + 1}")
        if stopping or _is_saved(completed, config):
            recorder.save(completed, state, batches.get_state(), loss)
    return state, completed
