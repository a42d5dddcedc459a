"""What a layout cuts, and that the operations' results do not depend on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels import sharded
from pallas_kernels.local_attention import Past, Preparation, window_cache
from pallas_kernels.local_attention import local_attention as attention_on_one
from pallas_kernels.local_attention import local_attention_step as step_on_one
from pallas_kernels.sharded import Layout, laid_out, placed
from tests.pallas_kernels.sharded.recurrences import mesh_of
from tests.tolerances import assert_near

H = 8


def layout_of(**sizes):
    """Returns a layout on a mesh of these axes, 1 where none is given."""
    axes = dict.fromkeys(("data", "fsdp", "context", "tensor"), 1) | sizes
    return Layout(mesh_of(**axes), largest_window=8)


def attention_arrays(*, B, T, N, K, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("B", "T", "N", "K"),
    [
        (4, 8, 4, 2),  # everything is cut
        (3, 8, 4, 2),  # rows stay whole
        (4, 7, 4, 2),  # tokens stay whole
        (4, 8, 3, 3),  # heads stay whole
        (4, 8, 4, 1),  # all query heads read the one key/value head
    ],
)
def test_what_does_not_divide_stays_whole(B, T, N, K):
    arrays = attention_arrays(B=B, T=T, N=N, K=K)
    arrays = [*arrays, preparation_of(1 if B == 3 else B, T)]
    wanted, dwanted = jax.value_and_grad(total, argnums=1)(attention_on_one, arrays)
    with laid_out(layout_of(data=2, context=2, tensor=2)):
        found, dfound = jax.jit(jax.value_and_grad(total, argnums=1), static_argnums=0)(
            sharded.local_attention, arrays
        )
    assert_near((found, dfound), (wanted, dwanted), dtype="float32")


def total(function, arrays):
    *tokens, preparation = arrays
    return jnp.sum(jnp.sin(function(*tokens, window=4, preparation=preparation)))


def preparation_of(B, T):
    """Returns a norm and a rotation of each token's own, or of each row's."""
    rng = np.random.default_rng(2)
    cos, sin, scale = (
        jnp.asarray(rng.normal(size=shape), "float32")
        for shape in ((B, T, H // 2), (B, T, H // 2), (H,))
    )
    return Preparation(cos, sin, scale)


def test_fewer_key_heads_than_pieces_reach_the_query_heads_that_read_them():
    arrays = attention_arrays(B=1, T=4, N=8, K=2)
    with laid_out(layout_of(tensor=4)):
        found = jax.jit(lambda *a: sharded.local_attention(*a, window=3))(*arrays)
    assert_near(found, attention_on_one(*arrays, window=3), dtype="float32")
    assert found.sharding.spec == P(None, None, "tensor")


def test_a_past_and_a_cache_are_cut_by_rows_and_heads_alone():
    q, k, v = attention_arrays(B=2, T=4, N=4, K=2)
    earlier = attention_arrays(B=2, T=3, N=4, K=2, seed=1)
    past = Past(earlier[1], earlier[2])
    cache = window_cache(2, window=4, kv_heads=2, head_width=H, dtype="float32")
    options = {"window": jnp.int32(4)}
    wanted = attention_on_one(q, k, v, past=past, **options)
    step = step_on_one(q, k, v, cache, **options)
    with laid_out(layout_of(data=2, context=2, tensor=2)):
        found = jax.jit(lambda: sharded.local_attention(q, k, v, past=past, **options))
        assert_near(found(), wanted, dtype="float32")
        found = jax.jit(lambda: sharded.local_attention_step(q, k, v, cache, **options))
        assert_near(found(), step, dtype="float32")


def test_arrays_are_placed_where_the_layout_wants_them():
    x = jnp.zeros((4, 6, 5))
    assert placed(x, "BTD") is x
    with laid_out(layout_of(data=2, fsdp=2, context=2)):
        assert jax.jit(lambda: placed(x, "BTD"))().sharding.spec == P(
            ("data", "fsdp"), "context"
        )
    with laid_out(layout_of()):
        assert placed(x, "BTD") is x


def test_a_mesh_without_the_axes_is_refused():
    with pytest.raises(ValueError, match="wants the mesh to have the axes"):
        Layout(mesh_of(data=2))
