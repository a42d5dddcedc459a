"""The CPU suite: scaling, memory, and the races against jax.nn and mlstm_kernels."""

import dataclasses
from collections.abc import Callable, Sequence

from .cases import QUICK, Sizes
from .claims import judge
from .memory import measure_memory
from .peer import PEER_CHUNK, PeerMissing
from .races import race_attention, race_mlstm
from .report import Results
from .scaling import measure_scaling
from .timing import matmul_peak


def choose_sizes(
    *, quick: bool, rounds: int | None, peer_lengths: Sequence[int]
) -> Sizes:
    """Returns the sizes of a run; raises ValueError on a bad peer length."""
    sizes = QUICK if quick else Sizes()
    if rounds is not None:
        sizes = dataclasses.replace(sizes, rounds=rounds)
    if peer_lengths:
        for length in peer_lengths:
            if length < 1 or length % PEER_CHUNK:
                raise ValueError(
                    f"--peer-lengths wants multiples of {PEER_CHUNK} tokens, which "
                    f"mlstm_kernels needs; got {length}."
                )
        sizes = dataclasses.replace(sizes, peer_lengths=tuple(peer_lengths))
    return sizes


def measure(
    sizes: Sizes,
    origin: dict,
    /,
    *,
    quick: bool,
    seed: int,
    progress: Callable[[str], None],
) -> Results:
    """Returns all numbers of a run; the peak is the faster one of start and end."""
    square = {"size": sizes.peak_size, "rounds": sizes.rounds, "seed": seed}
    progress("memory: a fresh process")
    memory = measure_memory(sizes, device="cpu", seed=seed)
    progress("matmul peak")
    peak_before = matmul_peak(**square)
    scaling = measure_scaling(sizes, seed=seed, progress=progress)
    attention_races = race_attention(sizes, seed=seed, progress=progress)
    mlstm_races, note = [], None
    try:
        mlstm_races = race_mlstm(sizes, seed=seed, progress=progress)
    except PeerMissing as error:
        note = f"Not raced: {error}"
    peak_after = matmul_peak(**square)
    claims = judge(
        sizes,
        scaling=scaling,
        memory=memory,
        mlstm_races=mlstm_races,
        attention_races=attention_races,
    )
    peak = max(peak_before, peak_after)
    races = (mlstm_races, note, attention_races)
    return Results(origin, quick, peak, scaling, memory, *races, claims)
