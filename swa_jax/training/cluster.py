"""The processes of one run, on JAX's own distributed runtime.

Every process runs the same program on the same configuration and text, so all that a
step needs besides arrays is a pure function of both and of the step's number: the
drawn window, the rows, whether to validate or to save. What is left to agree on goes
through here. With one process every function is what it would be without this file.
"""

import functools
import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the client has no public name
from jax._src.lib import _jax  # type: ignore[reportPrivateImportUsage]
from jax.experimental import multihost_utils

from swa_jax.training.cluster_config import ClusterConfig, launcher
from swa_jax.training.interrupt import (
    Stopped,
    StopRequest,
    lose_others,
    stop_on_signals,
)
from swa_jax.training.watch import Watch

T = TypeVar("T")
_FOR_EVER = 24 * 3600 * 1000  # milliseconds; a dead process 0 ends the others before
_uses: Counter[str] = Counter()  # of each name, the same on every process
_watch: Watch | None = None


class ProcessLost(OSError):
    """Other processes of the run do not come, have died or do not answer."""


def process_index() -> int:
    """The number of this process, from 0; says so without touching a device."""
    return distributed.global_state.process_id if _client() is not None else 0


def process_count() -> int:
    """The number of the run's processes."""
    return distributed.global_state.num_processes if _client() is not None else 1


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return process_index() == 0


def who() -> str:
    """This process among the others, for messages."""
    return f"process {process_index()} of {process_count()} on {socket.gethostname()}"


def _client() -> Any:
    return distributed.global_state.client


@contextmanager
def joined(config: ClusterConfig, /) -> Iterator[None]:
    """Holds the processes of a launch together while the block runs.

    Before any use of a device, and nothing at all where the process is alone. At the
    end all wait for each other. A process that fails says so to the others, which then
    end as well; none of them ends with code 0.

    Raises ValueError where a launcher has started processes that JAX does not find, and
    ProcessLost where another one is lost. JAX itself ends a process (SIGABRT), and says
    why, when not all of them come or when one gives no sign of life.
    """
    global _watch
    by = launcher(config, os.environ)
    if by is None:
        yield
        return
    _initialize(config, by)
    index, count = process_index(), process_count()
    stopped: Stopped | None = None
    with Watch(_client(), process=index, processes=count) as watch:
        _watch = watch
        try:
            try:
                yield
            except Stopped as all_have:  # after the same step
                stopped = all_have
            _part(config)
        except BaseException as error:
            lose_others()
            raise _failure(error, watch) from error
        finally:
            _watch = None
    jax.distributed.shutdown()
    if stopped is not None:
        raise stopped


def _initialize(config: ClusterConfig, by: str) -> None:
    """Joins the others; the service names those that have not come in time."""
    # The client's own time-out would end the process without a name: the service's,
    # which `initialize` leaves at an hour, has to run out first.
    service = _jax.get_distributed_runtime_service
    named = functools.partial(service, cluster_register_timeout=config.wait_seconds)
    _jax.get_distributed_runtime_service = named
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            initialization_timeout=config.wait_seconds + 15,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            shutdown_timeout_seconds=config.wait_seconds,
        )
    except ValueError as error:
        raise ValueError(
            f"this process was started by {by} as one of several, and JAX does not "
            f"find the others: {error}. Give --cluster.coordinator HOST:PORT, "
            "--cluster.processes N and --cluster.process I"
        ) from None
    finally:
        _jax.get_distributed_runtime_service = service


def _part(config: ClusterConfig) -> None:
    """Waits until all have come to the end."""
    sign("the end of the run")
    barrier("end", seconds=config.wait_seconds)


def _failure(error: BaseException, watch: Watch) -> BaseException:
    """What to raise here for an error, after the others know of it."""
    watch.announce(f"{type(error).__name__}: {error}")
    if _of_another(error) and (missing := watch.missing()):
        reason = str(error).partition("\n")[0][:200]
        error = ProcessLost(f"{missing}. Here: {reason}")
    error.add_note(who())
    return error


def _of_another(error: BaseException) -> bool:
    """Whether an error may come from another process's end."""
    words = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection")
    return isinstance(error, ValueError | RuntimeError) and any(
        word in str(error) for word in words
    )


def barrier(name: str, /, *, seconds: int) -> None:
    """Returns when all processes are here; raises ProcessLost with those that are not.

    All call it in the same order.
    """
    if process_count() == 1:
        return
    try:
        _client().wait_at_barrier(_key(name), 1000 * seconds)
    except jax.errors.JaxRuntimeError as error:
        names = missing_names(str(error))
        missing = f"process {', '.join(map(str, names))}" if names else "another one"
        raise ProcessLost(
            f"{who()} waited {seconds} s ({name}) for {missing}, which did not come"
        ) from error


def missing_names(words: str, /) -> list[int]:
    """The processes that JAX's coordination service says did not come in time."""
    found = re.search(r"timed out task names:\s*((?:\d+\s+)*\d+)", words)
    return sorted(map(int, found[1].split())) if found else []


def from_first(name: str, call: Callable[[], T], /) -> T:
    """What a call returns on process 0, where alone it runs; JSON has to hold it.

    All call it in the same order. Raises what the call raises, and ProcessLost on the
    other processes.
    """
    if process_count() == 1:
        return call()
    key = _key(name)
    if is_first():
        try:
            answer = json.dumps({"value": call()})
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            _client().key_value_set(key, json.dumps({"error": reason}))
            raise
        _client().key_value_set(key, answer)
    else:
        answer = _client().blocking_key_value_get(key, _FOR_EVER)
    found = json.loads(answer)
    if "error" in found:
        raise ProcessLost(f"process 0 has failed ({name}): {found['error']}")
    return found["value"]


def from_each(name: str, value: T, /) -> list[T]:
    """The values that all processes give, in their order; JSON has to hold them."""
    if process_count() == 1:
        return [value]
    key = _key(name)
    _client().key_value_set(f"{key}/{process_index()}", json.dumps(value))
    return [
        json.loads(_client().blocking_key_value_get(f"{key}/{process}", _FOR_EVER))
        for process in range(process_count())
    ]


def check_same(name: str, value: Any, /) -> None:
    """Raises ValueError where a process has another value than process 0 (JSON)."""
    first = from_first(name, lambda: value)
    if first != value:
        raise ValueError(
            f"{who()} has another {name} than process 0: {value!r} instead of "
            f"{first!r}; every node needs the same code, files and settings"
        )


def _key(name: str) -> str:
    _uses[name] += 1
    return f"swax/{name}/{_uses[name]}"


def sign(doing: str, /) -> None:
    """Shows the others that this process has come to `doing`."""
    if _watch is not None:
        _watch.sign(doing)


def end_when_hung(seconds: float, /) -> None:
    """From now on the processes end where no `sign` comes for so long; 0: never."""
    if _watch is not None:
        _watch.limit(seconds)


_points = 0  # of the life of JAX's preemption service


class AgreedStop(StopRequest):
    """True on all processes from the same point on, whichever of them got the signal.

    SIGTERM is taken by JAX's preemption service, which finds a point that no process
    has passed; Ctrl-C is handed on to it. So the request is true at a point, and not
    before: what ends early at a signal ends at the same place everywhere.
    """

    signals = (signal.SIGINT,)

    def ask(self, number: int, /) -> None:
        """Hands the signal on."""
        os.kill(os.getpid(), signal.SIGTERM)

    def point(self, doing: str, /) -> bool:
        """Whether all stop before `doing`."""
        global _points
        sign(doing)
        _points += 1
        if not self and multihost_utils.reached_preemption_sync_point(_points):
            self.number = signal.SIGTERM
        return bool(self)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """A request that a signal to any process turns true for all."""
    request = StopRequest() if process_count() == 1 else AgreedStop()
    with stop_on_signals(request):
        yield request
