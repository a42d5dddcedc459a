"""The command `python -m experiments.memory_error`."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from experiments.kernel_speed.devices import Platform, find_device
from experiments.kernel_speed.gpu.origin import origin

from .cases import Case, Dtype, widths_of
from .ours import check_truth
from .report import write
from .results import Results
from .suite import FORMS, Failures, cases, measure

RESULTS = Path(__file__).parent / "results"
CHECKED = 130  # tokens of the check of the truth
SUCCESS, FAILED, BAD_INPUT = 0, 1, 2

Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], tyro.conf.arg(metavar="[...]")]


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure how far each form of the mLSTM is from float64.

    Attributes:
        lengths: tokens.
        biases: of the input gate.
        dtypes: of q, k and v.
        implementations: forms to measure; none given: all.
        heads: heads.
        key_width: of one head.
        value_width: of one head.
        seeds: number of seeds, 0 and up; of rows above 8192 tokens the first.
        device: backend of JAX, and of PyTorch for the published forms.
        out: folder for DEVICE.jsonl and DEVICE.md; what is there already of the same
            source, device and versions is not measured again.
    """

    lengths: Many[int] = (64, 1024, 8192, 65_536)
    biases: Many[float] = (-10.0, 0.0, 3.0)
    dtypes: Many[Dtype] = ("bfloat16", "float32")
    implementations: Many[str] = ()
    heads: int = 2
    key_width: int = 64
    value_width: int = 64
    seeds: int = 3
    device: Platform = "cpu"
    out: Path = RESULTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, whatever the verdicts; 2 bad usage.

    1: the chunked form in float64 is not the recurrence.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.memory_error"
    )
    try:
        chosen = _cases(options)
        device = find_device(options.device)
    except ValueError as error:
        print(f"memory_error: {error}", file=sys.stderr)
        return BAD_INPUT
    provenance = origin(device, arguments=arguments, seed=0, commit=None)
    command = ["python", "-m", "experiments.memory_error", *arguments]
    provenance["command"] = shlex.join(command)
    try:
        with jax.default_device(device):
            path = _run(options, chosen, provenance)
    except FloatingPointError as error:
        print(f"memory_error: {error}", file=sys.stderr)
        return FAILED
    print(f"written: {path}")
    return SUCCESS


def _cases(options: Options) -> list[Case]:
    """Returns the cases that the options choose; raises ValueError on a bad one."""
    unknown = [name for name in options.implementations if name not in FORMS]
    if unknown:
        known = ", ".join(FORMS)
        raise ValueError(f"--implementations wants some of {known}; got {unknown}.")
    widths = (options.heads, options.key_width, options.value_width)
    if min(*options.lengths, *widths, options.seeds) < 1:
        raise ValueError("lengths, widths, --heads and --seeds are at least 1.")
    return cases(
        lengths=options.lengths,
        biases=options.biases,
        dtypes=options.dtypes,
        seeds=options.seeds,
        heads=options.heads,
        key_width=options.key_width,
        value_width=options.value_width,
    )


def _run(options: Options, chosen: list[Case], provenance: dict) -> Path:
    """Returns the path of the page, once everything is measured that was not yet."""
    columns = (TextColumn("case"), MofNCompleteColumn(), BarColumn())
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("case", total=len(chosen))
        for bias in options.biases:
            case = dataclasses.replace(chosen[0], tokens=CHECKED, bias=bias)
            provenance[f"truth_check_bias_{bias:g}"] = check_truth(case)
        results = Results(options.out / f"{options.device}.jsonl", provenance)
        forms = options.implementations or FORMS
        failures = Failures()
        for case in chosen:
            failures += measure(case, forms, results, progress=bar.print)
            bar.advance(task)
    return write(results, widths_of(chosen[0]), failures)


if __name__ == "__main__":
    sys.exit(main())
