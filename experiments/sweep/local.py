"""Cells on this machine, in worker processes."""

import contextlib
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import IO, NamedTuple, cast

from .folder import LOG_FILE, SweepFolder
from .worker import FAILED, FINISHED, request

GRACE = 60.0  # seconds that a cell has to stop, and to save, after Ctrl-C


class Attempt(NamedTuple):
    """A cell that has ended; `failure` says why it has no result, None: it has."""

    cell: str
    failure: str | None


def run_locally(
    folder: SweepFolder, names: Sequence[str], /, *, workers: int, gpus: int = 0
) -> Generator[Attempt, None, None]:
    """Yields each cell as it ends; so many run beside each other.

    With `gpus`, a worker sees as many of the machine's GPUs, and no others. When the
    iterator is closed, as after Ctrl-C, cells under way get SIGTERM, and are killed
    after a grace period or a second Ctrl-C.
    """
    pool = _Pool(folder, names, workers=min(workers, len(names)), gpus=gpus)
    try:
        for _ in names:
            ended = pool.ended.get()
            if isinstance(ended, BaseException):
                raise ended
            yield ended
    except KeyboardInterrupt:
        print("stopping; Ctrl-C again waits for no cell to save", file=sys.stderr)
        raise
    finally:
        pool.stop()


class _Pool:
    """Threads that each feed one worker process at a time.

    Each begins with a part of the names of its own, because cells that are neighbours
    often share what is compiled.
    """

    def __init__(
        self, folder: SweepFolder, names: Sequence[str], /, *, workers: int, gpus: int
    ):
        self.folder = folder
        self.waiting = _parts(names, workers)
        self._choice = threading.Lock()
        self.ended: queue.Queue[Attempt | BaseException] = queue.Queue()
        self.processes: dict[int, subprocess.Popen] = {}
        self._stopping = False
        self._cores = [cores_of(slot, workers) for slot in range(workers)]
        environments = [_environment(slot, gpus) for slot in range(workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(slot, environment), daemon=True)
            for slot, environment in enumerate(environments)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns once no worker runs any more."""
        self._stopping = True
        try:
            self._signal(signal.SIGTERM)
            end = time.monotonic() + GRACE
            for thread in self._threads:
                thread.join(max(0.0, end - time.monotonic()))
        finally:  # after a second Ctrl-C as well
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for process in list(self.processes.values()):
            if process.poll() is None:
                # Its children go with it where it is killed.
                send = os.killpg if number == signal.SIGKILL else os.kill
                # Gone, where its own thread is just waiting for it: poll says None.
                with contextlib.suppress(ProcessLookupError):
                    send(process.pid, number)

    def _serve(self, slot: int, environment: dict[str, str]) -> None:
        try:
            while not self._stopping and (name := self._next(slot)) is not None:
                self.ended.put(Attempt(name, self._run(slot, name, environment)))
        except BaseException as error:  # the thread that waits must know
            self.ended.put(error)
        finally:
            self._dismiss(slot)

    def _next(self, slot: int) -> str | None:
        """A slot's next cell: of its own part, else the last of the longest one."""
        with self._choice:
            if self.waiting[slot]:
                return self.waiting[slot].popleft()
            longest = max(self.waiting, key=len)
            return longest.pop() if longest else None

    def _run(self, slot: int, name: str, environment: dict[str, str]) -> str | None:
        """Why the cell failed, or None."""
        cell = self.folder.cell(name)
        log = cell / LOG_FILE
        self.folder.begin_attempt(name, log=log, job=None)
        process = self.processes.get(slot)
        if process is None:
            process = self.processes[slot] = _start(environment, self._cores[slot])
            if self._stopping:
                process.terminate()
        line = request(self.folder.sweep.run, self.folder.sweep.cells[name], cell, log)
        answer = b""
        with contextlib.suppress(BrokenPipeError):
            requests = cast(IO[bytes], process.stdin)
            requests.write(line)
            requests.flush()
            answer = cast(IO[bytes], process.stdout).readline()
        if answer == FINISHED:
            return None
        # What a failure leaves behind in a process is nothing for the next cell.
        code = self._dismiss(slot)
        return "raised an error" if answer == FAILED else _described(code)

    def _dismiss(self, slot: int) -> int:
        """The exit code of a slot's worker, which has nothing left to do."""
        process = self.processes.get(slot)
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                cast(IO[bytes], pipe).close()
        code = process.wait()
        self.processes.pop(slot, None)
        return code


def _parts(names: Sequence[str], count: int) -> list[deque[str]]:
    edges = [len(names) * part // count for part in range(count + 1)]
    return [deque(names[a:b]) for a, b in itertools.pairwise(edges)]


def cores_of(slot: int, workers: int) -> list[int]:
    """The cores of one of several workers, none of another's; empty: all there are.

    Workers that share their cores have more threads than cores, which wait for each
    other. With more workers than cores, and where the system has no such thing, all
    share all.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if not 1 < workers <= len(cores):
        return []
    first, last = (len(cores) * part // workers for part in (slot, slot + 1))
    return cores[first:last]


def _start(environment: dict[str, str], cores: list[int]) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "experiments.sweep.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        # A terminal's Ctrl-C is for the command alone, which then stops its workers.
        start_new_session=True,
    )
    if cores:  # before it has made a thread
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def _environment(slot: int, gpus: int) -> dict[str, str]:
    """What a worker finds: the modules of this process, and its share of the GPUs."""
    environment = os.environ | {"PYTHONPATH": module_path()}
    if gpus:
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        first, last = slot * gpus, (slot + 1) * gpus
        numbers = [x for x in named.split(",") if x] or list(map(str, range(last)))
        if last > len(numbers):
            raise ValueError(
                f"wanted {gpus} GPUs for each of the workers beside each other, got "
                f"CUDA_VISIBLE_DEVICES={named!r}; lower --workers or --gpus"
            )
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(numbers[first:last])
    return environment


def module_path() -> str:
    """The folders that this process imports from, as PYTHONPATH holds them."""
    return os.pathsep.join(os.path.abspath(path) for path in sys.path)


def _described(code: int) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"
