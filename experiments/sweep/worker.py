"""A process that runs cells, one after another: `python -m experiments.sweep.worker`.

Standard input has a line of JSON for each cell, standard output gets an answer. What a
cell itself prints goes to its log. Cells of one process share what it has imported and
compiled. It ends with its input, which is also how the end of the process that started
it shows: a cell under way is then asked to stop.
"""

import base64
import datetime
import json
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import BinaryIO

from swa_jax.training.interrupt import leave

from .cell import run_cell

FINISHED, FAILED = b"finished\n", b"failed\n"


def request(run, cell, folder: Path, log: Path, /) -> bytes:
    """The line that asks a worker to run a cell."""
    job = base64.b64encode(pickle.dumps((run, cell))).decode("ascii")
    line = {"job": job, "folder": str(folder), "log": str(log)}
    return json.dumps(line).encode("utf-8") + b"\n"


def main() -> int:
    """Returns the exit code: 0 after the last cell, 128 and a signal's number."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    requests: queue.Queue[bytes | None] = queue.Queue()
    busy, ended = threading.Event(), threading.Event()
    source = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(
        target=_listen, args=(source, requests, busy, ended), daemon=True
    ).start()
    while (line := requests.get()) is not None:
        busy.set()
        if ended.is_set():
            break
        try:
            answer = _run(json.loads(line))
        except KeyboardInterrupt as stop:  # a training that a signal has ended
            return leave(128 + getattr(stop, "number", signal.SIGINT))
        busy.clear()
        answers.write(answer)
    return leave(0)


def _listen(
    source: BinaryIO,
    requests: queue.Queue,
    busy: threading.Event,
    ended: threading.Event,
) -> None:
    for line in source:
        requests.put(line)
    requests.put(None)
    ended.set()
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _run(values: dict[str, str]) -> bytes:
    log = os.open(values["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    print(f"--- {now}, process {os.getpid()}", flush=True)
    try:
        run, cell = pickle.loads(base64.b64decode(values["job"]))
        run_cell(run, cell, Path(values["folder"]))
    except (Exception, SystemExit):
        traceback.print_exc()
        return FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return FINISHED


if __name__ == "__main__":
    sys.exit(main())
