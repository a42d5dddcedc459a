"""Models and runs that are small enough to train in a test."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from swa_jax.data.config import DataConfig
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import Model
from swa_jax.training.config import (
    BatchConfig,
    CheckpointConfig,
    LoggingConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    WindowSchedule,
)

MODEL = ModelConfig(
    vocab_size=264,
    d_model=16,
    pattern=("swa", "mlstm"),
    periods=2,
    attention=AttentionConfig(heads=2, qk_norm=True, sinks=True),
    mlstm=MLSTMConfig(heads=2),
    feed_forward_width=32,
    dtype="float32",
)


def toy_model(_config: ModelConfig = MODEL, /) -> Model:
    """Returns a model that compiles at once: the mean of a window of embeddings.

    Its parameters have names and shapes of a language model's, for the shardings.
    """

    def init(key: jax.Array) -> dict:
        keys = jax.random.split(key, 3)
        return {
            "embed": {"embedding": jax.random.normal(keys[0], (264, 16))},
            "periods": {
                "0_swa": {
                    "mixer": {
                        "out": {"kernel": jax.random.normal(keys[1], (2, 16, 16))}
                    },
                    "mixer_norm": {"scale": jnp.ones((2, 16))},
                }
            },
            "head": {"kernel": 0.1 * jax.random.normal(keys[2], (16, 264))},
        }

    def hidden(params, tokens_BT, /, *, window, segment_ids=None, state=None):
        x_BTD = params["embed"]["embedding"][tokens_BT]
        index_T = jnp.arange(tokens_BT.shape[1])
        distance_TS = index_T[:, None] - index_T[None, :]
        seen_TS = (distance_TS >= 0) & (distance_TS < window)
        seen_BTS = jnp.broadcast_to(seen_TS[None], (len(tokens_BT), *seen_TS.shape))
        if segment_ids is not None:
            same_BTS = segment_ids[:, :, None] == segment_ids[:, None, :]
            seen_BTS = seen_BTS & same_BTS
        weight_BTS = seen_BTS.astype(jnp.float32)
        weight_BTS = weight_BTS / jnp.sum(weight_BTS, axis=-1, keepdims=True)
        layer = params["periods"]["0_swa"]
        for period in range(2):
            v_BSD = x_BTD @ layer["mixer"]["out"]["kernel"][period]
            mean_BTD = jnp.tanh(jnp.einsum("bts,bsd->btd", weight_BTS, v_BSD))
            x_BTD = x_BTD + mean_BTD * layer["mixer_norm"]["scale"][period][None, None]
        return x_BTD, state

    def head(params, x_BTD, /):
        return x_BTD @ params["kernel"]

    def init_state(batch, /, *, window, context):
        raise NotImplementedError("training needs no state")

    return Model(init, hidden, head, init_state)


def run_config(corpus: Path | None = None, **changes) -> RunConfig:
    """Returns a run of 12 steps of 4 rows of 32 bytes, saved every 3 steps."""
    config = RunConfig(
        model=MODEL,
        data=DataConfig(
            path=None if corpus is None else str(corpus),
            tokenizer="bytes",
            validation_fraction=0.3,
            seq_len=32,
        ),
        steps=12,
        batch=BatchConfig(rows=4, accumulation=2),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_fraction=0.25),
        windows=WindowSchedule((4, 32), anneal_fraction=0.25),
        mesh=MeshConfig(data=1),
        checkpoint=CheckpointConfig(every=3, keep=2),
        logging=LoggingConfig(
            console_seconds=0.0, validation_every=6, validation_batches=2
        ),
    )
    return dataclasses.replace(config, **changes)


def write_corpus(folder: Path, /, *, documents: int = 12) -> Path:
    """Returns the folder, with small text files that differ from each other."""
    folder.mkdir(parents=True)
    for index in range(documents):
        lines = [f"def f{index}_{n}(x):\n    return x * {n}\n" for n in range(8)]
        (folder / f"{index:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def random_batch(rows: int, length: int, /, *, vocab_size: int, seed: int = 0):
    """Returns rows of three segments each, the last one padding of some length."""
    random = np.random.default_rng(seed)
    first, second = np.sort(random.integers(1, length, (2, rows, 1)), axis=0)
    index = np.arange(length)[None, :]
    segments = np.where(index < first, 1, np.where(index < second, 2, 0))
    tokens = random.integers(0, vocab_size, (2, rows, length))
    return {
        "tokens": tokens[0].astype(np.int32),
        "targets": tokens[1].astype(np.int32),
        "segment_ids": segments.astype(np.int32),
    }
