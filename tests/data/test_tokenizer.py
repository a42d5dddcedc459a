import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swa_jax.data import tokenizer as tokenizer_module
from swa_jax.data.tokenizer import (
    SEPARATOR,
    byte_tokenizer,
    load_tokenizer,
    train_bpe,
)

TEXTS = [
    "def add(left, right):\n    return left + right\n\n" * 20,
    "class Window:\n\tdef __init__(self, width=128):\n\t\tself.width = width\n" * 20,
    "Fünf Köche, naïve 漢字 and 🙂 emoji — café\r\n" * 20,
    f"a {SEPARATOR} in the text\n" * 20,
]
BYTES = byte_tokenizer()
BPE = train_bpe(TEXTS, vocab_size=340)
both = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])

# Code-like pieces reach the merges; arbitrary characters reach everything else.
pieces = st.one_of(
    st.sampled_from(["def", " return", "self", "x", " _", "漢字", "9", " 12", "):"]),
    st.sampled_from(["\n", "\t", "\r\n", " ", "    ", "\x00", "\x0b", "\u00a0"]),
    st.sampled_from(["<|", "|>", SEPARATOR, "\x7f", "\x80"]),
    st.text(max_size=5),
)
texts = st.lists(pieces, max_size=20).map("".join)


@both
@settings(deadline=None)
@given(text=texts)
@example(text="")
@example(text=SEPARATOR)
@example(text="".join(map(chr, range(0x300))))
@example(text="\U0010ffff\ufffe\u2028\u0085 x")
def test_round_trip_and_bytes(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())
    assert tokenizer.separator not in ids


@settings(deadline=None)
@given(text=texts)
def test_words_from_the_cache_are_what_the_library_encodes(text):
    whole = BPE._library.encode(text, add_special_tokens=False).ids
    assert BPE.encode(text).tolist() == whole


def test_a_full_cache_changes_nothing(monkeypatch):
    tokenizer = train_bpe(TEXTS, vocab_size=340)
    monkeypatch.setattr(tokenizer_module, "_CACHED_WORDS", 5)
    for text in TEXTS:
        np.testing.assert_array_equal(tokenizer.encode(text), BPE.encode(text))


@both
def test_vocabulary(tokenizer):
    assert tokenizer.separator == 0
    assert tokenizer.token_bytes_V.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes_V.dtype == np.int32
    assert tokenizer.token_bytes_V[0] == 0
    assert (tokenizer.token_bytes_V[1:] >= 1).all()
    # Every byte has a token of its own, so nothing is ever unknown.
    assert (tokenizer.token_bytes_V == 1).sum() == 256


def test_sizes():
    assert BYTES.vocab_size == 257
    assert BPE.vocab_size == 340
    assert train_bpe(["ab"], vocab_size=1000).vocab_size == 257  # no pair twice
    assert len(BPE.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(TEXTS, vocab_size=256)


def test_merges_stay_within_words():
    words = BPE._library.pre_tokenizer.pre_tokenize_str("\n    return x2 == naïve\n")
    spelled = [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in words]
    assert spelled == ["\n   ", " return", " x", "2", " ==", " naÃ¯ve", "\n"]


@both
def test_a_spelled_separator_is_text(tokenizer):
    ids = tokenizer.encode(f"x{SEPARATOR}y")
    assert 0 not in ids
    assert tokenizer.decode(ids) == f"x{SEPARATOR}y"
    assert tokenizer.decode([0, *ids, 0]) == f"x{SEPARATOR}y"


def test_decode_of_cut_characters_and_wrong_ids():
    ids = BYTES.encode("é")
    assert BYTES.decode(ids[:1]) == "\ufffd"
    assert BYTES.decode(np.array([], np.int32)) == ""
    for wrong in (-1, 257):
        with pytest.raises(ValueError, match=str(wrong)):
            BYTES.decode([wrong])


@both
def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(loaded.token_bytes_V, tokenizer.token_bytes_V)
    for text in TEXTS:
        np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))
        assert loaded.decode(loaded.encode(text)) == text
    # The file is the library's own: others read it, and know the separator.
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.token_to_id(SEPARATOR) == 0
    text = TEXTS[0]
    assert library.encode(text).ids == tokenizer.encode(text).tolist()
    assert library.decode(library.encode(text).ids) == text


def test_files_that_are_no_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError):
        load_tokenizer(path)
    for content in ("", "{}", "[1]"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"no tokenizer\.json"):
            load_tokenizer(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        load_tokenizer(path)


CHILD = """
import argparse, inspect, os, sys, textwrap, warnings
warnings.simplefilter("always")  # Python shows none of fork's where it raises
from swa_jax.data.tokenizer import train_bpe
texts = [inspect.getsource(module) for module in (argparse, inspect, os, textwrap)]
bpe = train_bpe(texts, vocab_size=1000)
for text in texts:
    bpe.encode(text)
bpe.save(sys.argv[1])
if os.fork() == 0:
    bpe.encode("in the child, too")
    os._exit(0)
os.wait()
"""


def test_training_is_deterministic_and_forking_silent(tmp_path):
    saved = []
    for name in ("first.json", "second.json"):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment.pop("TOKENIZERS_PARALLELISM", None)
        environment["OPENBLAS_NUM_THREADS"] = "1"  # so that only our threads would tell
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path / name)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
            timeout=100,
        )
        assert done.stdout + done.stderr == ""
        saved.append((tmp_path / name).read_bytes())
    assert saved[0] == saved[1]
