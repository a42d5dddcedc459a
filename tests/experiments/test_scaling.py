"""The bytes between devices: the grid, resuming, the page, a real compilation."""

import json

import pytest

from experiments.scaling import __main__ as command
from experiments.scaling.config import GRIDS, Cell, cells, request_of
from experiments.scaling.results import Results
from swa_jax.planning import compilation
from swa_jax.planning import plan as planning
from swa_jax.planning.forecast import forecast
from swa_jax.planning.plan import check_request

QUICK = GRIDS["quick"]


@pytest.fixture
def compiled(monkeypatch):
    """Steps "compiled" as the closed form guesses them; their requests, in order."""
    asked = []

    def compile_request(request, /, *, keep, timeout):
        asked.append(request)
        return forecast(request.config, request.cluster)

    monkeypatch.setattr(planning, "compile_request", compile_request)
    return asked


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("cell", cells(GRIDS["h200"]), ids=str)
def test_every_cell_is_a_request_that_uses_its_gpus(cell):
    request = request_of(cell)
    check_request(request)
    assert request.cluster.devices == cell.gpus
    assert request.config.batch.rows * cell.context == cell.gpus
    assert request.config.data.seq_len == cell.tokens


def test_the_grid_is_compiled_once_and_written_down(compiled, tmp_path, capsys):
    words = ["--quick", "--out", str(tmp_path)]
    assert command.main(words) == 0
    assert len(compiled) == len(cells(QUICK)) == 2
    assert command.main(words) == 0
    assert len(compiled) == 2  # nothing is missing
    out = capsys.readouterr().out
    assert "swax-nano" in out
    [run, *rows] = lines_of(tmp_path / "quick.jsonl")
    assert "run" in run
    assert [row["row"]["cell"]["tokens"] for row in rows] == [256, 512]
    page = (tmp_path / "quick.md").read_text()
    assert "| 1 | 512 | 512 |" in page
    assert (tmp_path / "quick.svg").read_text().startswith("<?xml")


def test_a_cut_line_is_compiled_again(compiled, tmp_path):
    words = ["--quick", "--out", str(tmp_path)]
    assert command.main(words) == 0
    path = tmp_path / "quick.jsonl"
    text = path.read_text()
    path.write_text(text[:-20])
    assert command.main(words) == 0
    assert len(compiled) == 3
    assert len(Results(path).rows) == 2
    assert [next(iter(line)) for line in lines_of(path)] == ["run", "run", "row", "row"]


def test_plot_compiles_nothing(compiled, tmp_path):
    assert command.main(["--quick", "--out", str(tmp_path)]) == 0
    (tmp_path / "quick.md").unlink()
    assert command.main(["--quick", "--plot", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "quick.md").is_file()
    assert len(compiled) == 2


def test_the_budget_ends_between_cells(compiled, tmp_path):
    words = ["--quick", "--out", str(tmp_path), "--budget-seconds", "-1"]
    assert command.main(words) == 0
    assert compiled == []


def test_a_cell_that_fails_leaves_the_others(monkeypatch, tmp_path, capsys):
    def compile_request(request, /, *, keep, timeout):
        if request.config.data.seq_len == 256:
            raise ChildProcessError("out of luck")
        return forecast(request.config, request.cluster)

    monkeypatch.setattr(planning, "compile_request", compile_request)
    assert command.main(["--quick", "--out", str(tmp_path)]) == 1
    assert "out of luck" in capsys.readouterr().err
    results = Results(tmp_path / "quick.jsonl")
    assert list(results.rows) == [Cell("swax-nano", 2, 512, 1)]


def test_other_versions_do_not_go_on_the_same_page(compiled, tmp_path, capsys):
    path = tmp_path / "quick.jsonl"
    path.write_text(json.dumps({"run": {"jax": "0.1", "device": "?"}}) + "\n")
    assert command.main(["--quick", "--out", str(tmp_path)]) == 2
    assert "jax 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--gpus", "7"], ["--presets", "swax-9t"], ["--quick", "--tokens", "1"]]
)
def test_what_the_grid_does_not_have_is_refused(words, capsys):
    assert command.main(words) == 2
    assert "wants some of" in capsys.readouterr().err


def test_without_the_compiler_it_ends_in_2(monkeypatch, tmp_path, capsys):
    def outcome(request, timeout):
        return {"missing": "no plugin"}

    monkeypatch.setattr(compilation, "_outcome", outcome)
    assert command.main(["--quick", "--out", str(tmp_path)]) == 2
    assert "cuda13" in capsys.readouterr().err
