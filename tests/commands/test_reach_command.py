"""The command swax reach: its table, its JSON, bad input, and nothing of JAX."""

import json
import subprocess
import sys

import pytest

from swa_jax.cli import main
from swa_jax.evaluation.reach import AveragingStack, tail


def printed(capsys, *words):
    assert main(["reach", *words]) == 0
    return capsys.readouterr().out


def test_the_json_has_the_formulas_numbers(capsys):
    numbers = {"layers": 24, "window": 128, "alpha": 0.95, "tolerance": 0.05}
    words = [f"--{name}={value}" for name, value in numbers.items()]
    found = json.loads(printed(capsys, *words, "--json"))
    stack = AveragingStack(24, 128, 0.95)
    assert found["reach_tokens"] == 24 * 127 + 1
    assert found["layers_times_window"] == 24 * 128
    assert found["horizon"] == stack.horizon(0.05)
    assert found["horizon_by_single_path"] == stack.single_path_horizon(0.05)
    shares = tail(stack.influence())
    by_distance = {row["distance"]: row for row in found["by_distance"]}
    assert by_distance[256]["share_from_there_or_beyond"] == shares[256]
    assert by_distance[256]["single_path"] == pytest.approx(0.05**2)
    assert by_distance[24 * 128]["share_from_there_or_beyond"] == 0.0


def test_the_table_explains_every_number(capsys):
    table = printed(capsys, "--layers", "24", "--window", "128", "--alpha", "0.95")
    for word in ("3,049", "3,072", "181.0", "318", "196.8", "1.2 times", "0.211"):
        assert word in table
    assert max(map(len, table.splitlines())) <= 80


def test_the_ends_of_alpha_are_handled(capsys):
    table = printed(capsys, "--alpha", "0", "--layers", "2", "--window", "4")
    assert "endless" in table
    found = json.loads(printed(capsys, "--alpha", "1", "--json"))
    assert (found["horizon"], found["horizon_by_single_path"]) == (1, 0.0)
    found = json.loads(printed(capsys, "--alpha", "0", "--window", "1", "--json"))
    assert (found["horizon"], found["horizon_by_single_path"]) == (1, None)
    assert found["reach_tokens"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "0"], "layers=0"),
        (["--window", "0"], "window=0"),
        (["--alpha", "1.5"], "within [0, 1]; got 1.5"),
        (["--alpha=-0.5"], "got -0.5"),
        (["--alpha", "nan"], "--alpha: wanted float"),
        (["--tolerance", "0"], "between 0 and 1"),
        (["--tolerance", "1"], "between 0 and 1"),
        (["--layers", "2147483648"], "at most 2147483648 tokens"),
        (["--layers", "5000", "--window", "16384"], "too long to add up"),
        (["--depth", "3"], "--depth"),
    ],
)
def test_bad_input_ends_in_2_with_one_line(words, message, capsys):
    assert main(["reach", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


def test_neither_help_nor_the_table_imports_jax():
    program = (
        "import sys; from swa_jax.cli import main; "
        "codes = [main(['reach', '--help']), main(['reach'])]; "
        "heavy = {'jax', 'flax', 'matplotlib', 'grain'} & set(sys.modules); "
        "sys.exit(any(codes) or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--alpha FLOAT" in done.stdout
