"""What the inspection reads from ptxas and from XLA, and what it says of it."""

import json
import threading
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.inspect import __main__ as program
from pallas_kernels.inspect.case import Case
from pallas_kernels.inspect.compilation import (
    Call,
    Measurement,
    launched_shared_memory,
    refused,
)
from pallas_kernels.inspect.ptxas import Usage, find_ptxas, parse_usage
from pallas_kernels.inspect.report import (
    Row,
    faults,
    heading,
    least_instructions,
    line,
    write_json,
)
from pallas_kernels.inspect.targets import (
    TARGETS,
    blocks_per_processor,
    xla_description,
)
from pallas_kernels.inspect.triton_ir import Kernel, Product

H200 = TARGETS["h200"]
TOOLS: Any = None  # of cases that come to no kernel, which is to compile

# ptxas 13.5 on the forward and the dk/dv kernel; the second one spills.
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'local_attention_forward' for 'sm_90a'
ptxas info    : Function properties for local_attention_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 233 registers, used 1 barriers
ptxas info    : Compile time = 662.336 ms
ptxas info    : Compiling entry function 'local_attention_dkv' for 'sm_90a'
ptxas info    : Function properties for local_attention_dkv
    248 bytes stack frame, 292 bytes spill stores, 312 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 248 bytes cumulative stack size, \
1024 bytes smem
ptxas info    : Compile time = 691.831 ms
"""

# XLA of jax 0.10.2 on a program of two kernels.
THUNKS = """\
001: kCustomKernel [source       | next=002 (1)] loop_add_fusion grid: [16, 1, 1] \
threads: [256, 1, 1]  shared_memory: 0 bytes
002: kCustomKernel [prev=001 (1) | sink        ] local_attention_forward grid: \
[128, 4, 2] threads: [128, 1, 1]  shared_memory: 82944 bytes
"""

OVERFLOW = (
    "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 459776, "
    "available: 232448, context: []\nand more lines"
)


def test_ptxas_is_read_kernel_by_kernel():
    assert parse_usage(PTXAS) == {
        "local_attention_forward": Usage(233, 0, 0, 0),
        "local_attention_dkv": Usage(255, 292, 312, 1024),
    }
    assert parse_usage("ptxas info    : 0 bytes gmem\n") == {}


def test_a_kernel_that_ptxas_says_nothing_of_is_an_error():
    with pytest.raises(ValueError, match="nothing known of local_attention_forward"):
        parse_usage("Compiling entry function 'local_attention_forward' for 'sm_90a'\n")


def test_ptxas_is_searched_on_path_last(monkeypatch, tmp_path):
    monkeypatch.setattr("pallas_kernels.inspect.ptxas.FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="ptxas is neither in the CUDA packages"
    ):
        find_ptxas()
    ptxas = tmp_path / "ptxas"
    ptxas.touch(mode=0o755)
    assert find_ptxas() == ptxas


def test_shared_memory_is_that_of_the_kernels_launch():
    assert launched_shared_memory(THUNKS, "local_attention_forward") == 82944
    with pytest.raises(ValueError, match="no launch of attention_forward"):
        launched_shared_memory(THUNKS, "attention_forward")


# The products of a 64 x 64 tile of heads 128 wide, forward: scores and sums of values,
# in each of three loops.
PRODUCTS = (
    Product(64, 64, 128, "bf16", False),
    Product(64, 128, 64, "bf16", False),
) * 3


def row(*, products=PRODUCTS, warps=4, wgmma=36, sync=0, **measured):
    counts = (("wgmma.mma", wgmma), ("mma.sync", sync), ("cp.async", 144))
    measurement = Measurement(
        **{"registers": 212, "shared_memory": 114688, "instructions": counts} | measured
    )
    return Row("width 128", "local_attention_forward", products, warps, 3, measurement)


@pytest.mark.parametrize(
    ("products", "warps", "target", "seen"),
    [  # what XLA makes of such kernels
        (PRODUCTS, 4, "h200", {"wgmma.mma": 36}),
        (PRODUCTS, 4, "a100", {"mma.sync": 384}),
        ((Product(128, 64, 128, "bf16", False),), 4, "h200", {"wgmma.mma": 16}),
        ((Product(128, 64, 128, "bf16", False),), 8, "h200", {"wgmma.mma": 8}),
        ((Product(64, 32, 128, "f32", False),), 4, "h200", {"wgmma.mma": 16}),
        ((Product(32, 32, 256, "bf16", False),), 4, "h200", {"mma.sync": 32}),
        ((Product(64, 64, 128, "bf16", False),), 2, "h200", {"mma.sync": 128}),
        ((Product(64, 64, 128, "f32", True),), 4, "h200", {}),
        (PRODUCTS, 4, "b200", {"tcgen05.mma": 36}),
    ],
)
def test_instructions_that_products_take(products, warps, target, seen):
    least = least_instructions(products, warps, TARGETS[target])
    assert {name: count for name, count in least.items() if count} == seen


def test_a_kernel_that_is_well_has_no_faults():
    assert faults(row(), H200) == []
    assert "ok" in line(row(), H200).split()
    assert len(line(row(), H200).split("ok")[0]) == len(heading().split("verdict")[0])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (row(spill_stores=8), "spills registers: 8 bytes stored, 0 bytes loaded"),
        (row(shared_memory=232449), "asks for 232449 bytes of shared memory, more"),
        (row(wgmma=24), "24 wgmma.mma instructions, where its products take at least"),
        (row(wgmma=0, sync=384), "misses the tensor cores: 0 wgmma.mma"),
        (row(failure="no rule for erf"), "is not compiled: no rule for erf"),
    ],
)
def test_a_fault_is_said_in_words(wrong, words):
    (fault,) = faults(wrong, H200)
    assert words in fault
    assert "FAILS" in line(wrong, H200).split()


def test_float32_in_full_needs_no_tensor_core():
    exact = tuple(product._replace(dtype="f32", exact=True) for product in PRODUCTS)
    assert faults(row(products=exact, wgmma=0), H200) == []


def test_what_xla_refuses_for_shared_memory_is_said_to_be_that():
    refusal = refused(OVERFLOW)
    assert refusal.shared_memory == 459776
    (fault,) = faults(row()._replace(measurement=refusal), H200)
    assert fault.startswith(
        "asks for 459776 bytes of shared memory, more than the 2324"
    )
    (fault,) = faults(row()._replace(measurement=refused("INTERNAL: no")), H200)
    assert fault == "is not compiled: INTERNAL: no"


@pytest.mark.parametrize(
    ("warps", "registers", "shared_memory", "blocks"),
    [
        (4, 212, 115712, 2),  # twice with the 1024 bytes that a block takes besides
        (4, 212, 115713, 1),
        (8, 178, 98304, 1),  # 8 warps of 184 registers leave no room for 8 more
        (8, 128, 98304, 2),
        (4, 40, 0, 12),
        (1, 16, 0, 32),
    ],
)
def test_blocks_of_a_processor(warps, registers, shared_memory, blocks):
    assert blocks == blocks_per_processor(
        H200, warps=warps, registers=registers, shared_memory=shared_memory
    )


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_described_to_xla(name):
    text = xla_description(TARGETS[name])
    major, minor = TARGETS[name].capability
    assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in text
    assert text.count("{") == text.count("}")
    assert TARGETS[name].architecture.removesuffix("a") == f"sm_{major}{minor}"


def test_json_holds_every_row(tmp_path):
    path = tmp_path / "rows.json"
    write_json([row(), row(spill_loads=4)], H200, path)
    report = json.loads(path.read_text())
    assert report["device_kind"] == "NVIDIA H200"
    assert report["versions"]["jax"] == jax.__version__
    well, spilling = report["kernels"]
    assert well["faults"] == []
    assert well["blocks_per_processor"] == 2
    assert well["products"] == ["64x128x64", "64x64x128"]
    assert spilling["spill_loads"] == 4
    assert len(spilling["faults"]) == 1


def test_every_operation_with_kernels_ships_cases():
    names = [case.name for case in program.shipped_cases()]
    assert len(set(names)) == len(names)
    assert any(name.startswith("local_attention") for name in names)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x + 1, "it runs no Triton kernel"),
        (lambda x: x @ jnp.ones((3, 3)), "TypeError: dot_general requires"),
    ],
)
def test_a_case_that_comes_to_no_kernel_fails(capsys, function, words):
    case = Case("odd", function, (jax.ShapeDtypeStruct((2, 2), jnp.float32),))
    rows = list(program.inspect([case], TOOLS))
    assert program.conclude(rows, H200) == 1
    assert f"a kernel (odd) is not compiled: {words}" in capsys.readouterr().err


def test_kernels_compile_once_and_while_the_next_case_is_lowered(monkeypatch):
    later_is_lowered, compiled = threading.Event(), []

    def lowered(case, _):
        if case.name == "later":
            later_is_lowered.set()
        names = {"first": ["read", "write"], "later": ["write", "again"]}[case.name]
        kernels = [
            Kernel(name, (1, 1, 1), 4, 1, (), 1, name.encode()) for name in names
        ]
        lowered: Any = None
        return [Call(kernel, lowered) for kernel in kernels], None

    def measured(case, _tools, _keep, call):
        assert later_is_lowered.wait(60), "lowering waits for the compiler"
        compiled.append(call.kernel.name)
        return Measurement(registers=len(compiled))

    monkeypatch.setattr(program, "_lowered", lowered)
    monkeypatch.setattr(program, "_measured", measured)
    monkeypatch.setattr(program, "products_in", lambda kernel: [])
    cases = [Case(name, jnp.sin, ()) for name in ("first", "later")]
    rows = list(program.inspect(cases, TOOLS))
    assert compiled == ["read", "write", "again"]
    assert [(row.case, row.kernel, row.measurement.registers) for row in rows] == [
        ("first", "read", 1),
        ("first", "write", 2),
        ("later", "write", 2),
        ("later", "again", 3),
    ]


def test_without_the_cuda_plugin_one_line_says_what_to_install(monkeypatch, capsys):
    def absent(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # and takes it back
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", absent)
    assert program.main(["--target", "a100"]) == 2
    error = capsys.readouterr().err
    assert 'pip install "jax[cuda13]"' in error
    assert error.count("\n") == 1
