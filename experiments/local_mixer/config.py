"""The grid and its sizes, as data: frozen dataclasses, checked when they are made."""

import dataclasses
from typing import Literal, get_args

from swa_jax.data.config import DataConfig
from swa_jax.data.synthetic.copy import SelectiveCopyConfig
from swa_jax.data.synthetic.recall import RecallConfig
from swa_jax.models.config import LocalConfig
from swa_jax.training.config import OptimizerConfig

Task = Literal["recall", "copy", "code"]
Match = Literal["parameters", "flops"]

TASKS = get_args(Task)
MIXERS = ("mamba2", "gla", "gated_deltanet", "mlstm", "attention")
LOCALS = ("none", "short_conv", "canon", "short_swa")
DESIGNS = {f"short_swa_{name}": name for name in ("full", "low_rank", "free")}
BYTE_VOCABULARY = 257


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of the grid."""

    task: Task
    local: str
    """"none", "short_conv", "canon" or "short_swa", the latter also with its design
    behind, as in "short_swa_free"."""
    mixer: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """The model of a cell, but for its mixers; every mixer has heads of one width."""

    d_model: int
    layers: int
    heads: int
    head_width: int
    """Of keys and values; Mamba-2 has twice as many heads, which share one key."""
    feed_forward_width: int
    """Of attention without a local mixer; the other cells get the width that gives
    them as many parameters (or FLOPs)."""
    local: LocalConfig
    vocab_size: int = BYTE_VOCABULARY
    dtype: Literal["bfloat16", "float32"] = "float32"


@dataclasses.dataclass(frozen=True)
class Training:
    """How every cell is trained and judged, whatever its mixers and its task."""

    steps: int
    rows: int
    """Rows of a step."""
    test_rows: int
    """Rows of the held-out sample, a multiple of rows."""
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        if min(self.steps, self.rows, self.test_rows) < 1:
            raise ValueError(
                f"Training: steps, rows and test_rows are at least 1, got {self}"
            )
        if self.test_rows % self.rows:
            raise ValueError(
                "Training.test_rows must be a multiple of rows, got "
                f"test_rows={self.test_rows}, rows={self.rows}"
            )


@dataclasses.dataclass(frozen=True)
class Size:
    """A grid that one command runs."""

    name: str
    shape: Shape
    training: Training
    recall: RecallConfig
    copy: SelectiveCopyConfig
    code: DataConfig
    match: Match = "parameters"
    """What all cells have alike."""
    locals: tuple[str, ...] = LOCALS
    mixers: tuple[str, ...] = MIXERS
    tasks: tuple[Task, ...] = TASKS
    seeds: int = 3
    """Seeds 0, 1, ... of the initial parameters and of the training rows."""

    def __post_init__(self) -> None:
        known = {"locals": (*LOCALS, *DESIGNS), "mixers": MIXERS, "tasks": TASKS}
        for name, choices in known.items():
            chosen = getattr(self, name)
            if not chosen or not set(chosen) <= set(choices):
                raise ValueError(
                    f"{name} wants some of {', '.join(choices)}; got {chosen}."
                )
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}.")
        lengths = {self.recall.seq_len, self.copy.seq_len, self.code.seq_len}
        if len(lengths) > 1:
            raise ValueError(
                "the tasks must have rows of one length, so that a model is compiled "
                f"once; got {sorted(lengths)}."
            )
        needed = max(self.recall.vocab_size, self.copy.vocab_size)
        if self.code.tokenizer == "bpe":
            needed = max(needed, self.code.vocab_size)
        if self.shape.vocab_size < max(needed, BYTE_VOCABULARY):
            raise ValueError(
                f"shape.vocab_size must be at least {max(needed, BYTE_VOCABULARY)}, "
                f"got {self.shape.vocab_size}."
            )

    @property
    def seq_len(self) -> int:
        """Tokens of a row, in every task."""
        return self.code.seq_len

    @property
    def models(self) -> list[tuple[str, str]]:
        """Local and global mixer of every model."""
        return [(local, mixer) for mixer in self.mixers for local in self.locals]

    @property
    def cells(self) -> list[Cell]:
        """Every cell, those of one model next to each other."""
        return [
            Cell(task, local, mixer, seed)
            for local, mixer in self.models
            for task in self.tasks
            for seed in range(self.seeds)
        ]


def _bytes(seq_len: int) -> DataConfig:
    return DataConfig(tokenizer="bytes", vocab_size=BYTE_VOCABULARY, seq_len=seq_len)


_CPU = Size(
    name="cpu",
    shape=Shape(
        d_model=64,
        layers=2,
        heads=2,
        head_width=32,
        feed_forward_width=192,
        local=LocalConfig(window=8, head_width=32),
    ),
    training=Training(
        steps=800,
        rows=16,
        test_rows=512,
        optimizer=OptimizerConfig(peak_lr=4e-3, warmup_fraction=0.1, clip_norm=1.0),
    ),
    recall=RecallConfig(seq_len=64, pairs=8, keys=16, values=16),
    copy=SelectiveCopyConfig(seq_len=64, copied=4, symbols=8),
    code=_bytes(64),
)

SIZES = {
    # Windows and lengths are a sixteenth of the seed's 128 and 1024.
    "cpu": _CPU,
    # Which ShortSWA? Wider feed-forwards leave room for the design of most parameters.
    "designs": dataclasses.replace(
        _CPU,
        name="designs",
        shape=dataclasses.replace(_CPU.shape, feed_forward_width=256),
        locals=("short_conv", *DESIGNS),
        mixers=("gla", "gated_deltanet", "attention"),
        tasks=("recall", "code"),
    ),
    "gpu": Size(
        name="gpu",
        shape=Shape(
            d_model=256,
            layers=4,
            heads=4,
            head_width=64,
            feed_forward_width=768,
            local=LocalConfig(window=128, head_width=64),
            dtype="bfloat16",
        ),
        training=Training(
            steps=3000,
            rows=32,
            test_rows=1024,
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup_fraction=0.1, clip_norm=1.0),
        ),
        recall=RecallConfig(seq_len=1024, pairs=64, keys=96, values=96),
        copy=SelectiveCopyConfig(seq_len=1024, copied=16, symbols=16),
        code=_bytes(1024),
    ),
    # Says whether the program runs, and nothing else.
    "quick": Size(
        name="quick",
        shape=Shape(
            d_model=16,
            layers=1,
            heads=2,
            head_width=8,
            feed_forward_width=64,
            local=LocalConfig(window=4, rank=4, head_width=8),
        ),
        training=Training(
            steps=4,
            rows=2,
            test_rows=4,
            optimizer=OptimizerConfig(peak_lr=4e-3),
        ),
        recall=RecallConfig(seq_len=32, pairs=2, keys=4, values=4),
        copy=SelectiveCopyConfig(seq_len=32, copied=2, symbols=4),
        code=_bytes(32),
        locals=("none", "short_swa"),
        mixers=("gla", "attention"),
        seeds=1,
    ),
}
