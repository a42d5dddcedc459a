"""Needles are where they should be, say what is asked, and read as in training."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_jax.data.needles.config import KINDS, NeedleConfig
from swa_jax.data.needles.document import (
    DocumentConfig,
    needle_document,
    write_needle_documents,
)
from swa_jax.data.needles.prompt import needle_prompt
from swa_jax.data.needles.sentences import FILLER, NAMES, answer_text, draw_needles
from swa_jax.data.tokenizer import byte_tokenizer, train_bpe

CODE = [f"def add_{i}(left, right):\n    return left + {i}\n\n" * 9 for i in range(9)]
BYTES = byte_tokenizer()
BPE = train_bpe(
    [*CODE, *(f" The magic number of {name} is {i}." for i, name in enumerate(NAMES))],
    vocab_size=600,
)
TOKENIZERS = {"bytes": BYTES, "bpe": BPE}
TEXTS = {name: tokenizer.encode(CODE[0]) for name, tokenizer in TOKENIZERS.items()}
NEEDLE = r" The magic (number|word|UUID) of ([a-z]+) is ([0-9a-z-]+)\."
QUESTION = (
    r" What (?:is the|are all) magic (?P<noun>number|word|UUID)(?P<many>s?)"
    r" of (?P<key>[a-z]+)\? The magic (?P=noun) of (?P=key) is"
)
VALUES = {
    "number": r"[1-9][0-9]{6}",
    "word": r"[a-z]+-[a-z]+",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS)


def prompt_of(config, tokenizer="bytes", /, *, length=1200, depth=0.5, **place):
    place = {"seed": 3, "index": 5} | place
    return needle_prompt(
        config,
        TOKENIZERS[tokenizer],
        TEXTS[tokenizer],
        length=length,
        depth=depth,
        **place,
    )


def only(pattern, text):
    """Returns the one place of a text that has the pattern."""
    [match] = re.finditer(pattern, text)
    return match


def taken_apart(text):
    """Returns the needles (noun, key, value) of a text and what its question asks."""
    question = only(QUESTION, text)
    noun, many, key = question.group("noun", "many", "key")
    needles = re.findall(NEEDLE, text[: question.start()])
    return needles, (noun, key), bool(many), text[question.end() :]


@each_kind
@each_tokenizer
@settings(max_examples=15)
@given(
    length=st.integers(420, 2000),
    depth=st.floats(0, 1),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 10**6),
)
def test_prompts_have_their_length_their_needles_and_their_answers(
    kind, tokenizer, length, depth, seed, index
):
    config = KINDS[kind]
    prompt = prompt_of(
        config, tokenizer, length=length, depth=depth, seed=seed, index=index
    )
    assert prompt.ids_T.shape == (length,)
    assert prompt.ids_T.dtype == np.int32
    assert prompt.ids_T[0] == TOKENIZERS[tokenizer].separator
    assert np.sum(prompt.ids_T == TOKENIZERS[tokenizer].separator) == 1
    text = TOKENIZERS[tokenizer].decode(prompt.ids_T)
    needles, asked, many, rest = taken_apart(text)
    assert len(needles) == config.keys + config.values_per_key - 1
    assert len({value for _, _, value in needles}) == len(needles)
    assert len({key for _, key, _ in needles}) == config.keys
    assert all(re.fullmatch(VALUES[config.values], value) for _, _, value in needles)
    # In the order in which they stand.
    right = tuple(value for noun, key, value in needles if (noun, key) == asked)
    assert prompt.answers == right
    assert many == (config.values_per_key > 1)
    assert rest == ""
    answer = TOKENIZERS[tokenizer].decode(prompt.answer_A)
    assert answer == f" {', '.join(right)}."


@each_kind
@each_tokenizer
@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_distances_lead_from_the_end_to_the_needles(kind, tokenizer, depth):
    prompt = prompt_of(KINDS[kind], tokenizer, depth=depth)
    for answer, distance in zip(prompt.answers, prompt.distances, strict=True):
        before = prompt.ids_T[: len(prompt.ids_T) - distance]
        assert TOKENIZERS[tokenizer].decode(before).endswith(f" is {answer}.")
    assert list(prompt.distances) == sorted(prompt.distances, reverse=True)


@each_tokenizer
@pytest.mark.parametrize("kind", ["single_1", "single_2", "single_3"])
def test_the_depth_is_the_share_of_hay_before_the_needle(kind, tokenizer):
    for depth in (0.0, 0.25, 0.5, 1.0):
        prompt = prompt_of(KINDS[kind], tokenizer, length=900, depth=depth)
        text = TOKENIZERS[tokenizer].decode(prompt.ids_T)
        start = only(NEEDLE, text).start()
        before = len(TOKENIZERS[tokenizer].encode(text[:start]))
        behind = prompt.distances[0] - len(
            TOKENIZERS[tokenizer].encode(only(QUESTION, text).group())
        )
        assert abs(before - depth * (before + behind)) < 4  # words cut by the needle


def test_a_prompt_depends_on_its_place_alone():
    config = KINDS["multi_key"]
    one = prompt_of(config)
    np.testing.assert_array_equal(one.ids_T, prompt_of(config).ids_T)
    for change in ({"seed": 4}, {"index": 6}, {"depth": 0.25}):
        assert not np.array_equal(one.ids_T, prompt_of(config, **change).ids_T)


def test_hay_is_the_text_round_and_round_or_the_filler():
    text_T = np.arange(1, 40, dtype=np.int64)  # bytes of no letter: no needle has them
    prompt = needle_prompt(
        NeedleConfig(), BYTES, text_T, length=300, depth=1.0, seed=0, index=0
    )
    hay_T = prompt.ids_T[1 : len(prompt.ids_T) - prompt.distances[0]]
    hay_T = hay_T[: np.flatnonzero(hay_T[1:] != 1 + hay_T[:-1] % 39)[0] + 1]
    assert len(hay_T) > 150
    prompt = prompt_of(KINDS["single_1"], depth=1.0)
    assert BYTES.decode(prompt.ids_T[1:]).startswith(FILLER * 9)


@each_kind
@each_tokenizer
def test_a_length_without_room_is_refused(kind, tokenizer):
    served = []
    for length in (*range(1, 60, 10), *range(60, 420, 3)):
        try:
            prompt = prompt_of(KINDS[kind], tokenizer, length=length)
        except ValueError as error:
            needed = only(r"question, (\d+) tokens", str(error)).group(1)
            assert length < int(needed)
            continue
        served.append(length)
        text = TOKENIZERS[tokenizer].decode(prompt.ids_T)
        parts = [m.group() for m in re.finditer(f"{NEEDLE}|{QUESTION}", text)]
        needed = 1 + sum(len(TOKENIZERS[tokenizer].encode(part)) for part in parts)
        assert length >= needed
    assert min(served) > 10
    assert 417 in served


@pytest.mark.parametrize("depth", [-0.1, 1.1, float("nan")])
def test_depths_that_are_none_are_refused(depth):
    with pytest.raises(ValueError, match="depth"):
        prompt_of(KINDS["single_2"], depth=depth)


def test_hay_needs_a_text():
    with pytest.raises(ValueError, match="at least one token"):
        needle_prompt(
            NeedleConfig(), BYTES, np.zeros(0), length=300, depth=0, seed=0, index=0
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"haystack": "essays"}, "haystack"),
        ({"values": "colour"}, "values"),
        ({"digits": 0}, "digits"),
        ({"digits": 19}, "digits"),
        ({"keys": 0}, "keys"),
        ({"keys": 65}, "keys"),
        ({"keys": True}, "keys"),
        ({"values_per_key": 1.0}, "values_per_key"),
        ({"digits": 1, "keys": 8, "values_per_key": 3}, "9 numbers of 1 digits"),
    ],
)
def test_configs_that_are_none_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NeedleConfig(**fields)


def test_as_many_values_as_there_are_numbers():
    needles = draw_needles(NeedleConfig(digits=1, keys=9), np.random.default_rng(0))
    assert len(set(needles.hidden)) == 9


@each_kind
@each_tokenizer
@settings(max_examples=15)
@given(index=st.integers(0, 10**6))
def test_documents_read_as_the_prompts_do(kind, tokenizer, index):
    config = KINDS[kind]
    document = needle_document(DocumentConfig(config), CODE, seed=1, index=index)
    needles, asked, many, rest = taken_apart(document)
    right = [value for noun, key, value in needles if (noun, key) == asked]
    assert rest == f" {', '.join(right)}."
    assert many == (config.values_per_key > 1)
    # The question and its answer, and every needle, have the ids of a prompt's.
    ids_T = TOKENIZERS[tokenizer].encode(document).tolist()
    end = only(QUESTION + ".*$", document).group()
    question, answer = end[: -len(rest)], end[-len(rest) :]
    tail = [*TOKENIZERS[tokenizer].encode(question)]
    tail += [*TOKENIZERS[tokenizer].encode(answer)]
    assert ids_T[-len(tail) :] == tail
    for noun, key, value in needles:
        sentence = f" The magic {noun} of {key} is {value}"
        wanted = TOKENIZERS[tokenizer].encode(sentence).tolist()
        starts = range(len(ids_T) - len(wanted))
        assert any(ids_T[i : i + len(wanted)] == wanted for i in starts)


def test_documents_have_hay_of_the_wanted_lengths():
    config = DocumentConfig(NeedleConfig(haystack="repeated"), shortest=50, longest=70)
    lengths = set()
    for index in range(200):
        document = needle_document(config, [], seed=0, index=index)
        start = only(QUESTION, document).start()
        hay = re.sub(NEEDLE, "", document[:start])
        assert FILLER.startswith(hay)
        lengths.add(len(hay))
    assert lengths == set(range(50, 71))


@pytest.mark.parametrize("bounds", [(0, 5), (6, 5)])
def test_lengths_that_are_no_range_are_refused(bounds):
    with pytest.raises(ValueError, match="shortest <= longest"):
        DocumentConfig(NeedleConfig(), *bounds)


def test_written_documents_are_the_configs_in_turn(tmp_path):
    configs = [DocumentConfig(KINDS[kind]) for kind in ("single_1", "single_3")]
    path = tmp_path / "needles.jsonl"
    write_needle_documents(path, configs, CODE, count=5, seed=2)
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert texts == [
        needle_document(configs[i % 2], CODE, seed=2, index=i) for i in range(5)
    ]
    for arguments in (([], 1), (configs, 0)):
        with pytest.raises(ValueError, match="at least one"):
            write_needle_documents(path, arguments[0], CODE, count=arguments[1], seed=2)
    with pytest.raises(ValueError, match="text that is not empty"):
        needle_document(configs[1], ["", ""], seed=0, index=0)


def test_the_answer_is_all_values():
    needles = draw_needles(KINDS["multi_value"], np.random.default_rng(0))
    assert re.fullmatch(r" \d{7}, \d{7}, \d{7}, \d{7}\.", answer_text(needles))
