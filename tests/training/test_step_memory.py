"""What a training step holds between its operations, by XLA's own count of bytes."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import language_model
from swa_jax.training.config import LossConfig, OptimizerConfig
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.step import StepOptions, initial_state, train_step

WIDE = ModelConfig(
    vocab_size=50_304,
    d_model=256,
    pattern=("swa",),
    periods=1,
    attention=AttentionConfig(heads=4),
    mlstm=MLSTMConfig(heads=2),
)
DEEP = dataclasses.replace(WIDE, vocab_size=512, periods=8, feed_forward_width=1024)


def temporary_bytes(config, *, rows, length, options):
    """The bytes that a step holds beside its arguments and its results."""
    model = language_model(config)
    optimizer = make_optimizer(OptimizerConfig(), steps=10)
    state = jax.eval_shape(partial(initial_state, model, optimizer, seed=0))
    block = jax.ShapeDtypeStruct((rows, length), np.int32)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids"), block)
    step = jax.jit(
        partial(train_step, model=model, optimizer=optimizer, options=options),
        donate_argnums=0,
    )
    scalar = jax.ShapeDtypeStruct((), np.int32)
    bytes_V = jax.ShapeDtypeStruct((config.vocab_size,), np.int32)
    compiled = step.lower(state, batch, scalar, bytes_V).compile()
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes


@pytest.mark.slow
def test_chunks_of_the_loss_save_the_logits():
    rows, length = 4, 4096
    logits = rows * length * WIDE.vocab_size * 4
    held = {
        chunk: temporary_bytes(
            WIDE, rows=rows, length=length, options=StepOptions(loss=LossConfig(chunk))
        )
        for chunk in (length, 256, None)
    }
    print(f"temporary bytes by chunk: {held}; the logits: {logits}")
    assert held[length] - held[256] > logits
    assert held[length] - held[None] > logits


@pytest.mark.slow
def test_rematerialisation_saves_memory_in_the_order_of_its_policies():
    held = {
        policy: temporary_bytes(
            dataclasses.replace(DEEP, remat=policy),
            rows=4,
            length=512,
            options=StepOptions(),
        )
        for policy in ("none", "dots", "full")
    }
    print(f"temporary bytes by policy: {held}")
    assert held["none"] > 1.2 * held["dots"] > 1.2**2 * held["full"]
