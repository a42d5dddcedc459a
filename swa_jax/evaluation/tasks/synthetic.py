"""A model judged by synthetic rows, whose answers are known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from swa_jax.configuration import from_dict, to_dict
from swa_jax.data.synthetic.copy import CopyConfig, SelectiveCopyConfig
from swa_jax.data.synthetic.induction import InductionConfig
from swa_jax.data.synthetic.recall import RecallConfig
from swa_jax.data.synthetic.source import TaskConfig, TaskRows
from swa_jax.data.synthetic.state_tracking import ParityConfig, PermutationsConfig
from swa_jax.evaluation.tasks.octaves import means, octave_edges, sums_by_bin
from swa_jax.evaluation.tasks.registry import Choices
from swa_jax.evaluation.tasks.rows_on_devices import (
    everywhere,
    over_devices,
    row_batches,
)
from swa_jax.evaluation.tasks.task import AXIS, Cell, Subject
from swa_jax.models.language_model import Model
from swa_jax.models.loss import default_chunk, next_token_nll

HELD_OUT_SEED = 1_000_000  # added to a task's: no training is known to use such seeds


@dataclass(frozen=True)
class SyntheticTask:
    """Rows of a synthetic task, graded wherever an answer is asked.

    A cell is a config of `swa_jax.data.synthetic` and a window. The ids of the rows are
    the model's own ("task", for one that was trained on such rows), or each row has its
    own random tokens of the vocabulary for them, behind a separator ("text").
    """

    name: str
    configs: tuple[TaskConfig, ...] = field(metadata=AXIS)
    windows: tuple[int, ...] = field(metadata=AXIS)
    """Tokens."""
    rows: int = 64
    """Rows of a cell."""
    seed: int = 0
    ids: Literal["task", "text"] = "text"

    def cells(self) -> Sequence[Cell]:
        """Returns every config with every window."""
        return [
            {**to_dict(config), "window": window}
            for config in self.configs
            for window in self.windows
        ]

    def judge(self, subject: Subject, cell: Cell, /) -> dict[str, Any]:
        """Returns the accuracy, over all ids and among the answers, and the loss.

        An answer counts where its logit is above that of every other id, in all or of
        those that may be an answer: of equal logits none does. "chance" is the share
        that guessing among the answers gets. By octave of the distance: the numbers of
        answers asked and correct, and the loss (nats/answer).
        """
        rows = self.sample(subject, cell)
        graded = zip(*_graded(subject, rows, window=cell["window"]), strict=True)
        nll, correct, among = (np.concatenate(part) for part in graded)
        asked = rows["weights"] > 0
        distances = rows["distances"][asked]
        edges = octave_edges(self.config_of(cell).seq_len)
        sums = partial(sums_by_bin, distances)
        counts = sums(np.ones(len(distances)), edges)
        return {
            "asked": len(nll),
            "correct": int(correct.sum()),
            "score": float(correct.mean()),
            "correct_among_answers": int(among.sum()),
            "score_among_answers": float(among.mean()),
            "chance": 1 / rows["answers"].shape[1],
            "loss": float(nll.mean(dtype=np.float64)),
            "by_distance": {
                "edges": list(edges),
                "asked": counts.astype(int).tolist(),
                "correct": sums(correct, edges).astype(int).tolist(),
                "correct_among_answers": sums(among, edges).astype(int).tolist(),
                "loss": means(sums(nll, edges), counts),
            },
        }

    def config_of(self, cell: Cell, /) -> Any:
        """Returns the config of a cell."""
        values = {name: value for name, value in cell.items() if name != "window"}
        return from_dict(type(self.configs[0]), values)

    def sample(self, subject: Subject, cell: Cell, /) -> dict[str, NDArray[Any]]:
        """Returns the rows (R, T) "tokens", what they ask (R, A) and what may be said.

        "places" are the tokens at which the A answers of a row are asked, "targets" the
        answers, "answers" (R, C) the ids that may be one. Raises ValueError where the
        vocabulary has too few ids.
        """
        config = self.config_of(cell)
        source = TaskRows(config, seed=HELD_OUT_SEED + self.seed, length=self.rows)
        items = [self._row(source, index, subject) for index in range(self.rows)]
        return {name: np.stack([item[name] for item in items]) for name in items[0]}

    def _row(self, source: TaskRows, index: int, subject: Subject) -> dict:
        row = source[index]
        ids_U = self._ids(source, index, subject)
        [places] = np.nonzero(row["weights"])
        tokens = ids_U[row["tokens"]]
        if self.ids == "text":
            tokens = np.concatenate([[subject.tokenizer.separator], tokens])
        return {
            "tokens": tokens.astype(np.int32),
            "places": (places + len(tokens) - len(row["tokens"])).astype(np.int32),
            "targets": ids_U[row["targets"][places]],
            "weights": row["weights"][places],
            "distances": row["distances"][places],
            "answers": ids_U[list(source.config.answers)],
        }

    def _ids(self, source: TaskRows, index: int, subject: Subject) -> NDArray[np.int32]:
        """Returns the model's id of each id of the task, for one row."""
        size, found = source.config.vocab_size, np.arange(subject.vocab_size)
        if self.ids == "text":
            found = np.flatnonzero(subject.tokenizer.token_bytes_V > 0)
        if len(found) < size:
            raise ValueError(
                f"{self.name} wants {size} different ids of text, and the model has "
                f"{len(found)}; give it a config with fewer ids"
            )
        if self.ids == "task":
            return found[:size].astype(np.int32)
        random = np.random.default_rng((source.seed, index, size))
        return random.choice(found, size, replace=False).astype(np.int32)


def _graded(
    subject: Subject, rows: dict[str, NDArray[Any]], *, window: int
) -> Iterator[list[NDArray[Any]]]:
    """Yields, batch by batch, what every answer that is asked comes to."""
    model, params = over_devices(subject.model), everywhere(subject.params)
    arrays = {name: array for name, array in rows.items() if name != "distances"}
    for batch in row_batches(arrays):
        asked = np.asarray(batch["weights"]) > 0
        found = _grade(model, params, batch, np.int32(window))
        yield [np.asarray(array)[asked] for array in found]


@partial(jax.jit, static_argnums=0)
def _grade(
    model: Model, params: Any, batch: dict[str, jax.Array], window: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns nll_BA, correct_BA, and correct_BA among the answers."""
    x_BTD, _ = model.hidden(params, batch["tokens"], window=window)
    x_BAD = jnp.take_along_axis(x_BTD, batch["places"][..., None], axis=1)
    B, A, _ = x_BAD.shape
    V = jax.eval_shape(model.head, params["head"], x_BAD).shape[-1]
    chunk = default_chunk(rows=B, length=A, vocabulary=V)
    missing = -A % chunk

    def in_chunks(array_BA):
        rest = array_BA.shape[2:]
        padding = [(0, 0), (0, missing)] + [(0, 0)] * len(rest)
        whole = jnp.pad(array_BA, padding).reshape(B, -1, chunk, *rest)
        return jnp.moveaxis(whole, 1, 0)

    def grade(piece):
        x_BCD, targets_BC = piece
        logits_BCV = model.head(params["head"], x_BCD)
        nll_BC = next_token_nll(logits_BCV, targets_BC)
        right_BC1 = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)
        among_BCU = jnp.take_along_axis(logits_BCV, batch["answers"][:, None], axis=-1)
        correct = [
            jnp.sum(logits >= right_BC1, axis=-1) == 1
            for logits in (logits_BCV, among_BCU)
        ]
        return nll_BC, *correct

    found = jax.lax.map(grade, (in_chunks(x_BAD), in_chunks(batch["targets"])))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :A] for x in found)


def _task(name: str, configs: Sequence[TaskConfig], choices: Choices) -> SyntheticTask:
    if not configs:
        raise ValueError(
            f"no row of {name} fits in --lengths {choices.lengths}; give longer ones"
        )
    return SyntheticTask(
        name, tuple(configs), choices.windows, rows=choices.rows, seed=choices.seed
    )


def recall(choices: Choices, /) -> SyntheticTask:
    """Returns multi-query associative recall of 4, 16 and 64 pairs."""
    configs = [
        RecallConfig(seq_len=length, pairs=pairs, noise_tokens=32)
        for length in choices.lengths
        for pairs in (4, 16, 64)
        if 4 * pairs <= length
    ]
    return _task("recall", configs, choices)


def plain_copy(choices: Choices, /) -> SyntheticTask:
    """Returns copying of 8 and of 32 tokens."""
    configs = [
        CopyConfig(seq_len=length, copied=copied, symbols=64)
        for length in choices.lengths
        for copied in (8, 32)
        if 2 * copied <= length
    ]
    return _task("copy", configs, choices)


def selective_copy(choices: Choices, /) -> SyntheticTask:
    """Returns selective copying of 4 and of 16 tokens."""
    configs = [
        SelectiveCopyConfig(seq_len=length, copied=copied, symbols=64)
        for length in choices.lengths
        for copied in (4, 16)
        if 2 * copied <= length
    ]
    return _task("selective_copy", configs, choices)


def induction(choices: Choices, /) -> SyntheticTask:
    """Returns induction, among 128 different tokens."""
    lengths = [length for length in choices.lengths if length >= 3]
    configs = [InductionConfig(seq_len=length, symbols=128) for length in lengths]
    return _task("induction", configs, choices)


def parity(choices: Choices, /) -> SyntheticTask:
    """Returns parity, asked at every bit."""
    lengths = [length for length in choices.lengths if length >= 2]
    return _task("parity", [ParityConfig(length) for length in lengths], choices)


def permutation_composition(choices: Choices, /) -> SyntheticTask:
    """Returns the composition of permutations of 3, 4 and 5 objects, at every one."""
    configs = [
        PermutationsConfig(seq_len=length, objects=objects)
        for length in choices.lengths
        for objects in (3, 4, 5)
        if length >= 2
    ]
    return _task("permutations", configs, choices)
