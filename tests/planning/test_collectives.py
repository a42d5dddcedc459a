"""Collectives of compiled programs, against what they must be in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from swa_jax.planning.collectives import (
    Collective,
    Layout,
    collectives_of,
    replica_groups,
)
from swa_jax.planning.hlo import read_module
from swa_jax.training.config import MeshConfig
from swa_jax.training.sharding import make_mesh

ROUNDS = 5


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices=jax.devices()[:8])


def collectives(function, mesh, *arrays, gpus_per_node=4, in_specs, out_specs):
    """The collectives of a function that is mapped over the shards of its arrays."""
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    text = jax.jit(mapped).lower(*arrays).compile().as_text()
    layout = Layout(dict(mesh.shape), gpus_per_node)
    return [c for c in collectives_of(read_module(text), layout) if c.group > 1]


def test_gathering_a_parameter_over_fsdp_moves_its_bytes_once(mesh):
    w = jax.ShapeDtypeStruct((64, 6), jnp.float32)
    found = collectives(
        lambda w: jax.lax.all_gather(w, "fsdp", tiled=True),
        *(mesh, w),
        in_specs=P("fsdp"),
        out_specs=P(),
    )
    parameter = 64 * 6 * 4
    assert found == [
        Collective("all-gather", "fsdp", 2, 2, parameter, parameter // 2, 1, False)
    ]


def test_jit_gathers_what_is_cut_and_wanted_whole(mesh):
    w = jax.ShapeDtypeStruct(
        (64, 6), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", "tensor"))
    )
    whole = NamedSharding(mesh, P())
    text = jax.jit(lambda w: w + 1, out_shardings=whole).lower(w).compile().as_text()
    found = collectives_of(read_module(text), Layout(dict(mesh.shape), 8))
    gathered = {c.axes: c.payload for c in found if c.kind == "all-gather"}
    assert max(gathered.values()) == 64 * 6 * 4
    assert set("+".join(gathered).split("+")) == {"fsdp", "tensor"}


@pytest.mark.parametrize(
    ("axes", "size", "per_node"),
    [
        ("tensor", 2, 2),
        ("fsdp", 2, 2),
        ("data", 2, 1),
        (("data", "tensor"), 4, 2),
        (("data", "fsdp", "tensor"), 8, 4),
    ],
)
def test_a_sum_is_counted_twice_and_knows_its_axes_and_nodes(
    mesh, axes, size, per_node
):
    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    [found] = collectives(
        lambda x: jax.lax.psum(x, axes), *(mesh, x), in_specs=P(), out_specs=P()
    )
    joined = axes if isinstance(axes, str) else "+".join(axes)
    payload = 16 * 8 * 4
    received = 2 * payload * (size - 1) // size
    assert found == Collective(
        "all-reduce", joined, size, per_node, payload, received, 1, False
    )


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_goes_round(mesh):
    def shifted(x):
        def body(x, _):
            x = jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)])
            return x + 1, None

        return jax.lax.scan(body, x, None, length=ROUNDS)[0]

    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    found = collectives(
        shifted, *(mesh, x), in_specs=P("tensor"), out_specs=P("tensor")
    )
    assert [(c.kind, c.axes, c.times, c.received) for c in found] == [
        ("collective-permute", "tensor", ROUNDS, 8 * 8 * 4)
    ]


def test_a_loop_of_unknown_rounds_counts_once_and_is_named(mesh):
    def shifted(x, rounds):
        def body(_, x):
            return jax.lax.psum(x, "fsdp")

        return jax.lax.fori_loop(0, rounds[0], body, x)

    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    rounds = jax.ShapeDtypeStruct((1,), jnp.int32)
    mapped = jax.shard_map(
        shifted, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False
    )
    module = read_module(jax.jit(mapped).lower(x, rounds).compile().as_text())
    assert len(module.unknown_loops) == 1
    [found] = collectives_of(module, Layout(dict(mesh.shape), 8))
    assert (found.kind, found.times) == ("all-reduce", 1)


def test_scattering_and_exchange_count_their_operands(mesh):
    def both(x):
        y = jax.lax.psum_scatter(x, "fsdp", tiled=True)
        return jax.lax.all_to_all(y, "data", 0, 0, tiled=True)

    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    found = {
        c.kind: (c.axes, c.payload, c.received)
        for c in collectives(both, *(mesh, x), in_specs=P(), out_specs=P())
    }
    assert found["reduce-scatter"] == ("fsdp", 16 * 8 * 4, 16 * 8 * 4 // 2)
    assert found["all-to-all"] == ("data", 8 * 8 * 4, 8 * 8 * 4 // 2)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [(0, 1), (2, 3)]),
        ("replica_groups={}", [(0, 1, 2, 3)]),
        ("channel_id=1", [(0, 1, 2, 3)]),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['x'=2,'y'=2] {'y'}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x','y'}", [(0, 1, 2, 3)]),
        (
            "replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'x'}",
            [(0, 1), (2, 3)],
        ),
        ("replica_groups=mesh['x'=4] {'x':(1)2}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['x'=4] {'x':(2)2}", [(0, 1), (2, 3)]),
    ],
)
def test_every_spelling_of_groups_is_read(text, groups):
    found = replica_groups(text + ", use_global_device_ids=true", devices=4)
    assert found == groups


def test_an_unknown_spelling_is_refused():
    with pytest.raises(ValueError, match="unknown spelling"):
        replica_groups("replica_groups=@groups", devices=4)


STARTED = """HloModule jit_step, is_scheduled=true

%inner (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %d = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}
}

ENTRY %main (w: bf16[8,32], x: f32[4,4]) -> (bf16[32,32], f32[4,4]) {
  %w = bf16[8,32]{1,0} parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  %start = (bf16[8,32]{1,0}, bf16[32,32]{1,0}) all-gather-start(%w), GROUPS
WORK
  %done = bf16[32,32]{1,0} all-gather-done(%start)
  %work = f32[4,4]{1,0} fusion(%x), kind=kCustom, calls=%inner
  ROOT %out = (bf16[32,32], f32[4,4]{1,0}) tuple(%done, %work)
}
"""
WORK = "  %before = f32[4,4]{1,0} fusion(%x), kind=kCustom, calls=%inner"


@pytest.mark.parametrize(
    ("work", "attributes", "overlaps"),
    [
        ("", "", False),
        (WORK, "", True),
        (
            WORK,
            ', backend_config={"collective_backend_config":{"is_sync":true}}',
            False,
        ),
    ],
)
def test_a_transfer_hides_behind_products_between_its_start_and_its_end(
    work, attributes, overlaps
):
    groups = "replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}" + attributes
    text = STARTED.replace("GROUPS", groups).replace("WORK", work)
    layout = Layout({"data": 1, "fsdp": 4, "context": 1, "tensor": 1}, 2)
    [found] = collectives_of(read_module(text), layout)
    whole = 32 * 32 * 2
    assert found == Collective(
        "all-gather", "fsdp", 4, 2, whole, whole * 3 // 4, 1, overlaps
    )


def test_groups_cover_every_device_once():
    text = "replica_groups=mesh['a'=2,'b'=3,'c'=4], device_ids=([4,6]T(1,0)) {'c'}"
    groups = replica_groups(text, devices=24)
    assert sorted(np.ravel(groups)) == list(range(24))
