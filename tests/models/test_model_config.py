import dataclasses
import json

import pytest

from swa_jax.configuration import from_dict, to_dict
from swa_jax.models.config import (
    AttentionConfig,
    LocalConfig,
    MLSTMConfig,
    ModelConfig,
    RecurrentConfig,
)

CONFIG = ModelConfig(
    vocab_size=100,
    d_model=2048,
    pattern=("swa", "mlstm"),
    periods=12,
    attention=AttentionConfig(heads=16, kv_heads=4),
    mlstm=MLSTMConfig(heads=4),
)


def test_sizes_of_the_paper():
    assert CONFIG.layers == 24
    assert CONFIG.hidden_width == 5504
    assert dataclasses.replace(CONFIG, d_model=4096).hidden_width == 10_944
    assert dataclasses.replace(CONFIG, feed_forward_width=7).hidden_width == 7
    assert (CONFIG.kv_heads, CONFIG.head_width) == (4, 128)
    assert (CONFIG.mlstm_key_width, CONFIG.mlstm_value_width) == (256, 512)
    wide = AttentionConfig(heads=16, head_width=96)
    assert dataclasses.replace(CONFIG, attention=wide).head_width == 96
    assert dataclasses.replace(CONFIG, attention=wide).kv_heads == 16


def test_to_and_from_json():
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(CONFIG)))) == CONFIG
    assert hash(CONFIG) == hash(dataclasses.replace(CONFIG))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "ModelConfig.vocab_size must be an integer >= 1, got 0"),
        ({"periods": 2.0}, "periods must be an integer"),
        ({"d_model": True}, "d_model must be an integer"),
        ({"feed_forward_width": -1}, "feed_forward_width"),
        ({"pattern": ()}, "at least one layer kind"),
        ({"pattern": ["swa"]}, "must be a tuple"),
        ({"pattern": "swa"}, "must be a tuple"),
        ({"pattern": ("swa", "mamba")}, "got 'mamba'"),
        ({"logit_softcap": 0.0}, "logit_softcap must be a finite number > 0"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"remat": True}, r"remat must be one of \('none', 'dots', 'full'\)"),
        ({"attention": {"heads": 4}}, "attention must be a AttentionConfig"),
        ({"d_model": 2040}, "d_model must be a multiple of attention.heads"),
        ({"attention": AttentionConfig(heads=2048)}, "head width, must be even"),
        ({"mlstm": MLSTMConfig(heads=3)}, "mlstm.key_factor .* got 1024.0 for heads=3"),
        ({"mlstm": MLSTMConfig(heads=4, value_factor=0.3)}, "mlstm.value_factor"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionConfig(heads=6, kv_heads=4), "heads=6, kv_heads=4"),
        (lambda: AttentionConfig(heads=4, head_width=5), "even, got head_width=5"),
        (lambda: AttentionConfig(heads=4, rope_theta=0), "rope_theta"),
        (lambda: AttentionConfig(heads=4, softcap=-1.0), "softcap"),
        (lambda: AttentionConfig(heads=4, sinks=None), "sinks must be True or False"),  # pyright: ignore
        (lambda: MLSTMConfig(heads=4, gate="tanh"), "gate must be one of"),  # pyright: ignore
        (lambda: MLSTMConfig(heads=4, gate_softcap=float("inf")), "gate_softcap"),
        (lambda: RecurrentConfig(heads=0), "RecurrentConfig.heads .* got 0"),
        (lambda: LocalConfig(taps=5), r"taps must be one of \(2, 3, 4\), got 5"),
        (lambda: LocalConfig(window=0), "LocalConfig.window"),
        (lambda: LocalConfig(design="dense"), "design must be one of"),  # pyright: ignore
        (lambda: LocalConfig(rank=7), "rank must be even, got 7"),
        (lambda: LocalConfig(head_width=9), "even, got head_width=9"),
    ],
)
def test_a_wrong_field_of_a_part_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_the_kinds_of_the_pattern_are_checked():
    memory = dataclasses.replace(CONFIG, d_model=2040, pattern=("mlstm",))
    assert memory.mlstm_key_width == 255


@pytest.mark.parametrize(
    ("pattern", "changes", "message"),
    [
        ("short_swa+gla", {"local": LocalConfig(rank=66)}, "at most .* width 64"),
        (
            "short_swa+gla",
            {"local": LocalConfig(head_width=96)},
            "divides every branch",
        ),
        ("canon+gru", {}, "LOCAL\\+GLOBAL .* got 'canon\\+gru'"),
        ("conv+gla", {}, "got 'conv\\+gla'"),
        ("+gla", {}, "got '\\+gla'"),
        ("retnet", {"recurrent": RecurrentConfig(key_width=5)}, "retnet: .* even"),
    ],
)
def test_mixers_that_do_not_fit_are_named(pattern, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, pattern=(pattern,), **changes)


def test_recurrent_shapes_are_those_of_the_papers():
    shapes = {
        "mamba2": (64, 128, 64),
        "retnet": (8, 256, 512),
        "lightning": (16, 128, 128),
        "gla": (4, 256, 512),
        "gated_deltanet": (6, 256, 512),
        "rwkv7": (32, 64, 64),
    }
    assert {kind: CONFIG.recurrent_shape(kind) for kind in shapes} == shapes
