"""Collects runs into results/ and draws their held-out bits per byte against steps.

python -m experiments.first_run RUN [RUN ...]   # collect, then draw
python -m experiments.first_run                 # draw again what is committed
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Annotated

import matplotlib
import tyro
from matplotlib.figure import Figure

from swa_jax.evaluation.run_record import read_run

RESULTS = Path(__file__).parent / "results"
PLOT = RESULTS / "bits_per_byte.svg"
COLORS = ("#7fb6c4", "#0f5f73", "#1f2a30")


def collect(run: Path, /) -> dict:
    """Returns what the results keep of a finished run; ValueError for another."""
    record = read_run(run)
    if record.evaluation is None:
        raise ValueError(f"{run} is not finished: it has no evaluation.json.")
    speeds = [
        line["tokens_per_second"]
        for line in record.training
        if "tokens_per_second" in line  # not the first step
    ]
    windows = record.evaluation["windows"]
    return {
        "preset": record.config.preset,
        "steps": record.config.steps,
        "tokens": record.config.steps
        * record.config.batch.rows
        * record.config.data.seq_len,
        "seed": record.config.seed,
        "median_tokens_per_second": round(statistics.median(speeds)),
        "validation": [
            {name: line[name] for name in ("step", "window", "loss", "bits_per_byte")}
            for line in record.validation
        ],
        "bits_per_byte": {w: value["bits_per_byte"] for w, value in windows.items()},
        "gzip_bits_per_byte": record.evaluation["gzip_bits_per_byte"],
    }


def draw(results: list[dict], path: Path, /) -> None:
    """Writes the figure of the collected runs, at the largest window of each."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "first_run"})
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for result, color in zip(results, COLORS, strict=False):
        window = max(line["window"] for line in result["validation"])
        lines = [x for x in result["validation"] if x["window"] == window]
        steps, bits = ([x[k] for x in lines] for k in ("step", "bits_per_byte"))
        label = f"{result['preset']}, {result['steps']:,} steps"
        axes.plot(steps, bits, color=color, marker="o", markersize=3, label=label)
    level = results[0]["gzip_bits_per_byte"]
    axes.axhline(level, color="#7a878e", linestyle="--", linewidth=1, label="gzip -9")
    axes.set(xlabel="step", ylabel="held-out bits per byte")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e9eb")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main(runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()) -> int:
    """Collects finished run folders into results/ and draws the figure again.

    Args:
        runs: run folders written by `swax train`.
    """
    RESULTS.mkdir(exist_ok=True)
    for run in runs:
        result = collect(run)
        name = f"{result['preset']}-{result['steps']}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    if not results:
        raise ValueError("no results yet: give the folder of a finished run.")
    draw(sorted(results, key=lambda result: result["steps"]), PLOT)
    print(PLOT)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main, prog="python -m experiments.first_run"))
    except (ValueError, FileNotFoundError) as error:
        print(f"first_run: {error}", file=sys.stderr)
        sys.exit(2)
