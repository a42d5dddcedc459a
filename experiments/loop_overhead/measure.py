"""The bare step and the whole loop, in turns, and the loop without a step."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from swa_jax.data.batches import TrainBatches, TrainIterator, train_iterator
from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.interrupt import StopRequest
from swa_jax.training.loop import Start, all_steps, rows_of_step
from swa_jax.training.metrics import Display, MetricsLog
from swa_jax.training.performance import CompiledStep
from swa_jax.training.program import STEP_ARRAYS, Program
from swa_jax.training.recorder import Recorder
from swa_jax.training.sharding import batch_sharding
from swa_jax.training.step_profile import StepProfile
from swa_jax.training.throughput import Throughput
from swa_jax.training.window_schedule import window_at

NO_SIGNAL = 0


class Reading(NamedTuple):
    """One turn; all in seconds a step."""

    bare: float  # the compiled step alone, one batch again and again
    bare_process: float  # the same in CPU time of all threads
    loop: float  # the training loop with its statistics, without other stalls
    thread: float  # CPU time of the loop's own thread, with an empty step
    process: float  # CPU time of all threads then, those that read ahead as well


class _FirstSteps:
    """Batches of a run that asks for its own end after some of them."""

    def __init__(self, batches: TrainIterator, /, *, steps: int, stop: StopRequest):
        self._batches, self._left, self._stop = batches, steps, stop

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        self._left -= 1
        if not self._left:
            self._stop.ask(NO_SIGNAL)
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position of the batches."""
        return self._batches.get_state()


def measure(
    program: Program, compiled: CompiledStep, /, *, steps: int, folder: Path
) -> Reading:
    """One turn of each, over so many steps; `folder` is for the runs' files."""
    bare, bare_process = _bare_seconds(program, compiled, steps=steps)
    empty = _empty_step(program, compiled)
    runs = {
        "loop": (compiled, time.monotonic),
        "thread": (empty, time.thread_time),
        "process": (empty, time.process_time),
    }
    seconds = {
        name: _loop_seconds(
            program, step, steps=steps, folder=folder / name, clock=clock
        )
        for name, (step, clock) in runs.items()
    }
    return Reading(bare=bare, bare_process=bare_process, **seconds)


def _bare_seconds(
    program: Program, compiled: CompiledStep, *, steps: int
) -> tuple[float, float]:
    """Wall and CPU seconds of the compiled step, at the windows that the run draws."""
    config, state = program.config, program.initial()
    batch = _first_batch(program)
    state, metrics = compiled.call(state, batch, np.int32(1), program.token_bytes_V)
    jax.block_until_ready((state, metrics))
    begin = time.monotonic(), time.process_time()
    # Step 0 of the loop is in no rate either.
    for step in range(1, steps):
        window = window_at(
            config.windows, step=step, steps=config.steps, seed=config.seed
        )
        state, metrics = compiled.call(
            state, batch, np.int32(window), program.token_bytes_V
        )
    jax.block_until_ready((state, metrics))
    wall, cpu = time.monotonic() - begin[0], time.process_time() - begin[1]
    return wall / (steps - 1), cpu / (steps - 1)


def _loop_seconds(
    program: Program,
    compiled: CompiledStep,
    *,
    steps: int,
    folder: Path,
    clock: Callable[[], float],
) -> float:
    """Seconds a step of the whole loop by a clock, as the loop itself reports them."""
    stop = StopRequest()
    folder.mkdir(parents=True)
    throughput = Throughput(flops_per_token=float, peak_flops=None, clock=clock)
    console = Console(file=StringIO())
    with ExitStack() as stack:
        enter = stack.enter_context
        batches = enter(closing(_batches(program)))
        recorder = Recorder(
            program,
            checkpoints=enter(Checkpoints(folder / "checkpoints", keep=1)),
            log=enter(MetricsLog(folder, completed_steps=0)),
            display=enter(
                Display(steps=steps, completed_steps=0, seconds=5.0, console=console)
            ),
            stop=stop,
            documents_of=batches.documents_of,
            throughput=throughput,
        )
        all_steps(
            program,
            {compiled.rows: compiled},
            Start(program.initial(), 0, validated=True, notes=()),
            _FirstSteps(batches, steps=steps, stop=stop),  # type: ignore[arg-type]
            recorder,
            enter(StepProfile(None, folder=folder, say=print)),
            stop,
        )
    return throughput.of_the_run()["step_seconds"]


def _batches(program: Program) -> TrainIterator:
    config = program.config
    return train_iterator(
        program.data, rows_of_step=partial(rows_of_step, config), seed=config.seed
    )


def _empty_step(program: Program, compiled: CompiledStep) -> CompiledStep:
    """A step that gives back its state, and metrics and statistics of a real one."""
    state, batch, window = program.initial(), _first_batch(program), np.int32(1)
    statistics = compiled.statistics(state.params, batch, window)
    _, metrics = compiled.call(state, batch, window, program.token_bytes_V)
    copies, copied = _copier(metrics), _copier(statistics)
    return compiled._replace(
        call=lambda state, *_: (state, copies()), statistics=lambda *_: copied()
    )


def _copier(tree: Any) -> Callable[[], Any]:
    """Copies of some arrays, new each time: an array keeps what was fetched of it."""
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree)).lower(tree).compile()
    return lambda: copy(tree)


def _first_batch(program: Program) -> dict[str, jax.Array]:
    config, sharding = program.config, batch_sharding(program.mesh)
    batches = TrainBatches(
        program.data, rows_of_step=partial(rows_of_step, config), seed=config.seed
    )
    batch = batches[0]
    return {name: jax.device_put(batch[name], sharding) for name in STEP_ARRAYS}
