"""Needles against models whose answers are known."""

import dataclasses
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.commands.evaluate_tasks import subject_of
from swa_jax.configuration import from_dict, to_dict
from swa_jax.data.config import DataConfig
from swa_jax.data.needles.config import KINDS
from swa_jax.data.needles.prompt import needle_prompt
from swa_jax.data.pipeline import load_text_data
from swa_jax.data.tokenizer import byte_tokenizer, train_bpe
from swa_jax.evaluation.tasks.needle import NeedleTask, needle
from swa_jax.evaluation.tasks.registry import Choices
from swa_jax.evaluation.tasks.task import Subject, Task, settings_of
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import language_model
from swa_jax.training.config import MeshConfig, RunConfig
from swa_jax.training.run import Run
from swa_jax.training.sharding import make_mesh
from tests.evaluation.known_answers import (
    constant_model,
    ideal_memory,
    induction_head,
)
from tests.training.tiny import write_corpus

HAY = "".join(f"def add_{i}(left):\n    return left + {i}\n\n" for i in range(90))
BYTES = byte_tokenizer()
BPE = train_bpe(
    [HAY, *(f" The magic number of apple is {i}." for i in range(100, 200))],
    vocab_size=400,
)
V = 410  # a model may have more ids than its tokenizer
# Tokens up to a value, by which its needle is told from all else.
CONTEXT = {BYTES: 12, BPE: 6}
QUESTION = re.compile(
    r" What (?:is the|are all) magic (\w+?)s? of (\w+)\? The magic \1 of \2 is"
)


def subject(model, tokenizer=BYTES, *, params=None) -> Subject:
    text_T = np.array([tokenizer.separator, *tokenizer.encode(HAY)], np.int32)
    params = {"head": {}} if params is None else params
    return Subject(model, params, tokenizer, V, lambda: text_T)


def task(**changes) -> NeedleTask:
    fields = {"kinds": ("single_2",), "lengths": (300,), "depths": (0.5,)}
    fields |= {"windows": (8,), "samples": 6, "rows": 4, "chunk": 128, "seed": 1}
    return NeedleTask(**(fields | changes))


def judged(task, subject) -> list[dict]:
    assert isinstance(task.name, str)
    return [task.judge(subject, cell) for cell in task.cells()]


def prompts(task, cell, tokenizer):
    hay_T = tokenizer.encode(HAY)
    place = {"length": cell["length"], "depth": cell["depth"], "seed": task.seed}
    config = task.config(cell["kind"])
    return [
        needle_prompt(config, tokenizer, hay_T, index=index, **place)
        for index in range(task.samples)
    ]


def answering(tokenizer):
    """Returns a solver that reads prompts as a person does, and answers in full."""

    def row(ids_T):
        answers_T = np.zeros(len(ids_T), np.int32)
        text = tokenizer.decode(ids_T[ids_T >= 0])
        asked = QUESTION.search(text)
        if asked is None:
            return answers_T
        noun, key = asked.groups()
        sentence = rf" The magic {noun} of {key} is ([0-9a-z-]+)\."
        values = re.findall(sentence, text[: asked.start()])
        answer_A = tokenizer.encode(f" {', '.join(values)}.")
        start = len(tokenizer.encode(text[: asked.end()])) + 1 - 1  # separator
        room = len(ids_T) - start
        answers_T[start : start + len(answer_A)] = answer_A[:room]
        return answers_T

    def solve(tokens_BT):
        return jax.pure_callback(
            lambda ids_BT: np.stack([row(ids_T) for ids_T in np.asarray(ids_BT)]),
            jax.ShapeDtypeStruct(tokens_BT.shape, jnp.int32),
            tokens_BT,
        )

    return solve


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize("kind", ["single_1", "single_2", "single_3", "multi_key"])
def test_an_induction_head_finds_what_its_window_holds_and_nothing_else(
    kind, tokenizer
):
    head = subject(induction_head(V, n=CONTEXT[tokenizer]), tokenizer)
    # Between needle and question stand as many tokens as make the difference.
    probe = task(kinds=(kind,), depths=(0.7,))
    near = prompts(probe, probe.cells()[0], tokenizer)
    reaches = [p.distances[0] + len(p.answer_A) for p in near]
    windows = (min(reaches) - 1, sorted(reaches)[3], max(reaches), 500)
    asked = task(kinds=(kind,), depths=(0.0, 0.7, 1.0), windows=windows)
    shares = set()
    for cell in asked.cells():
        result = asked.judge(head, cell)
        reached = [
            prompt.distances[0] + len(prompt.answer_A) <= cell["window"]
            for prompt in prompts(asked, cell, tokenizer)
        ]
        assert result["correct"] == sum(reached)
        assert result["asked"] == result["samples"] == 6
        assert result["score"] == result["exact"] == sum(reached) / 6
        shares.add(result["score"])
        if all(reached):
            assert result["answer_accuracy"] == 1.0
            assert result["answer_nats"] < 1e-6
        if not any(reached):
            assert result["answer_accuracy"] < 0.2
            assert result["answer_nats"] > 3
    assert {0.0, 1.0} < shares


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_an_ideal_memory_finds_all(tokenizer):
    memory = subject(ideal_memory(V, answering(tokenizer)), tokenizer)
    asked = task(kinds=tuple(KINDS), lengths=(460, 700), depths=(0.0, 1.0), samples=2)
    for result in judged(asked, memory):
        assert result["score"] == result["exact"] == result["answer_accuracy"] == 1.0
        assert result["answer_nats"] < 1e-6
        assert result["said"] == " " + ", ".join(result["wanted"])


@pytest.mark.parametrize("answer", [BYTES.separator, V - 1, BYTES.encode("x")[0]])
def test_a_constant_finds_nothing(answer):
    asked = task(kinds=("single_2", "multi_value"), lengths=(512,), samples=2)
    for result in judged(asked, subject(constant_model(V, int(answer)))):
        assert result["correct"] == result["score"] == result["exact"] == 0
        assert result["answer_accuracy"] == 0
        # What the tokenizer lacks takes no probability and is never said.
        if answer == V - 1:
            nats = np.log(BYTES.vocab_size)
            np.testing.assert_allclose(result["answer_nats"], nats, rtol=1e-6)
        assert set(result["said"]) <= {"x"}


def saying(text: str, tokenizer=BYTES):
    """Returns a model that says a text from the end of a prompt of 300 tokens on."""
    said_A = tokenizer.encode(text)

    def solve(tokens_BT):
        index_T = jnp.arange(tokens_BT.shape[1]) - 299
        answers_T = jnp.asarray(said_A)[jnp.clip(index_T, 0, len(said_A) - 1)]
        return jnp.broadcast_to(answers_T[None], tokens_BT.shape)

    return ideal_memory(V, solve)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" {}. And so on", True),
        ("{},", True),
        (" it is {} or 7", True),
        (" 1{}.", False),
        (" {}1.", False),
        (" no. {}", False),
        (" {}x", False),
    ],
)
def test_a_value_counts_as_a_word_of_the_first_sentence(text, found):
    asked = task(samples=1, rows=1, digits=2)
    [prompt] = prompts(asked, asked.cells()[0], BYTES)
    model = saying(text.format(*prompt.answers) + "....")
    [result] = judged(asked, subject(model))
    assert result["correct"] == found
    assert result["distance"] == prompt.distances[0]
    assert result["answer_tokens"] == 2


def test_some_of_several_values_are_a_part_of_the_score():
    asked = task(kinds=("multi_value",), lengths=(300,), samples=1, digits=1)
    [prompt] = prompts(asked, asked.cells()[0], BYTES)
    model = saying(f" {prompt.answers[0]}, {prompt.answers[2]}.")
    [result] = judged(asked, subject(model))
    assert (result["correct"], result["asked"]) == (2, 4)
    assert (result["score"], result["exact"]) == (0.5, 0.0)
    assert result["wanted"] == list(prompt.answers)


def tiny_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=V,
        d_model=16,
        pattern=("swa", "mlstm"),
        periods=1,
        attention=AttentionConfig(heads=2),
        mlstm=MLSTMConfig(heads=2),
        feed_forward_width=16,
        dtype="float32",
    )


@pytest.mark.slow
def test_one_program_serves_lengths_windows_and_models_of_equal_configs(caplog):
    def subject_of_seed(seed):
        model = language_model(tiny_config())
        return subject(model, params=model.init(jax.random.key(seed)))

    one, other = subject_of_seed(0), subject_of_seed(1)
    asked = task(lengths=(256, 512), windows=(8, 128), samples=3, rows=2)
    first = judged(task(lengths=(256,), samples=3, rows=2), one)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        results = judged(asked, one)
        others = judged(asked, other)
    compiled = [r.message for r in caplog.records if r.message.startswith("Compiling")]
    # Only the zeros of a state, which may have room for all the context.
    assert len(compiled) == 1
    assert "_empty" in compiled[0]
    assert results[0] == first[0]  # whatever was judged before it
    assert [r["answer_nats"] for r in results] != [r["answer_nats"] for r in others]
    assert json.loads(json.dumps(results)) == results


@pytest.mark.slow
def test_rows_over_devices_are_rows_on_one():
    model = language_model(tiny_config())
    params = model.init(jax.random.key(0))
    mesh = make_mesh(MeshConfig(data=2), devices=jax.devices()[:2])
    spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    asked = task(kinds=("single_1",), lengths=(200,))
    [one] = judged(asked, subject(model, params=params))
    [many] = judged(asked, subject(model, params=spread))
    np.testing.assert_allclose(many.pop("answer_nats"), one.pop("answer_nats"), 1e-6)
    assert many == one


def test_cells_are_all_that_the_fields_name():
    asked: Task = task(lengths=(300, 400), depths=(0.0, 1.0), windows=(4, 8))
    assert len(asked.cells()) == 8
    assert asked.cells()[1] == {
        "kind": "single_2", "length": 300, "depth": 0.0, "window": 8
    }  # fmt: skip
    assert from_dict(NeedleTask, json.loads(json.dumps(to_dict(asked)))) == asked
    axes = {"kinds", "lengths", "depths", "windows"}
    assert settings_of(asked) == {
        name: value for name, value in to_dict(asked).items() if name not in axes
    }
    with pytest.raises(ValueError, match="no window"):
        NeedleTask().cells()
    with pytest.raises(ValueError, match="no kind, no depth"):
        task(kinds=(), depths=()).cells()


@pytest.mark.parametrize("kind", KINDS)
def test_the_choices_of_all_tasks_make_cells_with_room(kind):
    asked = needle(Choices(windows=(4,), lengths=(64, 256, 512), rows=40))
    assert asked.lengths == (256, 512)
    assert (asked.windows, asked.samples) == ((4,), 40)
    cell = {"kind": kind, "length": 256, "depth": 0.5, "window": 4}
    assert cell in asked.cells()
    assert len(prompts(asked, cell, BYTES)) == 40
    with pytest.raises(ValueError, match="at least 256 tokens"):
        needle(Choices(windows=(4,), lengths=(64,)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": ("single_4",)}, "kinds"),
        ({"lengths": (2,)}, "lengths"),
        ({"lengths": (300.0,)}, "lengths"),
        ({"depths": (1.5,)}, "depths"),
        ({"depths": (float("nan"),)}, "depths"),
        ({"windows": (0,)}, "windows"),
        ({"windows": (2**31,)}, "windows"),
        ({"samples": 0}, "samples"),
        ({"rows": True}, "rows"),
        ({"chunk": None}, "chunk"),
        ({"seed": -1}, "seed"),
        ({"digits": 0}, "digits"),
        ({"values": "colour"}, "values"),
    ],
)
def test_fields_that_are_none_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        task(**fields)


def test_a_length_without_room_is_refused():
    short = task(lengths=(50,))
    with pytest.raises(ValueError, match="room for 1 needles and the question"):
        short.judge(subject(constant_model(V, 0)), short.cells()[0])


def test_values_may_be_of_another_kind():
    asked = task(values="word", samples=1)
    [result] = judged(asked, subject(constant_model(V, 0)))
    assert re.fullmatch("[a-z]+-[a-z]+", result["wanted"][0])


def test_the_subject_of_a_run_reads_its_held_out_text(tmp_path):
    write_corpus(tmp_path / "text")
    data_config = DataConfig(
        path=str(tmp_path / "text"), tokenizer="bytes", validation_fraction=0.3,
        seq_len=32,
    )  # fmt: skip
    data = load_text_data(data_config, seed=0)
    model_config = dataclasses.replace(tiny_config(), vocab_size=264)
    config = RunConfig(model=model_config, data=data_config)
    model = language_model(model_config)
    params = model.init(jax.random.key(0))
    run = Run(config, model, params, data.tokenizer, 1, data.fingerprint)
    of_run = subject_of(run)
    ids_T = of_run.held_out()
    assert of_run.held_out() is ids_T
    assert (of_run.vocab_size, of_run.model, of_run.params) == (264, model, params)
    separators = np.flatnonzero(ids_T == data.tokenizer.separator)
    assert separators[0] == 0
    assert len(separators) == data.validation_size.documents
    assert len(ids_T) == data.validation_size.tokens
    assert data.tokenizer.decode(ids_T).encode() == data.validation_text
    [result] = judged(task(samples=1), of_run)
    assert result["asked"] == 1
