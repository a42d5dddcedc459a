"""Parquet: one column is the text, one document a row."""

from collections.abc import Iterator

from swa_jax.data.sources.record import Record, bad, text_of

_ROWS = 256  # at once in memory, beside a row group's compressed column


def read_parquet(file: str, /, *, column: str) -> Iterator[Record]:
    """A record for each row, numbered from 1; the other columns are not read.

    A file without the column, with one that holds no strings, or that is damaged, ends
    in a record that says so.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as rows:
            schema = rows.schema_arrow
            if column not in schema.names:
                names = ", ".join(map(repr, schema.names[:9]))
                yield bad(0, f"no column {column!r}", f"its columns: {names}")
                return
            kind = schema.field(column).type
            if not _holds_strings(kind):
                yield bad(0, f"no strings in column {column!r}", f"it holds {kind}")
                return
            for batch in rows.iter_batches(batch_size=_ROWS, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    yield text_of(number, value.as_py())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield bad(number + 1, "damaged, the rest of the file is lost", error)


def _holds_strings(kind) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)
