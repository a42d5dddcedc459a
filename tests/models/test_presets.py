import dataclasses
import json

import jax
import pytest

from swa_jax.configuration import from_dict, to_dict
from swa_jax.models.accounting import parameter_count
from swa_jax.models.config import ModelConfig
from swa_jax.models.language_model import language_model
from swa_jax.models.presets import KINDS, PRESETS, SIZES, preset

# size: (millions of parameters in all, without the two embedding matrices)
MILLIONS = {
    "nano": (1.182, 0.658),
    "60m": (59.27, 25.72),
    "160m": (162.3, 84.99),
    "410m": (406.7, 303.7),
    "1.4b": (1738.9, 1214.6),
    "7b": (7500.8, 6452.2),
}


def tree_size(config: ModelConfig) -> int:
    tree = jax.eval_shape(language_model(config).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_size_has_every_kind():
    assert set(PRESETS) == {f"{kind}-{size}" for kind in KINDS for size in MILLIONS}


@pytest.mark.parametrize("name", PRESETS)
def test_the_size_is_near_the_table(name):
    total, non_embedding = MILLIONS[name.split("-")[1]]
    count = parameter_count(preset(name))
    # The kinds of a size differ by gates, biases and head norms: 0.3 % at the most.
    assert count.total / 1e6 == pytest.approx(total, rel=3e-3)
    assert count.non_embedding / 1e6 == pytest.approx(non_embedding, rel=3e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_is_that_of_the_initialised_tree(name):
    config = preset(name)
    assert parameter_count(config).total == tree_size(config)


@pytest.mark.parametrize("size", SIZES)
def test_the_kinds_of_a_size_differ_in_the_pattern_alone(size):
    configs = [PRESETS[f"{kind}-{size}"] for kind in KINDS]
    assert len({config.layers for config in configs}) == 1
    alike = {
        dataclasses.replace(config, pattern=("mlstm",), periods=1) for config in configs
    }
    assert len(alike) == 1


def test_the_paper_model_has_the_widths_of_the_paper():
    config = preset("swax-1.4b")
    assert config.pattern == ("swa", "mlstm")
    assert config.layers == 24
    assert config.hidden_width == 5504
    assert (config.mlstm_key_width, config.mlstm_value_width) == (256, 512)
    assert preset("swax-7b").hidden_width == 10_944


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    stored = json.loads(json.dumps(to_dict(preset(name))))
    assert from_dict(ModelConfig, stored) == preset(name)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"swax-2b.*1\.4b.*transformer"):
        preset("swax-2b")


def test_a_name_may_give_the_layers():
    model = preset("swa,short_swa+gla-160m")
    assert model.pattern == ("swa", "short_swa+gla")
    alike = dataclasses.replace(model, pattern=("swa", "mlstm"))
    assert alike == preset("swax-160m")
    with pytest.raises(ValueError, match=r"layer kinds are .* got 'short_swa\+glue'"):
        preset("short_swa+glue-160m")
    with pytest.raises(ValueError, match="not whole periods"):
        preset("swa,swa,gla-nano")
