"""Documents made of given tokens, for tests of what is packed from them."""

from collections.abc import Sequence

import numpy as np

from swa_jax.data.documents import INDEX, index_entry


class ListedDocuments:
    """Documents whose tokens are given."""

    def __init__(self, token_lists: Sequence[Sequence[int]]) -> None:
        self._tokens = [np.array(tokens, np.int32) for tokens in token_lists]
        entries = [
            index_entry(self.name(number), len(ids), ids)
            for number, ids in enumerate(self._tokens)
        ]
        self.index = np.array(entries, INDEX)
        self.spelled_bytes = int(self.index["bytes"].sum())

    def tokens(self, number: int, start: int, stop: int, /) -> np.ndarray:
        return self._tokens[number][start:stop]

    def name(self, number: int, /) -> str:
        return f"document {number}"
