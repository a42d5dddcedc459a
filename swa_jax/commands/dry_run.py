"""``swax train --dry-run``: what a run would be, without beginning it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax

from swa_jax.commands.evaluate import printable
from swa_jax.commands.flops import in_units
from swa_jax.configuration import to_dict
from swa_jax.data.batches import TrainBatches
from swa_jax.data.pipeline import TextData, load_text_data
from swa_jax.data.tokenizer import load_tokenizer
from swa_jax.models.accounting import account
from swa_jax.training.compilation_cache import compilation_cache
from swa_jax.training.config import RunConfig
from swa_jax.training.interrupt import StopRequest
from swa_jax.training.loop import rows_of_step
from swa_jax.training.memory import bytes_per_device, gigabytes
from swa_jax.training.performance import peak_flops
from swa_jax.training.program import Program, compile_step, prepare
from swa_jax.training.run import TOKENIZER_FILE, check_folder

NAMED = 8  # documents of the first batch
SHOWN = 2000  # characters of the first row


def print_dry_run(config: RunConfig, /, *, out: Path | None, resume: bool) -> None:
    """Prints the configuration, costs, memory, text and first row of a run.

    Reads and tokenizes the text and compiles the step, so that what a run would refuse
    is refused here; makes no array on a device and no run folder (the compilation cache
    keeps the step). Raises what training would raise.
    """
    tokenizer = None
    if out is not None:
        check_folder(out, config, resume=resume)
        if resume and (out / TOKENIZER_FILE).is_file():
            path, separator = out / TOKENIZER_FILE, config.data.separator
            tokenizer = load_tokenizer(path, separator=separator)
    print("configuration")
    print(json.dumps(to_dict(config), indent=2))
    for line in model_lines(config):
        print(line)
    data = load_text_data(config.data, seed=config.seed, tokenizer=tokenizer)
    for line in text_lines(config, data):
        print(line)
    with compilation_cache(config.runtime.compilation_cache, say=print):
        program = prepare(config, data)
        print(device_line(config, program.mesh.size))
        for line in memory_lines(program):
            print(line)
        rows = config.batch.rows
        compile_step(program, rows, say=partial(print, flush=True), stop=StopRequest())
    print("dry run: nothing was trained and no folder was made")


def model_lines(config: RunConfig, /) -> list[str]:
    """Parameters and FLOPs/token, at each window of the run."""
    model, windows = config.model, config.windows
    lines = []
    for window in sorted({windows.smallest, windows.largest}):
        cost = account(model, seq_len=config.data.seq_len, window=window)
        count = cost.parameters
        if not lines:
            lines = [
                f"parameters: {count.total:,} ({in_units(count.total)}), without the "
                f"embeddings {count.non_embedding:,}"
            ]
        lines.append(
            f"window {window}: {cost.forward_flops / 1e6:,.1f} MFLOPs/token forward, "
            f"{cost.training_flops / 1e6:,.1f} of training"
        )
    return lines


def device_line(config: RunConfig, devices: int, /) -> str:
    """The devices of the run's mesh, and what they can do."""
    peak = peak_flops(config, devices)
    kind = jax.devices()[0].device_kind
    known = "unknown: no MFU" if peak is None else f"{peak / 1e12:,.0f} TFLOP/s"
    return f"devices: {devices} x {kind}, peak {known}"


def memory_lines(program: Program, /) -> list[str]:
    """The bytes of the state on each device, in closed form from its shardings."""
    state, mesh = program.abstract, dict(program.mesh.shape)
    parts = {"parameters": state.params, "with the optimizer": state}
    sizes = [f"{name} {gigabytes(bytes_per_device(p))}" for name, p in parts.items()]
    return [f"mesh: {mesh}", f"state per device: {', '.join(sizes)}"]


def text_lines(config: RunConfig, data: TextData, /) -> list[str]:
    """Sizes of the text, batches per epoch, and what the first batch holds."""
    rows, tokens_a_step = config.batch.rows, config.batch.rows * config.data.seq_len
    epochs = _run_tokens(config) / max(1, data.train_size.tokens)
    batches = TrainBatches(
        data, rows_of_step=partial(rows_of_step, config), seed=config.seed
    )
    names = _first_documents(data, batches, rows)
    # One row, not the batch, which may be as large as somebody mistyped it.
    first, _ = batches.rows.read(0, 1)
    row = first["tokens"][0][first["segment_ids"][0] > 0]
    text = printable(data.tokenizer.decode(row))
    skipped = str(data.skipped)
    return [
        f"training text: {_size(data.train_size)}",
        f"validation text: {_size(data.validation_size)}",
        *([skipped] if skipped else []),
        f"a step: {rows} rows of {config.data.seq_len} tokens = "
        f"{tokens_a_step:,} tokens; the run: {_run_tokens(config):,} tokens",
        f"batches per epoch: {data.train_size.rows / rows:,.1f}; epochs of the run: "
        f"{epochs:.3g}",
        f"first documents: {printable(', '.join(names))}",
        "first row:",
        text if len(text) <= SHOWN else text[:SHOWN] + " ...",
    ]


def _first_documents(data: TextData, batches: TrainBatches, rows: int) -> list[str]:
    """The names of the first documents of the first batch."""
    labels, names = list(data.weights), []
    for source, row in batches.rows.places(0, min(rows, NAMED)):
        names += [
            f"{labels[source]}/{name}" for name in batches.rows.names(source, row)
        ]
    return list(dict.fromkeys(names))[:NAMED]


def _run_tokens(config: RunConfig) -> int:
    first, _ = rows_of_step(config, config.steps)
    return first * config.data.seq_len


def _size(size: Any) -> str:
    return (
        f"{size.documents:,} documents, {size.bytes:,} bytes, {size.tokens:,} tokens, "
        f"{size.rows:,} rows"
    )
