"""A prompt in pieces is the prompt in one pass, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from swa_jax.inference.generate import generate
from swa_jax.inference.prefill import piece_lengths, prefill
from swa_jax.inference.rows import mesh_of_rows, state_specs
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import language_model
from swa_jax.training.config import MeshConfig
from swa_jax.training.sharding import make_mesh, params_shardings
from tests.tolerances import assert_near

V, T, WINDOW = 23, 40, 6
each_pattern = pytest.mark.parametrize("pattern", [("swa", "mlstm"), ("attention",)])


def tiny(pattern: tuple[str, ...]):
    config = ModelConfig(
        vocab_size=V,
        d_model=16,
        pattern=pattern,
        periods=1,
        attention=AttentionConfig(heads=2, sinks=True),
        mlstm=MLSTMConfig(heads=2),
        feed_forward_width=16,
        dtype="float32",
    )
    model = language_model(config)
    params = model.init(jax.random.key(0))
    # Logits far apart, so that rounding decides no argmax.
    return model, params | {"head": {"kernel": 20 * params["head"]["kernel"]}}


def prompts(rows: int):
    return np.random.default_rng(0).integers(0, V, (rows, T), np.int32)


@each_pattern
@pytest.mark.parametrize("chunk", [32, 13])
def test_a_prompt_in_pieces_is_one_pass(pattern, chunk):
    model, params = tiny(pattern)
    options = {"window": WINDOW, "context": T + 4}
    one = prefill(model, params, prompts(2), **options)
    pieces = prefill(model, params, prompts(2), **options, chunk=chunk)
    hidden = jax.jit(model.hidden, static_argnames="window")
    x_BTD, _ = hidden(params, prompts(2), window=WINDOW)
    assert_near(one.x_B1D, x_BTD[:, -1:], dtype="float32")
    assert_near(pieces, one, dtype="float32")
    np.testing.assert_array_equal(pieces.state.position_B, [T, T])


@each_pattern
def test_generation_after_pieces_is_generation_after_one_pass(pattern):
    model, params = tiny(pattern)
    options = {"tokens": 9, "window": WINDOW, "temperature": 0.0}
    one_BT = generate(model, params, jnp.asarray(prompts(2)), **options)
    pieces_BT = generate(model, params, prompts(2), **options, prefill_chunk=16)
    np.testing.assert_array_equal(pieces_BT, one_BT)
    assert len(np.unique(np.asarray(one_BT))) > 2


def test_a_state_for_a_larger_window_changes_nothing():
    model, params = tiny(("swa", "mlstm"))
    options = {"window": WINDOW, "context": 0, "chunk": 16}
    one = prefill(model, params, prompts(2), **options)
    larger = prefill(model, params, prompts(2), **options, largest_window=20)
    assert_near(larger.x_B1D, one.x_B1D, dtype="float32")
    assert larger.state.layers["0_swa"].mixer.k_BLKH.shape[2] == 20 - 1 + 16


@given(tokens=st.integers(1, 5000), chunk=st.integers(1, 600))
def test_pieces_are_few_sizes_and_all_tokens(tokens, chunk):
    lengths = piece_lengths(tokens, chunk)
    assert sum(lengths) == tokens
    rest = [length for length in lengths if length != chunk]
    assert all(length < chunk and length.bit_count() == 1 for length in rest)
    assert len(set(rest)) == len(rest)
    assert piece_lengths(tokens, None) == [tokens]


def on_mesh(params, **axes):
    mesh = make_mesh(MeshConfig(**axes), devices=jax.devices()[:4])
    return jax.device_put(params, params_shardings(params, mesh))


@pytest.mark.slow
@each_pattern
def test_rows_on_several_devices_are_rows_on_one(pattern):
    model, params = tiny(pattern)
    options = {
        "tokens": 5, "window": WINDOW, "temperature": 0.0, "prefill_chunk": 20,
        "allowed": jnp.arange(V) < V - 2,
    }  # fmt: skip
    one_BT = generate(model, params, prompts(4), **options)
    for axes in ({"data": 4}, {"data": 2, "fsdp": 2}):
        spread = on_mesh(params, **axes)
        many_BT = generate(model, spread, prompts(4), **options)
        np.testing.assert_array_equal(many_BT, one_BT)
        assert {len(s.data) for s in many_BT.addressable_shards} == {1}
        read = prefill(
            model, spread, prompts(4), window=WINDOW, context=T + 5, chunk=20,
            mesh=mesh_of_rows(spread, 4),
        )  # fmt: skip
        for leaf in jax.tree.leaves(read):
            assert leaf.addressable_shards[0].data.size * 4 == leaf.size


def test_rows_that_the_devices_do_not_divide_stay_together():
    model, params = tiny(("swa", "mlstm"))
    spread = on_mesh(params, data=4)
    assert mesh_of_rows(spread, 6) is None
    assert mesh_of_rows(params, 4) is None
    assert mesh_of_rows({}, 4) is None
    assert mesh_of_rows(spread, 8) == make_mesh(
        MeshConfig(data=4), devices=jax.devices()[:4]
    )
    options = {"tokens": 3, "window": WINDOW, "temperature": 0.0}
    many_BT = generate(model, spread, prompts(3), **options)
    one_BT = generate(model, params, prompts(3), **options)
    np.testing.assert_array_equal(many_BT, one_BT)


@pytest.mark.slow
def test_draws_do_not_depend_on_the_devices():
    model, params = tiny(("swa", "mlstm"))
    options = {"tokens": 5, "window": WINDOW, "key": jax.random.key(1)}
    one_BT = generate(model, params, prompts(4), **options)
    many_BT = generate(model, on_mesh(params, data=4), prompts(4), **options)
    np.testing.assert_array_equal(many_BT, one_BT)


def test_the_rows_of_a_state_are_found():
    model, _ = tiny(("swa", "attention", "mlstm"))
    specs = state_specs(model)
    rows = ("data", "fsdp")
    assert specs.position_B == P(rows)
    assert set(jax.tree.leaves(specs.layers)) == {P(None, rows)}
