"""What reaches a shard from its left, for any number of shards."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels.sharded.prefix import exclusive_scan, of_last_shard
from tests.pallas_kernels.sharded.recurrences import mesh_of


@pytest.mark.parametrize("shards", range(1, 9))
def test_the_elements_to_the_left_come_in_their_order(shards):
    elements = np.random.default_rng(0).integers(-2, 3, size=(shards, 2, 2))
    elements = elements.astype(np.int32)

    def scan(element_122):
        sent = jnp.squeeze(element_122, axis=0)
        combine = partial(jnp.matmul, precision="highest")  # of whole numbers
        prefix = exclusive_scan(combine, sent, jnp.eye(2, dtype=int), axis="context")
        return prefix[None], of_last_shard(sent, axis="context")

    specs = {"in_specs": P("context"), "out_specs": (P("context"), P())}
    sharded = jax.jit(jax.shard_map(scan, mesh=mesh_of(context=shards), **specs))
    found, last = sharded(elements)
    wanted = [np.eye(2, dtype=int)]
    for element in elements[:-1]:
        wanted.append(wanted[-1] @ element)
    np.testing.assert_array_equal(found, np.stack(wanted))
    np.testing.assert_array_equal(last, elements[-1])
    program = sharded.lower(elements).compile().as_text()
    assert program is not None
    rounds = program.count(" collective-permute(")
    assert rounds == (0, 1, 2, 3, 3, 4, 4, 4)[shards - 1]
