"""The search: what it considers, what it compiles, and how it ranks."""

import math

import pytest

from swa_jax.planning import search as searching
from swa_jax.planning.advice import tensor_divides
from swa_jax.planning.cluster import Assumptions, ClusterConfig
from swa_jax.planning.compilation import Refused
from swa_jax.planning.forecast import forecast, mesh_shape
from swa_jax.planning.plan import plan_of
from swa_jax.planning.program import Request
from swa_jax.planning.search import candidates, meshes, most_promising, search
from tests.planning.steps import run_of, tiny_request

ASSUMED = Assumptions()
CLUSTER = ClusterConfig(target="h100", nodes=2, gpus_per_node=8)
REQUEST = Request(run_of("swax-410m", rows=32), CLUSTER)


@pytest.fixture
def compiled(monkeypatch):
    """Steps "compiled" as the closed form guesses them; their requests, in order."""
    asked = []

    def plan(request, assumed, /, *, keep, timeout):
        asked.append(request)
        assert timeout > 0
        program = forecast(request.config, request.cluster)
        return plan_of(request, assumed, program)

    monkeypatch.setattr(searching, "make_plan", plan)
    return asked


def test_meshes_use_every_gpu_once_and_keep_tensor_within_a_node():
    found = list(meshes(CLUSTER))
    assert len(set(found)) == len(found)
    for mesh in found:
        shape = mesh_shape(mesh, devices=16)
        assert math.prod(shape.values()) == 16
        assert 8 % mesh.tensor == 0
    assert {mesh.fsdp for mesh in found} == {1, 2, 4, 8, 16}


def test_candidates_fit_rows_and_heads():
    found = list(candidates(REQUEST, ASSUMED))
    assert len(found) > 50
    for candidate in found:
        config = candidate.config
        shape = mesh_shape(config.mesh, devices=16)
        pieces = shape["data"] * shape["fsdp"] * config.batch.accumulation
        assert config.batch.rows == 32
        assert 32 % pieces == 0
        assert tensor_divides(config)
    assert {c.config.model.remat for c in found} == {"none", "dots", "full"}


def test_the_most_promising_are_the_fastest_and_of_several_meshes():
    found = list(candidates(REQUEST, ASSUMED))
    chosen = most_promising(found, limit=6)
    speeds = [c.estimate.tokens_per_second for c in chosen]
    assert speeds == pytest.approx(sorted(speeds, reverse=True), abs=1)
    assert speeds[0] == pytest.approx(
        max(c.estimate.tokens_per_second for c in found), abs=1
    )
    assert len({c.config.mesh for c in chosen}) >= 3
    assert len({(c.config.mesh, c.config.model.remat) for c in chosen}) == 6


def test_a_search_compiles_a_few_and_ranks_those_that_fit(compiled):
    said = []
    found = search(
        REQUEST, ASSUMED, limit=4, seconds=60, say=lambda *words: said.append(words)
    )
    assert len(compiled) == len(found.tried) == 4
    assert found.considered >= found.promising >= 4
    assert [done for done, _, _ in said] == [0, 1, 2, 3, 4]
    fitting = [t.plan for t in found.tried if t.plan is not None and t.plan.fits]
    speeds = [plan.estimate.tokens_per_second for plan in fitting]
    assert speeds == sorted(speeds, reverse=True)
    assert not found.out_of_time


def test_what_cannot_fit_is_not_compiled(compiled):
    request = Request(run_of("swax-7b", rows=16), CLUSTER)
    found = search(request, ASSUMED, limit=3, seconds=60)
    assert found.promising < found.considered
    assert all(request.config.mesh.fsdp > 1 for request in compiled)


def test_a_search_ends_in_time(compiled):
    found = search(REQUEST, ASSUMED, limit=4, seconds=0)
    assert compiled == []
    assert found.out_of_time


@pytest.mark.parametrize("error", [Refused("no"), ChildProcessError("no")])
def test_one_that_fails_is_ranked_last_with_its_reason(monkeypatch, error):
    first = []

    def plan(request, assumed, /, *, keep, timeout):
        if not first:
            first.append(request)
            raise error
        return plan_of(request, assumed, forecast(request.config, request.cluster))

    monkeypatch.setattr(searching, "make_plan", plan)
    found = search(REQUEST, ASSUMED, limit=3, seconds=60)
    assert [tried.failure for tried in found.tried] == [None, None, "no"]


def test_without_a_compiler_the_search_stops_at_once(monkeypatch):
    def plan(request, assumed, /, *, keep, timeout):
        raise ValueError("not installed")

    monkeypatch.setattr(searching, "make_plan", plan)
    with pytest.raises(ValueError, match="not installed"):
        search(REQUEST, ASSUMED, limit=3, seconds=60)


def test_rows_that_no_mesh_takes_are_refused():
    request = tiny_request(rows=1)
    with pytest.raises(ValueError, match="no mesh of 8 GPUs takes --rows 1"):
        search(request, ASSUMED, limit=1, seconds=60)
