"""The training loop: the one file of the project that has side effects on purpose."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from swa_jax.data.corpus import describe_skipped
from swa_jax.data.pipeline import (
    TextData,
    TrainIterator,
    load_text_data,
    train_iterator,
    validation_batches,
)
from swa_jax.data.tokenizer import load_tokenizer
from swa_jax.evaluation.validation import evaluate
from swa_jax.models.language_model import Model, language_model
from swa_jax.training.checkpoint import Checkpoints, check_same_text
from swa_jax.training.config import RunConfig
from swa_jax.training.interrupt import stop_on_signals
from swa_jax.training.metrics import Display, MetricsLog, Record
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.run import (
    CHECKPOINT_FOLDER,
    TOKENIZER_FILE,
    begin_folder,
    check_folder,
)
from swa_jax.training.sharding import (
    abstract_state,
    batch_sharding,
    check_rows,
    jit_train_step,
    make_mesh,
    sharded_initial_state,
)
from swa_jax.training.step import StepMetrics, TrainState
from swa_jax.training.window_schedule import window_at

# The arrays of a batch that the step reads; there are more ("positions").
BATCH_ARRAYS = ("tokens", "targets", "segment_ids")


class NonFiniteLoss(FloatingPointError):
    """A loss, a gradient or a parameter is no finite number; the run has stopped."""


class TrainResult(NamedTuple):
    """A run after its last step, or after the step at which a signal stopped it."""

    params: Any
    config: RunConfig
    model: Model
    data: TextData
    step: int  # completed optimizer steps; below config.steps where a signal stopped it


class _Run(NamedTuple):
    """What stays the same from step to step."""

    config: RunConfig
    model: Model
    mesh: Mesh
    data: TextData
    abstract: TrainState
    initial: Callable[[], TrainState]
    train_step: jax.stages.Wrapped
    token_bytes_V: np.ndarray


def train(
    config: RunConfig, *, out: Path, resume: bool = False, data: TextData | None = None
) -> TrainResult:
    """The trained parameters, with the run's record in the folder `out`.

    `data` None: loaded as `config.data` says. With `resume` the run goes on from its
    newest checkpoint (from the start where there is none) and ends with bitwise the
    parameters of an uninterrupted run on the same devices. Ctrl-C and SIGTERM save a
    checkpoint and return early.

    Raises NonFiniteLoss; ValueError for a folder in use and for a resumed run with
    another configuration or text; FileNotFoundError where there is nothing to resume.
    """
    out = Path(out)
    check_folder(out, config, resume=resume)
    if data is None:
        saved = out / TOKENIZER_FILE
        tokenizer = load_tokenizer(saved) if saved.exists() else None
        data = load_text_data(config.data, seed=config.seed, tokenizer=tokenizer)
    run = _prepare(config, data)
    if not resume:
        begin_folder(out, config, data.tokenizer)
    folder = out / CHECKPOINT_FOLDER
    with (
        Checkpoints(folder, keep=config.checkpoint.keep) as checkpoints,
        closing(
            train_iterator(data, batch_size=config.batch.rows, seed=config.seed)
        ) as batches,
    ):
        state, completed = _start(run, checkpoints, batches)
        if resume:  # only now is it sure that the run goes on
            begin_folder(out, config, data.tokenizer)
        with (
            MetricsLog(out, completed_steps=completed) as log,
            Display(
                steps=config.steps,
                completed_steps=completed,
                seconds=config.logging.console_seconds,
            ) as display,
        ):
            display.message(_describe_text(data))
            if completed == config.steps:
                display.message(f"the run in {out} has all its {completed} steps")
            else:
                train_step = _compile(run, display)
                recorder = _Recorder(run, checkpoints, log, display)
                state, completed = _all_steps(
                    run, train_step, state, batches, completed, recorder
                )
    return TrainResult(state.params, config, run.model, data, completed)


def _describe_text(data: TextData) -> str:
    """A line on the size of both splits and on the files that were left out."""
    train, validation = data.train_size, data.validation_size
    skipped = describe_skipped(data.skipped)
    return (
        f"text: {train.documents:,} documents to train on ({train.tokens:,} tokens), "
        f"{validation.documents:,} held out ({validation.tokens:,} tokens)"
        + (f"; {skipped}" if skipped else "")
    )


def _prepare(config: RunConfig, data: TextData) -> _Run:
    """The model and its compiled pieces; raises ValueError where parts do not fit."""
    if data.tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {data.tokenizer.vocab_size} pieces, the model only "
            f"model.vocab_size={config.model.vocab_size}; make that larger"
        )
    if data.train.seq_len != config.data.seq_len:
        raise ValueError(
            f"the rows have {data.train.seq_len} tokens, the configuration wants "
            f"data.seq_len={config.data.seq_len}; load the data with config.data"
        )
    mesh = make_mesh(config.mesh)
    accumulation = config.batch.accumulation
    check_rows(mesh, rows=config.batch.rows, accumulation=accumulation)
    model = language_model(config.model)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    abstract = abstract_state(model, optimizer, mesh)
    return _Run(
        config=config,
        model=model,
        mesh=mesh,
        data=data,
        abstract=abstract,
        initial=lambda: sharded_initial_state(
            model, optimizer, abstract, seed=config.seed
        ),
        train_step=jit_train_step(
            model, optimizer, abstract, accumulation=accumulation
        ),
        token_bytes_V=np.asarray(data.tokenizer.token_bytes_V, np.int32),
    )


def _start(
    run: _Run, checkpoints: Checkpoints, batches: TrainIterator
) -> tuple[TrainState, int]:
    """The state and the number of completed steps to go on from; moves the iterator."""
    completed = checkpoints.latest_step()
    if completed is None:
        return run.initial(), 0
    saved = checkpoints.restore_data(completed)
    check_same_text(saved["fingerprint"], run.data.fingerprint)
    batches.set_state(saved["iterator"])
    return checkpoints.restore(run.abstract, step=completed), completed


def _all_steps(
    run: _Run,
    train_step: jax.stages.Compiled,
    state: TrainState,
    batches: TrainIterator,
    completed: int,
    recorder: "_Recorder",
) -> tuple[TrainState, int]:
    """The state after the last step, or after the one at which a signal asked to stop.

    A step's metrics are fetched after the next step is on its way, so that the device
    does not wait for the host.
    """
    config, sharding = run.config, batch_sharding(run.mesh)
    with stop_on_signals() as stop:
        last = stopping = False
        while not last and not stopping:
            window = window_at(
                config.windows, step=completed, steps=config.steps, seed=config.seed
            )
            rows = next(batches)
            batch = {
                name: jax.device_put(rows[name], sharding) for name in BATCH_ARRAYS
            }
            state, metrics = train_step(
                state, batch, np.int32(window), run.token_bytes_V
            )
            completed += 1
            recorder.step_done(completed, window, metrics)
            last, stopping = completed == config.steps, bool(stop)
            if last or completed % config.logging.validation_every == 0:
                recorder.validate(completed, state)
            if last or stopping or completed % config.checkpoint.every == 0:
                recorder.save(completed, state, batches.get_state())
    if completed < config.steps:
        recorder.display.message(
            f"stopped by a signal; step {completed} is saved, --resume goes on"
        )
    return state, completed


def _compile(run: _Run, display: Display) -> jax.stages.Compiled:
    """The compiled step; says how long it took, which is the silent part of a start."""
    rows, length = run.config.batch.rows, run.config.data.seq_len
    row_block = jax.ShapeDtypeStruct((rows, length), np.int32)
    batch = dict.fromkeys(BATCH_ARRAYS, row_block)
    window = jax.ShapeDtypeStruct((), np.int32)
    begin = time.monotonic()
    compiled = run.train_step.lower(
        run.abstract, batch, window, run.token_bytes_V
    ).compile()
    display.message(f"compiled the step in {time.monotonic() - begin:.1f} s")
    return compiled


class _Recorder:
    """Hands what happens in a run to its log, its display and its checkpoints."""

    def __init__(
        self,
        run: _Run,
        checkpoints: Checkpoints,
        log: MetricsLog,
        display: Display,
    ):
        self.display = display
        self._run, self._checkpoints, self._log = run, checkpoints, log
        self._pending: tuple[int, int, StepMetrics] | None = None
        self._clock = time.monotonic()

    def step_done(self, step: int, window: int, metrics: StepMetrics) -> None:
        """Takes the metrics of a step that may still be running."""
        self._finish()
        self._pending = (step, window, metrics)

    def validate(self, step: int, state: TrainState) -> None:
        """Records the held-out loss at the smallest and the largest window."""
        self._finish()
        run = self._run
        windows = {run.config.windows.smallest, run.config.windows.largest}
        for window in sorted(windows):
            result = evaluate(
                run.model,
                state.params,
                self._validation_batches(),
                window=window,
                token_bytes=run.token_bytes_V,
            )
            record = {
                "step": step,
                "split": "validation",
                "window": window,
                "loss": result.loss,
                "bits_per_byte": result.bits_per_byte,
            }
            self._record(record)
        self._clock = time.monotonic()

    def save(self, step: int, state: TrainState, position: Any) -> None:
        """Saves a state, after its metrics have shown that it is finite."""
        self._finish()
        data = {"fingerprint": self._run.data.fingerprint, "iterator": position}
        self._checkpoints.save(state, step=step, data=data, config=self._run.config)
        self._clock = time.monotonic()

    def _finish(self) -> None:
        """Waits for the metrics that are under way and records them."""
        if self._pending is None:
            return
        (step, window, arrays), self._pending = self._pending, None
        metrics = {name: float(value) for name, value in arrays._asdict().items()}
        now = time.monotonic()
        metrics["tokens_per_second"] = metrics["tokens"] / (now - self._clock)
        self._clock = now
        record = {"step": step, "split": "train", "window": window, **metrics}
        self._record(record)

    def _record(self, record: Record) -> None:
        self._check_finite(record)
        config = self._run.config
        due = record["step"] % config.logging.every == 0
        if due or record["split"] == "validation" or record["step"] == config.steps:
            self._log.write(record)
        self.display.show(record)

    def _check_finite(self, record: Record) -> None:
        wrong = [
            f"{name} = {value}"
            for name, value in record.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        if wrong:
            saved = self._checkpoints.latest_step()
            where = "none is saved" if saved is None else f"step {saved}"
            raise NonFiniteLoss(
                f"step {record['step']} ({record['split']}): {', '.join(wrong)}. The "
                f"last good checkpoint: {where}, in {self._checkpoints.folder}. "
                "A lower optimizer.peak_lr or clip_norm is the usual cure"
            )

    def _validation_batches(self) -> Iterable[Mapping[str, Any]]:
        config = self._run.config
        batches = validation_batches(
            self._run.data,
            batch_size=config.batch.rows // config.batch.accumulation,
            max_batches=config.logging.validation_batches,
        )
        sharding = batch_sharding(self._run.mesh)
        return (
            {name: jax.device_put(batch[name], sharding) for name in BATCH_ARRAYS}
            for batch in batches
        )
