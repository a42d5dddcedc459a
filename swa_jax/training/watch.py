"""Signs of life between the processes of a run, and the end of one that hangs.

JAX's coordination service notices a process that is gone. It does not notice one that
lives and does nothing, for which all the others would wait in a collective for ever.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

PULSE, FAILED = "swax/pulse/", "swax/failed/"
HUNG = 1  # exit code
_ANSWER = 10.0  # seconds in which the coordinator answers, if it lives


class Watch:
    """Shows the others that this process lives and where it is; a context manager.

    Every process counts the points that it has passed: all pass the same ones in the
    same order, so the lowest count is that of the process for which the others wait.
    """

    def __init__(
        self,
        client: Any,
        /,
        *,
        process: int,
        processes: int,
        beat: float | None = None,
        leave: Callable[[int], NoReturn] = os._exit,
    ):
        """`client` of JAX's coordination service; `beat` (seconds) between two signs,
        None: 1, and 5 where many processes write them."""
        self.beat = beat or (1.0 if processes <= 64 else 5.0)
        self.process, self.processes = process, processes
        self._client, self._leave = client, leave
        self._limit: float | None = None  # seconds
        self._points, self._doing, self._since = 0, "beginning", time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> "Watch":
        for work in (self._pulse, self._look_out):
            threading.Thread(target=work, name="swax-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def sign(self, doing: str, /) -> None:
        """A point is passed: what comes next is `doing`."""
        self._points += 1
        self._doing, self._since = doing, time.monotonic()

    def limit(self, seconds: float, /) -> None:
        """From now on so many seconds without a sign end the process; 0: none do."""
        self._limit = seconds or None
        self._since = time.monotonic()

    def announce(self, words: str, /) -> None:
        """Tells the others that this process fails, so that nobody waits for it."""
        key = f"{FAILED}{self.process}"
        _within(_ANSWER, lambda: self._client.key_value_set(key, words[:1000]))
        if self.process == 0:  # where they read it
            time.sleep(2.5 * self.beat)

    def missing(self) -> str | None:
        """Which processes give no sign, else which is behind, in words; None: neither.

        Takes a few beats.
        """
        before = self._signs()
        time.sleep(3 * self.beat)
        after = None if before is None else self._signs()
        if before is None or after is None:
            return "process 0, the coordinator of all, does not answer"
        return missing_of(before, after, processes=self.processes)

    def _signs(self) -> dict[int, dict[str, Any]] | None:
        """The last sign of each process; None where the coordinator does not answer."""
        found = _within(_ANSWER, lambda: self._client.key_value_dir_get(PULSE))
        if found is None:
            return None
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}

    def _pulse(self) -> None:
        """Writes a sign at every beat, and reads whether another process has failed."""
        beats, fixed = 0, {"host": socket.gethostname(), "pid": os.getpid()}
        while not self._ended.wait(self.beat if beats else 0):
            beats += 1
            sign = fixed | {
                "beat": beats,
                "points": self._points,
                "doing": self._doing,
                "seconds": round(time.monotonic() - self._since),
            }
            try:
                self._client.key_value_set(
                    f"{PULSE}{self.process}", json.dumps(sign), allow_overwrite=True
                )
                failed = dict(self._client.key_value_dir_get(FAILED))
            except Exception:  # of a coordinator that is gone: JAX ends the process
                continue
            failed.pop(f"{FAILED}{self.process}", None)
            if failed and not self._ended.is_set():
                key, words = min(failed.items())
                self._end(f"process {key.rpartition('/')[2]} has failed: {words}")

    def _look_out(self) -> None:
        """Ends the process where it has passed no point for too long."""
        while not self._ended.wait(0.2):
            since = time.monotonic() - self._since
            if self._limit is None or since < self._limit:
                continue
            where = self._doing
            missing = self.missing() or (
                "all processes answer and are at the same point: a collective hangs "
                "between them (NCCL_DEBUG=INFO says where)"
            )
            # It may have gone on while the others were asked.
            if self._doing == where and not self._ended.is_set():
                self._end(
                    f"no end of: {where}, for {since:.0f} s "
                    f"(runtime.hang_seconds={self._limit:g}); {missing}"
                )

    def _end(self, words: str) -> None:
        """Ends the process there and then: it may be inside XLA and hear nothing."""
        who = f"process {self.process} of {self.processes} on {socket.gethostname()}"
        sys.stdout.flush()
        os.write(2, f"swax: error: {who}: {words}\n".encode())
        self._leave(HUNG)


def missing_of(
    before: Mapping[int, Mapping[str, Any]],
    after: Mapping[int, Mapping[str, Any]],
    /,
    *,
    processes: int,
) -> str | None:
    """Which processes gave no sign between two readings, else which are behind."""
    silent = [
        process
        for process in range(processes)
        if process not in after
        or after[process]["beat"] == before.get(process, {}).get("beat")
    ]
    if silent:
        words = [_describe(process, after.get(process)) for process in silent]
        return "no sign of life from " + "; ".join(words)
    points = {process: sign["points"] for process, sign in after.items()}
    behind = [process for process in points if points[process] < max(points.values())]
    if behind:
        words = [_describe(process, after[process]) for process in sorted(behind)]
        return "behind the others: " + "; ".join(words)
    return None


def _describe(process: int, sign: Mapping[str, Any] | None) -> str:
    if sign is None:
        return f"process {process}, which was never heard of"
    return (
        f"process {process} on {sign['host']} (pid {sign['pid']}, in: "
        f"{sign['doing']}, for {sign['seconds']} s)"
    )


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of a call, None where there is none in time."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception:  # no answer either
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
