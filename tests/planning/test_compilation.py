"""The process that compiles: what it is told, how it ends, what is kept."""

import importlib.util
import json
import os
import signal
import sys
import threading
import time

import pytest

from swa_jax.planning import compilation
from swa_jax.planning.compilation import Refused, compile_request, request_key
from swa_jax.planning.program import program_to_dict
from tests.planning.steps import step_program, tiny_request

REQUEST = tiny_request(fsdp=8)
PROGRAM = step_program()


@pytest.fixture
def worker(monkeypatch):
    """Gives the process that compiles another program."""

    def become(code):
        lines = f"import json, os, sys, time\nresult = sys.argv[1]\n{code}"
        monkeypatch.setattr(compilation, "WORKER", (sys.executable, "-c", lines))

    return become


def answer(outcome):
    """The program of a worker that has an answer at once."""
    text = json.dumps(json.dumps(outcome))
    return f"json.load(sys.stdin); open(result, 'w').write({text})"


def test_the_answer_of_the_process_is_the_program(worker):
    worker(answer({"program": program_to_dict(PROGRAM)}))
    assert compile_request(REQUEST) == PROGRAM


def test_the_process_sees_no_gpu(worker):
    worker(
        "wanted = {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}\n"
        "seen = {name: os.environ[name] for name in wanted}\n"
        "open(result, 'w').write(json.dumps({'refused': str(seen == wanted)}))"
    )
    with pytest.raises(Refused, match="True"):
        compile_request(REQUEST)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (answer({"missing": "x"}), ValueError, r"pip install 'swa_jax\[cuda13\]'"),
        (answer({"refused": "heads"}), Refused, "heads"),
        (answer({"failed": "XlaError: x"}), ChildProcessError, "XlaError: x"),
        ("sys.exit('broken')", ChildProcessError, "code 1: broken"),
        ("pass", ChildProcessError, "code 0"),
        ("os.kill(os.getpid(), 9)", ChildProcessError, "SIGKILL.*memory"),
    ],
)
def test_other_ends_are_told_in_words(worker, code, kind, message):
    worker(code)
    with pytest.raises(kind, match=message):
        compile_request(REQUEST)


def test_a_process_that_takes_too_long_is_ended(worker, tmp_path):
    pid = tmp_path / "pid"
    worker(f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    with pytest.raises(TimeoutError, match="within 2 s"):
        compile_request(REQUEST, timeout=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_ctrl_c_ends_the_process(worker, tmp_path):
    pid = tmp_path / "pid"
    worker(
        f"open({str(pid)!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(pid)!r} + '.new', {str(pid)!r}); time.sleep(60)"
    )

    def interrupt():
        while not pid.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        compile_request(REQUEST)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_what_is_kept_is_found_again(worker, tmp_path):
    worker(answer({"program": program_to_dict(PROGRAM)}))
    assert compile_request(REQUEST, keep=tmp_path / "kept") == PROGRAM
    worker("sys.exit('nobody should ask')")
    assert compile_request(REQUEST, keep=tmp_path / "kept") == PROGRAM
    with pytest.raises(ChildProcessError, match="nobody"):
        compile_request(tiny_request(fsdp=4), keep=tmp_path / "kept")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"request": 1}'])
def test_a_kept_file_that_cannot_be_read_is_compiled_again(worker, tmp_path, text):
    (tmp_path / f"{request_key(REQUEST)}.json").write_text(text)
    worker(answer({"program": program_to_dict(PROGRAM)}))
    assert compile_request(REQUEST, keep=tmp_path) == PROGRAM


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs XLA's compiler for CUDA: pip install 'swa_jax[cuda13]'",
)
def test_a_tiny_step_compiles_for_eight_gpus_that_are_not_there():
    program = compile_request(REQUEST)
    assert program.mesh["fsdp"] == 8
    assert program.kernels["local_attention_forward"] >= 1
    assert {c.axes for c in program.collectives} >= {"fsdp"}
    assert program.memory.total > program.parameters + program.optimizer > 0
