"""Batches of a mixture: each a pure function of its step, read ahead of their use."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any, cast

import grain
import numpy as np

from swa_jax.data.documents import BadRecordError
from swa_jax.data.mixture import Mixture
from swa_jax.data.pipeline import TextData
from swa_jax.data.rows import Batch, JoinedRows, Place
from swa_jax.data.workers import worker_pool

# The number of rows before a step, over all processes, and the number in the step.
RowsOfStep = Callable[[int], tuple[int, int]]
Read = tuple[Batch, list[str]]

_AHEAD = 8  # batches
_THREADS = 2
_log = logging.getLogger(__name__)


def constant_rows(batch_size: int, /) -> RowsOfStep:
    """The rows of steps that all have the same number. ValueError below 1."""
    if batch_size < 1:
        raise ValueError(f"a batch has at least 1 row, got {batch_size=}")
    return lambda step: (step * batch_size, batch_size)


class TrainRows:
    """The endless sequence of training rows, of all sources, by their numbers.

    Which source a row comes from is the mixture's affair. Every epoch of a source holds
    each of its rows once, in an order of its own. Processes may be handed it.
    """

    def __init__(
        self, rows: JoinedRows, weights: Iterable[float], /, *, seed: int
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self._rows, self._seed, self._mixture = rows, seed, Mixture(list(weights))
        self._orders = self._shuffled()

    def _shuffled(self) -> list[Any]:
        """For each source the endless sequence of its rows' numbers."""
        counts = [len(part) for part in self._rows.parts]
        return [
            grain.MapDataset.range(count).seed(self._seed).shuffle().repeat()
            for count in counts
        ]

    def __getstate__(self) -> tuple[Any, ...]:
        return self._rows, self._seed, self._mixture

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._rows, self._seed, self._mixture = state
        self._orders = self._shuffled()

    def places(self, first: int, count: int, /) -> list[Place]:
        """Where the rows with so many numbers from `first` on are."""
        found = map(self._mixture.source_of, range(first, first + count))
        return [(source, int(self._orders[source][i])) for source, i in found]

    def read(self, first: int, count: int, /) -> Read:
        """The rows as a batch, and what was left out of it."""
        return self._rows.batch(self.places(first, count), size=count)

    def names(self, source: int, row: int, /) -> list[str]:
        """The names of the documents of a row."""
        return self._rows.names(source, row)


class TrainBatches:
    """The endless sequence of training batches of one process, by their steps.

    A batch is a dict of int32 arrays, "sources" (rows,) and the others (rows, T); a
    pure function of the data, the rows of each step, the seed and k. A batch may reach
    from one epoch into the next. Each of several processes gets its own neighbouring
    rows, as many as the others, of the same global batches.
    """

    def __init__(
        self,
        data: TextData,
        /,
        *,
        rows_of_step: RowsOfStep,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Raises ValueError when the first rows cannot be dealt out evenly."""
        self.rows = TrainRows(data.train, data.weights.values(), seed=seed)
        self.rows_of_step = rows_of_step
        self._labels = list(data.weights)
        self._slice = process_index, process_count
        self.own_rows(0)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step; raises BadRecordError where the data says stop."""
        return self.rows.read(*self.own_rows(step))[0]

    def own_rows(self, step: int, /) -> tuple[int, int]:
        """The first of the process's rows of a step, and their number."""
        first, count = self.rows_of_step(step)
        index, processes = self._slice
        _check_slices(count, index, processes)
        size = count // processes
        return first + index * size, size

    def documents_of(self, step: int, /) -> list[str]:
        """The names of the documents in a step's rows, over all processes.

        "source/file:record" for records and "source/file" for whole files, in the order
        of the rows, each once.
        """
        names = []
        for source, row in self.rows.places(*self.rows_of_step(step)):
            label = self._labels[source]
            try:
                found = self.rows.names(source, row)
            except BadRecordError:
                found = ["(a record that cannot be read)"]
            names += [f"{label}/{name}" for name in found]
        return list(dict.fromkeys(names))


def train_iterator(
    data: TextData,
    /,
    *,
    rows_of_step: RowsOfStep,
    seed: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> "TrainIterator":
    """An iterator over TrainBatches, from step 0, that knows its position.

    `workers` processes read ahead; 0: two threads. It changes no batch.
    """
    batches = TrainBatches(
        data,
        rows_of_step=rows_of_step,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    identity = {
        "fingerprint": data.fingerprint,
        "sources": dict(data.weights),
        "seed": seed,
    }
    return TrainIterator(batches, identity=identity, workers=workers)


class TrainIterator(Iterator[Batch]):
    """Batches read ahead, with a position to save and to go on from: the step."""

    def __init__(
        self, batches: TrainBatches, /, *, identity: Mapping[str, Any], workers: int
    ) -> None:
        self.waited = 0.0  # seconds that `next` has waited for batches, in all
        self.left_out = 0  # rows left out, of records that cannot be read
        self._batches, self._identity = batches, dict(identity)
        self._workers, self._executor = workers, None
        self._step = 0
        self._pending: deque[Future[Read]] = deque()

    def __next__(self) -> Batch:
        """The next batch; there is always one.

        Raises BadRecordError for a record that cannot be read, where that is to stop,
        and ChildProcessError when a reading process has died.
        """
        begin = time.monotonic()
        try:
            self._read_ahead()
            batch, problems = self._pending.popleft().result()
        except BadRecordError as error:  # of another process, maybe, and its frames
            raise BadRecordError(str(error)) from error
        except BrokenExecutor as error:
            raise ChildProcessError(
                "a process that reads batches ahead has died, maybe for want of "
                "memory; data.workers=0 reads in this process"
            ) from error
        self.waited += time.monotonic() - begin
        self._step += 1
        self.left_out += len(problems)
        for problem in problems:
            _log.warning(
                "step %d: left out a row, %d in all: %s",
                self._step,
                self.left_out,
                problem,
            )
        return batch

    def documents_of(self, step: int, /) -> list[str]:
        """The names of the documents in a step's rows, over all processes."""
        return self._batches.documents_of(step)

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON can hold it; the same for every process."""
        row, _ = self._batches.rows_of_step(self._step)
        return {**self._identity, "step": self._step, "row": row}

    def set_state(self, state: Mapping[str, Any], /) -> None:
        """Goes to a saved position: the next batch is the one that came after it.

        The numbers of processes and of workers may differ from then. Raises ValueError
        for a position in other data, another mixture, or batches of other rows.
        """
        step = state.get("step")
        if type(step) is not int or step < 0:
            raise ValueError(f"the position has no step: {dict(state)!r}")
        row, _ = self._batches.rows_of_step(step)
        for name, value in {**self._identity, "row": row}.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the position was saved with {name}={state.get(name)!r}, and "
                    f"these batches have {name}={value!r}; resume with the text, the "
                    "mixture, the rows and the seed of the run, or begin a new run"
                )
        self._drop_pending()
        self._step = step

    def close(self) -> None:
        """Ends the reading threads or processes."""
        self._drop_pending()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _read_ahead(self) -> None:
        if self._executor is None:
            self._executor = self._begin_reading()
        # Threads read here; a process has the rows from its beginning.
        read = _read_in_worker if self._workers else self._batches.rows.read
        ahead = max(_AHEAD, 2 * self._workers)
        while len(self._pending) < ahead:
            place = self._batches.own_rows(self._step + len(self._pending))
            self._pending.append(self._executor.submit(read, *place))

    def _begin_reading(self) -> Executor:
        if not self._workers:
            return ThreadPoolExecutor(_THREADS, thread_name_prefix="swax-read")
        return worker_pool(
            self._workers, initializer=_keep_rows, arguments=(self._batches.rows,)
        )

    def _drop_pending(self) -> None:
        for future in self._pending:
            future.cancel()
        self._pending.clear()


_rows_of_worker: TrainRows | None = None  # of this process, where it is a worker


def _keep_rows(rows: TrainRows) -> None:
    global _rows_of_worker
    _rows_of_worker = rows


def _read_in_worker(first: int, count: int) -> Read:
    return cast(TrainRows, _rows_of_worker).read(first, count)


def validation_batches(
    data: TextData,
    /,
    *,
    batch_size: int,
    max_batches: int | None = None,
    source: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Batch]:
    """The validation rows in order, in batches of one size, to go through once.

    Those of one source, by its index, or of all. The last batch is filled up with rows
    of padding (segment 0). With `max_batches` the rows are spread evenly over all of
    them, always the same ones. Several processes get slices as in TrainBatches.
    """
    _check_slices(batch_size, process_index, process_count)
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1 or None, got {max_batches}")
    rows = data.validation
    total = len(rows) if source is None else len(rows.parts[source])
    count = total
    if max_batches is not None:
        count = min(count, max_batches * batch_size)
    chosen = np.arange(count) * total // count
    places = [
        rows.place_of(int(row)) if source is None else (source, int(row))
        for row in chosen
    ]
    size = batch_size // process_count
    steps = -(-count // batch_size)  # for every process, also one with padding only
    starts = range(process_index * size, steps * batch_size, batch_size)
    return (
        _validation_batch(rows, places[start : start + size], size) for start in starts
    )


def _validation_batch(rows: JoinedRows, places: list[Place], size: int) -> Batch:
    batch, problems = rows.batch(places, size=size)
    for problem in problems:
        _log.warning("validation: left out a row: %s", problem)
    return batch


def _check_slices(batch_size: int, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(
            "process_index must be in [0, process_count), got "
            f"{process_index=}, {process_count=}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            "batch_size must be a positive multiple of process_count, got "
            f"{batch_size=}, {process_count=}"
        )
