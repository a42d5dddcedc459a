"""The synthetic tasks: their answers are the ones to be looked up, nothing else is."""

import dataclasses

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swa_jax.configuration import from_dict, to_dict
from swa_jax.data.synthetic.copy import (
    MARKER,
    NOISE,
    SelectiveCopyConfig,
    selective_copy_row,
)
from swa_jax.data.synthetic.recall import RecallConfig, recall_row
from swa_jax.data.synthetic.source import TaskRows, task_batches

RECALL = RecallConfig(seq_len=64, pairs=4, keys=8, values=8, noise_tokens=3)
SCATTERED = dataclasses.replace(RECALL, layout="scattered")
COPY = SelectiveCopyConfig(seq_len=32, copied=5, symbols=4)
DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "distances": np.int32,
}
seeds = st.integers(0, 2**32)


@st.composite
def recall_configs(draw):
    """Returns a config, up to the tightest that is allowed."""
    pairs, lowest = draw(st.integers(1, 6)), draw(st.integers(1, 15))
    layout = draw(st.sampled_from(["pairs_first", "scattered"]))
    least, nearest = 8 * pairs - 6 + lowest, lowest
    if layout == "pairs_first":
        least = 3 * pairs - 1 + lowest
        nearest = max(2 * pairs - 1, lowest) + pairs - 1
    highest = draw(st.none() | st.integers(nearest, 80))
    return RecallConfig(
        seq_len=draw(st.integers(least, least + 60)),
        pairs=pairs,
        keys=draw(st.integers(pairs, 20)),
        values=draw(st.integers(1, 20)),
        noise_tokens=draw(st.integers(1, 5)),
        min_distance=lowest,
        max_distance=highest,
        layout=layout,
    )


@st.composite
def copy_configs(draw):
    copied = draw(st.integers(1, 9))
    return SelectiveCopyConfig(
        seq_len=draw(st.integers(2 * copied, 60)),
        copied=copied,
        symbols=draw(st.integers(1, 9)),
    )


def recalled(config: RecallConfig, tokens: np.ndarray) -> dict[int, tuple[int, int]]:
    """Returns answer and distance by the place of each query, read off the tokens.

    A key is the first half of a pair where a value follows, else a query.
    """
    is_key = (tokens >= config.noise_tokens) & (
        tokens < config.noise_tokens + config.keys
    )
    is_value = tokens >= config.noise_tokens + config.keys
    memory, found = {}, {}
    for place, token in enumerate(tokens):
        if is_key[place] and place + 1 < len(tokens) and is_value[place + 1]:
            assert token not in memory
            memory[token] = place + 1
        elif is_key[place]:
            value_place = memory[token]
            found[place] = (tokens[value_place], place - value_place)
        elif is_value[place]:
            assert is_key[place - 1]
    return found


def check_form(config, row):
    assert {name: array.dtype.type for name, array in row.items()} == DTYPES
    assert all(array.shape == (config.seq_len,) for array in row.values())
    assert row["tokens"].min() >= 0
    assert row["tokens"].max() < config.vocab_size
    asked = row["weights"] == 1
    assert (row["weights"][~asked] == 0).all()
    assert (row["targets"][~asked] == 0).all()
    assert (row["distances"][~asked] == 0).all()
    assert (row["distances"][asked] >= 1).all()


@given(recall_configs(), seeds, st.integers(0, 10**6))
def test_every_query_has_one_pair_and_its_value_is_the_answer(config, seed, index):
    row = recall_row(config, seed=seed, index=index)
    check_form(config, row)
    found = recalled(config, row["tokens"])
    assert list(found) == np.flatnonzero(row["weights"]).tolist()
    assert len(found) == config.pairs
    for place, (answer, distance) in found.items():
        assert row["targets"][place] == answer
        assert row["distances"][place] == distance
        assert config.min_distance <= distance <= config.longest


@given(copy_configs(), seeds, st.integers(0, 10**6))
def test_the_answers_are_the_tokens_among_the_noise(config, seed, index):
    row = selective_copy_row(config, seed=seed, index=index)
    check_form(config, row)
    tokens, asked = row["tokens"], row["weights"] == 1
    assert (tokens[-config.copied :] == MARKER).all()
    assert (asked == (tokens == MARKER)).all()
    places = np.flatnonzero((tokens != MARKER) & (tokens != NOISE))
    assert row["targets"][asked].tolist() == tokens[places].tolist()
    wanted = np.flatnonzero(asked) - places
    assert row["distances"][asked].tolist() == wanted.tolist()


@pytest.mark.parametrize("config", [RECALL, COPY], ids=["recall", "copy"])
def test_a_row_is_a_function_of_seed_and_index(config):
    rows, again = (TaskRows(config, seed=3, length=n) for n in (50, 70))
    for index in (7, 0, 49, 7):
        for name, array in rows[index].items():
            np.testing.assert_array_equal(array, again[index][name])
    different = [rows[8], TaskRows(config, seed=4, length=50)[7]]
    assert all((row["tokens"] != rows[7]["tokens"]).any() for row in different)


@pytest.mark.parametrize("config", [RECALL, COPY], ids=["recall", "copy"])
def test_batches_are_the_rows_in_order(config):
    rows = TaskRows(config, seed=0, length=7)
    batches = task_batches(rows, batch_size=3)
    assert isinstance(batches, grain.MapDataset)
    assert len(batches) == 2  # the seventh row fills no batch
    for name, dtype in DTYPES.items():
        array = dict(batches[1] or {})[name]
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, [rows[i][name] for i in (3, 4, 5)])


def columns(config, name, *, rows=2000):
    items = TaskRows(config, seed=0, length=rows)
    return np.stack([items[index][name] for index in range(rows)])


def test_octaves_of_distances_are_equally_likely():
    config = RecallConfig(seq_len=258, pairs=16, layout="scattered")  # 1 to 256
    distances = columns(config, "distances", rows=500)
    octaves = np.bincount(np.log2(distances[distances > 0]).astype(int), minlength=9)
    shares = octaves[:8] / octaves.sum()
    np.testing.assert_allclose(shares, 1 / 8, atol=0.01)
    assert octaves[8] < 0.005 * octaves.sum()  # 256 alone


def assert_uniform(counts):
    """Returns nothing; every count is within five standard deviations of the mean."""
    mean = counts.sum() / len(counts)
    np.testing.assert_allclose(counts, mean, rtol=0, atol=5 * np.sqrt(mean))


def test_keys_values_and_noise_are_uniform():
    tokens, weights = columns(RECALL, "tokens"), columns(RECALL, "weights")
    counts = np.bincount(tokens.ravel(), minlength=RECALL.vocab_size)
    noise, keys, values = np.split(counts, [3, 11])
    for group in (noise, keys // 2, values):  # a key is there twice
        assert_uniform(group)
    assert keys.sum() == 2 * values.sum() == 2 * weights.sum() == 2 * 4 * 2000


def test_the_pairs_come_first_and_queries_at_any_distance_behind():
    tokens, distances = columns(RECALL, "tokens"), columns(RECALL, "distances")
    start = 2 * RECALL.pairs
    is_key = (tokens >= 3) & (tokens < 11)
    assert is_key[:, :start:2].all()
    assert (tokens[:, 1:start:2] >= 11).all()
    assert (distances[:, :start] == 0).all()
    assert (distances[:, start:] > 0).any(axis=0).all()
    assert set(distances[distances > 0]) == set(range(1, 63))


def test_scattered_pairs_and_tokens_to_copy_stand_anywhere():
    tokens = columns(SCATTERED, "tokens")
    is_value = tokens >= RECALL.noise_tokens + RECALL.keys
    assert (is_value[:, 1:-1].sum(axis=0) > 0).all()
    tokens = columns(COPY, "tokens")
    shares = (tokens[:, : -COPY.copied] != NOISE).mean(axis=0)
    np.testing.assert_allclose(shares, 5 / 27, atol=0.04)
    assert_uniform(np.bincount(columns(COPY, "targets")[:, -5:].ravel())[2:])


def test_a_window_reaches_the_value_from_distances_below_it():
    window = 16
    rows = TaskRows(RecallConfig(seq_len=128, layout="scattered"), seed=1, length=20)
    for row in (rows[index] for index in range(20)):
        for place in np.flatnonzero(row["weights"]):
            seen = np.arange(max(0, place - window + 1), place + 1)
            value_place = place - row["distances"][place]
            assert (value_place in seen) == (row["distances"][place] < window)
            assert row["tokens"][value_place - 1] == row["tokens"][place]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (RECALL, {"pairs": 0}, r"RecallConfig.pairs must be an integer >= 1, got 0"),
        (RECALL, {"keys": 3}, "pairs must be at most keys, got pairs=4, keys=3"),
        (RECALL, {"seq_len": 11}, r"seq_len must be at least .* = 12, got seq_len=11"),
        (RECALL, {"min_distance": 54}, r"= 65, got seq_len=64"),
        (RECALL, {"max_distance": 9}, r"at least max\(.* = 10, got max_distance=9"),
        (RECALL, {"layout": "sorted"}, "layout must be one of .*, got 'sorted'"),
        (SCATTERED, {"seq_len": 26}, r"at least .* = 27, got seq_len=26"),
        (SCATTERED, {"min_distance": 39}, r"= 65, got seq_len=64"),
        (RECALL, {"min_distance": 0}, "min_distance must be an integer >= 1"),
        (RECALL, {"min_distance": 5, "max_distance": 4}, "max_distance .* >= 5, got 4"),
        (RECALL, {"values": True}, "values must be an integer"),
        (COPY, {"seq_len": 9}, r"2 \* copied = 10, got 9"),
        (COPY, {"symbols": 0}, "SelectiveCopyConfig.symbols"),
    ],
)
def test_what_there_is_no_room_for_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_the_tightest_rows_are_full_of_pairs():
    for distance in (1, 7):
        tight = RecallConfig(
            seq_len=8 * 8 - 6 + distance,
            pairs=8,
            min_distance=distance,
            max_distance=distance,
            layout="scattered",
        )
        distances = columns(tight, "distances", rows=100)
        assert set(distances[distances > 0]) == {distance}
        assert ((distances > 0).sum(axis=1) == 8).all()
        first = RecallConfig(seq_len=3 * 8 - 1 + distance, min_distance=distance)
        queries = columns(first, "weights", rows=100)
        assert (queries.sum(axis=1) == 8).all()


@pytest.mark.parametrize("config", [RECALL, COPY], ids=["recall", "copy"])
def test_configs_survive_json(config):
    assert from_dict(type(config), to_dict(config)) == config


def test_bounds():
    rows = TaskRows(COPY, seed=2, length=3)
    assert repr(rows) == f"TaskRows(3 rows of {COPY}, seed 2)"
    assert len(rows) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError, match=str(index)):
            rows[index]
    for options in ({"seed": -1, "length": 1}, {"seed": 0, "length": 0}):
        with pytest.raises(ValueError, match="seed"):
            TaskRows(COPY, **options)
    for batch_size in (0, 4):
        with pytest.raises(ValueError, match=f"got {batch_size}"):
            task_batches(rows, batch_size=batch_size)
