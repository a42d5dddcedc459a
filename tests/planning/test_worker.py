"""The step as the worker compiles it, here for CPU devices: memory, collectives."""

import jax
import pytest

from swa_jax.models.accounting import parameter_count
from swa_jax.planning.forecast import forecast
from swa_jax.planning.program import (
    program_from_dict,
    program_to_dict,
    request_from_dict,
    request_to_dict,
)
from swa_jax.planning.report import received_bytes
from swa_jax.planning.worker import compile_on
from swa_jax.training.sharding import make_mesh
from tests.planning.steps import tiny_request


@pytest.fixture(scope="module")
def request_and_program():
    request = tiny_request(fsdp=8)
    mesh = make_mesh(request.config.mesh, devices=jax.devices()[:8])
    program = compile_on(mesh, request.config, gpus_per_node=4, platform="cpu")
    return request, program


def test_state_and_peak_are_those_of_the_accounting(request_and_program):
    request, program = request_and_program
    count = parameter_count(request.config.model).total
    # All but norms, gates' biases and the like is cut into eight.
    assert count * 4 / 8 <= program.parameters < 1.1 * count * 4 / 8
    assert program.optimizer == pytest.approx(2 * program.parameters, abs=8)
    arguments = program.memory.arguments
    assert program.parameters + program.optimizer <= arguments
    assert program.memory.donated >= program.parameters + program.optimizer
    assert program.memory.total >= arguments + program.memory.temporaries


def test_the_closed_form_has_the_same_state(request_and_program):
    request, program = request_and_program
    guessed = forecast(request.config, request.cluster)
    assert (guessed.parameters, guessed.optimizer, guessed.mesh) == (
        program.parameters,
        program.optimizer,
        program.mesh,
    )


def test_fsdp_gathers_every_parameter_and_sums_every_gradient(request_and_program):
    request, program = request_and_program
    gathered = sum(
        c.times * c.payload
        for c in program.collectives
        if c.axes == "fsdp" and c.kind == "all-gather"
    )
    summed = sum(
        c.times * c.payload
        for c in program.collectives
        if c.axes == "fsdp" and c.kind in ("all-reduce", "reduce-scatter")
    )
    cut = 4 * parameter_count(request.config.model).non_embedding
    assert gathered >= cut  # float32, forward at least; backward again
    assert summed >= cut
    assert program.kernels == {}  # no GPU's kernels run on a CPU


def test_program_and_request_go_through_json(request_and_program):
    request, program = request_and_program
    assert program_from_dict(program_to_dict(program)) == program
    assert request_from_dict(request_to_dict(request)) == request
    with pytest.raises(ValueError, match="no compiled step"):
        program_from_dict({"mesh": {}})


def test_bytes_by_axis_and_kind_are_those_of_the_collectives(request_and_program):
    _, program = request_and_program
    total = sum(
        bytes
        for kinds in received_bytes(program.collectives).values()
        for bytes in kinds.values()
    )
    assert total == sum(
        c.times * c.received for c in program.collectives if c.group > 1
    )


def test_accumulation_repeats_what_a_microbatch_sends(request_and_program):
    _, once = request_and_program
    request = tiny_request(fsdp=8, rows=32, accumulation=2)
    mesh = make_mesh(request.config.mesh, devices=jax.devices()[:8])
    twice = compile_on(mesh, request.config, gpus_per_node=4, platform="cpu")

    def gathers(program):
        return sum(
            c.times * c.payload for c in program.collectives if c.kind == "all-gather"
        )

    # What stands outside of the layers may be gathered once for both.
    count = parameter_count(request.config.model)
    outside = 4 * (count.embedding + count.head)
    assert 2 * gathers(once) - outside <= gathers(twice) <= 2 * gathers(once)


def test_rows_that_do_not_fit_the_mesh_are_refused():
    request = tiny_request(fsdp=8, rows=12)
    mesh = make_mesh(request.config.mesh, devices=jax.devices()[:8])
    with pytest.raises(ValueError, match="multiple"):
        compile_on(mesh, request.config, gpus_per_node=4, platform="cpu")
