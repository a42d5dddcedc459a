"""`swax train --dry-run`: what a run would be, and nothing else."""

import json

import pytest

from swa_jax.cli import main

TINY = {
    "--steps": "6",
    "--data.seq-len": "64",
    "--data.tokenizer": "bytes",
    "--data.validation-fraction": "0.25",
    "--batch.rows": "8",
    "--model.vocab-size": "300",
    "--model.d-model": "32",
    "--model.periods": "1",
    "--model.pattern": "swa",
    "--model.attention.heads": "2",
    "--model.feed-forward-width": "32",
    "--windows.windows": "8 64",
}


def dry_run(**changes):
    """Runs the command on the text in "corpus", with some settings changed."""
    words = ["train", "--dry-run", "--data", "corpus"]
    for flag, value in (TINY | changes).items():
        words += [flag, *value.split()]
    return main(words)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in range(12):
        lines = [f"def function_{name}_{i}(x):\n    return {i}\n" for i in range(30)]
        (folder / f"module_{name}.py").write_text("\n".join(lines))
    return folder


def test_what_is_printed_and_that_nothing_is_written(
    corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert dry_run(**{"--mesh.data": "2"}) == 0
    output = capsys.readouterr().out
    document = output[output.index("{") : output.index("\n}") + 2]
    config = json.loads(document)
    assert config["model"]["d_model"] == 32
    assert config["data"]["path"] == "corpus"
    for words in (
        "parameters: ",
        "window 8: ",
        "window 64: ",
        "MFLOPs/token forward",
        "training text: 9 documents",
        "8 rows of 64 tokens = 512 tokens; the run: 3,072 tokens",
        "batches per epoch: ",
        "/module_",
        "def function_",
        "devices: 2 x ",  # of the mesh
        "state per device: parameters",
        "memory of a step: ",
        "arguments",
        "nothing was trained",
    ):
        assert words in output, words
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"--model.vocab-size": "100"}, 2, "model.vocab_size=100; make that larger"),
        ({"--data.seq-len": "999999999"}, 2, "less than one row"),
        ({"--batch.rows": "7", "--mesh.data": "2"}, 2, "batch.rows must be a multiple"),
        ({"--model.d-model": "1000000000"}, 1, "out of memory before the first step"),
        ({"--out": "corpus"}, 2, "is not an empty folder"),
        ({"--resume": "", "--out": "nowhere"}, 2, "no run to resume"),
    ],
)
def test_what_training_would_refuse_is_refused(
    changes, code, message, corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert dry_run(**changes) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
