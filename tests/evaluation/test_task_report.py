"""The report's sections of tasks: whole, offline, with each id once."""

import json
import re
from itertools import product
from pathlib import Path

import pytest

from swa_jax.evaluation.report import render_report
from tests.evaluation.test_report import Page, write_run

WINDOWS = (128, 2048)
OCTAVES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def line(task: str, cell: dict, result: dict, *, step: int = 600) -> dict:
    origin = {"task": task, "run": f"run-{step}", "step": step, "settings": {}}
    return origin | {"cell": cell, "result": result}


def write_lines(run: Path, name: str, lines: list[dict]) -> None:
    (run / "tasks").mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "tasks" / f"{name}.jsonl").write_text(text)


def needle_lines() -> list[dict]:
    lines = []
    axes = (WINDOWS, ("single_1", "multi_key"), (1024, 16384), (0.0, 0.5, 1.0))
    for window, kind, length, depth in product(*axes):
        cell = {"kind": kind, "length": length, "depth": depth, "window": window}
        score = 1.0 if (1 - depth) * length < window else 0.2
        lines.append(line("needle", cell, {"correct": 1, "asked": 5, "score": score}))
    return lines


def recall_lines() -> list[dict]:
    lines = []
    for length, pairs, window in product((512, 1024), (4, 16), WINDOWS):
        correct = [10 if edge < window else 2 for edge in OCTAVES[:-1]]
        by = {"edges": OCTAVES, "asked": [10] * 10, "correct": correct}
        by["correct_among_answers"] = [min(10, n + 1) for n in correct]
        cell = {"seq_len": length, "pairs": pairs, "max_distance": None}
        result = {"score": 0.5, "chance": 1 / 64, "by_distance": by}
        lines.append(line("recall", cell | {"window": window}, result))
    return lines


def text_lines(name: str) -> list[dict]:
    edges = [0, *[8 * 2**n for n in range(8)]]
    results = {
        "positions": {
            "position_edges": edges,
            "loss_by_position": [4.0 - 0.2 * n for n in range(7)] + [None],
        },
        "context": {
            "distance_edges": [0, *OCTAVES],
            "loss_by_distance": [None] + [0.5 + 0.2 * n for n in range(10)],
            "new_loss": 4.5,
        },
        "perplexity": {"bits_per_byte": 2.25, "perplexity_per_token": 9.5, "x": None},
    }
    return [line(name, {"length": 1024, "window": w}, results[name]) for w in WINDOWS]


def write_all(run: Path) -> None:
    write_lines(run, "needle", needle_lines())
    write_lines(run, "recall", recall_lines())
    for name in ("positions", "context", "perplexity"):
        write_lines(run, name, text_lines(name))


def test_each_task_has_a_section(tmp_path):
    run = write_run(tmp_path / "run")
    write_all(run)
    (run / "tasks" / "parity.jsonl").write_text("")  # nothing is judged yet
    html = render_report(run).read_text(encoding="utf-8")
    titles = re.findall(r"<h2>Task: (.*?)</h2>", html)
    assert sorted(titles) == ["context", "needle", "perplexity", "positions", "recall"]
    assert html.count("<svg") == 2 + 2 + 1 + 1
    for text in ("at step 600", "bits per byte", "2.2500", "rows of 512 tokens"):
        assert text in html, text
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") for reference in page.references)
    targets = [*page.references, *re.findall(r"url\((.*?)\)", html)]
    assert {target.removeprefix("#") for target in targets} <= set(page.ids)


def test_the_model_that_was_judged_last_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    cell, torn = {"length": 64, "window": 8}, '{"task": "perplexity", "st'
    lines = [
        line("perplexity", cell, {"loss": 1.5 + step}, step=step) for step in (3, 6)
    ]
    write_lines(run, "perplexity", lines)
    with (run / "tasks" / "perplexity.jsonl").open("a") as file:
        file.write(torn)
    html = render_report(run).read_text(encoding="utf-8")
    assert "at step 6" in html
    assert "7.5000" in html
    assert "4.5000" not in html


def test_names_are_escaped_and_broken_files_named(tmp_path):
    run = write_run(tmp_path / "run")
    evil = line("x", {"kind": "<script>alert(1)</script>", "n": None}, {"score": 1.0})
    write_lines(run, 'a"<b>', [evil])
    html = render_report(run).read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "Task: a&quot;&lt;b&gt;" in html
    write_lines(run, "broken", [{"task": "broken"}])
    with pytest.raises(ValueError, match=r"broken.jsonl, line 1: wanted an object"):
        render_report(run)
