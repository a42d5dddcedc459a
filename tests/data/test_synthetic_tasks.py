"""Copying, induction and state tracking: answers found in another way."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swa_jax.configuration import from_dict, to_dict
from swa_jax.data.synthetic.copy import (
    MARKER,
    NOISE,
    CopyConfig,
    SelectiveCopyConfig,
    copy_row,
)
from swa_jax.data.synthetic.induction import InductionConfig, induction_row
from swa_jax.data.synthetic.recall import RecallConfig
from swa_jax.data.synthetic.source import TaskRows
from swa_jax.data.synthetic.state_tracking import (
    START,
    ParityConfig,
    PermutationsConfig,
    parity_row,
    permutation_row,
    permutations,
    products,
)
from tests.data.test_synthetic import assert_uniform, check_form, columns

COPY = CopyConfig(seq_len=32, copied=5, symbols=4)
INDUCTION = InductionConfig(seq_len=64, symbols=8)
PARITY = ParityConfig(seq_len=24)
PERMUTATIONS = PermutationsConfig(seq_len=24, objects=3)
ALL = (COPY, INDUCTION, PARITY, PERMUTATIONS)
seeds, indices = st.integers(0, 2**32), st.integers(0, 10**6)
asked_at = st.sampled_from(["every", "last"])


@st.composite
def copy_configs(draw):
    copied = draw(st.integers(1, 9))
    return CopyConfig(
        draw(st.integers(2 * copied, 60)), copied, draw(st.integers(1, 9))
    )


@st.composite
def induction_configs(draw):
    nearest, room = draw(st.integers(1, 9)), draw(st.integers(2, 40))
    farthest = draw(st.none() | st.integers(nearest, 60))
    return InductionConfig(nearest + room, draw(st.integers(2, 9)), nearest, farthest)


@given(copy_configs(), seeds, indices)
def test_behind_the_marker_the_same_tokens_come_again(config, seed, index):
    row = copy_row(config, seed=seed, index=index)
    check_form(config, row)
    tokens, copied = row["tokens"], config.copied
    [marker] = np.flatnonzero(tokens == MARKER)
    assert marker == config.seq_len - copied
    assert (tokens[copied:marker] == NOISE).all()
    assert row["targets"][marker:].tolist() == tokens[:copied].tolist()
    # A row's text goes on with the answer, as that of a language model does.
    assert row["targets"][marker:-1].tolist() == tokens[marker + 1 :].tolist()
    assert row["weights"].sum() == copied
    assert set(row["distances"][marker:]) == {marker}


@given(induction_configs(), seeds, indices)
def test_behind_the_second_a_comes_b(config, seed, index):
    row = induction_row(config, seed=seed, index=index)
    check_form(config, row)
    tokens = row["tokens"].tolist()
    [asked] = np.flatnonzero(row["weights"])
    assert tokens.count(tokens[asked]) == 2
    place = tokens.index(tokens[asked]) + 1
    assert row["targets"][asked] == tokens[place]
    assert row["distances"][asked] == asked - place
    assert config.min_distance <= asked - place <= config.longest


def test_octaves_of_distances_and_all_tokens_are_equally_likely():
    config = InductionConfig(seq_len=257, symbols=8)  # distances 1 to 255
    distances = columns(config, "distances").max(axis=1)
    assert_uniform(np.bincount(np.log2(distances).astype(int), minlength=8))
    tokens, targets = columns(config, "tokens"), columns(config, "targets")
    assert_uniform(np.bincount(targets[targets > 0], minlength=8)[1:])
    assert set(tokens.ravel()) == set(range(8))
    weights = columns(InductionConfig(seq_len=9, symbols=3), "weights")
    assert (weights.sum(axis=0) > 0).tolist() == [False] * 2 + [True] * 7


@given(st.integers(2, 60), asked_at, seeds, indices)
def test_parity_is_whether_the_ones_so_far_are_odd(length, asked, seed, index):
    config = ParityConfig(length, asked)
    row = parity_row(config, seed=seed, index=index)
    check_form(config, row)
    assert row["tokens"][0] == START
    places = range(1, length) if asked == "every" else [length - 1]
    assert np.flatnonzero(row["weights"]).tolist() == list(places)
    for place in places:
        ones = row["tokens"][1 : place + 1].tolist().count(2)
        assert row["targets"][place] == (2 if ones % 2 else 1)
        assert row["distances"][place] == place


@given(
    st.sampled_from([3, 4, 5]),
    st.sampled_from(["all", "swaps"]),
    asked_at,
    seeds,
    indices,
)
def test_objects_that_are_moved_end_where_the_answer_says(
    objects, moves, asked, seed, index
):
    config = PermutationsConfig(9, objects, moves, asked)
    row = permutation_row(config, seed=seed, index=index)
    check_form(config, row)
    every = permutations(objects)
    assert config.vocab_size == 1 + math.factorial(objects)
    where = list(range(objects))
    for place in range(1, 9):
        move = every[row["tokens"][place] - 1]
        if moves == "swaps":
            assert (move != np.arange(objects)).sum() == 2
        where = [int(move[position]) for position in where]
        if asked == "every" or place == 8:
            assert every[row["targets"][place] - 1].tolist() == where
            assert row["distances"][place] == place
    assert row["weights"].sum() == (8 if asked == "every" else 1)


@pytest.mark.parametrize("objects", [3, 4, 5])
def test_products_are_those_of_a_group(objects):
    table, every = products(objects), permutations(objects)
    order = range(len(every))
    assert every[0].tolist() == list(range(objects))
    assert table[0].tolist() == table[:, 0].tolist() == list(order)
    assert all(set(line) == set(order) for line in (*table, *table.T))
    np.testing.assert_array_equal(table[table], table[:, table])  # (ab)c = a(bc)
    assert (table != table.T).any()


def test_all_moves_and_only_they_are_drawn():
    for moves, count in (("all", 24), ("swaps", 6)):
        config = PermutationsConfig(40, 4, moves)
        tokens = columns(config, "tokens", rows=200)[:, 1:]
        counts = np.bincount(tokens.ravel(), minlength=25)
        assert_uniform(counts[counts > 0])
        assert (counts > 0).sum() == count
    assert_uniform(np.bincount(columns(PARITY, "tokens")[:, 1:].ravel())[1:])


@pytest.mark.parametrize("config", ALL, ids=lambda config: type(config).__name__)
def test_rows_are_functions_of_seed_and_index_and_configs_survive_json(config):
    rows, again = (TaskRows(config, seed=3, length=n) for n in (50, 70))
    for name, array in rows[7].items():
        np.testing.assert_array_equal(array, again[7][name])
    different = [rows[8], TaskRows(config, seed=4, length=50)[7]]
    assert all((row["tokens"] != rows[7]["tokens"]).any() for row in different)
    assert from_dict(type(config), to_dict(config)) == config


@pytest.mark.parametrize(
    "config",
    [*ALL, RecallConfig(seq_len=64, noise_tokens=3), SelectiveCopyConfig(seq_len=32)],
    ids=lambda config: type(config).__name__,
)
def test_the_answers_are_those_that_may_be_one(config):
    targets, weights = columns(config, "targets"), columns(config, "weights")
    assert set(targets[weights > 0]) == set(config.answers)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (COPY, {"seq_len": 9}, r"CopyConfig.seq_len .* 2 \* copied = 10, got 9"),
        (COPY, {"copied": 0}, "CopyConfig.copied must be an integer >= 1, got 0"),
        (INDUCTION, {"symbols": 1}, "symbols must be an integer >= 2, got 1"),
        (INDUCTION, {"min_distance": 63}, r"min_distance \+ 2 = 65, got seq_len=64"),
        (INDUCTION, {"min_distance": 5, "max_distance": 4}, "max_distance .* >= 5"),
        (PARITY, {"seq_len": 1}, "ParityConfig.seq_len must be an integer >= 2, got 1"),
        (PARITY, {"asked": "first"}, r"asked must be one of .*, got 'first'"),
        (PERMUTATIONS, {"objects": 6}, r"objects must be one of \(3, 4, 5\), got 6"),
        (PERMUTATIONS, {"objects": 3.0}, "objects must be .* got 3.0"),
        (PERMUTATIONS, {"moves": "some"}, r"moves must be one of .*, got 'some'"),
    ],
)
def test_what_there_is_no_row_for_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)
