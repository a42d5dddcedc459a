"""Numbers of tokens around the length of a chunk, and far from it."""

import pytest

LENGTHS = [
    1,
    *(pytest.param(tokens, marks=pytest.mark.slow) for tokens in (7, 63, 64)),
    65,
    130,
]
