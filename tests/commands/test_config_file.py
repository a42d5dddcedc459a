"""Configuration files: what is read, and what is refused by line."""

import json

import pytest

from swa_jax.commands.config_file import LARGEST_FILE, read_config_file


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


YAML = """
# a comment
steps: 300
seed: -1
data: {path: "corpus/*.txt", field: ~}
optimizer:
  peak_lr: 1e-3
  clip_norm: .inf
  beta1: 0.9
model: {remat: none, attention: {sinks: true, qk_norm: False}}
windows:
  windows: [8, 64]
"""
WANTED = {
    "steps": 300,
    "seed": -1,
    "data": {"path": "corpus/*.txt", "field": None},
    "optimizer": {"peak_lr": 0.001, "clip_norm": float("inf"), "beta1": 0.9},
    "model": {"remat": "none", "attention": {"sinks": True, "qk_norm": False}},
    "windows": {"windows": [8, 64]},
}


def test_yaml_and_json_say_the_same(write):
    assert read_config_file(write("a.yaml", YAML)) == WANTED
    assert read_config_file(write("a.yml", YAML)) == WANTED
    assert read_config_file(write("a.json", json.dumps(WANTED))) == WANTED
    assert read_config_file(write("b.yaml", json.dumps(WANTED["windows"]))) == {
        "windows": [8, 64]
    }


@pytest.mark.parametrize(
    "text", ["no", "on", "y", "012", "0o14", "0x1f", "1_000", "12:30:00", "2024-01-01"]
)
def test_what_yaml_1_1_reads_otherwise_is_text(write, text):
    assert read_config_file(write("a.yaml", f"a: {text}")) == {"a": text}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "a = 1", r"ends in .json, .yaml, .yml"),
        ("a.json", "{", "a.json: Expecting property name"),
        ("a.json", '{"a": 1, "a": 2}', "'a' is given twice"),
        ("a.json", '{"a": {"b": 1, "b": 1}}', "'b' is given twice"),
        ("a.json", "[1]", r"wanted a mapping of fields, got \[1\]"),
        ("a.json", '{"a": 1e999}', "that a float holds, got 1e999"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", b'{"a": "\xff"}', "is not UTF-8"),
        ("a.json", '{"a": ' + "9" * 5000 + "}", "a.json: Exceeds the limit"),
        ("a.yaml", "a: 1\nb: 2\na: 3", "'a' is given twice"),
        ("a.yaml", "", "wanted a mapping of fields, got None"),
        ("a.yaml", "a: [1", "a.yaml: while parsing"),
        ("a.yaml", "a: 1\n---\nb: 2", "expected a single document"),
        ("a.yaml", "a: &x 1\nb: *x", "line 2: aliases"),
        ("a.yaml", "a: &a [*a]", "line 1: aliases"),
        ("a.yaml", "<<: {a: 1}\n? [a, b]\n: 1", "line 2: a key is a field's name"),
        ("a.yaml", "1: 2", "line 1: a key is a field's name, got 1"),
        ("a.yaml", "a: !!int '012'", "line 1: tags"),
        ("a.yaml", "a: !!python/object/apply:os.system [x]", "line 1: tags"),
        ("a.yaml", "a: 1e-999", "that a float holds, got 1e-999"),
        ("a.yaml", "[" * 5000, "nested too deeply|a.yaml: "),
        ("a.yaml", "\x00", "a.yaml: unacceptable character"),
        ("a.json", b" " * (LARGEST_FILE + 1), "no configuration"),
    ],
)
def test_what_is_refused(write, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_config_file(write(name, content))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises((FileNotFoundError, ValueError), match="--config"):
            read_config_file(path)
