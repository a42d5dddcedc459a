import os
import sysconfig
from pathlib import Path

import pytest

from swa_jax.data.corpus import (
    Corpus,
    Document,
    describe_skipped,
    read_corpus,
    split,
)


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(corpus: Corpus) -> list[str]:
    return [document.name for document in corpus.documents]


def corpus_of(count: int) -> Corpus:
    documents = tuple(Document(f"{i:03d}", f"text {i}") for i in range(count))
    return Corpus(documents, {})


def test_standard_library_without_tests_and_installed_packages():
    corpus = read_corpus()
    present = names(corpus)
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(present)
    assert present == sorted(present)
    folders = {part for name in present for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert all(name.endswith(".py") for name in present)
    root = Path(sysconfig.get_path("stdlib"))
    texts = {document.name: document.text for document in corpus.documents}
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
    corpus = read_corpus(tmp_path / "books")
    assert names(corpus) == ["a/d", "a/deep/c.md", "b.txt", "tests/kept.txt"]
    assert corpus.skipped == {}
    assert read_corpus(str(tmp_path / "books") + "/") == corpus


def test_text_is_kept_exactly(tmp_path):
    content = "\ufeffone\r\ntwo\rthree\n\n\tfünf 🙂\x0c".encode()
    write(tmp_path, {"a": content})
    assert read_corpus(tmp_path).documents[0].text.encode() == content


def test_single_file(tmp_path):
    write(tmp_path, {"only.txt": b"text", "other.txt": b"x"})
    assert read_corpus(tmp_path / "only.txt").documents == (
        Document("only.txt", "text"),
    )


def test_file_in_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path, {"only.txt": b"text"})
    monkeypatch.chdir(tmp_path)
    assert names(read_corpus("only.txt")) == ["only.txt"]
    assert names(read_corpus("*.txt")) == ["only.txt"]


def test_home_is_expanded(tmp_path, monkeypatch):
    write(tmp_path, {"books/a": b"text"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(read_corpus("~/books")) == ["a"]


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
    assert names(read_corpus(tmp_path / pattern)) == expected


def test_existing_name_is_no_pattern(tmp_path):
    write(tmp_path, {"[a]/b.txt": b"b", "a/c.txt": b"c"})
    assert names(read_corpus(tmp_path / "[a]")) == ["b.txt"]


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
    corpus = read_corpus(tmp_path)
    assert names(corpus) == ["good.txt"]
    assert corpus.skipped == {
        "binary": ("zeros.bin",),
        "empty": ("empty1", "sub/empty2"),
        "not UTF-8": ("latin1.txt",),
        "unreadable": ("broken_link", "pipe"),
    }
    assert describe_skipped(corpus.skipped) == (
        "skipped 6 files: 1 binary (zeros.bin); 2 empty (empty1, sub/empty2); "
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
    corpus = read_corpus(tmp_path)
    assert names(corpus) == ["a"]
    assert corpus.skipped == {"unreadable": ("closed",)}


def test_file_name_that_is_not_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"text")
    assert names(read_corpus(tmp_path)) == ["caf\\xe9.txt"]


def test_skipped_files_are_described_shortly():
    assert describe_skipped({}) == ""
    many = tuple(f"{i}.txt" for i in range(9))
    assert describe_skipped({"empty": many}) == (
        "skipped 9 files: 9 empty (0.txt, 1.txt, 2.txt, ...)"
    )
    assert describe_skipped({"empty": many[:1]}) == "skipped 1 file: 1 empty (0.txt)"


@pytest.mark.parametrize("missing", ["nowhere", "nowhere/*.txt", "*.rst", "folder*"])
def test_missing_path(tmp_path, missing):
    write(tmp_path, {"folder/a.txt": b"text"})
    with pytest.raises(
        FileNotFoundError, match=r"no such file|no file matches"
    ) as info:
        read_corpus(tmp_path / missing)
    assert str(tmp_path / missing) in str(info.value)


def test_nothing_usable(tmp_path):
    write(tmp_path, {".hidden": b"x"})
    with pytest.raises(ValueError, match="no files that are not hidden"):
        read_corpus(tmp_path)
    write(tmp_path, {"a": b"", "b": b"\0"})
    for path in (tmp_path, tmp_path / "*", tmp_path / "b"):
        with pytest.raises(ValueError, match="no usable text") as info:
            read_corpus(path)
        assert str(path) in str(info.value)
        assert "1 binary (b)" in str(info.value)


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(100, 0.05, 5), (101, 0.05, 6), (8, 0.05, 1), (2, 0.5, 1), (10, 0.9, 9)],
)
def test_split_sizes(count, fraction, held_out):
    corpus = corpus_of(count)
    train, validation = split(corpus, fraction=fraction, seed=0)
    assert len(validation) == held_out
    together = sorted(train + validation, key=lambda document: document.name)
    assert tuple(together) == corpus.documents


def test_split_depends_on_the_seed_only():
    corpus = corpus_of(50)
    first = split(corpus, fraction=0.2, seed=1)
    assert split(corpus_of(50), fraction=0.2, seed=1) == first
    backwards = Corpus(corpus.documents[::-1], {})
    assert split(backwards, fraction=0.2, seed=1) == first
    assert split(corpus, fraction=0.2, seed=2)[1] != first[1]
    # A seeded order and not the names', on both sides.
    for side in first:
        assert sorted(side, key=lambda document: document.name) != list(side)


def test_split_is_the_same_on_every_machine():
    _, validation = split(corpus_of(20), fraction=0.2, seed=3)
    assert [document.name for document in validation] == ["007", "004", "002", "009"]


def test_new_documents_leave_the_others_in_place():
    train, validation = split(corpus_of(100), fraction=0.1, seed=0)
    more_train, more_validation = split(corpus_of(110), fraction=0.1, seed=0)
    moved = (set(train) & set(more_validation)) | (set(validation) & set(more_train))
    assert len(moved) <= 3


def test_a_corpus_that_cannot_be_split():
    with pytest.raises(ValueError, match="cut the file into several"):
        split(corpus_of(1), fraction=0.5, seed=0)
    with pytest.raises(ValueError, match=r"holds out all 3 .* at most 0\.667"):
        split(corpus_of(3), fraction=0.7, seed=0)
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="fraction"):
            split(corpus_of(3), fraction=fraction, seed=0)
