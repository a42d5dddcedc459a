"""The training step of ShortSWA's model beside ShortConv's, reading by reading."""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.kernel_speed.gpu.clocks import reason
from experiments.training_speed.measure import timed_steps
from experiments.training_speed.trainers import Batch, Trainer, compile_trainer
from swa_jax.training.recipes import recipe

from .config import CONV, OURS, Layer, Size, Steps, kind_of, with_layer
from .rows import StepRow

PAIR = (CONV, OURS)


def measure_steps(
    size: Size,
    plan: Steps,
    mixer: str,
    device: Any,
    /,
    *,
    seed: int,
    progress: Callable[[str], None],
) -> list[StepRow]:
    """Returns a row for both local mixers at the first depth at which both train.

    A depth at which one of them fails, most likely for want of memory, has a row that
    says why.
    """
    rows: list[StepRow] = []
    for layers in plan.depths:
        progress(f"training step: {mixer}, {layers} layers")
        try:
            return rows + _race(size, plan, mixer, layers, device, seed)
        except _Failed as failed:
            rows.append(failed.row)
    return rows


class _Failed(Exception):
    """One of the models does not train; `row` says why."""

    def __init__(self, row: StepRow):
        super().__init__(row.failure)
        self.row = row


def _race(
    size: Size, plan: Steps, mixer: str, layers: int, device: Any, seed: int
) -> list[StepRow]:
    """Returns the rows of both models; raises _Failed with that of the one that fails.

    Both states stay on the device, so that single readings take turns.
    """
    runners: dict[str, _Runner] = {}
    local = CONV
    try:
        for local in PAIR:
            runners[local] = _Runner(size, plan, Layer(mixer, local), layers)
            runners[local].start(device, seed)
        for _ in range(size.readings.rounds):
            for local in PAIR:
                runners[local].read()
    except Exception as error:  # any: it becomes a row
        failure = reason(error)
    else:
        return [runner.row for runner in runners.values()]
    # Raised here, where the error and what its frames hold of the device are gone.
    raise _Failed(StepRow(mixer, local, layers, failure=failure))


class _Runner:
    """A model in training, and the row of its readings."""

    trainer: Trainer
    state: Any

    def __init__(self, size: Size, plan: Steps, layer: Layer, layers: int, /):
        self.size, self.plan = size, plan
        self.row = StepRow(*layer, layers)

    def start(self, device: Any, seed: int, /) -> None:
        """Returns once the step is compiled and has run."""
        run = recipe(f"{kind_of(self.row.layer)}-{self.plan.size}")
        model = with_layer(run.model, self.row.layer, layers=self.row.layers)
        run = dataclasses.replace(run, model=model)
        batch = Batch(self.size.tokens, rows=1, accumulation=1)
        self.trainer = compile_trainer(run, batch, device, seed=seed)
        self.state = self.trainer.initial_state()
        self._step()

    def read(self) -> None:
        """Returns once another reading is in the row."""
        seconds, loss = self._step()
        self.row = dataclasses.replace(
            self.row,
            seconds=(*self.row.seconds, seconds),
            bytes=self.trainer.bytes,
            loss=loss,
        )

    def _step(self) -> tuple[float, float]:
        self.state, seconds, loss = timed_steps(
            self.trainer, self.state, self.size.window, steps=self.plan.steps
        )
        return seconds, loss
