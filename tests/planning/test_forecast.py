"""The closed form beside XLA's own plans, and its proportions."""

import dataclasses

import pytest

from swa_jax.models.accounting import parameter_count
from swa_jax.planning.cluster import ClusterConfig
from swa_jax.planning.forecast import forecast
from swa_jax.training.config import MeshConfig
from tests.planning.steps import run_of

ONE = ClusterConfig(target="h200", nodes=1, gpus_per_node=1)
# Bytes of temporaries that XLA plans on one H200, jax 0.10.2, by
# `swax plan --preset PRESET --rows ROWS --remat POLICY --gpus-per-node 1 --json`.
XLA = [
    ("swax-1.4b", 1, "full", 10_225_748_536),
    ("swax-1.4b", 1, "dots", 24_832_140_088),
    ("swax-410m", 4, "none", 33_731_607_488),
]
# The same on several nodes or axes: GPUs, mesh, rows, tokens of a row.
XLA_MESHES = [
    ("swax-7b", 64, {"fsdp": 16, "tensor": 4}, 128, 16_384, 42.5e9),
    ("swax-1.4b", 64, {"fsdp": 8}, 64, 16_384, 7.3e9),
    ("swax-1.4b", 8, {"fsdp": 2, "context": 4}, 2, 65_536, 8.5e9),
]


def run(preset, rows, remat, **mesh):
    config = run_of(preset, rows=rows, **mesh)
    model = dataclasses.replace(config.model, remat=remat)
    return dataclasses.replace(config, model=model)


@pytest.mark.parametrize(("preset", "rows", "remat", "planned"), XLA)
def test_the_closed_form_is_near_xlas_plan(preset, rows, remat, planned):
    guessed = forecast(run(preset, rows, remat), ONE).memory.temporaries
    assert guessed == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize(
    ("preset", "gpus", "mesh", "rows", "tokens", "planned"), XLA_MESHES
)
def test_the_closed_form_is_near_xlas_plan_on_meshes(
    preset, gpus, mesh, rows, tokens, planned
):
    config = run(preset, rows, "full")
    data = dataclasses.replace(config.data, seq_len=tokens)
    config = dataclasses.replace(config, data=data, mesh=MeshConfig(**mesh))
    cluster = ClusterConfig(target="h200", nodes=gpus // 8)
    guessed = forecast(config, cluster).memory.temporaries
    assert guessed == pytest.approx(planned, rel=0.25)


@pytest.mark.parametrize("preset", ["swax-1.4b", "transformer-7b", "xlstm-160m"])
def test_the_state_is_three_times_the_parameters_cut_over_fsdp(preset):
    cluster = ClusterConfig(target="h200", nodes=2, gpus_per_node=8)
    program = forecast(run(preset, 16, "full", fsdp=16), cluster)
    share = 4 * parameter_count(run(preset, 16, "full").model).total / 16
    assert share <= program.parameters < 1.01 * share
    assert program.optimizer == pytest.approx(2 * program.parameters, abs=8)


def test_what_each_axis_sends_is_what_it_holds():
    cluster = ClusterConfig(target="h200", nodes=4, gpus_per_node=8)
    config = run("swax-1.4b", 16, "full", fsdp=8, tensor=2)
    found = {(c.kind, c.axes): c for c in forecast(config, cluster).collectives}
    gathered = found["all-gather", "fsdp"]
    weights = 2 * parameter_count(config.model).total // 2  # bfloat16, half of tensor
    assert gathered.payload * gathered.times == pytest.approx(3 * weights, rel=1e-3)
    assert gathered.per_node == 4  # of eight, with two neighbours along tensor each
    summed = found["all-reduce", "tensor"]
    assert summed.payload == 2 * 16_384 * 2048
    assert summed.per_node == 2
    assert found["all-reduce", "data"].per_node == 1


def test_more_microbatches_hold_less_and_gather_more():
    cluster = ClusterConfig(target="h200", nodes=1, gpus_per_node=8)
    whole = forecast(run("swax-1.4b", 32, "full", fsdp=8), cluster)
    config = run("swax-1.4b", 32, "full", fsdp=8)
    batch = dataclasses.replace(config.batch, accumulation=4)
    pieces = forecast(dataclasses.replace(config, batch=batch), cluster)
    assert pieces.memory.temporaries < whole.memory.temporaries
    assert pieces.collectives[0].times == 4 * whole.collectives[0].times


def test_policies_hold_less_the_more_they_compute_again():
    held = [
        forecast(run("swax-1.4b", 1, remat), ONE).memory.temporaries
        for remat in ("none", "dots", "full")
    ]
    assert held == sorted(held, reverse=True)
