"""What the commands but training take from the command line, as dataclasses.

A field is a flag, and its line below "Attributes" the flag's help. Nothing here imports
JAX: help and usage errors come at once.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from swa_jax.evaluation.tasks.registry import TASKS, names_in
from swa_jax.training.cluster_config import ClusterConfig
from swa_jax.training.config import Step

_INT32 = 2**31


def _check_int32(flag: str, *values: int) -> None:
    """Raises ValueError for what no array of integers on a device holds."""
    for value in values:
        if not -_INT32 <= value < _INT32:
            raise ValueError(f"--{flag}: wanted an int within 32 bits, got {value}")


RunFolder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluate a trained run on its validation text and write evaluation.json.

    With --tasks: judge it by tasks instead, and write RUN/tasks/NAME.jsonl. The same
    command goes on where it was interrupted.

    Attributes:
        run: run folder.
        step: optimizer step of the checkpoint; newest: the newest that verifies; best:
            the one of the lowest validation loss.
        windows: windows (tokens); none given: the smallest and the largest trained one.
        max_tokens: number of validation tokens to stop after, in each cell of a task.
        tasks: names of tasks: needle, recall, copy, selective_copy, induction, parity,
            permutations, positions, perplexity, context, influence.
        lengths: lengths of the tasks' rows (tokens); none given: those of training, a
            quarter of that, and four times as much.
        task_rows: rows of each cell of a synthetic task; None: 64.
    """

    run: RunFolder
    step: Step = "newest"
    windows: tuple[int, ...] = ()
    max_tokens: int = 2**17
    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    task_rows: int | None = None

    def __post_init__(self) -> None:
        _check_int32("windows", *self.windows)
        _check_int32("lengths", *self.lengths)
        _check_int32("task-rows", self.task_rows or 0)
        rows = 1 if self.task_rows is None else self.task_rows
        if min(*self.lengths, rows, 1) < 1:
            raise ValueError(
                "--lengths and --task-rows: wanted numbers of at least 1, got "
                f"lengths={self.lengths}, task_rows={self.task_rows}"
            )
        if self.tasks and not names_in(self.tasks):
            raise ValueError(f"--tasks: wanted some of {', '.join(TASKS)}, got none")
        if not self.tasks and (self.lengths or self.task_rows is not None):
            raise ValueError("--lengths and --task-rows are for tasks; give --tasks")


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue a text with a trained run; the text alone goes to standard output.

    Attributes:
        run: run folder.
        prompt: text to continue.
        tokens: number of tokens to generate, at most; a document may end before.
        window: window (tokens); None: the largest trained one.
        temperature: divides the logits (dimensionless); 0 takes the likeliest token.
        top_k: draw from this many likeliest tokens; None: from all.
        top_p: draw from the likeliest tokens that reach this probability; None: all.
        seed: seed of the draws.
        step: optimizer step of the checkpoint; newest: the newest that verifies; best:
            the one of the lowest validation loss.
    """

    run: RunFolder
    prompt: str = ""
    tokens: int = 200
    window: int | None = None
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    step: Step = "newest"

    def __post_init__(self) -> None:
        _check_int32("seed", self.seed)
        _check_int32("window", self.window or 0)
        _check_int32("top-k", self.top_k or 0)


@dataclasses.dataclass(frozen=True)
class Flops:
    """Print what the presets cost: parameters, FLOPs per token, state bytes.

    Attributes:
        preset: name of one preset, with its layers by kind; None: all presets.
        seq_len: length of a sequence (tokens).
        windows: windows (tokens) of the sliding-window layers.
        json: print JSON and nothing else.
    """

    preset: str | None = None
    seq_len: int = 16_384
    windows: tuple[int, ...] = (128, 2048)
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Reach:
    """Print how far stacked windows see, by every formula, for a model of averages.

    Each layer keeps a share alpha of its input and adds the mean over its window.

    Attributes:
        layers: number of layers with a window.
        window: tokens that a query reads, itself included.
        alpha: share of a layer's output that is its own input (from 0 to 1).
        tolerance: share of the influence that counts as none (between 0 and 1).
        json: print JSON and nothing else.
    """

    layers: int = 24
    window: int = 128
    alpha: float = 0.95
    tolerance: float = 0.01
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Examine this machine, or all processes of a cluster, before a run.

    Prints devices, versions and the variables that matter; adds numbers over all
    devices; compares every kernel's outputs and gradients with their definition.

    Attributes:
        recheck: test the kernels again, though this device passed with these packages.
        no_cache: neither read nor keep what a test of the kernels has found.
        no_kernels: leave the kernels out: devices, settings and the network only.
        cluster: how this process finds the others.
    """

    recheck: bool = False
    no_cache: bool = False
    no_kernels: bool = False
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write RUN/report.html: one file, offline, of a run in any state.

    Attributes:
        run: run folder.
    """

    run: RunFolder


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """List the checkpoints of a run and verify every file of them.

    Attributes:
        run: run folder.
    """

    run: RunFolder


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the parameters of a run as safetensors, with configuration and tokenizer.

    Attributes:
        run: run folder.
        out: folder to write, which must not be there; it opens like a run.
        step: optimizer step of the checkpoint; newest: the newest that verifies; best:
            the one of the lowest validation loss.
        dtype: type of the parameters; float32 keeps every bit.
    """

    run: RunFolder
    out: Path
    step: Step = "newest"
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """Cut a corpus into a token cache, which `swax train --data` reads piece by piece.

    In parallel, in flat memory, and resumable: the same command goes on with a cache
    that was interrupted.

    Attributes:
        paths: files, folders or globs: text, .jsonl (.gz, .zst) or .parquet.
        out: folder of the cache.
        verify: only check every checksum of the cache PATH.
        tokenizer: bpe, trained on a sample; bytes; or a Hugging Face tokenizer.json.
        vocab_size: largest number of BPE tokens.
        separator: special token that stands before each document; None: the one that a
            tokenizer.json ends texts with.
        format: how files are read; auto: by their names.
        field: field of JSON lines, or column of Parquet files, that is the text.
        on_bad_record: stop with its file and number, or skip, count and report it.
        seed: seed of the run that will train; with its validation_fraction it decides
            the documents that a BPE learns from.
        validation_fraction: fraction of the documents that the run will hold out.
        shard_tokens: tokens of a shard, which is what an interruption loses at most.
        workers: processes that tokenize; None: one per processor.
    """

    paths: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH")
    ]
    out: Path | None = None
    verify: bool = False
    tokenizer: str = "bpe"
    vocab_size: int = 2048
    separator: str | None = None
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    field: str = "text"
    on_bad_record: Literal["stop", "skip"] = "stop"
    seed: int = 0
    validation_fraction: float = 0.05
    shard_tokens: int = 2**24
    workers: int | None = None
