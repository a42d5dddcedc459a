"""Whether a step fits, what would make it fit, and the words of both."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from swa_jax.planning.advice import tensor_divides
from swa_jax.planning.cluster import Assumptions, ClusterConfig
from swa_jax.planning.forecast import forecast, mesh_shape
from swa_jax.planning.plan import check_request, essential, plan_of
from swa_jax.planning.program import Request
from swa_jax.planning.report import plan_to_dict, print_plan
from swa_jax.training.config import MeshConfig
from tests.planning.steps import gather, run_of, step_program, tiny_request

ASSUMED = Assumptions()
TWO_OF_EIGHT = ClusterConfig(target="h100", nodes=2, gpus_per_node=8)


def plan_on_h100(config, *, temporaries=None):
    """The plan of a run whose compiled step is what the closed form guesses, or holds
    so many bytes beside the state."""
    request = Request(config, TWO_OF_EIGHT)
    program = forecast(config, TWO_OF_EIGHT)
    if temporaries is not None:
        memory = program.memory._replace(temporaries=temporaries)
        program = program._replace(memory=memory)
    return plan_of(request, ASSUMED, program)


def words_of(plan):
    """What a plan prints, on one line."""
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=200))
    return " ".join(out.getvalue().split())


def test_a_step_that_fits_says_so_and_gives_no_advice():
    plan = plan_on_h100(run_of("swax-1.4b", rows=16, fsdp=16), temporaries=10**9)
    assert plan.fits
    assert plan.advice == []
    assert "It fits" in words_of(plan)


def test_a_step_that_does_not_fit_is_told_the_smallest_change_of_each_kind():
    config = run_of("swax-1.4b", rows=64, fsdp=8)
    plan = plan_on_h100(config, temporaries=100 * 10**9)
    assert not plan.fits
    assert plan.usable == 72 * 10**9
    by_flag = {advice.change.split()[0]: advice for advice in plan.advice}
    assert by_flag["--accumulation"].change == "--accumulation 2"
    assert by_flag["--accumulation"].fits
    assert by_flag["--fsdp"].change == "--fsdp 16"  # the copies of the data axis
    assert by_flag["--fsdp"].bytes < plan.program.memory.total
    assert "--remat" not in by_flag  # it is full already
    fitting = [advice.fits for advice in plan.advice]
    assert fitting == sorted(fitting, reverse=True)
    printed = words_of(plan)
    assert "It does not fit" in printed
    assert "--accumulation 2" in printed


def test_changes_that_fail_alone_are_weighed_together_and_on_more_nodes():
    config = run_of("swax-7b", rows=32, fsdp=16)
    model = dataclasses.replace(config.model, remat="dots")
    plan = plan_on_h100(dataclasses.replace(config, model=model), temporaries=10**13)
    *alone, together, more = plan.advice
    assert [a.change for a in alone] == ["--remat full", "--accumulation 2"]
    assert together.change == "--accumulation 2 --remat full"
    assert more.change == "--nodes 4 --fsdp 32 --remat full"
    assert not any(a.fits for a in plan.advice)
    assert more.bytes < together.bytes < min(a.bytes for a in alone)
    assert "Nothing that was weighed makes it fit" in words_of(plan)


def test_every_advice_is_a_request_that_can_be_planned():
    config = run_of("swax-1.4b", rows=64, fsdp=8)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, remat="none")
    )
    plan = plan_on_h100(config, temporaries=10**12)
    for advice in plan.advice:
        words = advice.change.split()
        flags = dict(zip(words[::2], words[1::2], strict=True))
        mesh = dataclasses.replace(
            config.mesh,
            fsdp=int(flags.get("--fsdp", config.mesh.fsdp)),
            tensor=int(flags.get("--tensor", config.mesh.tensor)),
            context=int(flags.get("--context", config.mesh.context)),
        )
        pieces = int(flags.get("--accumulation", 1))
        other = dataclasses.replace(
            config,
            mesh=mesh,
            batch=dataclasses.replace(config.batch, accumulation=pieces),
        )
        nodes = int(flags.get("--nodes", TWO_OF_EIGHT.nodes))
        cluster = dataclasses.replace(TWO_OF_EIGHT, nodes=nodes)
        check_request(Request(other, cluster))


def test_the_page_has_memory_collectives_time_and_assumptions():
    request = tiny_request(fsdp=8)
    one = gather(10**9, group=8, per_node=4, overlaps=False)
    printed = words_of(plan_of(request, ASSUMED, step_program(one)))
    for words in (
        "parameters",
        "optimizer state",
        "peak",
        "fsdp all-gather 8 2 10 10.0 GB",
        "MFU",
        "60% of",
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9",
        "2 x 4 NVIDIA H200: data 1, fsdp 8, context 1, tensor 1",
    ):
        assert words in printed


def test_json_has_every_number_once_more():
    request = tiny_request(fsdp=8)
    plan = plan_of(request, ASSUMED, step_program())
    document = json.loads(json.dumps(plan_to_dict(plan)))
    assert document["fits"] is True
    assert document["program"]["memory"]["total"] == 3100 + 10**9
    assert document["estimate"]["tokens_per_second"] == pytest.approx(
        plan.estimate.tokens_per_second
    )
    assert document["cluster"]["nodes"] == 2


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [
        ({}, 8, (8, 1, 1)),
        ({"fsdp": 4}, 8, (2, 4, 1)),
        ({"fsdp": 2, "tensor": 4}, 8, (1, 2, 4)),
        ({"context": 4}, 8, (2, 1, 1)),
        ({"data": 2, "fsdp": 4}, 8, (2, 4, 1)),
    ],
)
def test_data_takes_what_the_other_axes_leave(mesh, devices, shape):
    found = mesh_shape(MeshConfig(**mesh), devices=devices)
    assert (found["data"], found["fsdp"], found["tensor"]) == shape


@pytest.mark.parametrize("mesh", [{"fsdp": 3}, {"fsdp": 16}, {"data": 1, "fsdp": 4}])
def test_a_mesh_of_another_number_of_gpus_is_refused(mesh):
    with pytest.raises(ValueError, match="the cluster has 8 GPUs"):
        mesh_shape(MeshConfig(**mesh), devices=8)


def test_rows_that_the_mesh_does_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"multiple of data \* fsdp"):
        check_request(tiny_request(fsdp=8, rows=12))


def test_what_the_step_does_not_depend_on_is_not_compiled_again():
    request = tiny_request(fsdp=8)
    other = Request(
        dataclasses.replace(request.config, seed=7, preset="swax-60m"),
        dataclasses.replace(request.cluster, network_gbits=1.0),
    )
    assert essential(request) == essential(other)
    longer = dataclasses.replace(
        request.config, data=dataclasses.replace(request.config.data, seq_len=128)
    )
    assert essential(request) != essential(Request(longer, request.cluster))


@pytest.mark.parametrize(
    ("preset", "tensor", "divides"),
    [
        ("swax-1.4b", 4, True),
        ("swax-1.4b", 8, False),  # 4 heads of the mLSTM
        ("swa-1.4b", 8, True),
        ("transformer-7b", 64, False),
        ("gated_deltanet-nano", 3, False),
    ],
)
def test_tensor_cuts_whole_heads(preset, tensor, divides):
    assert tensor_divides(run_of(preset, rows=16, tensor=tensor)) is divides
