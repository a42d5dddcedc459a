"""The gated delta rule under vmap, scan, remat and shard_map."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tests.pallas_kernels.test_gated_delta_rule import FAST, arrays, run, segments
from tests.tolerances import assert_near


@pytest.mark.slow
@pytest.mark.parametrize("implementation", FAST)
def test_transformations_keep_the_values(implementation):
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(13, T=20).items()}

    def loss(a):
        out, state = run(a, implementation=implementation)
        return jnp.sum(out**2) + jnp.sum(state.s_BNHP**2)

    halves = (a, jax.tree.map(lambda x: x / 2, a))
    stacked = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    both, wanted = stacked(*halves), stacked(*map(jax.jit(jax.grad(loss)), halves))
    mapped = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss))))(both)
    assert_near(mapped, wanted, dtype="float32")
    scan = jax.jit(partial(jax.lax.scan, lambda c, a: (c, jax.grad(loss)(a)), 0))
    _, scanned = scan(both)
    assert_near(scanned, wanted, dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("implementation", FAST)
def test_batch_and_heads_shard(implementation):
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(14, T=40, G=2).items()}
    ids = segments(14, a)
    del a["s"]

    def loss(a, ids):
        out, state = run(a, ids=ids, implementation=implementation)
        return (jnp.sum(out**2) + jnp.sum(state.s_BNHP**2)).reshape(1, 1)

    axes = ("data", "tensor")
    mesh = jax.make_mesh((2, 2), axes, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharded = jax.shard_map(
        loss,
        mesh=mesh,
        in_specs=(dict.fromkeys(a, P("data", None, "tensor")), P("data")),
        out_specs=P(*axes),
        check_vma=implementation != "triton",  # which interpreting does not track
    )
    found = jax.jit(jax.grad(lambda a: jnp.sum(sharded(a, ids))))(a)
    wanted = jax.jit(jax.grad(lambda a: loss(a, ids)[0, 0]))(a)
    assert_near(found, wanted, dtype="float32")


def test_what_examples_share_gets_its_gradient_once():
    """Queries are mapped alone: the last memory is one for all of them."""
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(12, B=1, T=40).items()}
    q = a.pop("q")
    queries = jnp.stack([q * size for size in (1.0, 0.5, -2.0)])

    @partial(jax.jit, static_argnames="implementation")
    def gradients(a, implementation):
        def loss(a, q):
            out, last = run(a | {"q": q}, implementation=implementation)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(last.s_BNHP))

        mapped = jax.vmap(loss, in_axes=(None, 0))
        return jax.grad(lambda a: jnp.sum(mapped(a, queries)))(a)

    wanted = gradients(a, "reference")
    assert_near(gradients(a, "triton"), wanted, dtype="float32")
