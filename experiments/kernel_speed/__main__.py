"""The command `python -m experiments.kernel_speed`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from . import cpu_suite, report
from .cases import Sizes
from .devices import Platform, find_device
from .gpu.clocks import Clock
from .gpu.origin import origin
from .gpu.programs import Forms
from .gpu.sizes import QUICK, GpuSizes
from .gpu.suite import run
from .provenance import provenance

RESULTS = Path(__file__).parent / "results"
SUCCESS, FAILED, BAD_INPUT = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure time and memory of the linear-cost forms, and race them against peers.

    Attributes:
        device: backend of JAX to measure; each has a suite of its own.
        rounds: number of interleaved repetitions of each time; None: 15 on a CPU, 7 on
            a GPU, fewer with --quick.
        peer_lengths: CPU: lengths (tokens, multiples of 64) of the race against
            mlstm_kernels; none given: 1024 2048 4096, which take minutes to compile.
        operation: GPU: measure attention or the matrix memory alone; None: both.
        budget_seconds: GPU: no case starts after as many seconds.
        resume: GPU: go on with the results in the folder, if they are of the same
            commit, source, device and versions.
        commit: GPU: the commit to record, where there is no git to ask.
        clock: GPU: kernels by CUPTI where it can be read, or the wall in any case.
        seed: seed of the random inputs.
        quick: tiny sizes, to see that everything runs.
        out: folder for DEVICE.json and DEVICE.md (and the GPU's plot); None: results/
            beside this program, and no file with --quick.
    """

    device: Platform = "cpu"
    rounds: int | None = None
    peer_lengths: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[T ...]")] = ()
    operation: Literal["attention", "matrix-memory"] | None = None
    budget_seconds: float = 330.0
    resume: bool = False
    commit: str | None = None
    clock: Clock = "kernels"
    seed: int = 0
    quick: bool = False
    out: Path | None = None

    def folder(self) -> Path | None:
        """Returns where the results go, None for nowhere."""
        return self.out or (None if self.quick else RESULTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, whatever the verdicts; 2 bad usage.

    1: on a GPU one of our kernels failed, was wrong, or differed between two runs.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(
        Options,
        args=arguments,
        prog="python -m experiments.kernel_speed",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        sizes = _sizes(options)
        device = find_device(options.device)
    except ValueError as error:
        print(f"kernel_speed: {error}", file=sys.stderr)
        return BAD_INPUT
    with jax.default_device(device):
        if isinstance(sizes, GpuSizes):
            return _gpu(options, sizes, device, arguments)
        return _cpu(options, sizes, device, arguments)


def _sizes(options: Options) -> Sizes | GpuSizes:
    """Returns the sizes that the options choose; raises ValueError on a bad one."""
    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"--rounds wants at least 1; got {options.rounds}.")
    if options.device == "cpu":
        if options.resume or options.commit or options.operation:
            raise ValueError("--operation, --resume and --commit want --device gpu.")
        return cpu_suite.choose_sizes(
            quick=options.quick,
            rounds=options.rounds,
            peer_lengths=options.peer_lengths,
        )
    if options.peer_lengths:
        raise ValueError("--peer-lengths wants --device cpu.")
    sizes = (QUICK if options.quick else GpuSizes()).of(options.operation)
    if options.rounds is not None:
        sizes = dataclasses.replace(sizes, rounds=options.rounds)
    return sizes


def _cpu(options: Options, sizes: Sizes, device: Any, arguments: Sequence[str]) -> int:
    """Returns the exit code of the CPU suite."""
    results = cpu_suite.measure(
        sizes,
        provenance(
            device_kind=device.device_kind, arguments=arguments, seed=options.seed
        ),
        quick=options.quick,
        seed=options.seed,
        progress=_progress,
    )
    report.show(results)
    if (folder := options.folder()) is not None:
        for path in report.write(results, folder, name="cpu"):
            print(f"written: {path}")
    return SUCCESS


def _gpu(
    options: Options, sizes: GpuSizes, device: Any, arguments: Sequence[str]
) -> int:
    """Returns the exit code of the GPU suite."""
    results = run(
        sizes,
        origin(device, arguments=arguments, seed=options.seed, commit=options.commit),
        forms=Forms(),
        quick=options.quick,
        seed=options.seed,
        budget_seconds=options.budget_seconds,
        clock=options.clock,
        folder=options.folder(),
        resume=options.resume,
        progress=_progress,
    )
    faults = results.faults()
    for fault in faults:
        print(f"kernel_speed: {fault}", file=sys.stderr)
    return FAILED if faults else SUCCESS


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
