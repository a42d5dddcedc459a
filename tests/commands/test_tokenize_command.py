import json
import sys

import pytest

from swa_jax import cli
from swa_jax.commands.train_arguments import train_arguments
from swa_jax.data.config import SourceConfig
from swa_jax.data.sources.token_cache import read_manifest


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(9):
        (folder / f"{i}.txt").write_text(f"text {i}\n" * 30)
    lines = [json.dumps({"body": f"line {i}"}) for i in range(9)]
    (folder / "lines.jsonl").write_text("\n".join(lines))
    return folder


def swax(*words) -> int:
    return cli.main([str(word) for word in words])


def test_build_verify_and_again(corpus, tmp_path, capfd):
    out = tmp_path / "cache"
    words = ["tokenize", corpus, "--out", out, "--workers", 1]
    assert swax(*words) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("swax: error: ")
    assert "lines.jsonl, record 1: no field 'text' (its fields: 'body')" in error
    assert swax(*words, "--field", "body", "--tokenizer", "bytes") == 2
    assert "begun with field='text', now it is 'body'" in capfd.readouterr().err

    out = tmp_path / "another"
    words = ["tokenize", corpus, "--out", out, "--workers", 1, "--field", "body"]
    words += ["--tokenizer", "bytes"]
    assert swax(*words) == 0
    shown = capfd.readouterr()
    assert "tokens/s; memory at most" in shown.out
    assert f"{out}: 18 documents, " in shown.out
    assert "tokenizing: 0.0%  0 tokens  0 tokens/s  memory " in shown.err
    assert read_manifest(out)["documents"] == 18
    assert swax(*words) == 0
    assert "complete already" in capfd.readouterr().out
    assert swax("tokenize", out, "--verify") == 0
    assert "every file has its checksum" in capfd.readouterr().out
    path = out / "shard-000000.array_record"
    path.write_bytes(path.read_bytes()[:-1])
    assert swax("tokenize", out, "--verify") == 2
    assert f"swax: error: {path} is damaged" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x"], "PATH"),
        (["nowhere", "--out", "x"], "no such file or folder: 'nowhere'"),
        (["text"], "--out: missing"),
        (["text", "--out", "x", "--workers", "0"], "--workers must be at least 1"),
        (
            ["text", "--out", "x", "--vocab-size", "9"],
            "vocab_size must be at least 257",
        ),
        (["text", "--out", "x", "--tokenizer", "w"], "tokenizer must be 'bpe'"),
        (["text", "--out", "x", "--tokenizer", "w.json"], "w.json"),
        (["text", "--out", "x", "--shard-tokens", "0"], "shard_tokens must be"),
        (["text", "--out", "x", "--seed", "-1"], "seed must be"),
        (["text", "--out", "text"], "holds something else than a token cache"),
        (["empty", "--out", "x"], "no usable text in 'empty': it holds no files"),
        (["a", "b", "--verify"], "--verify wants one PATH"),
        (["text", "--verify"], "not complete: manifest.json is missing"),
    ],
)
def test_wrong_arguments(corpus, tmp_path, monkeypatch, capfd, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert swax("tokenize", *words) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("swax: error: ")
    assert message in error[0]
    assert not (tmp_path / "x" / "shard-000000.array_record").exists()


def test_no_jax_is_needed(corpus, tmp_path):
    import subprocess

    program = (
        "import sys\n"
        "from swa_jax.cli import main\n"
        "if __name__ == '__main__':\n"
        "    code = main(sys.argv[1:])\n"
        "    assert 'jax' not in sys.modules\n"
        "    sys.exit(code)\n"
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    words = ["tokenize", corpus / "*.txt", "--out", tmp_path / "out", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, str(path), *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_sources_of_a_run_on_the_command_line():
    words = ["--data.sources", "code=src@0.7", "prose=books/*.txt@0.3"]
    config = train_arguments(words, {}).config
    assert config.data.sources == (
        SourceConfig(path="src", name="code", weight=0.7),
        SourceConfig(path="books/*.txt", name="prose", weight=0.3),
    )
    environment = {"SWAX_DATA__SOURCES": "code=src@0.7 prose=books/*.txt@0.3"}
    assert train_arguments([], environment).config.data == config.data
    with pytest.raises(ValueError, match=r"data\.sources: .*weight must be above 0"):
        train_arguments(["--data.sources", "a=b@-1"], {})
