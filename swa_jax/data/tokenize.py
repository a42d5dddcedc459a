"""Building a token cache: in parallel, and again from where it stopped.

This process reads, workers tokenize, this process writes, in the documents' order; so
the cache does not depend on the workers, and memory does not grow with the corpus.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from swa_jax.data.cache_folder import locked_folder
from swa_jax.data.config import OnBadRecord, SourceConfig, check_tokenizer
from swa_jax.data.corpus import BEGIN, Item, LeftOut, Place, items_of, no_text
from swa_jax.data.documents import token_type
from swa_jax.data.encoding import Encoded, encoded, encoding_pool
from swa_jax.data.fingerprints import FileState, check_unchanged, fingerprint_files
from swa_jax.data.one_move import (
    move_into_place,
    unfinished_path,
    write_in_one_move,
)
from swa_jax.data.pipeline import BPE_SAMPLE, make_tokenizer
from swa_jax.data.shards import ShardWriter, finished_shards, remove_notes
from swa_jax.data.sources.files import SourceFile, find_files
from swa_jax.data.sources.token_cache import (
    FORMAT,
    MANIFEST_FILE,
    PLAN_FILE,
    SOURCE_FILES,
    TOKENIZER_FILE,
    VERSION,
    file_sha256,
    read_manifest,
)
from swa_jax.data.split import sample_of_training
from swa_jax.data.tokenizer import Tokenizer, load_tokenizer

Phase = Literal["checking files", "learning BPE", "tokenizing"]


@dataclass(frozen=True)
class CacheConfig:
    """What a token cache is made of. Raises ValueError for a field out of range."""

    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    field: str = "text"
    tokenizer: str = "bpe"
    vocab_size: int = 2048
    separator: str | None = None
    seed: int = 0
    validation_fraction: float = 0.05
    on_bad_record: OnBadRecord = "stop"
    shard_tokens: int = 1 << 24

    def __post_init__(self) -> None:
        check_tokenizer(self.tokenizer, self.vocab_size)
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must lie between 0 and 1, both excluded, got "
                f"{self.validation_fraction}"
            )
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be in [0, 2**32), got {self.seed}")
        if self.shard_tokens < 1:
            raise ValueError(
                f"shard_tokens must be at least 1 token, got {self.shard_tokens}"
            )


class Progress(NamedTuple):
    """How far a phase of the work is."""

    phase: Phase
    bytes: int  # of the files
    total_bytes: int
    documents: int = 0
    tokens: int = 0  # in finished and begun shards
    new_tokens: int = 0  # of this call, not of one before it


Report = Callable[[Progress], None]


class _Job(NamedTuple):
    """What is built, where."""

    where: str  # what was asked for, in words
    source: SourceConfig
    files: list[SourceFile]
    states: list[FileState]
    config: CacheConfig
    out: Path
    report: Report


def build_token_cache(
    paths: Sequence[str],
    /,
    *,
    out: Path,
    config: CacheConfig,
    workers: int,
    report: Report = lambda progress: None,
) -> dict[str, Any]:
    """The manifest of the token cache of some paths, complete when this returns.

    A cache that was begun goes on where it stopped, with bitwise the result of one that
    was not. A complete one of the same settings is left as it is.

    Raises FileNotFoundError and ValueError for paths without usable text and for bad
    records that are to stop; ValueError for a folder that holds something else, or a
    cache of other settings or files, and where another process is building it;
    ChildProcessError when a process that tokenizes has died.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1 process, got {workers}")
    source = SourceConfig(format=config.format, field=config.field)
    files = _files_of(paths, source)
    where = ", ".join(map(repr, paths))
    if not files:
        raise ValueError(no_text(where, LeftOut()))
    with locked_folder(out):
        if (out / MANIFEST_FILE).is_file():
            return _complete(out, files, config, report)
        _begin(out, config)
        states = fingerprint_files(files, out / SOURCE_FILES, report=_checking(report))
        job = _Job(where, source, files, states, config, out, report)
        tokenizer = _tokenizer(job)
        return _write_shards(job, tokenizer, workers)


def _complete(
    out: Path, files: list[SourceFile], config: CacheConfig, report: Report
) -> dict[str, Any]:
    """The manifest of a complete cache; ValueError for one of something else."""
    manifest, record = read_manifest(out), out / SOURCE_FILES
    _check_same_settings(manifest["settings"], config, out)
    if not record.is_file():
        raise ValueError(f"{record} is missing: restore it, or build the cache again")
    fingerprint_files(files, record, report=_checking(report))
    return manifest


def _files_of(paths: Sequence[str], source: SourceConfig) -> list[SourceFile]:
    """The files of all paths; those of several are named after their paths first."""
    if not paths:
        raise ValueError("wanted at least one path to tokenize, got none")
    sources = [
        SourceConfig(path=path, format=source.format, field=source.field)
        for path in paths
    ]
    if len(sources) == 1:
        return find_files(sources[0])
    labels = [one.label for one in sources]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(
            f"paths must end in different names, got {twice[0]!r} twice; make a cache "
            "of each, or give a folder above them"
        )
    return [
        SourceFile(f"{one.label}/{file.name}", file.path)
        for one in sources
        for file in find_files(one)
    ]


def _begin(out: Path, config: CacheConfig) -> None:
    """Writes down the settings of a new cache, or compares those of one begun."""
    path = out / PLAN_FILE
    if path.is_file():
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError("it is no object of settings")
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; remove {out}") from None
        _check_same_settings(settings, config, out)
    else:
        write_in_one_move(path, json.dumps(_settings(config), indent=1))


def _settings(config: CacheConfig) -> dict[str, Any]:
    """The settings that decide the cache; a tokenizer's file by its contents."""
    settings = asdict(config)
    if config.tokenizer not in ("bpe", "bytes"):
        tokenizer = load_tokenizer(config.tokenizer, separator=config.separator)
        settings["tokenizer"] = tokenizer.fingerprint
    return settings


def _check_same_settings(saved: dict[str, Any], config: CacheConfig, out: Path) -> None:
    for name, value in _settings(config).items():
        if saved.get(name) != value:
            raise ValueError(
                f"the token cache {out} was begun with {name}={saved.get(name)!r}, now "
                f"it is {value!r}; give the old value back, or another folder"
            )


def _checking(report: Report) -> Callable[[int, int], None]:
    return lambda done, total: report(Progress("checking files", done, total))


def _tokenizer(job: _Job) -> Tokenizer:
    """The cache's tokenizer, which is made and saved where there is none yet."""
    path, config = job.out / TOKENIZER_FILE, job.config
    if not path.is_file():
        tokenizer = make_tokenizer(
            config.tokenizer,
            _sample(job) if config.tokenizer == "bpe" else (),
            vocab_size=config.vocab_size,
            separator=config.separator,
        )
        tokenizer.save(unfinished_path(path))
        move_into_place(unfinished_path(path), path)
    return load_tokenizer(path, separator=config.separator)


def _sample(job: _Job) -> list[str]:
    """What a BPE learns from: of the documents that a run with the seed trains on."""
    items = _items(job, "learning BPE", BEGIN)
    return sample_of_training(
        (item.document for item in items if item.document is not None),
        fraction=job.config.validation_fraction,
        seed=job.config.seed,
        characters=BPE_SAMPLE,
    )


def _items(job: _Job, phase: Phase, start: Place) -> Iterator[Item]:
    """The items from a place on.

    Raises ValueError for a file that has changed when its last one is read.
    """
    sizes = [state.bytes for state in job.states]
    total, done, file = sum(sizes), sum(sizes[: start.file]), start.file
    read = 0  # characters of the file, for want of its bytes
    for item in items_of(
        job.source, job.files, on_bad_record=job.config.on_bad_record, start=start
    ):
        while file < item.after.file:
            check_unchanged(job.states[file])
            done, read, file = done + sizes[file], 0, file + 1
        if item.document is not None:
            read += len(item.document.text)
        if phase != "tokenizing":
            job.report(Progress(phase, done + min(read, sizes[file]), total))
        yield item
    for state in job.states[file:]:
        check_unchanged(state)


def _write_shards(job: _Job, tokenizer: Tokenizer, workers: int) -> dict[str, Any]:
    """The manifest, when all shards that are missing are written."""
    notes = finished_shards(job.out)
    left_out = LeftOut()
    for note in notes:
        left_out.add_all(LeftOut(**note["left_out"]))
    start = Place(*notes[-1]["after"]) if notes else BEGIN
    meter = _Meter(job, notes)
    meter.report()
    with encoding_pool(
        workers, job.out / TOKENIZER_FILE, separator=job.config.separator
    ) as pool:
        items = _items(job, "tokenizing", start)
        results = encoded(items, pool, workers=workers)
        try:
            for note, missing in _shards(job, results, len(notes), meter):
                left_out.add_all(missing)
                if note is not None:
                    notes.append(note)
        finally:
            pool.shutdown(cancel_futures=True)
    if not notes:
        raise ValueError(no_text(job.where, left_out))
    manifest = _manifest(job, tokenizer, notes, left_out)
    write_in_one_move(job.out / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    remove_notes(job.out)
    return manifest


class _Meter:
    """Counts what is tokenized, for the report."""

    def __init__(self, job: _Job, notes: Sequence[dict[str, Any]]) -> None:
        self._job = job
        self._sizes = [state.bytes for state in job.states]
        self._total = sum(self._sizes)
        self._documents = sum(note["documents"] for note in notes)
        self._before = self._tokens = sum(note["tokens"] for note in notes)
        self._file = notes[-1]["after"][0] if notes else 0
        self._done, self._inside = sum(self._sizes[: self._file]), 0

    def count(self, result: Encoded) -> None:
        """Counts an item."""
        while self._file < result.item.after.file:
            self._done += self._sizes[self._file]
            self._inside, self._file = 0, self._file + 1
        if result.item.document is not None:
            self._documents += 1
            self._tokens += len(result.ids)
            self._inside += result.entry[1]
        self.report()

    def report(self) -> None:
        """Says how far the work is."""
        inside = min(self._inside, self._sizes[self._file])
        progress = Progress(
            "tokenizing",
            self._done + inside,
            self._total,
            self._documents,
            self._tokens,
            self._tokens - self._before,
        )
        self._job.report(progress)


def _shards(
    job: _Job, results: Iterable[Encoded], number: int, meter: _Meter
) -> Iterator[tuple[dict[str, Any] | None, LeftOut]]:
    """The note of each shard when it is whole, and what was left out since the last.

    A shard ends with the first document that fills it, whatever the workers. What comes
    after the last document has no shard, hence None; it is read again, and counted
    again, by whoever goes on behind the last shard.
    """
    writer, left_out, tail = None, LeftOut(), LeftOut()
    after = BEGIN
    try:
        for result in results:
            meter.count(result)
            document = result.item.document
            if document is None:
                tail.add(result.item.name, result.item.reason)
                continue
            left_out.add_all(tail)
            tail = LeftOut()
            writer = writer or ShardWriter(job.out, number)
            writer.add(
                document.name,
                result.ids,
                result.entry,
                spelled_bytes=result.spelled_bytes,
            )
            after = result.item.after
            if writer.tokens >= job.config.shard_tokens:
                yield writer.finish(after, left_out), left_out
                writer, left_out, number = None, LeftOut(), number + 1
        if writer is not None:
            yield writer.finish(after, left_out), left_out
            writer = None
        yield None, tail
    finally:
        if writer is not None:
            writer.abandon()


def _manifest(
    job: _Job,
    tokenizer: Tokenizer,
    notes: Sequence[dict[str, Any]],
    left_out: LeftOut,
) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(note[name] for note in notes)

    dropped = ("after", "left_out")
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "separator": tokenizer.separator_token,
            "vocab_size": tokenizer.vocab_size,
            "exact": tokenizer.exact,
        },
        "token_type": token_type(tokenizer.vocab_size).str,
        "documents": total("documents"),
        "tokens": total("tokens"),
        "text_bytes": total("text_bytes"),
        "spelled_bytes": total("spelled_bytes"),
        "files": len(job.files),
        "files_sha256": file_sha256(job.out / SOURCE_FILES),
        "left_out": asdict(left_out),
        "settings": _settings(job.config),
        "shards": [
            {name: value for name, value in note.items() if name not in dropped}
            for note in notes
        ],
    }
