"""Models with known answers have the scores that they must have."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.data.synthetic.copy import CopyConfig, SelectiveCopyConfig
from swa_jax.data.synthetic.induction import InductionConfig
from swa_jax.data.synthetic.recall import RecallConfig
from swa_jax.data.synthetic.state_tracking import (
    ParityConfig,
    PermutationsConfig,
    products,
)
from swa_jax.data.tokenizer import byte_tokenizer
from swa_jax.evaluation.tasks import rows_on_devices, synthetic
from swa_jax.evaluation.tasks.registry import TASKS, Choices, make_task
from swa_jax.evaluation.tasks.synthetic import SyntheticTask
from swa_jax.evaluation.tasks.task import Subject
from swa_jax.models.language_model import Model
from tests.evaluation.known_answers import constant_model, ideal_memory, induction_head

V = 264  # ids of the models; the tokenizer has 257
RECALL = RecallConfig(seq_len=64, pairs=8, noise_tokens=4, keys=16, values=16)
INDUCTION = InductionConfig(seq_len=64, symbols=32)
COPY = CopyConfig(seq_len=64, copied=6, symbols=16)
SELECTIVE = SelectiveCopyConfig(seq_len=64, copied=6, symbols=16)
PARITY = ParityConfig(seq_len=33)
PERMUTATIONS = PermutationsConfig(seq_len=33, objects=4)
TOKENIZER = byte_tokenizer()


def subject(model: Model) -> Subject:
    def no_text():
        raise AssertionError("a synthetic task reads no text")

    return Subject(model, {"head": {}}, TOKENIZER, V, no_text)


def judged(config: Any, model: Model, *, window: int = 64, **options: Any) -> dict:
    options = {"rows": 12, "ids": "task"} | options
    task = SyntheticTask("task", (config,), (window,), **options)
    [cell] = task.cells()
    return task.judge(subject(model), cell)


def nth_symbol(tokens_BT):
    """Returns, at the n-th marker, the n-th token that is neither noise nor marker."""
    symbol_BT = jnp.cumsum(tokens_BT > 1, axis=1)
    marker_BT = jnp.cumsum(tokens_BT == 1, axis=1)
    is_it_BTS = (symbol_BT[:, None] == marker_BT[..., None]) & (tokens_BT > 1)[:, None]
    return jnp.take_along_axis(tokens_BT, jnp.argmax(is_it_BTS, axis=-1), axis=1)


def copied(tokens_BT):
    """Returns the token that stands seq_len - copied tokens before."""
    distance = COPY.seq_len - COPY.copied
    return jnp.pad(tokens_BT, ((0, 0), (distance, 0)))[:, : tokens_BT.shape[1]]


def parity(tokens_BT):
    return 1 + jnp.cumsum(tokens_BT == 2, axis=1) % 2


def product(tokens_BT):
    table = jnp.asarray(products(PERMUTATIONS.objects), jnp.int32)

    def move(state_B, token_B):
        state_B = jnp.where(token_B > 0, table[state_B, token_B - 1], state_B)
        return state_B, 1 + state_B

    start_B = jnp.zeros(len(tokens_BT), jnp.int32)
    return jax.lax.scan(move, start_B, tokens_BT.T)[1].T


HEAD = induction_head(V, otherwise=V - 1)  # which is no id of a task or of a text
PERFECT = {
    "recall": (RECALL, induction_head(V, reach=10**6)),
    "induction": (INDUCTION, induction_head(V, reach=10**6)),
    "copy": (COPY, ideal_memory(V, copied)),
    "selective_copy": (SELECTIVE, ideal_memory(V, nth_symbol)),
    "parity": (PARITY, ideal_memory(V, parity)),
    "permutations": (PERMUTATIONS, ideal_memory(V, product)),
}


@pytest.mark.parametrize("name", PERFECT)
def test_an_ideal_memory_is_always_right(name):
    config, model = PERFECT[name]
    result = judged(config, model, window=1)
    assert result["asked"] > 0
    assert result["correct"] == result["correct_among_answers"] == result["asked"]
    assert result["score"] == result["score_among_answers"] == 1.0
    assert result["loss"] < 1e-6
    assert result["chance"] == pytest.approx(1 / len(config.answers))
    by_distance = result["by_distance"]
    assert sum(by_distance["asked"]) == result["asked"]
    assert by_distance["correct"] == by_distance["asked"]


@pytest.mark.parametrize(("config", "ids"), [(RECALL, "text"), (INDUCTION, "task")])
def test_an_induction_head_finds_what_its_window_holds_and_nothing_beyond(config, ids):
    for window in (1, 8, 16):
        result = judged(config, HEAD, window=window, ids=ids, rows=40)
        by = result["by_distance"]
        inside = [edge <= window for edge in by["edges"][1:]]
        octaves = zip(inside, by["asked"], by["correct"], strict=True)
        assert all(right == asked * inside for inside, asked, right in octaves)
        assert by["correct_among_answers"] == by["correct"]
        assert sum(by["asked"][-3:]) > 0
        assert 0 < result["score"] < 1 or window == 1


def test_an_answer_at_the_edge_of_the_window_is_found_and_one_behind_it_not():
    for window, score in ((20, 0.0), (21, 1.0)):
        config = dataclasses.replace(INDUCTION, min_distance=20, max_distance=20)
        result = judged(config, HEAD, window=window, rows=40)
        assert result["score"] == result["score_among_answers"] == score


@pytest.mark.parametrize("name", ["parity", "permutations", "copy"])
def test_a_constant_answer_is_right_by_chance(name):
    config = PERFECT[name][0]
    result = judged(config, constant_model(V, config.answers[0]), rows=60)
    mean, count = result["chance"], result["asked"]
    spread = math.sqrt(mean * (1 - mean) / count)
    assert abs(result["score"] - mean) < 5 * spread
    assert result["score"] == result["score_among_answers"]


def test_no_answer_is_right_where_the_logits_are_equal():
    result = judged(PARITY, constant_model(V, 200))
    assert result["correct"] == result["correct_among_answers"] == 0


def test_an_answer_may_be_right_among_the_answers_alone():
    model = ideal_memory(V, parity)

    def head(params, x_BTD, /):  # an id that is no answer, before the answer
        logits_BTV = model.head(params, x_BTD)
        return logits_BTV.at[..., 99].set(100.0)

    result = judged(PARITY, model._replace(head=head))
    assert result["score"] == 0.0
    assert result["score_among_answers"] == 1.0
    np.testing.assert_allclose(result["loss"], 70.0, rtol=1e-5)


def test_each_row_of_text_has_its_own_ordinary_tokens():
    task = SyntheticTask("recall", (RECALL,), (64,), rows=20)
    [cell] = task.cells()
    rows = task.sample(subject(constant_model(V, 0)), cell)
    assert rows["tokens"].shape == (20, 65)
    assert (rows["tokens"][:, 0] == TOKENIZER.separator).all()
    spelled = TOKENIZER.token_bytes_V[rows["tokens"][:, 1:]]
    assert (spelled > 0).all()
    assert len({tuple(answers) for answers in rows["answers"]}) == 20
    for name in ("targets", "answers"):
        assert (TOKENIZER.token_bytes_V[rows[name]] > 0).all()
    # The same rows as those of the task, under other names.
    plain = dataclasses.replace(task, ids="task").sample(
        subject(constant_model(V, 0)), cell
    )
    np.testing.assert_array_equal(rows["places"], plain["places"] + 1)
    for text, own in zip(rows["tokens"][:, 1:], plain["tokens"], strict=True):
        pairs = set(zip(text.tolist(), own.tolist(), strict=True))
        assert len(pairs) == len(set(text.tolist())) == len(set(own.tolist()))
    again = task.sample(subject(constant_model(V, 0)), cell)
    assert all((again[name] == array).all() for name, array in rows.items())


def test_results_do_not_depend_on_batches_devices_and_chunks(monkeypatch):
    model = ideal_memory(V, nth_symbol)
    monkeypatch.setattr(rows_on_devices, "TOKENS_AT_ONCE", 64)  # a row of each device
    monkeypatch.setattr(synthetic, "default_chunk", lambda **_: 4)  # of 6 answers
    result = judged(SELECTIVE, model, rows=21)  # eight, eight and five
    assert result["asked"] == result["correct"] == 6 * 21
    assert result["correct_among_answers"] == 6 * 21
    assert result["loss"] < 1e-6


def test_a_vocabulary_that_is_too_small_is_an_error():
    config = RecallConfig(keys=200, values=64)
    with pytest.raises(ValueError, match=r"wants 265 different ids .* has 256"):
        judged(config, constant_model(V, 0), ids="text")
    with pytest.raises(ValueError, match=r"wants 265 different ids .* has 264"):
        judged(config, constant_model(V, 0))


@pytest.mark.parametrize("name", PERFECT)
def test_every_cell_has_a_config_that_fits(name):
    choices = Choices(windows=(16, 64), lengths=(64, 300), rows=2)
    task = make_task(name, choices)
    assert isinstance(task, SyntheticTask)
    assert task.name == name
    assert name in TASKS
    cells = task.cells()
    assert {cell["window"] for cell in cells} == {16, 64}
    assert {task.config_of(cell).seq_len for cell in cells} == {64, 300}
    assert len({str(cell) for cell in cells}) == len(cells)
    for cell in cells:
        task.sample(subject(constant_model(V, 0)), cell)
    with pytest.raises(ValueError, match=rf"no row of {name} fits"):
        make_task(name, choices._replace(lengths=(1,)))
