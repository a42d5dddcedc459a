"""The gzip line, against the standard library's gzip."""

import gzip

import pytest

from swa_jax.evaluation.compression import gzip_bits_per_byte

TEXT = b"for index in range(10):\n    print(index)\n" * 40 + bytes(range(256))


def test_it_is_the_size_that_gzip_writes():
    expected = 8 * len(gzip.compress(TEXT, compresslevel=9)) / len(TEXT)
    assert gzip_bits_per_byte(TEXT) == expected


def test_pieces_count_as_their_concatenation():
    pieces = (TEXT[start : start + 100] for start in range(0, len(TEXT), 100))
    assert gzip_bits_per_byte(pieces) == gzip_bits_per_byte(TEXT)


@pytest.mark.parametrize("nothing", [b"", [], [b"", b""]])
def test_no_text_is_an_error(nothing):
    with pytest.raises(ValueError, match="at least one byte"):
        gzip_bits_per_byte(nothing)
