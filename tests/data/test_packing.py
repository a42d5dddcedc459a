import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_jax.data.packing import PackedRows
from tests.data.documents_of_tokens import ListedDocuments

SEPARATOR = 0
documents = st.lists(st.lists(st.integers(1, 99), max_size=12), min_size=1, max_size=12)
lengths = st.integers(1, 17)


def pack(token_lists, seq_len, order=None) -> PackedRows:
    documents = ListedDocuments(token_lists)
    order = np.arange(len(token_lists)) if order is None else np.array(order)
    return PackedRows(documents, order, seq_len=seq_len, separator=SEPARATOR)


def all_rows(rows: PackedRows) -> dict[str, np.ndarray]:
    items = [rows[i] for i in range(len(rows))]
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


def test_example():
    rows = pack([[1, 2, 3], [4], [], [5, 6]], seq_len=4)
    assert len(rows) == 3
    expected = [
        {
            "tokens": [0, 1, 2, 3],
            "targets": [1, 2, 3, 0],
            "segment_ids": [1, 1, 1, 1],
            "positions": [0, 1, 2, 3],
        },
        {
            "tokens": [0, 4, 0, 0],
            "targets": [4, 0, 0, 5],
            "segment_ids": [1, 1, 2, 3],
            "positions": [0, 1, 0, 0],
        },
        {
            "tokens": [5, 6, 0, 0],
            "targets": [6, 0, 0, 0],
            "segment_ids": [1, 1, 0, 0],
            "positions": [1, 2, 0, 0],
        },
    ]
    for index, row in enumerate(expected):
        got = rows[index]
        assert {name: array.tolist() for name, array in got.items()} == row
        assert all(array.dtype == np.int32 for array in got.values())


@settings(deadline=None)
@given(documents, lengths)
def test_documents_reassemble_from_the_rows(token_lists, seq_len):
    rows = all_rows(pack(token_lists, seq_len))
    real = rows["segment_ids"] > 0
    stream = rows["tokens"][real]
    starts = np.flatnonzero(rows["positions"][real] == 0)
    assert (stream[starts] == SEPARATOR).all()
    found = [part[1:].tolist() for part in np.split(stream, starts[1:])]
    assert found == token_lists


@settings(deadline=None)
@given(documents, lengths)
def test_every_token_is_a_target_exactly_once(token_lists, seq_len):
    rows = all_rows(pack(token_lists, seq_len))
    real = rows["segment_ids"] > 0
    stream = [token for tokens in token_lists for token in [SEPARATOR, *tokens]]
    assert rows["tokens"][real].tolist() == stream
    assert rows["targets"][real].tolist() == [*stream[1:], stream[0]]
    # Padding is at the very end only.
    assert real.ravel().tolist() == [True] * len(stream) + [False] * (
        real.size - len(stream)
    )
    assert (~real).sum() < seq_len


@settings(deadline=None)
@given(documents, lengths)
def test_segments_and_positions(token_lists, seq_len):
    rows = all_rows(pack(token_lists, seq_len))
    document = np.concatenate(
        [np.full(len(tokens) + 1, i) for i, tokens in enumerate(token_lists)]
    )
    position = np.concatenate([np.arange(len(tokens) + 1) for tokens in token_lists])
    for row in range(len(rows["tokens"])):
        here = slice(row * seq_len, (row + 1) * seq_len)
        count = len(document[here])
        segment_ids = document[here] - document[here][0] + 1
        assert rows["segment_ids"][row, :count].tolist() == segment_ids.tolist()
        assert rows["positions"][row, :count].tolist() == position[here].tolist()
        for name in rows:
            assert (rows[name][row, count:] == 0).all()


@settings(deadline=None)
@given(documents, lengths, st.randoms(use_true_random=False))
def test_order_and_names(token_lists, seq_len, random):
    order = list(range(len(token_lists)))
    random.shuffle(order)
    rows = pack(token_lists, seq_len, order)
    plain = pack([token_lists[i] for i in order], seq_len)
    for name, values in all_rows(rows).items():
        np.testing.assert_array_equal(values, all_rows(plain)[name])
    for index in range(len(rows)):
        row = rows[index]
        segments = len(set(row["segment_ids"].tolist()) - {0})
        assert len(rows.names(index)) == segments
    first = [name for index in range(len(rows)) for name in rows.names(index)]
    assert list(dict.fromkeys(first)) == [f"document {i}" for i in order]


def test_a_part_of_the_stream():
    rows = pack([[1, 2, 3], [4]], seq_len=4)
    assert rows.token_count == 6
    assert rows.stream(0, 6).tolist() == [0, 1, 2, 3, 0, 4]
    assert rows.stream(2, 6).tolist() == [2, 3, 0, 4]
    assert rows.stream(5, 7).tolist() == [4, 0]  # and the first separator again


def test_an_empty_row_is_padding():
    rows = pack([[1, 2, 3]], seq_len=4)
    empty = rows.empty_row()
    assert empty.keys() == rows[0].keys()
    assert all(array.dtype == np.int32 for array in empty.values())
    assert (empty["segment_ids"] == 0).all()


def test_bounds():
    rows = pack([[1, 2, 3]], seq_len=2)
    assert repr(rows) == "PackedRows(2 rows of 2 tokens, 1 documents)"
    for index in (-1, 2):
        with pytest.raises(IndexError, match=str(index)):
            rows[index]
    assert rows[1]["tokens"].tolist() == [2, 3]
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([], seq_len=2)
    with pytest.raises(ValueError, match="seq_len"):
        pack([[1]], seq_len=0)
