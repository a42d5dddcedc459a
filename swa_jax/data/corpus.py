"""Documents of a source, one after the other, and the records that are left out."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from swa_jax.data.config import OnBadRecord, SourceConfig
from swa_jax.data.sources.files import (
    SourceFile,
    describe_source,
    find_files,
    holds_one_document,
    read_file,
)

_NAMES_SHOWN = 3


class Document(NamedTuple):
    """One text and its name: its file's, relative to what was read, and its record."""

    name: str
    text: str


class Place(NamedTuple):
    """Between two records of a source: the first `records` of file `file` are read."""

    file: int
    records: int  # by the number of the last one


BEGIN = Place(0, 0)


@dataclasses.dataclass
class LeftOut:
    """The records left out, by reason: how many, and the names of the first ones."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    names: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Counts a record."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.names.setdefault(reason, [])
        if len(shown) <= _NAMES_SHOWN:
            shown.append(name)

    def add_all(self, other: "LeftOut") -> None:
        """Counts what another has counted."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            shown = [*self.names.get(reason, []), *other.names[reason]]
            self.names[reason] = shown[: _NAMES_SHOWN + 1]

    def __str__(self) -> str:
        """One line: counts and first names by reason, or ''."""
        parts = []
        for reason in sorted(self.counts):
            names = self.names[reason]
            more = ", ..." if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN])
            parts.append(f"{self.counts[reason]:,} {reason} ({shown}{more})")
        total = sum(self.counts.values())
        return f"left out {total:,}: {'; '.join(parts)}" if total else ""


class Item(NamedTuple):
    """A document, or the reason why a record is none, and the place after it."""

    document: Document | None
    name: str
    reason: str
    after: Place


def items_of(
    source: SourceConfig,
    files: Sequence[SourceFile],
    /,
    *,
    on_bad_record: OnBadRecord,
    start: Place = BEGIN,
) -> Iterator[Item]:
    """Every record of the files from a place on, in their order; memory stays flat.

    Raises ValueError, which names the file and the record, for one that should be a
    text and is none, where bad records are to stop.
    """
    for index in range(start.file, len(files)):
        file = files[index]
        read = start.records if index == start.file else 0
        single = holds_one_document(file, source)
        for record in read_file(file, source):
            if record.number <= read and record.number > 0:
                continue
            name = file.name if single else f"{file.name}:{record.number}"
            if record.text is None and not record.harmless and on_bad_record == "stop":
                where = f", record {record.number}" if record.number else ""
                detail = f" ({record.detail})" if record.detail else ""
                raise ValueError(
                    f"{file.path}{where}: {record.reason}{detail}. Mend it, or leave "
                    "such records out with on_bad_record=skip"
                )
            document = None if record.text is None else Document(name, record.text)
            yield Item(document, name, record.reason, Place(index, record.number))


def read_corpus(
    source: SourceConfig, /, *, on_bad_record: OnBadRecord = "stop"
) -> tuple[list[Document], LeftOut]:
    """The documents of a source, all in memory, in the order of their files' names.

    Raises FileNotFoundError when nothing is there, ValueError when no text is and for a
    bad record that is to stop.
    """
    documents: list[Document] = []
    left_out = LeftOut()
    for item in items_of(source, find_files(source), on_bad_record=on_bad_record):
        if item.document is None:
            left_out.add(item.name, item.reason)
        else:
            documents.append(item.document)
    if not documents:
        raise ValueError(no_text(describe_source(source), left_out))
    return documents, left_out


def no_text(where: str, left_out: LeftOut, /) -> str:
    """The message for a place that holds no text."""
    return f"no usable text in {where}: " + (
        str(left_out) or "it holds no files that are not hidden"
    )
