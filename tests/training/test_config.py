"""Run configurations: every recipe holds, goes through JSON, and is checked."""

import dataclasses
import json

import pytest

from swa_jax.configuration import from_dict, to_dict
from swa_jax.models.presets import PRESETS
from swa_jax.training.config import (
    BatchConfig,
    CheckpointConfig,
    LoggingConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    WindowSchedule,
)
from swa_jax.training.recipes import recipe


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_recipe_that_survives_json(name):
    config = recipe(name)
    assert config.preset == name
    assert config.model == PRESETS[name]
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_the_recipes_of_the_paper():
    small, large = recipe("swax-1.4b"), recipe("swax-7b")
    for config in (small, large):
        assert config.windows.windows == (128, 2048)
        assert config.windows.anneal_fraction == 0.1
        assert config.windows.largest == 2048
        assert config.data.seq_len == 16_384
        tokens = config.steps * config.batch.rows * config.data.seq_len
        assert tokens == pytest.approx(150e9, rel=1e-3)
    assert small.windows.probabilities is None  # one half each
    assert large.windows.probabilities == (0.75, 0.25)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="swax-9000b"):
        recipe("swax-9000b")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchConfig(rows=0), "BatchConfig.rows"),
        (lambda: BatchConfig(rows=6, accumulation=4), "rows=6, accumulation=4"),
        (lambda: BatchConfig(rows=True), "BatchConfig.rows"),
        (lambda: OptimizerConfig(peak_lr=-1.0), "OptimizerConfig.peak_lr"),
        (lambda: OptimizerConfig(peak_lr=float("nan")), "OptimizerConfig.peak_lr"),
        (lambda: OptimizerConfig(beta1=1.0), "OptimizerConfig.beta1"),
        (lambda: OptimizerConfig(clip_norm=0.0), "OptimizerConfig.clip_norm"),
        (lambda: OptimizerConfig(warmup_fraction=2.0), "warmup_fraction"),
        (lambda: WindowSchedule(windows=()), "WindowSchedule.windows"),
        (lambda: WindowSchedule(windows=(0, 3)), "WindowSchedule.windows"),
        (lambda: WindowSchedule((1, 2), (0.5, 0.6)), "WindowSchedule.probabilities"),
        (lambda: WindowSchedule((1, 2), (1.0,)), "WindowSchedule.probabilities"),
        (lambda: WindowSchedule((1, 2), (1.5, -0.5)), "WindowSchedule.probabilities"),
        (lambda: WindowSchedule(anneal_window=0), "WindowSchedule.anneal_window"),
        (lambda: WindowSchedule(anneal_fraction=1.1), "anneal_fraction"),
        (lambda: MeshConfig(data=0), "MeshConfig.data"),
        (lambda: MeshConfig(tensor=0), "MeshConfig.tensor"),
        (lambda: CheckpointConfig(every=0), "CheckpointConfig.every"),
        (lambda: LoggingConfig(validation_every=0), "LoggingConfig.validation_every"),
        (lambda: dataclasses.replace(recipe("swax-nano"), steps=0), "RunConfig.steps"),
        (
            lambda: dataclasses.replace(recipe("swax-nano"), seed=2**32),
            "RunConfig.seed",
        ),
    ],
)
def test_a_wrong_value_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_tokenizer_larger_than_the_model_is_refused():
    config = recipe("swax-nano")
    data = dataclasses.replace(config.data, vocab_size=config.model.vocab_size + 1)
    with pytest.raises(ValueError, match=r"data\.vocab_size"):
        dataclasses.replace(config, data=data)
