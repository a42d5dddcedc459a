"""The record of a run: lines that survive, and a console that is read by a person."""

import io
import json

import pytest
from rich.console import Console

from swa_jax.training.metrics import (
    Display,
    MetricsLog,
    duration,
    truncate_metrics,
    write_in_one_move,
)


def record(step, split="train", **more):
    return {"step": step, "split": split, "window": 8, "loss": 1.5, **more}


def test_lines_are_on_disk_when_write_returns(tmp_path):
    with MetricsLog(tmp_path, completed_steps=0) as log:
        log.write(record(1, lr=1e-3))
        log.write(record(1, "validation", bits_per_byte=2.5))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        record(1, lr=1e-3),
        record(1, "validation", bits_per_byte=2.5),
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_after_a_sync_the_events_are_there_to_be_read(tmp_path):
    with MetricsLog(tmp_path, completed_steps=0) as log:
        log.write(record(1))
        log.sync()
        (events,) = (tmp_path / "tensorboard").iterdir()
        assert b"train/loss" in events.read_bytes()


def test_a_resumed_log_drops_the_steps_that_come_again(tmp_path):
    with MetricsLog(tmp_path, completed_steps=0) as log:
        for step in range(1, 6):
            log.write(record(step))
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 6, "spl')  # cut off by the end of the process
    with MetricsLog(tmp_path, completed_steps=3) as log:
        log.write(record(4, loss=7.0))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [record(1), record(2), record(3), record(4, loss=7.0)]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnothing\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: .* got 'nothing'"):
        truncate_metrics(path, completed_steps=3)


def test_a_value_that_json_cannot_hold_is_refused(tmp_path):
    with (
        MetricsLog(tmp_path, completed_steps=0) as log,
        pytest.raises(ValueError, match="JSON"),
    ):
        log.write(record(1, lr=float("nan")))


def test_a_file_is_replaced_in_one_move(tmp_path):
    path = tmp_path / "a.json"
    write_in_one_move(path, "old")
    write_in_one_move(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def display(*, terminal, seconds=0.0):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, color_system=None, width=120)
    return text, Display(steps=10, completed_steps=2, seconds=seconds, console=console)


def test_plain_lines_where_the_output_is_no_terminal():
    text, shown = display(terminal=False)
    with shown:
        shown.show(record(3, bits_per_byte=2.25, tokens_per_second=12345.6))
        shown.show(record(4))
        shown.show(record(4, "validation", bits_per_byte=2.5))
    first, second, third = text.getvalue().splitlines()
    assert first == "step 3/10  loss 1.500  2.250 bits/byte  12,346 tokens/s  window 8"
    assert second == "step 4/10  loss 1.500  window 8  0 s left"
    assert third == "step 4: validation loss 1.500  2.500 bits/byte  window 8"
    assert "\x1b" not in text.getvalue()


def test_plain_lines_are_rationed_but_the_last_step_is_shown():
    text, shown = display(terminal=False, seconds=1e9)
    with shown:
        for step in range(3, 11):
            shown.show(record(step))
    shown_steps = [line.split()[1] for line in text.getvalue().splitlines()]
    assert shown_steps == ["3/10", "10/10"]


def test_a_bar_on_a_terminal():
    text, shown = display(terminal=True)
    with shown:
        shown.show(record(9, bits_per_byte=2.25, tokens_per_second=1000.0))
        shown.message("a line [above] the bar")
    assert "9/10" in text.getvalue()
    assert "2.250 bits/byte" in text.getvalue()
    assert "a line [above] the bar" in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (18725, "5 h 12 min")],
)
def test_durations_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words
