"""Building a token cache: in pieces, in parallel, killed, and against its will."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from swa_jax.commands.errors import raised_by_us
from swa_jax.data import encoding
from swa_jax.data import tokenize as tokenize_module
from swa_jax.data.config import DataConfig
from swa_jax.data.pipeline import load_text_data
from swa_jax.data.tokenize import CacheConfig, build_token_cache
from swa_jax.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
CONFIG = CacheConfig(tokenizer="bytes", shard_tokens=2_000)


def write_corpus(folder: Path, count: int = 40) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03d}.txt").write_text(f"document {i} of words\n" * (3 + i % 9))
    values = [{"text": f"line {i}\n" * 9} if i % 7 else {"body": ""} for i in range(60)]
    lines = "".join(json.dumps(value) + "\n" for value in values)
    (folder / "lines.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text")


def build(corpus, out, **changes):
    options = {"config": CONFIG, "workers": 1} | changes
    return build_token_cache([str(corpus)], out=out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SKIPPING = CacheConfig(tokenizer="bytes", shard_tokens=2_000, on_bad_record="skip")


def test_bad_records_stop_or_are_counted(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"lines\.jsonl, record 1: no field 'text'"):
        build(corpus, tmp_path / "stop")
    manifest = build(corpus, tmp_path / "skip", config=SKIPPING)
    assert manifest["left_out"]["counts"] == {"no field 'text'": 9}
    assert manifest["left_out"]["names"]["no field 'text'"][0] == "lines.jsonl:1"
    assert manifest["documents"] == 40 + 51


def test_workers_change_nothing(corpus, tmp_path):
    build(corpus, tmp_path / "one", config=SKIPPING, workers=1)
    build(corpus, tmp_path / "three", config=SKIPPING, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


class Stop(Exception):
    """Ends the work in the middle."""


@pytest.mark.parametrize("documents", [1, 30, 60, 90])
def test_interrupted_and_continued_is_uninterrupted(corpus, tmp_path, documents):
    build(corpus, tmp_path / "whole", config=SKIPPING)

    def stop(progress):
        if progress.documents == documents:
            raise Stop

    with pytest.raises(Stop):
        build(corpus, tmp_path / "pieces", config=SKIPPING, report=stop)
    tokens = []
    build(
        corpus,
        tmp_path / "pieces",
        config=SKIPPING,
        report=lambda progress: tokens.append(progress.new_tokens),
    )
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    total = json.loads(contents(tmp_path / "whole")["manifest.json"])["tokens"]
    if documents >= 60:
        assert tokens[-1] < total  # what was there is not tokenized again
    # Once complete, it is left as it is.
    again = build(corpus, tmp_path / "pieces", config=SKIPPING, report=stop)
    assert again["tokens"] == total


PROGRAM = """
import sys
from pathlib import Path
from swa_jax.data import tokenize
from swa_jax.data.tokenize import CacheConfig, build_token_cache
import time
def slowly(progress):
    if progress.phase == "tokenizing":
        time.sleep(float(sys.argv[3]))
if __name__ == "__main__":
    config = CacheConfig(tokenizer="bytes", shard_tokens=2_000, on_bad_record="skip")
    build_token_cache(
        [sys.argv[1]], out=Path(sys.argv[2]), config=config, workers=2, report=slowly
    )
"""


def start(tmp_path: Path, corpus: Path, out: Path, pause: float) -> subprocess.Popen:
    program = tmp_path / "program.py"  # a file: workers import it
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), str(corpus), str(out), str(pause)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_of(group: int) -> list[str]:
    """The processes of a process group that are there and no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
def test_kill_9_and_again_is_uninterrupted(corpus, tmp_path):
    build(corpus, tmp_path / "whole", config=SKIPPING)
    out = tmp_path / "killed"
    for shards in (1, 3):
        process = start(tmp_path, corpus, out, 0.05)
        deadline = time.monotonic() + 60
        while len(list(out.glob("*.note.json"))) < shards:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        while processes_of(process.pid):  # its workers end with it
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not (out / "manifest.json").exists()
    process = start(tmp_path, corpus, out, 0.0)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert contents(out) == contents(tmp_path / "whole")


def stop_after(documents: int):
    def stop(progress):
        if progress.documents == documents:
            raise Stop

    return stop


@pytest.fixture
def begun(corpus, tmp_path) -> Path:
    out = tmp_path / "begun"
    with pytest.raises(Stop):
        build(corpus, out, config=SKIPPING, report=stop_after(80))
    assert len(list(out.glob("*.note.json"))) > 2
    # As a process that is killed leaves them.
    for name in (
        "shard-000099.array_record",
        "shard-000099.index.npy",
        "manifest.json",
    ):
        (out / f"{name}.tmp").write_bytes(b"unfinished")
    (out / "shard-000098.array_record").write_bytes(b"without a note")
    return out


@pytest.mark.parametrize(
    ("name", "value"),
    [("field", "body"), ("on_bad_record", "stop"), ("shard_tokens", 1_000)],
)
def test_other_settings_do_not_go_on(corpus, begun, name, value):
    config = dataclasses.replace(SKIPPING, **{name: value})
    with pytest.raises(ValueError, match=f"begun with {name}="):
        build(corpus, begun, config=config)


def test_a_complete_cache_of_another_corpus_is_refused(corpus, tmp_path):
    build(corpus, tmp_path / "out", config=SKIPPING)
    other = write_corpus(tmp_path / "other", count=39)
    with pytest.raises(ValueError, match=r"1 files have changed, .*: 039\.txt"):
        build(other, tmp_path / "out", config=SKIPPING)
    (tmp_path / "out" / "files.jsonl").unlink()
    with pytest.raises(ValueError, match=r"files\.jsonl is missing: restore it"):
        build(corpus, tmp_path / "out", config=SKIPPING)


def test_what_follows_the_last_document_is_counted_once(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "text")
    (corpus / "zz-empty").touch()
    build(corpus, tmp_path / "whole", config=SKIPPING)

    def killed(*arguments):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(tokenize_module, "_manifest", killed)
        with pytest.raises(Stop):
            build(corpus, tmp_path / "pieces", config=SKIPPING)
    manifest = build(corpus, tmp_path / "pieces", config=SKIPPING)
    assert manifest["left_out"]["counts"] == {"no field 'text'": 9, "empty": 1}
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")


def test_a_worker_that_dies_is_said(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_BLOCK", 1)  # little is read ahead

    def kill(progress):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"has died, .*fewer --workers") as info:
        build(corpus, tmp_path / "out", config=SKIPPING, report=kill)
    assert raised_by_us(info.value), "so that the command line says it in one line"
    build(corpus, tmp_path / "out", config=SKIPPING)


def test_changed_files_do_not_go_on(begun, tmp_path):
    corpus = write_corpus(tmp_path / "text")
    (corpus / "003.txt").write_text("changed")
    (corpus / "new.txt").write_text("new")
    with pytest.raises(ValueError, match=r"2 files .*: 003\.txt, new\.txt\. Restore"):
        build(corpus, begun, config=SKIPPING)


def test_a_damaged_shard_is_built_again(corpus, begun, tmp_path):
    build(corpus, tmp_path / "whole", config=SKIPPING)
    path = begun / "shard-000001.array_record"
    path.write_bytes(path.read_bytes()[:-5])
    build(corpus, begun, config=SKIPPING)
    assert contents(begun) == contents(tmp_path / "whole")


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "text")
    monkeypatch.setattr(encoding, "_BLOCK", 1)  # little is read ahead

    def change(progress):
        if progress.phase == "tokenizing" and progress.documents == 10:
            (corpus / "lines.jsonl").write_text('{"text": "another"}\n')

    with pytest.raises(ValueError, match=r"lines\.jsonl has changed while it was read"):
        build(corpus, tmp_path / "out", config=SKIPPING, report=change)


def test_two_processes_do_not_build_one_cache(corpus, tmp_path):
    def build_again(progress):
        build(corpus, tmp_path / "out", config=SKIPPING)

    with pytest.raises(ValueError, match="another process is building"):
        build(corpus, tmp_path / "out", config=SKIPPING, report=build_again)
    build(corpus, tmp_path / "out", config=SKIPPING)  # the lock has gone


def test_folders_that_are_none(corpus, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="something else than a token cache"):
        build(corpus, tmp_path / "other")
    with pytest.raises(ValueError, match="is a file"):
        build(corpus, corpus / "000.txt")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        build(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="it holds no files that are not hidden"):
        build(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="at least one path"):
        build_token_cache([], out=tmp_path / "out", config=CONFIG, workers=1)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        build(corpus, tmp_path / "out", workers=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a").touch()
    with pytest.raises(ValueError, match=r"no usable text in .*empty.*1 empty \(a\)"):
        build(tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize("name", ["shard-of-pottery.txt", "shard-000000.array_record"])
def test_what_lies_beside_a_lock_is_not_removed(corpus, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / "lock").write_text("of somebody else")
    (out / name).touch()
    with pytest.raises(ValueError, match="something else than a token cache"):
        build(corpus, out, config=SKIPPING)
    assert (out / "lock").read_text() == "of somebody else"
    (out / name).unlink()
    (out / "plan.json.tmp").touch()  # killed before it had a plan
    build(corpus, out, config=SKIPPING)


@pytest.mark.parametrize("plan", ["", "[]", "7"])
def test_a_plan_that_is_none(corpus, tmp_path, plan):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text(plan)
    with pytest.raises(ValueError, match=r"plan\.json is damaged: "):
        build(corpus, tmp_path / "out", config=SKIPPING)


def test_several_paths_are_one_cache(corpus, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "000.txt").write_text("another first document")
    paths = [str(corpus), str(other)]
    manifest = build_token_cache(
        paths, out=tmp_path / "out", config=SKIPPING, workers=1
    )
    assert manifest["documents"] == 40 + 51 + 1
    lines = (tmp_path / "out" / "files.jsonl").read_text().splitlines()
    names = {json.loads(line)["name"] for line in lines}
    assert {"text/000.txt", "other/000.txt", "text/lines.jsonl"} <= names
    with pytest.raises(ValueError, match="'other' twice"):
        build_token_cache(
            [str(other), str(other)], out=tmp_path / "2", config=CONFIG, workers=1
        )


def test_a_new_bpe_is_that_of_a_run(corpus, tmp_path):
    config = CacheConfig(
        vocab_size=300, validation_fraction=0.2, seed=3, on_bad_record="skip"
    )
    build(corpus, tmp_path / "out", config=config)
    data = load_text_data(
        DataConfig(
            path=str(corpus),
            vocab_size=300,
            validation_fraction=0.2,
            seq_len=32,
            on_bad_record="skip",
        ),
        seed=3,
    )
    made = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    assert made.fingerprint == data.tokenizer.fingerprint


def test_wide_vocabularies_take_four_bytes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_module, "token_type", lambda size: np.dtype("<u4"))
    manifest = build(corpus, tmp_path / "out", config=SKIPPING)
    assert manifest["token_type"] == "<u4"
