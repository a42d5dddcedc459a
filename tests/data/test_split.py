import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swa_jax.data.split import name_hash, ranks, sample_of_training, split


def hashes_of(names) -> np.ndarray:
    return np.array([name_hash(name) for name in names], np.uint64)


def numbered(count: int) -> list[str]:
    return [f"{i:03d}" for i in range(count)]


def split_names(names, **options) -> tuple[list[str], list[str]]:
    train, validation = split(hashes_of(names), **options)
    return [names[i] for i in train], [names[i] for i in validation]


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(100, 0.05, 5), (101, 0.05, 6), (8, 0.05, 1), (2, 0.5, 1), (10, 0.9, 9)],
)
def test_split_sizes(count, fraction, held_out):
    train, validation = split_names(numbered(count), fraction=fraction, seed=0)
    assert len(validation) == held_out
    assert sorted(train + validation) == numbered(count)


def test_split_depends_on_the_seed_only():
    names = numbered(50)
    first = split_names(names, fraction=0.2, seed=1)
    assert split_names(names, fraction=0.2, seed=1) == first
    assert split_names(names[::-1], fraction=0.2, seed=1) == first
    assert split_names(names, fraction=0.2, seed=2)[1] != first[1]
    # A seeded order and not the names', on both sides.
    for side in first:
        assert sorted(side) != side


def test_split_is_the_same_on_every_machine():
    _, validation = split_names(numbered(20), fraction=0.2, seed=3)
    assert validation == ["000", "018", "016", "008"]
    # The first number of SplitMix64 from state 0, as its authors give it.
    assert ranks(np.zeros(1, np.uint64), seed=0).tolist() == [16294208416658607535]


def test_new_documents_leave_the_others_in_place():
    train, validation = split_names(numbered(100), fraction=0.1, seed=0)
    more_train, more_validation = split_names(numbered(110), fraction=0.1, seed=0)
    moved = (set(train) & set(more_validation)) | (set(validation) & set(more_train))
    assert len(moved) <= 3


def test_documents_of_one_name_keep_their_order():
    train, validation = split(hashes_of(["a"] * 8), fraction=0.25, seed=0)
    assert [*validation, *train] == list(range(8))


def test_a_corpus_that_cannot_be_split():
    with pytest.raises(ValueError, match="cut the file into several"):
        split(hashes_of(["a"]), fraction=0.5, seed=0)
    with pytest.raises(ValueError, match=r"holds out all 3 .* at most 0\.667"):
        split(hashes_of("abc"), fraction=0.7, seed=0)
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="fraction"):
            split(hashes_of("abc"), fraction=fraction, seed=0)


texts = st.dictionaries(st.text("abc", min_size=1, max_size=4), st.text(max_size=9))


@given(texts, st.integers(1, 60), st.integers(0, 9))
def test_a_sample_is_of_the_last_training_documents(documents, characters, seed):
    names = list(documents)
    got = sample_of_training(
        documents.items(), fraction=0.3, seed=seed, characters=characters
    )
    if len(names) < 2:
        assert got == [] or len(names) == 0
        return
    train, _ = split_names(names, fraction=0.3, seed=seed)
    together = "".join(documents[name] for name in reversed(train))
    assert "".join(got) == together[:characters]
