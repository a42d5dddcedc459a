"""Runs in processes of their own, which a test may kill, pause and send signals to.

They are forked from a server that has imported everything and done nothing, so that a
start costs no more than a run's own: `python -m tests.training.processes`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.lock import check_free
from swa_jax.training.throughput import TIMES
from tests.training.tiny import run_config, toy_model, write_corpus

ROOT = Path(__file__).parents[2]
LIMIT = 120  # seconds; for what should take a few
STEPS, SAVE_EVERY, VALIDATE_EVERY, KEEP = 60, 5, 10, 2


class Run(NamedTuple):
    """A process that trains."""

    pid: int
    output: Path  # its standard output and error
    reached: Path  # a file that is there once it waits at the point it was given
    server: "Server"

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, negative for the signal that ended it."""
        return self.server.ask({"wait": self.pid})["code"]

    def has_ended(self) -> bool:
        """Whether it is no longer there, or only waits to be waited for."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] in ("Z", "X")

    def finish(self) -> str:
        """The output of a run that ends well."""
        code = self.wait()
        assert code == 0, f"exit code {code}: {self.text()}"
        return self.text()

    def wait_until_there(self) -> None:
        """Returns once the run is at the point that it was given."""
        wait_until(self.reached.exists, self)

    def text(self) -> str:
        """Its output up to now; the run opens the file, a while after its start."""
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""


def wait_until(happened, run: Run) -> None:
    """Returns once something has happened that a run should do."""
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, run.text()
        assert not run.has_ended() or happened(), run.text()
        time.sleep(0.005)


def records_of(out: Path) -> list[dict]:
    """The whole lines of metrics.jsonl, without what is measured in seconds."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


class Server:
    """Forks runs of one corpus; a context manager."""

    def __init__(self, folder: Path, *prefix: str, cache: Path | None = None):
        """`prefix`: a command that runs the server, as `setpriv` with its options.

        `cache`: folder of compiled programs, None: one of its own.
        """
        self.folder, self._count = folder, 0
        self.corpus = write_corpus(folder / "corpus")
        self._server = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.training.processes"],
            cwd=ROOT,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "OPENBLAS_NUM_THREADS": "1",  # no threads before the fork
                "JAX_COMPILATION_CACHE_DIR": str(cache or folder / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(LIMIT)
        self._server.stdout.close()

    def ask(self, request: dict) -> dict:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    @cached_property
    def whole(self) -> Path:
        """The folder of a run that nothing interrupted."""
        out = self.folder / "whole"
        self.start(out).finish()
        return out

    def check_equal_to_whole(self, out: Path) -> None:
        """Fails unless a run that went through faults is the uninterrupted one."""
        assert records_of(out) == records_of(self.whole)
        with (
            Checkpoints(out / "checkpoints") as one,
            Checkpoints(self.whole / "checkpoints") as other,
        ):
            assert one.steps() == other.steps()
            assert one.best_step() == other.best_step()
            for step in one.steps():
                assert one.damage(step) is None
                assert one.record(step)._replace(config={}) == other.record(
                    step
                )._replace(config={})
        check_free(out)

    def start_all(
        self, out: Path, processes: int, *, alone: dict[int, dict] | None = None, **all_
    ) -> list[Run]:
        """The processes of one run; `alone` has options of one of them, by number.

        One process is a run that knows of no others.
        """
        if processes == 1:
            return [self.start(out, **all_)]
        cluster = {"processes": processes, "coordinator": f"127.0.0.1:{free_port()}"}
        return [
            self.start(
                out,
                **{"cluster": cluster | {"process": process}}
                | all_
                | (alone or {}).get(process, {}),
            )
            for process in range(processes)
        ]

    def start(self, out: Path, **options) -> Run:
        """A run that begins or, where there is a folder, goes on.

        `pause`: seconds before each step. `point`: where to wait, a key of `POINTS`;
        `hold`: for how long (seconds; for ever); `after`: how often to pass it before.
        `cluster`: fields of a ClusterConfig. `config`: values laid over the run's.
        `toy`: of the model that compiles at once.
        """
        self._count += 1
        output = self.folder / f"{self._count}.txt"
        reached = self.folder / f"{self._count}.reached"
        request = {"corpus": str(self.corpus), "out": str(out), "output": str(output)}
        answer = self.ask(request | {"reached": str(reached)} | options)
        return Run(answer["pid"], output, reached, self)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# Where a run can be made to wait: module, name of a function in it, when.
POINTS = {
    "data": ("swa_jax.training.loop", "load_text_data", "before"),
    "compilation": ("swa_jax.training.program", "jit_train_step", "compiling"),
    "evaluation": ("swa_jax.training.recorder", "evaluate", "before"),
    "save begun": ("swa_jax.training.checkpoint", "to_dict", "before"),
    "unfinished": ("swa_jax.training.checkpoint", "write_manifest", "before"),
    "manifest written": ("swa_jax.training.checkpoint", "write_manifest", "after"),
    "committed": ("swa_jax.training.checkpoint", "sync_folder", "after"),
    "removing": ("swa_jax.training.checkpoint", "remove", "before"),
    "step": ("swa_jax.training.loop", "window_at", "before"),
}


def serve() -> None:
    """Forks a run for each line of standard input, and waits for it when asked to."""
    import swa_jax.training.cluster
    import swa_jax.training.loop  # noqa: F401 (here, not in each child)

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": _wait(request["wait"])}
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(_child(request))
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def _wait(pid: int) -> int:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


def _child(request: dict) -> int:
    """Trains, and returns the exit code that `swax` would end with."""
    from swa_jax.configuration import from_dict, merged, to_dict
    from swa_jax.training import loop, program
    from swa_jax.training.cluster import joined
    from swa_jax.training.cluster_config import ClusterConfig
    from swa_jax.training.config import CheckpointConfig, LoggingConfig, RunConfig
    from swa_jax.training.interrupt import Stopped, leave

    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    config = run_config(
        Path(request["corpus"]),
        steps=STEPS,
        checkpoint=CheckpointConfig(SAVE_EVERY, keep=KEEP),
        logging=LoggingConfig(
            console_seconds=0.0, validation_every=VALIDATE_EVERY, validation_batches=2
        ),
    )
    config = from_dict(RunConfig, merged(to_dict(config), request.get("config", {})))
    out = Path(request["out"])
    if request.get("toy"):
        program.language_model = toy_model
    _slow_down(request)
    try:
        with joined(ClusterConfig(**request.get("cluster", {}))):
            resume = (out / "config.json").exists()
            result = loop.train(config, out=out, resume=resume)
        return leave(0 if result.stopped_by is None else 128 + result.stopped_by)
    except Stopped as stopped:
        return leave(128 + stopped.number)
    except KeyboardInterrupt:
        return leave(130)
    except BaseException:
        traceback.print_exc()
        return leave(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _slow_down(request: dict) -> None:
    """Patches a pause into the steps and the point where the run is to wait."""
    import importlib

    if pause := request.get("pause"):
        _wrap("swa_jax.training.loop", "window_at", before=lambda: time.sleep(pause))
    if point := request.get("point"):
        module, name, when = POINTS[point]
        passes = iter(range(request.get("after", 0)))

        def stop_here() -> None:
            if next(passes, None) is None:
                Path(request["reached"]).touch()
                time.sleep(request.get("hold", LIMIT))

        if when == "compiling":
            from jax.stages import Lowered

            compile_ = Lowered.compile
            Lowered.compile = lambda *a, **k: (stop_here(), compile_(*a, **k))[1]
        else:
            assert hasattr(importlib.import_module(module), name)
            _wrap(module, name, **{when: stop_here})


def _wrap(module: str, name: str, *, before=None, after=None) -> None:
    import importlib

    owner = importlib.import_module(module)
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        if before is not None:
            before()
        result = original(*arguments, **options)
        if after is not None:
            after()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    serve()
