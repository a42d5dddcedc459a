"""Compiles a step in a process of its own, which the user may interrupt."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from swa_jax.data.one_move import write_in_one_move
from swa_jax.planning.program import (
    Request,
    StepProgram,
    program_from_dict,
    program_to_dict,
    request_to_dict,
)

EXTRA = "pip install 'swa_jax[cuda13]'"
WORKER = (sys.executable, "-m", "swa_jax.planning.worker")
_TAIL = 400  # characters of what a process says last


class Refused(ValueError):
    """The training step does not take this mesh, these rows or this model."""


def compile_request(
    request: Request,
    /,
    *,
    keep: Path | None = None,
    timeout: float | None = None,
) -> StepProgram:
    """Returns the compiled step of a request; touches no GPU.

    `keep` is a folder in which programs are left, and found instead of compiled again.

    Raises:
      ValueError: the compiler for CUDA is not installed, or the step refuses the
        request (Refused).
      ChildProcessError: the compiler failed, or was killed.
      TimeoutError: it took longer than `timeout` seconds.
    """
    kept = None if keep is None else keep / f"{request_key(request)}.json"
    if kept is not None and (found := _found(kept, request)) is not None:
        return found
    outcome = _outcome(request, timeout)
    if "missing" in outcome:
        raise ValueError(
            "XLA's compiler for CUDA, which a plan needs, is not installed (no GPU is "
            f"needed): {EXTRA}"
        )
    if "refused" in outcome:
        raise Refused(outcome["refused"])
    if "failed" in outcome:
        raise ChildProcessError(f"the step does not compile: {outcome['failed']}")
    program = program_from_dict(outcome["program"])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "request": request_to_dict(request),
            "program": program_to_dict(program),
        }
        write_in_one_move(kept, json.dumps(content, indent=1) + "\n")
    return program


def request_key(request: Request, /) -> str:
    """Returns a name for what is compiled: equal requests have the same."""
    text = json.dumps(request_to_dict(request), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _found(path: Path, request: Request) -> StepProgram | None:
    """The program of a file; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["request"] == request_to_dict(request):
            return program_from_dict(content["program"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _outcome(request: Request, timeout: float | None) -> dict[str, Any]:
    """What the process that compiles has written."""
    with tempfile.TemporaryDirectory(prefix="swax-plan-") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [*WORKER, str(result)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=_environment(),
                start_new_session=True,  # Ctrl-C comes to us, and we end it
            )
            try:
                words = json.dumps(request_to_dict(request)).encode()
                process.communicate(words, timeout=timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(
                    f"the step was not compiled within {timeout:.0f} s"
                ) from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if process.returncode or not result.is_file():
            raise ChildProcessError(_reason(process.returncode, log))
        return json.loads(result.read_text(encoding="utf-8"))


def _environment() -> dict[str, str]:
    """The environment of a process that sees no GPU, and this very code."""
    root = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONPATH": root if not before else os.pathsep.join([root, before]),
    }


def _reason(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ": this machine's memory may be too small" if name == "SIGKILL" else ""
        return f"the process that compiles was ended by {name}{hint}"
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    return f"the process that compiles ended with code {code}: {said[-_TAIL:]}"
