import os
import sysconfig
from pathlib import Path

import pytest

from swa_jax.data.config import SourceConfig
from swa_jax.data.corpus import (
    BEGIN,
    Document,
    LeftOut,
    items_of,
    read_corpus,
)
from swa_jax.data.sources.files import find_files


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read(path=None, **options):
    return read_corpus(
        SourceConfig(path=None if path is None else str(path)), **options
    )


def documents(path=None) -> list[Document]:
    return read(path)[0]


def names(path=None) -> list[str]:
    return [document.name for document in documents(path)]


def test_standard_library_without_tests_and_installed_packages():
    texts = {document.name: document.text for document in documents()}
    present = list(texts)
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(present)
    assert present == sorted(present)
    folders = {part for name in present for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert all(name.endswith(".py") for name in present)
    root = Path(sysconfig.get_path("stdlib"))
    assert texts["argparse.py"].encode() == (root / "argparse.py").read_bytes()
    assert sum(len(text) for text in texts.values()) > 5_000_000


def test_folder_is_read_recursively_without_hidden_files(tmp_path):
    write(
        tmp_path / "books",
        {
            "b.txt": b"b",
            "a/deep/c.md": b"c",
            "a/d": b"d",
            ".hidden": b"x",
            ".git/config": b"x",
            "tests/kept.txt": b"only the standard library leaves tests out",
        },
    )
    found, left_out = read(tmp_path / "books")
    assert names(tmp_path / "books") == [
        "a/d",
        "a/deep/c.md",
        "b.txt",
        "tests/kept.txt",
    ]
    assert left_out == LeftOut()
    assert documents(str(tmp_path / "books") + "/") == found


def test_text_is_kept_exactly(tmp_path):
    content = "\ufeffone\r\ntwo\rthree\n\n\tfünf 🙂\x0c".encode()
    write(tmp_path, {"a": content})
    assert documents(tmp_path)[0].text.encode() == content


def test_single_file(tmp_path):
    write(tmp_path, {"only.txt": b"text", "other.txt": b"x"})
    assert documents(tmp_path / "only.txt") == [Document("only.txt", "text")]


def test_file_in_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path, {"only.txt": b"text"})
    monkeypatch.chdir(tmp_path)
    assert names("only.txt") == ["only.txt"]
    assert names("*.txt") == ["only.txt"]


def test_home_is_expanded(tmp_path, monkeypatch):
    write(tmp_path, {"books/a": b"text"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/books") == ["a"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("**/*.txt", ["a.txt", "x/b.txt", "x/y/c.txt"]),
        ("x/*", ["b.txt", "d.md"]),
        ("?/y/[a-c].txt", ["x/y/c.txt"]),
    ],
)
def test_glob(tmp_path, pattern, expected):
    write(
        tmp_path,
        {"a.txt": b"a", "x/b.txt": b"b", "x/y/c.txt": b"c", "x/d.md": b"d"},
    )
    assert names(tmp_path / pattern) == expected


def test_existing_name_is_no_pattern(tmp_path):
    write(tmp_path, {"[a]/b.txt": b"b", "a/c.txt": b"c"})
    assert names(tmp_path / "[a]") == ["b.txt"]


def test_unusable_files_are_skipped_by_reason(tmp_path):
    write(
        tmp_path,
        {
            "good.txt": b"text",
            "empty1": b"",
            "sub/empty2": b"",
            "zeros.bin": b"text\0text",
            "latin1.txt": "naïve".encode("latin-1"),
        },
    )
    (tmp_path / "broken_link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    found, left_out = read(tmp_path)  # in a folder they are no reason to stop
    assert [document.name for document in found] == ["good.txt"]
    assert left_out.counts == {
        "binary": 1,
        "empty": 2,
        "not UTF-8": 1,
        "unreadable": 2,
    }
    assert str(left_out) == (
        "left out 6: 1 binary (zeros.bin); 2 empty (empty1, sub/empty2); "
        "1 not UTF-8 (latin1.txt); 2 unreadable (broken_link, pipe)"
    )


def test_folders_that_cannot_be_listed_are_reported(tmp_path, monkeypatch):
    write(tmp_path, {"a": b"text", "closed/b": b"text"})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, left_out = read(tmp_path)
    assert [document.name for document in found] == ["a"]
    assert left_out.names == {"unreadable": ["closed"]}


def test_file_name_that_is_not_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"text")
    assert names(tmp_path) == ["caf\\xe9.txt"]


def test_skipped_files_are_described_shortly():
    left_out = LeftOut()
    assert str(left_out) == ""
    left_out.add("0.txt", "empty")
    assert str(left_out) == "left out 1: 1 empty (0.txt)"
    for i in range(1, 9):
        left_out.add(f"{i}.txt", "empty")
    assert str(left_out) == "left out 9: 9 empty (0.txt, 1.txt, 2.txt, ...)"
    more = LeftOut()
    more.add("x", "binary")
    more.add_all(left_out)
    assert str(more) == (
        "left out 10: 1 binary (x); 9 empty (0.txt, 1.txt, 2.txt, ...)"
    )


@pytest.mark.parametrize("missing", ["nowhere", "nowhere/*.txt", "*.rst", "folder*"])
def test_missing_path(tmp_path, missing):
    write(tmp_path, {"folder/a.txt": b"text"})
    with pytest.raises(
        FileNotFoundError, match=r"no such file|no file matches"
    ) as info:
        read(tmp_path / missing)
    assert str(tmp_path / missing) in str(info.value)


def test_nothing_usable(tmp_path):
    write(tmp_path, {".hidden": b"x"})
    with pytest.raises(ValueError, match="no files that are not hidden"):
        read(tmp_path)
    write(tmp_path, {"a": b"", "b": b"\0"})
    for path in (tmp_path, tmp_path / "*", tmp_path / "b"):
        with pytest.raises(ValueError, match="no usable text") as info:
            read(path)
        assert str(path) in str(info.value)
        assert "1 binary (b)" in str(info.value)


@pytest.mark.parametrize("position", range(6))
def test_reading_goes_on_from_any_place(tmp_path, position):
    write(tmp_path, {"a.txt": b"a", "b.jsonl": b'{"text": "1"}\n\n{"text": "2"}\n'})
    write(tmp_path, {"c.jsonl": b'{"text": ""}\n{"text": "3"}\n', "d": b"d"})
    source = SourceConfig(path=str(tmp_path))
    files = find_files(source)
    whole = list(items_of(source, files, on_bad_record="stop"))
    assert [item.name for item in whole] == [
        "a.txt",
        "b.jsonl:1",
        "b.jsonl:3",
        "c.jsonl:1",
        "c.jsonl:2",
        "d",
    ]
    start = whole[position - 1].after if position else BEGIN
    rest = list(items_of(source, files, on_bad_record="stop", start=start))
    assert rest == whole[position:]
