"""The evaluation that ends a run, and the file that keeps it."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from swa_jax.data.batches import validation_batches
from swa_jax.data.pipeline import TextData
from swa_jax.evaluation.compression import gzip_bits_per_byte
from swa_jax.evaluation.run_record import EVALUATION_FILE
from swa_jax.evaluation.validation import Evaluation, evaluate
from swa_jax.inference.text import generate_text
from swa_jax.models.language_model import Model
from swa_jax.training.config import RunConfig

MAX_TOKENS = 2**17  # of validation text; bounds the time on a large corpus
SAMPLE_PROMPT = "import os\n\n\ndef "
SAMPLE_TOKENS = 160
SAMPLE_TEMPERATURE = 0.7


def evaluate_run(
    config: RunConfig,
    model: Model,
    params: Any,
    data: TextData,
    /,
    *,
    step: int,
    windows: Iterable[int] = (),
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """Returns the content of evaluation.json.

    An ``Evaluation`` for each of ``windows`` (tokens; none given: the smallest and the
    largest trained one) over at most ``max_tokens`` of validation rows, or one row, if
    that is longer; a sample at the largest, gzip over the whole validation text. Raises
    ValueError for windows that are none.
    """
    trained = {config.windows.smallest, config.windows.largest}
    windows = sorted(set(windows) or trained)
    batches = _batches_of(config, max_tokens)

    def at(window: int) -> Evaluation:
        return evaluate(
            model,
            params,
            validation_batches(data, **batches),
            window=window,
            token_bytes=data.token_bytes_V,
            sources=len(data.weights),
            chunk=config.loss.chunk,
        )

    return {
        "step": step,
        "windows": {str(window): at(window)._asdict() for window in windows},
        "gzip_bits_per_byte": gzip_bits_per_byte(data.validation_text),
        "sample": _sample(config, model, params, data, window=windows[-1]),
        "text": _text(data),
    }


def _batches_of(config: RunConfig, max_tokens: int) -> dict[str, int]:
    """Returns rows and number of batches that hold at most so many tokens, or a row."""
    length = config.data.seq_len
    rows = config.batch.rows // config.batch.accumulation
    rows = min(rows, max(1, max_tokens // length))
    return {"batch_size": rows, "max_batches": max(1, max_tokens // (rows * length))}


def _text(data: TextData) -> dict[str, Any]:
    return {
        "training": data.train_size._asdict(),
        "validation": data.validation_size._asdict(),
        "skipped": dict(data.skipped.counts),
    }


def _sample(
    config: RunConfig, model: Model, params: Any, data: TextData, /, *, window: int
) -> dict[str, str]:
    text = generate_text(
        model,
        params,
        data.tokenizer,
        SAMPLE_PROMPT,
        tokens=SAMPLE_TOKENS,
        window=window,
        vocab_size=config.model.vocab_size,
        temperature=SAMPLE_TEMPERATURE,
        seed=config.seed,
    )
    return {"prompt": SAMPLE_PROMPT, "text": text}


def save_evaluation(folder: Path, evaluation: dict[str, Any], /) -> Path:
    """Returns the path of the evaluation.json that it writes, in one move."""
    path = folder / EVALUATION_FILE
    unfinished = path.with_suffix(".json.unfinished")
    unfinished.write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path
