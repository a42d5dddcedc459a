import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.local_attention.step import NEW_TOKENS, WindowCache
from swa_jax.models.accounting import (
    account,
    forward_flops_per_token,
    parameter_count,
    remat_flops_per_token,
    state_bytes,
    training_flops_per_token,
)
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import language_model
from swa_jax.models.presets import PRESETS, preset

EVERY_SWITCH = ModelConfig(
    vocab_size=37,
    d_model=48,
    pattern=("swa", "mlstm", "attention", "mlstm"),
    periods=3,
    attention=AttentionConfig(
        heads=6, kv_heads=2, head_width=10, qk_norm=True, softcap=20.0, sinks=True
    ),
    mlstm=MLSTMConfig(heads=3, key_factor=0.25, value_factor=1.5),
    feed_forward_width=40,
)
CONFIGS = {
    "every switch": EVERY_SWITCH,
    "float32": dataclasses.replace(EVERY_SWITCH, dtype="float32"),
    "no attention": dataclasses.replace(EVERY_SWITCH, pattern=("mlstm",)),
    "swax-nano": preset("swax-nano"),
    "hybrid-7b": preset("hybrid-7b"),
}

# arXiv:2509.24552: forward GFLOPs/token at 16 384 tokens
PAPER = [
    ("transformer-1.4b", 2048, 6.174),
    ("swax-1.4b", 128, 3.004),
    ("swax-1.4b", 2048, 3.192),
]


@pytest.mark.parametrize(("name", "window", "gigaflops"), PAPER)
def test_forward_flops_are_those_of_the_paper(name, window, gigaflops):
    flops = forward_flops_per_token(preset(name), seq_len=16_384, window=window)
    assert flops / 1e9 == pytest.approx(gigaflops, rel=1e-3)


def abstract_params(config: ModelConfig) -> dict[str, int]:
    tree = jax.eval_shape(language_model(config).init, jax.random.key(0))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_part_by_part(name):
    sizes = abstract_params(CONFIGS[name])
    count = parameter_count(CONFIGS[name])
    assert count.total == sum(sizes.values())
    assert count.embedding == sizes["embed/embedding"]
    assert count.head == sizes["head/kernel"]
    assert count.non_embedding == count.total - count.embedding - count.head
    kernels = [size for path, size in sizes.items() if path.endswith("/kernel")]
    assert count.matmul == sum(kernels)


@pytest.mark.parametrize("window", [1, 5, 128])
@pytest.mark.parametrize("name", CONFIGS)
def test_state_bytes_are_those_of_the_initial_state(name, window):
    config, batch, context = CONFIGS[name], 3, 200
    model = language_model(config)

    def carried():
        layers = model.init_state(batch, window=window, context=context).layers

        def is_ring(state):
            return isinstance(state, WindowCache)

        def kept(state):  # a ring's slots for new tokens carry nothing
            if not is_ring(state):
                return state
            return [ring[:, :, NEW_TOKENS:] for ring in state[:2]]

        return jax.tree.map(kept, layers, is_leaf=is_ring)

    # Integers are the bookkeeping (segment ids and positions) that is not counted.
    leaves = jax.tree.leaves(jax.eval_shape(carried))
    held = [leaf for leaf in leaves if leaf.dtype != jnp.int32]
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in held) == state_bytes(
        config, batch=batch, window=window, context=context
    )


@pytest.mark.parametrize("name", PRESETS)
def test_the_kinds_add_up(name):
    config = preset(name)
    total = account(config, seq_len=4096, window=128)
    count, width = total.parameters, config.d_model
    assert sum(kind.layers for kind in total.kinds) == config.layers
    # Outside the layers: the final norm, and the head's product.
    assert sum(kind.parameters for kind in total.kinds) == count.non_embedding - width
    layers_flops = sum(kind.forward_flops for kind in total.kinds)
    assert total.forward_flops == layers_flops + 2 * count.head
    assert sum(kind.state_bytes for kind in total.kinds) == total.state_bytes


def test_a_window_costs_no_more_than_the_sequence():
    config = preset("swax-160m")
    short = forward_flops_per_token(config, seq_len=100, window=100)
    assert forward_flops_per_token(config, seq_len=100, window=2048) == short
    assert forward_flops_per_token(config, seq_len=100, window=99) < short


def test_full_attention_costs_what_a_window_over_the_sequence_costs():
    lengths = {"seq_len": 3000, "window": 3000}
    assert forward_flops_per_token(
        preset("transformer-410m"), **lengths
    ) == forward_flops_per_token(preset("swa-410m"), **lengths)


def test_training_costs_three_forward_passes_and_remat_the_layers_once_more():
    config, lengths = EVERY_SWITCH, {"seq_len": 64, "window": 16}
    forward = forward_flops_per_token(config, **lengths)
    assert training_flops_per_token(config, **lengths) == 3 * forward
    assert remat_flops_per_token(config, **lengths) == 0
    remat = dataclasses.replace(config, remat="full")
    assert training_flops_per_token(remat, **lengths) == 3 * forward
    head = 2 * config.vocab_size * config.d_model
    assert remat_flops_per_token(remat, **lengths) == forward - head


def test_remat_of_dots_computes_what_depends_on_the_lengths_again():
    config = dataclasses.replace(EVERY_SWITCH, remat="dots")
    lengths = {"seq_len": 64, "window": 16}
    forward = forward_flops_per_token(config, **lengths)
    products = 2 * parameter_count(config).matmul
    assert remat_flops_per_token(config, **lengths) == forward - products
    plain = dataclasses.replace(config, pattern=("mlstm",), periods=2)
    memories = 2 * 6 * 3 * plain.mlstm_key_width * plain.mlstm_value_width
    assert remat_flops_per_token(plain, **lengths) == memories


@pytest.mark.parametrize("wrong", ["seq_len", "window"])
def test_a_length_below_one_is_refused(wrong):
    lengths = {"seq_len": 8, "window": 8} | {wrong: 0}
    with pytest.raises(ValueError, match=f"{wrong}=0"):
        account(EVERY_SWITCH, **lengths)


@pytest.mark.parametrize("wrong", ["batch", "window", "context"])
def test_a_state_below_one_is_refused(wrong):
    numbers = {"batch": 1, "window": 8, "context": 8} | {wrong: 0}
    with pytest.raises(ValueError, match=f"{wrong}=0"):
        state_bytes(EVERY_SWITCH, **numbers)
