"""The command `python -m experiments.kernel_speed`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro

from .cases import QUICK, Sizes
from .claims import judge
from .devices import Platform, find_device
from .memory import measure_memory
from .peer import PEER_CHUNK, PeerMissing
from .provenance import provenance
from .races import race_attention, race_mlstm
from .report import Results, show, write
from .scaling import measure_scaling
from .timing import matmul_peak

RESULTS = Path(__file__).parent / "results"
SUCCESS, BAD_INPUT = 0, 2
GPU_PEAK_SIZE = 8192  # side of the matrices


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure time and memory of the linear-cost forms, and race them against peers.

    Attributes:
        device: backend of JAX to measure.
        rounds: number of interleaved repetitions of each time; None: 15, or 3
            with --quick.
        peer_lengths: lengths (tokens, multiples of 64) of the race against
            mlstm_kernels; none given: 1024 2048 4096, which take minutes to
            compile.
        seed: seed of the random inputs.
        quick: tiny sizes, to see that everything runs.
        out: folder for DEVICE.json and DEVICE.md; None: results/ beside this program,
            and no file with --quick.
    """

    device: Platform = "cpu"
    rounds: int | None = None
    peer_lengths: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[T ...]")] = ()
    seed: int = 0
    quick: bool = False
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured (whatever the verdicts), 2 bad usage."""
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
    origin = provenance(
        device_kind=device.device_kind, arguments=arguments, seed=options.seed
    )
    with jax.default_device(device):
        results = _measure(options, sizes, origin)
    show(results)
    folder = options.out or (None if options.quick else RESULTS)
    if folder is not None:
        for path in write(results, folder, name=options.device):
            print(f"written: {path}")
    return SUCCESS


def _sizes(options: Options) -> Sizes:
    """Returns the sizes that the options choose; raises ValueError on a bad one."""
    sizes = QUICK if options.quick else Sizes()
    if options.device == "gpu" and not options.quick:
        # A smaller matmul is over before a GPU is full.
        sizes = dataclasses.replace(sizes, peak_size=GPU_PEAK_SIZE)
    if options.rounds is not None:
        if options.rounds < 1:
            raise ValueError(f"--rounds wants at least 1; got {options.rounds}.")
        sizes = dataclasses.replace(sizes, rounds=options.rounds)
    if options.peer_lengths:
        for length in options.peer_lengths:
            if length < 1 or length % PEER_CHUNK:
                raise ValueError(
                    f"--peer-lengths wants multiples of {PEER_CHUNK} tokens, which "
                    f"mlstm_kernels needs; got {length}."
                )
        sizes = dataclasses.replace(sizes, peer_lengths=options.peer_lengths)
    return sizes


def _measure(options: Options, sizes: Sizes, origin: dict) -> Results:
    """Returns all numbers of a run; the peak is the faster one of start and end."""
    seed = options.seed
    peak = {"size": sizes.peak_size, "rounds": sizes.rounds, "seed": seed}
    _progress("memory: a fresh process")
    memory = measure_memory(sizes, device=options.device, seed=seed)
    _progress("matmul peak")
    peak_before = matmul_peak(**peak)
    scaling = measure_scaling(sizes, seed=seed, progress=_progress)
    attention_races = race_attention(sizes, seed=seed, progress=_progress)
    mlstm_races, note = [], None
    try:
        mlstm_races = race_mlstm(sizes, seed=seed, progress=_progress)
    except PeerMissing as error:
        note = f"Not raced: {error}"
    peak_after = matmul_peak(**peak)
    claims = judge(
        sizes,
        scaling=scaling,
        memory=memory,
        mlstm_races=mlstm_races,
        attention_races=attention_races,
    )
    return Results(
        provenance=origin,
        quick=options.quick,
        peak=max(peak_before, peak_after),
        scaling=scaling,
        memory=memory,
        mlstm_races=mlstm_races,
        mlstm_race_note=note,
        attention_races=attention_races,
        claims=claims,
    )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
