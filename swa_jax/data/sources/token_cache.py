"""A token cache: shards of ArrayRecord, an index, and a manifest with checksums.

A shard's records are pieces of at most PIECE tokens; each begins with the length of the
document's name (little-endian, 4 bytes) and the name, then come the ids.
"""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)

from swa_jax.data.documents import INDEX, BadRecordError
from swa_jax.data.split import name_hash
from swa_jax.data.tokenizer import Tokenizer, load_tokenizer

FORMAT, VERSION = "swax token cache", 1
MANIFEST_FILE, TOKENIZER_FILE = "manifest.json", "tokenizer.json"
PLAN_FILE = "plan.json"  # what the cache is made of, while it is being built
LOCK_FILE = "lock"  # which the process that builds it holds; it stays
SOURCE_FILES = "files.jsonl"
PIECE = 1 << 15  # tokens of a record at most: what reading one token costs
_OPEN_SHARDS = 256
_READER_OPTIONS = {
    "options": "readahead_buffer_size:0",
    "file_reader_buffer_size": 1 << 15,
}


def is_token_cache(path: str | Path | None, /) -> bool:
    """Whether a path is the folder of a token cache, complete or begun.

    By two files each: a folder of text may well hold a manifest.json or a plan.json.
    """
    if path is None:
        return False
    folder = os.path.expanduser(path)
    return any(
        all(os.path.isfile(os.path.join(folder, name)) for name in pair)
        for pair in ((MANIFEST_FILE, TOKENIZER_FILE), (PLAN_FILE, LOCK_FILE))
    )


def pieces(tokens: np.ndarray, /) -> np.ndarray:
    """The number of records that documents of so many tokens are cut into."""
    return np.maximum(1, -(-tokens.astype(np.int64) // PIECE))


def shard_files(name: str, /) -> tuple[str, str]:
    """The names of the two files of a shard: its records and its index."""
    return f"{name}.array_record", f"{name}.index.npy"


def file_sha256(path: Path | str, /) -> str:
    """The SHA-256 of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path, /) -> dict[str, Any]:
    """The manifest of a complete cache.

    Raises ValueError for a cache that is not complete or of another version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ValueError(
            f"the token cache {folder} is not complete: {MANIFEST_FILE} is missing. "
            "Run the same `swax tokenize` again, which goes on where it stopped"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged: {error!r}; build the cache again"
        ) from None
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{path}: wanted {FORMAT!r} of version {VERSION}, got {found}; build the "
            "cache again with this version's `swax tokenize`"
        )
    return manifest


class TokenCache:
    """The documents of a token cache, read when they are asked for.

    In memory are 48 bytes per document. Opening reads the manifest and the index and
    checks them and every file's size; a record is checked when it is read.

    Raises ValueError for a cache that is not complete or whose files are not those of
    its manifest.
    """

    def __init__(self, folder: Path | str, /) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self.manifest = read_manifest(self.folder)
        self.spelled_bytes = int(self.manifest["spelled_bytes"])
        self._dtype = np.dtype(self.manifest["token_type"])
        shards = self.manifest["shards"]
        self._shards = [self.folder / shard_files(s["name"])[0] for s in shards]
        indices = [self._read_index(shard) for shard in shards]
        self.index = np.concatenate(indices) if indices else np.zeros(0, INDEX)
        self._first_document = np.cumsum([0, *(len(index) for index in indices)])
        counts = pieces(self.index["tokens"])
        self._first_record = np.cumsum(counts) - counts
        self._begin_reading()

    def _begin_reading(self) -> None:
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open files, which a process opens for itself."""
        state = dict(self.__dict__)
        del state["_readers"], state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin_reading()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the cache was made with; raises ValueError if changed."""
        wanted = self.manifest["tokenizer"]
        path = self.folder / TOKENIZER_FILE
        tokenizer = load_tokenizer(path, separator=wanted["separator"])
        if tokenizer.fingerprint != wanted["fingerprint"]:
            raise ValueError(
                f"{path} is not the tokenizer that the cache was made with: "
                f"fingerprint {tokenizer.fingerprint[:16]}, the manifest has "
                f"{wanted['fingerprint'][:16]}; restore the file or build it again"
            )
        return tokenizer

    def tokens(self, number: int, start: int, stop: int, /) -> np.ndarray:
        """The ids of a document from `start` to `stop`. Raises BadRecordError."""
        parts = []
        for piece in range(start // PIECE, -(-stop // PIECE)):
            _, ids = self._record(number, piece)
            begin = piece * PIECE
            parts.append(ids[max(0, start - begin) : stop - begin])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def name(self, number: int, /) -> str:
        """The name of a document. Raises BadRecordError."""
        return self._record(number, 0)[0]

    def _record(self, number: int, piece: int) -> tuple[str, np.ndarray]:
        """The document's name, and the ids of one of its pieces."""
        shard = int(np.searchsorted(self._first_document, number, side="right")) - 1
        first = self._first_record[self._first_document[shard]]
        record = int(self._first_record[number] - first) + piece
        wanted = int(self.index["tokens"][number]) - piece * PIECE
        try:
            content = self._reader(shard).read([record])[0]
            name, ids = _contents(content, self._dtype)
        except (RuntimeError, OSError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise BadRecordError(
                f"{self._shards[shard]}, record {record}: {reason}. The file is "
                "damaged or has changed: build the cache again, or leave such rows out "
                "with data.on_bad_record=skip"
            ) from None
        hashed = name_hash(name) == self.index["name"][number]
        if not hashed or len(ids) != min(PIECE, wanted):
            raise BadRecordError(
                f"{self._shards[shard]}, record {record}: not the one of the index; "
                "the cache has changed under the run. Restore it, and run again"
            )
        return name, ids

    def _reader(self, shard: int) -> Any:
        with self._lock:
            reader = self._readers.pop(shard, None)
            if reader is None:
                reader = array_record_module.ArrayRecordReader(
                    str(self._shards[shard]), **_READER_OPTIONS
                )
                if len(self._readers) >= _OPEN_SHARDS:
                    self._readers.popitem(last=False)
            self._readers[shard] = reader  # the last one is the one used last
        return reader

    def _read_index(self, shard: dict[str, Any]) -> np.ndarray:
        records, index = (self.folder / name for name in shard_files(shard["name"]))
        for path, key in ((records, "bytes"), (index, "index_bytes")):
            size = path.stat().st_size if path.is_file() else None
            if size != shard[key]:
                found = "it is missing" if size is None else f"it has {size} bytes"
                raise ValueError(
                    f"{path} is damaged: {found}, the manifest says {shard[key]}; "
                    "build the cache again or restore the file"
                )
        if file_sha256(index) != shard["index_sha256"]:
            raise ValueError(
                f"{index} is damaged: its SHA-256 is not the manifest's; build the "
                "cache again or restore the file"
            )
        return np.load(index, allow_pickle=False)


def _contents(content: bytes, dtype: np.dtype) -> tuple[str, np.ndarray]:
    """The name and the ids of a record; ValueError for bytes that are none."""
    size = int.from_bytes(content[:4], "little")
    return content[4 : 4 + size].decode("utf-8"), np.frombuffer(
        content, dtype, offset=4 + size
    )


def verify_token_cache(folder: Path | str, /) -> dict[str, Any]:
    """The manifest of a cache whose every file has the checksum that it should.

    Raises ValueError, which names the first file that has not.
    """
    cache = TokenCache(folder)
    cache.tokenizer()
    for shard in cache.manifest["shards"]:
        path = cache.folder / shard_files(shard["name"])[0]
        if file_sha256(path) != shard["sha256"]:
            raise ValueError(
                f"{path} is damaged: its SHA-256 is not the manifest's; build the "
                "cache again or restore the file"
            )
    files = cache.folder / SOURCE_FILES
    if not files.is_file() or file_sha256(files) != cache.manifest["files_sha256"]:
        raise ValueError(f"{files} is missing or damaged: restore it")
    return cache.manifest
