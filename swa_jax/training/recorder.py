"""What happens in a run, handed to its log, its display and its checkpoints."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from swa_jax.data.batches import validation_batches
from swa_jax.evaluation.validation import evaluate
from swa_jax.training.checkpoint import Checkpoints, SaveFailed
from swa_jax.training.cluster import sign
from swa_jax.training.incidents import (
    Incident,
    LossSpike,
    NonFiniteLoss,
    describe_documents,
    incident_of,
)
from swa_jax.training.interrupt import Stopped, StopRequest, until_stopped
from swa_jax.training.metrics import Display, MetricsLog, Record
from swa_jax.training.placement import placing, process_share
from swa_jax.training.program import STEP_ARRAYS, Program
from swa_jax.training.sharding import batch_sharding
from swa_jax.training.step import StepMetrics, TrainState
from swa_jax.training.throughput import Throughput

# What the guard says of a step; it has lines of its own in the log.
GUARD_METRICS = ("updated", "spike", "skipped")


def numbers_of_step(metrics: StepMetrics, /) -> dict[str, float]:
    """The scalars of a step by name, with its statistics among them."""
    fields: dict[str, Any] = {**metrics._asdict()}
    fields |= fields.pop("statistics")
    return {name: float(v) for name, v in fields.items() if np.ndim(v) == 0}


def loss_of_sources(
    names: Iterable[str], losses: Sequence[float | None], /
) -> dict[str, float]:
    """The loss of each source of a mixture (nats/token), "loss/NAME"; else nothing.

    A source without a token in the batch has none.
    """
    if len(losses) == 1:
        return {}
    pairs = zip(names, losses, strict=True)
    return {f"loss/{name}": loss for name, loss in pairs if loss is not None}


class Recorder:
    """Hands what happens in a run to its log, its display and its checkpoints."""

    def __init__(
        self,
        program: Program,
        /,
        *,
        checkpoints: Checkpoints,
        log: MetricsLog,
        display: Display,
        stop: StopRequest,
        documents_of: Callable[[int], Sequence[str]],
        throughput: Throughput,
    ):
        """`documents_of`: the names of the documents in a step's batch."""
        self.display, self._stop, self.throughput = display, stop, throughput
        self._documents_of = documents_of
        self._program, self._checkpoints, self._log = program, checkpoints, log
        self._pending: tuple[int, int, StepMetrics] | None = None

    def step_done(self, step: int, window: int, metrics: StepMetrics) -> None:
        """Takes the metrics of a step that may still be running."""
        self._checkpoints.check()
        self._finish()
        for array in jax.tree.leaves(metrics):
            array.copy_to_host_async()  # it is there when the next step asks for it
        self._pending = (step, window, metrics)

    def validate(self, step: int, state: TrainState) -> float | None:
        """Records the held-out loss at the smallest and the largest window.

        The loss at the largest, or None where a signal came in between: the run that
        goes on then does the whole of it again.
        """
        self._finish()
        windows = self._program.config.windows
        records = []
        with self.throughput.stall("evaluation"):
            for window in sorted({windows.smallest, windows.largest}):
                call = partial(self._validation_record, step, state, window)
                try:
                    records.append(until_stopped(call, self._stop))
                except Stopped:
                    return None
        for record in records:
            self._record(record)
        return records[-1]["loss"]

    def validate_saved(self, step: int, state: TrainState) -> None:
        """Does the validation that the checkpoint of a step lacks."""
        loss = self.validate(step, state)
        if loss is not None:
            self._log.sync()
            self._checkpoints.validated(step, loss)

    def _validation_record(
        self, step: int, state: TrainState, window: int
    ) -> dict[str, Any]:
        program = self._program
        result = evaluate(
            program.model,
            state.averaged,
            self._validation_batches(),
            window=window,
            token_bytes=program.token_bytes_V,
            sources=len(program.data.weights),
            chunk=program.config.loss.chunk,
        )
        record = {
            "step": step,
            "split": "validation",
            "window": window,
            "loss": result.loss,
            "bits_per_byte": result.bits_per_byte,
        }
        return record | loss_of_sources(program.data.weights, result.loss_by_source)

    def save(
        self,
        step: int,
        state: TrainState,
        position: Any,
        validation_loss: float | None,
    ) -> None:
        """Saves a state, after its metrics have shown that it is finite."""
        self._finish()
        sign(f"saving step {step}")
        data = {"fingerprint": self._program.data.fingerprint, "iterator": position}
        with self.throughput.stall("checkpoint"):
            self._log.sync()
            self._checkpoints.save(
                state,
                step=step,
                data=data,
                config=self._program.config,
                validation_loss=validation_loss,
            )

    def stopped(self, step: int) -> None:
        """Waits until the last step is on disk, and says so.

        Raises Stopped where no step was made: nothing is saved.
        """
        if step == 0 and self._stop.number is not None:
            raise Stopped("no step was made", number=self._stop.number)
        self._checkpoints.wait()
        self.display.message(
            f"stopped by a signal; step {step} is saved, --resume goes on"
        )

    def _finish(self) -> None:
        """Waits for the metrics that are under way and records them."""
        if self._pending is None:
            return
        (step, window, arrays), self._pending = self._pending, None
        arrays = jax.device_get(arrays)  # all in one, not a wait for each
        metrics = numbers_of_step(arrays)
        sums = zip(arrays.source_nll, arrays.source_tokens, strict=True)
        losses = [float(nll / tokens) if tokens else None for nll, tokens in sums]
        metrics |= loss_of_sources(self._program.data.weights, losses)
        self.throughput.step_done(tokens=metrics["tokens"], window=window)
        incident = incident_of(self._program.config.guard, metrics)
        if incident is not None:
            self._heed(step, window, incident)
            if not incident.taken:
                return
        metrics = {n: v for n, v in metrics.items() if n not in GUARD_METRICS}
        # Targets that stand for no byte, such as separators alone, have none.
        if math.isfinite(metrics["loss"]) and not math.isfinite(
            metrics["bits_per_byte"]
        ):
            del metrics["bits_per_byte"]
        record = {"step": step, "split": "train", "window": window, **metrics}
        self._record(record | self.throughput.since_last_line())

    def _heed(self, step: int, window: int, incident: Incident) -> None:
        """Says and records what happened at a step; raises where the run is to stop."""
        documents = list(self._documents_of(step - 1))
        if incident.stops:
            words = f"{incident.reason}; {describe_documents(documents)}"
            error = LossSpike if incident.finite else NonFiniteLoss
            raise error(self._last_words(step, "train", words))
        kind = "spike" if incident.taken else "skipped"
        self.display.message(
            f"step {step}, {'taken all the same' if incident.taken else kind}: "
            f"{incident.reason}; {describe_documents(documents)}"
        )
        record = {"step": step, "split": kind, "window": window}
        self._log.write(record | {"reason": incident.reason, "documents": documents})

    def _record(self, record: Record) -> None:
        self._check_finite(record)
        config = self._program.config
        due = record["step"] % config.logging.every == 0
        if due or record["split"] == "validation" or record["step"] == config.steps:
            self._log.write(record)
            if record["split"] == "train":
                self.throughput.begin_line()
        self.display.show(record)

    def _check_finite(self, record: Record) -> None:
        wrong = [
            f"{name} = {value}"
            for name, value in record.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        if wrong:
            words = ", ".join(wrong)
            raise NonFiniteLoss(
                self._last_words(record["step"], record["split"], words)
            )

    def _last_words(self, step: int, split: str, reason: str) -> str:
        """What a run that stops for a number says."""
        try:
            saved = self._checkpoints.latest_step()
            where = "none is saved" if saved is None else f"step {saved}"
        except (SaveFailed, ValueError) as error:  # the number is the news
            where = f"none is known ({error})"
        return (
            f"step {step} ({split}): {reason}. The last good checkpoint: {where}, in "
            f"{self._checkpoints.folder}. A lower optimizer.peak_lr or clip_norm is "
            "the usual cure; guard.nonfinite and guard.spike may skip such steps"
        )

    def _validation_batches(self) -> Iterable[Mapping[str, Any]]:
        config, mesh = self._program.config, self._program.mesh
        share = process_share(mesh, batch_sharding(mesh))
        place = placing(mesh, STEP_ARRAYS)
        batches = validation_batches(
            self._program.data,
            batch_size=config.batch.rows // config.batch.accumulation,
            max_batches=config.logging.validation_batches,
            process_index=share[0],
            process_count=share[1],
        )
        return (
            place(batch)
            for batch in batches
            # An evaluation that nobody waits for ends early.
            if not self._stop.point("a batch of a validation")
        )
