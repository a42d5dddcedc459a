"""The report of a run folder: whole, offline, escaped, at any stage of the run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from swa_jax.configuration import to_dict
from swa_jax.evaluation.report import render_report
from swa_jax.evaluation.run_record import read_metrics, read_run
from swa_jax.models.accounting import parameter_count
from swa_jax.models.presets import preset
from swa_jax.training.recipes import recipe

EDGES = [0, 8, 16, 32]
PARAMETERS = f"{parameter_count(preset('swax-nano')).total:,}"


def training_line(step: int, **values) -> dict:
    line = {"step": step, "split": "train", "loss": 5.0 - 0.1 * step, "window": 32}
    line |= {"bits_per_byte": 4.0 - 0.1 * step, "lr": 1e-3, "tokens_per_second": 1e4}
    return line | values


def validation_line(step: int, window: int) -> dict:
    line = {"step": step, "split": "validation", "window": window}
    return line | {"loss": 5.0 - 0.1 * step, "bits_per_byte": 3.0}


def evaluation(text: str = "f(x)") -> dict:
    values = {"loss": 2.5, "bits_per_byte": 2.25, "tokens": 32}
    values |= {"position_edges": EDGES, "loss_by_position": [3.0, 2.5, None]}
    windows = {"16": values, "32": values | {"loss_by_position": [3.0, 2.4, 2.3]}}
    sample = {"prompt": "def ", "text": text}
    return {"windows": windows, "gzip_bits_per_byte": 1.875, "sample": sample}


def write_run(folder: Path, *, lines=(), torn: str = "", final: dict | None = None):
    folder.mkdir()
    config = to_dict(recipe("swax-nano")) | {"steps": 20}
    (folder / "config.json").write_text(json.dumps(config))
    text = "".join(json.dumps(line) + "\n" for line in lines) + torn
    (folder / "metrics.jsonl").write_text(text)
    if final is not None:
        (folder / "evaluation.json").write_text(json.dumps(final))
    return folder


class Page(HTMLParser):
    """Collects the tags, the attributes that make a browser fetch, and the ids."""

    FETCHING = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.references, self.ids = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in self.FETCHING]
        self.ids += [value for name, value in attrs if name == "id"]


FINISHED = [
    *[training_line(step) for step in range(1, 21)],
    *[validation_line(step, window) for step in (10, 20) for window in (32, 256)],
]


def test_a_finished_run_shows_everything(tmp_path):
    run = write_run(tmp_path / "finished", lines=FINISHED, final=evaluation())
    path = render_report(run)
    html = path.read_text(encoding="utf-8")
    assert path == run / "report.html"
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "Loss",
        "Bits per byte",
        "Learning rate",
        "Windows drawn",
        "Validation loss by position",
        "A sample",
        "The run",
    ]
    assert html.count("<svg") == 5
    for text in ("swax-nano", "gzip -9: 1.88", "2.250", "10,000", PARAMETERS):
        assert text in html, text


def test_nothing_is_fetched_and_no_script_runs(tmp_path):
    run = write_run(tmp_path / "run", lines=FINISHED, final=evaluation())
    html = render_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert page.references, "the figures refer to their own markers"
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))


def test_every_reference_has_one_target(tmp_path):
    run = write_run(tmp_path / "run", lines=FINISHED, final=evaluation())
    html = render_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    targets = [*page.references, *re.findall(r"url\((.*?)\)", html)]
    assert {target.removeprefix("#") for target in targets} <= set(page.ids)


def test_text_of_the_model_and_names_are_escaped(tmp_path):
    evil = "</pre><script>alert('&')</script>"
    run = write_run(tmp_path / "<b>run", lines=FINISHED, final=evaluation(evil))
    html = render_report(run).read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "&lt;/pre&gt;&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in html
    assert "&lt;b&gt;run" in html


def test_a_run_in_progress_says_what_is_missing(tmp_path):
    lines = [training_line(step) for step in (1, 2, 3)]
    run = write_run(tmp_path / "run", lines=lines, torn='{"step": 4, "spl')
    html = render_report(run).read_text(encoding="utf-8")
    assert "step 3 of 20" in html
    assert "No validation is logged yet." in html
    assert "No final evaluation" in html
    assert html.count("<svg") == 4


def test_a_run_without_metrics_has_a_report(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    html = render_report(run).read_text(encoding="utf-8")
    assert "No training step is logged yet." in html
    assert PARAMETERS in html  # the facts need no step


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("not JSON", r"metrics.jsonl, line 2 is not JSON"),
        ("[1]", r"metrics.jsonl, line 2: wanted an object"),
        ('{"split": "train"}', r"line 2: wanted an object with a whole number"),
        ('{"step": 2, "split": "test"}', r"line 2.*got '{\"step\": 2"),
    ],
)
def test_a_broken_line_is_named(tmp_path, broken, message):
    run = write_run(tmp_path / "run", lines=[training_line(1)], torn=broken + "\n")
    with pytest.raises(ValueError, match=message):
        render_report(run)


def test_a_step_that_was_done_again_counts_once(tmp_path):
    lines = [training_line(1), training_line(2, loss=9.0), training_line(2, loss=1.0)]
    lines += [validation_line(2, 32), validation_line(2, 256)]
    run = write_run(tmp_path / "run", lines=lines)
    record = read_run(run)
    assert [line["loss"] for line in record.training] == [4.9, 1.0]
    assert [line["window"] for line in record.validation] == [32, 256]


def test_metrics_come_in_the_order_of_their_steps(tmp_path):
    run = write_run(tmp_path / "run", lines=[training_line(2), training_line(1)])
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]


def test_no_run_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        render_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        render_report(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="wanted a JSON object, got list"):
        render_report(tmp_path)
