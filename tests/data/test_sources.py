"""What each format reads, and what each says of input that is not what it should be."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_jax.data.config import SourceConfig
from swa_jax.data.corpus import read_corpus
from swa_jax.data.sources.json_lines import read_json_lines
from swa_jax.data.sources.parquet import read_parquet

TEXTS = ["one", "zwei\nLinien", "drei \u2028 \U0001f642", "x" * 5000]


def lines_of(values) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def write_lines(path: Path, content: bytes) -> Path:
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(content))
    elif path.name.endswith(".zst"):
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(content)
    else:
        path.write_bytes(content)
    return path


def write_parquet(path: Path, columns, **options) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def read(path: Path, **options):
    on_bad_record = options.pop("on_bad_record", "stop")
    source = SourceConfig(path=str(path), **options)
    return read_corpus(source, on_bad_record=on_bad_record)


def texts(path: Path, **options) -> list[str]:
    return [document.text for document in read(path, **options)[0]]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines(tmp_path, suffix):
    values = [{"id": i, "text": text, "body": "b"} for i, text in enumerate(TEXTS)]
    path = write_lines(tmp_path / f"a{suffix}", lines_of(values))
    documents, left_out = read(path)
    assert [document.text for document in documents] == TEXTS
    assert [document.name for document in documents] == [
        f"a{suffix}:{number}" for number in (1, 2, 3, 4)
    ]
    assert str(left_out) == ""
    assert texts(path, field="body") == ["b"] * 4


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=8))
def test_any_text_comes_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl.zst"
    content = "\n".join(
        json.dumps({"text": value}, ensure_ascii=False) for value in values
    )
    write_lines(path, content.encode())
    assert [
        record.text for record in read_json_lines(str(path), field="text")
    ] == values


def test_long_lines_across_the_reads(tmp_path):
    long = [{"text": "y" * 3_000_000}, {"text": "z"}]
    path = write_lines(tmp_path / "a.jsonl.zst", lines_of(long))
    assert texts(path) == [value["text"] for value in long]


def test_a_last_line_without_an_end_and_blank_lines(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", b'\n{"text": "1"}\r\n  \n{"text": "2"}')
    assert [d.name for d in read(path)[0]] == ["a.jsonl:2", "a.jsonl:4"]


def test_several_members_of_gzip_are_one_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    parts = [gzip.compress(lines_of([{"text": text}])) for text in TEXTS]
    path.write_bytes(b"".join(parts))
    assert texts(path) == TEXTS


@pytest.mark.parametrize("row_group_size", [None, 2])
def test_parquet(tmp_path, row_group_size):
    columns = {"id": list(range(4)), "text": TEXTS, "body": ["b"] * 4}
    path = write_parquet(tmp_path / "a.parquet", columns, row_group_size=row_group_size)
    documents, left_out = read(path)
    assert [document.text for document in documents] == TEXTS
    assert documents[2].name == "a.parquet:3"
    assert str(left_out) == ""
    assert texts(path, field="body") == ["b"] * 4


@pytest.mark.parametrize("kind", [pyarrow.large_string(), None])
def test_parquet_of_other_strings(tmp_path, kind):
    column = pyarrow.array(TEXTS, kind)
    if kind is None:
        column = column.dictionary_encode()
    assert texts(write_parquet(tmp_path / "a.parquet", {"text": column})) == TEXTS


def test_formats_by_name_and_by_order(tmp_path):
    write_lines(tmp_path / "a.jsonl", b'{"text": "one"}\n')
    (tmp_path / "b.txt").write_text("two")
    write_parquet(tmp_path / "c.parquet", {"text": ["three"]})
    assert texts(tmp_path) == ["one", "two", "three"]
    assert texts(tmp_path / "*.jsonl") == ["one"]
    assert texts(tmp_path / "a.jsonl", format="text") == ['{"text": "one"}\n']
    (tmp_path / "b.txt").rename(tmp_path / "b.json")
    (tmp_path / "b.json").write_text('{"text": "two"}\n')
    assert texts(tmp_path / "b.json") == ['{"text": "two"}\n']
    assert texts(tmp_path / "b.json", format="jsonl") == ["two"]


GOOD = b'{"text": "good"}\n'
BAD_LINES = {
    b'{"text": "cut': r"not JSON \(Unterminated string",
    b"[1, 2]": r"no JSON object \(got b'\[1, 2\]",
    b'{"txt": "x", "id": 3}': r"no field 'text' \(its fields: 'txt', 'id'\)",
    b'{"text": 7}': r"no string \(got a int\)",
    b'{"text": null}': r"no string \(got no value\)",
    b'{"text": "\xff"}': r"not UTF-8 \('utf-8' codec can't decode",
    b'{"text": "\\ud800"}': r"not UTF-8 \(.* surrogates not allowed",
    b"[" * 100_000: "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_stops_by_name_or_is_counted(tmp_path, line):
    path = write_lines(tmp_path / "a.jsonl", GOOD + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=BAD_LINES[line]) as info:
        read(path)
    assert f"{path}, record 2: " in str(info.value)
    assert "on_bad_record=skip" in str(info.value)
    assert len(str(info.value)) < 500
    documents, left_out = read(path, on_bad_record="skip")
    assert [document.name for document in documents] == ["a.jsonl:1", "a.jsonl:3"]
    assert sum(left_out.counts.values()) == 1
    assert "(a.jsonl:2)" in str(left_out)


def test_an_empty_text_is_counted_and_stops_nothing(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", GOOD + b'{"text": ""}\n')
    documents, left_out = read(path)
    assert len(documents) == 1
    assert str(left_out) == "left out 1: 1 empty (a.jsonl:2)"


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".jsonl.gz", "cut"), (".jsonl.gz", "flip"), (".jsonl.zst", "cut")],
)
def test_damaged_compression(tmp_path, suffix, damage):
    values = [{"text": str(i * 0x9E3779B97F4A7C15)} for i in range(20_000)]
    path = write_lines(tmp_path / f"a{suffix}", lines_of(values))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"the rest of the file is lost|not JSON"
    ) as info:
        read(path)
    assert f"{path}, record " in str(info.value)
    if damage == "cut":
        assert "truncated" in str(info.value)
    documents, left_out = read(path, on_bad_record="skip")
    assert 0 < len(documents) < 20_000
    assert "the rest of the file is lost" in str(left_out)


def test_a_file_that_is_not_compressed_at_all(tmp_path):
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(GOOD)
        with pytest.raises(ValueError, match=r"record 1: unreadable"):
            read(path)


def test_a_missing_column(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"body": TEXTS, "id": [1, 2, 3, 4]})
    with pytest.raises(
        ValueError, match=r"no column 'text' \(its columns: 'body', 'id'"
    ):
        read(path)
    with pytest.raises(ValueError, match=r"no strings in column 'id' \(it holds int64"):
        read(path, field="id")
    with pytest.raises(ValueError, match=r"no usable text in .* no column 'text'"):
        read(path, on_bad_record="skip")


def test_no_value_in_a_column(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", None, "b"]})
    with pytest.raises(ValueError, match=r"a\.parquet, record 2: no string"):
        read(path)
    documents, left_out = read(path, on_bad_record="skip")
    assert [document.name for document in documents] == ["a.parquet:1", "a.parquet:3"]
    assert str(left_out) == "left out 1: 1 no string (a.parquet:2)"


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_damaged_parquet(tmp_path, damage):
    path = tmp_path / "a.parquet"
    columns = {"text": [str(i * 0x9E3779B97F4A7C15) for i in range(5_000)]}
    write_parquet(path, columns, write_page_checksum=True, row_group_size=1_000)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-100:]
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"no Parquet at all")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged, the rest of the file is lost"):
        read(path)
    found = [record.text for record in read_parquet(str(path), column="text")]
    assert found[-1] is None
    assert found[:-1] == columns["text"][: len(found) - 1]


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", GOOD)

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    [record] = read_json_lines(str(path), field="text")
    assert "unreadable" in record.reason
    assert "Permission denied" in record.detail
