"""The tuner's refusals: wrong values, other ones in a second run, spilled registers."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.inspect.ptxas import Usage
from pallas_kernels.local_attention.tiles import Tile
from pallas_kernels.tune import compiler, verdict
from pallas_kernels.tune.clock import Program
from pallas_kernels.tune.problem import Right
from pallas_kernels.tune.verdict import Refusal


def program(compiled):
    return Program(Tile(16, 16, 4, 1), compiled, [jnp.ones(2)])


# The verdicts


def judged(*runs, wanted=(1.0, 2.0), precise=False):
    """The verdict on a program that gives these (out, lse), one run after the other."""
    results = itertools.cycle(runs)

    def named(values):
        arrays = [jnp.full((2, 3), value) for value in values]
        return dict(zip(("out", "lse"), arrays, strict=True))

    right = {name: Right(x, name == "lse") for name, x in named(wanted).items()}
    running = program(lambda operands: named(next(results)))
    return verdict.verdict(running, right, precise=precise)


def test_right_results_pass():
    assert judged((1.0, 2.0)) is None
    assert judged((1.01, 2.01)) is None
    assert judged((1.00001, 2.0), precise=True) is None


def test_what_is_refused():
    assert judged((math.nan, 2.0)) == Refusal(verdict.FINITE, "out")
    assert judged((1.0, math.inf)) == Refusal(verdict.FINITE, "lse")
    off = "{} is off by {}, over {}"
    wrong = Refusal(verdict.WRONG, off.format("out", "0.05", "2e-02"))
    assert judged((1.05, 2.0)) == wrong
    wrong = Refusal(verdict.WRONG, off.format("lse", "0.1", "2e-02"))
    assert judged((1.0, 2.1)) == wrong
    wrong = Refusal(verdict.WRONG, off.format("out", "0.001", "5e-05"))
    assert judged((1.001, 2.0), precise=True) == wrong
    assert judged((1.0, 2.0), (1.0 + 2e-7, 2.0)) == Refusal(verdict.REPEAT)
    assert judged((0.0, 2.0), (-0.0, 2.0), wanted=(1e-9, 2)) == Refusal(verdict.REPEAT)


def test_zeros_are_right_where_they_are_wanted():
    assert judged((0.0, 2.0), wanted=(0.0, 2.0)) is None
    refusal = judged((1e-9, 2.0), wanted=(0.0, 2.0))
    assert refusal is not None
    assert refusal.reason == verdict.WRONG


def test_a_broken_device_ends_the_run(monkeypatch):
    def compiled(operands):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    right = {"out": Right(jnp.ones(2))}
    refusal = verdict.verdict(program(compiled), right, precise=False)
    assert refusal == Refusal(verdict.RUN, "CUDA_ERROR_ILLEGAL_ADDRESS")

    def block(*_):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(jax, "block_until_ready", block)
    with pytest.raises(verdict.DeviceLostError):
        verdict.verdict(program(compiled), right, precise=False)


def test_shared_memory_and_spills_have_a_reason_of_their_own():
    error = RuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: 1")
    assert verdict.failure(error, reason=verdict.COMPILE).reason == verdict.SHARED
    error = RuntimeError("no such layout")
    assert verdict.failure(error, reason=verdict.COMPILE).reason == verdict.COMPILE
    error = RuntimeError("register spilling: 12 B in local_attention_dq")
    refusal = Refusal(verdict.SPILLS, str(error))
    assert verdict.failure(error, reason=verdict.COMPILE) == refusal


# The compiler


PTX = """.version 8.7
.target sm_90a
.visible .entry {name}(
"""


class Dumping:
    """A lowered program whose compilation leaves the PTX of kernels behind."""

    def __init__(self, *names):
        self.names = names

    def compile(self, compiler_options):
        for name in self.names:
            path = Path(compiler_options["xla_dump_to"], f"{name}.ptx")
            path.write_text(PTX.format(name=name))
        return self.names


@pytest.fixture
def assembled(monkeypatch):
    """The kernels that were assembled; those with "wide" in their names spill."""
    seen = []

    def assemble(ptxas, source, architecture):
        assert (ptxas, architecture) == (Path("ptxas"), "sm_90a")
        seen.append(source.stem)
        spilled = 40 if "wide" in source.stem else 0
        return {source.stem: Usage(255, spilled, spilled, 0)}

    monkeypatch.setattr(compiler, "_ptxas", lambda: Path("ptxas"))
    monkeypatch.setattr(compiler, "assemble", assemble)
    return seen


def test_a_kernel_that_spills_is_refused(assembled):
    made, program = compiler.Compiler(1), Dumping("narrow", "wide_1")
    with pytest.raises(RuntimeError, match="register spilling: 40 B in wide_1"):
        made._program(program, "wide")
    assert made._program(program, "narrow") == program.names
    assert assembled == ["wide_1", "narrow"], "what is asked for, and else nothing"


def test_a_kernel_is_assembled_once(assembled):
    made = compiler.Compiler(1)
    for names in (("narrow", "fusion_wide"), ("narrow", "narrow_1")):
        assert made._program(Dumping(*names), "narrow") == names
    assert assembled == ["narrow", "narrow_1"]


def test_without_a_gpu_nothing_is_assembled():
    assert compiler._ptxas() is None
