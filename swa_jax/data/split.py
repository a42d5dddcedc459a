"""Which documents are held out, in what order the others stand: a hash decides."""

import hashlib
import heapq
import math
from array import array
from collections.abc import Iterable

import numpy as np


def name_hash(name: str, /) -> int:
    """64 bits of the SHA-256 of a document's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def ranks(hashes: np.ndarray, /, *, seed: int) -> np.ndarray:
    """A seeded rank (uint64) of each name's hash: SplitMix64, the same everywhere."""
    mixed = hashes.astype(np.uint64) + np.uint64(
        (seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def split(
    hashes: np.ndarray, /, *, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the training and of the validation documents, in their orders.

    Documents are ordered by their rank, and the first ceil(fraction * documents) are
    held out. So the order is the same on every machine, and a new document moves hardly
    any other from one side to the other.

    Raises ValueError when either side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"fraction must lie between 0 and 1, both excluded: {fraction=}"
        )
    count = len(hashes)
    held_out = held_out_count(count, fraction)
    if count < 2:
        raise ValueError(
            "a corpus is split into training and validation by document, and this one "
            f"has {count}; cut the file into several, or give a folder or a pattern"
        )
    if held_out == count:
        raise ValueError(
            f"a validation fraction of {fraction} holds out all {count} documents; "
            f"give at most {(count - 1) / count:.3g}, or more documents"
        )
    # Stable: names of equal hash keep the order of the files.
    ordered = np.argsort(ranks(hashes, seed=seed), kind="stable")
    return ordered[held_out:], ordered[:held_out]


def held_out_count(documents: int, fraction: float, /) -> int:
    """The number of documents that are held out."""
    return math.ceil(fraction * documents)


def sample_of_training(
    documents: Iterable[tuple[str, str]],
    /,
    *,
    fraction: float,
    seed: int,
    characters: int,
) -> list[str]:
    """Texts of training documents, so many characters in all, of names and texts.

    They are those of the highest ranks, in falling order, the last one cut. One pass,
    in the memory of the sample and 8 bytes per document.
    """
    kept: list[tuple[int, int, str]] = []  # a heap of (rank, -arrival, text)
    total, all_ranks = 0, array("Q")
    for arrival, (name, text) in enumerate(documents):
        hashes = np.array([name_hash(name)], np.uint64)
        rank = int(ranks(hashes, seed=seed)[0])
        all_ranks.append(rank)
        heapq.heappush(kept, (rank, -arrival, text[:characters]))
        total += min(len(text), characters)
        while total - len(kept[0][2]) >= characters:
            total -= len(heapq.heappop(kept)[2])
    held_out = held_out_count(len(all_ranks), fraction)
    if held_out >= len(all_ranks):
        return []
    lowest = int(np.partition(np.array(all_ranks, np.uint64), held_out)[held_out])
    sample, left = [], characters
    for rank, _, text in sorted(kept, reverse=True):
        if rank >= lowest and left > 0:
            sample.append(text[:left])
            left -= len(sample[-1])
    return sample
