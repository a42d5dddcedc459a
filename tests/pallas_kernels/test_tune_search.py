"""The tuner's parts: candidates, the search with a fake clock, clock and verdicts."""

import itertools
import math
import time

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.local_attention.tiles import Key, Tile, Tiles, read_table
from pallas_kernels.tune import clock, local_attention, verdict
from pallas_kernels.tune.clock import ClockError, Program
from pallas_kernels.tune.local_attention import (
    LocalAttention,
    estimated_shared_memory,
    fits,
)
from pallas_kernels.tune.race import Timing
from pallas_kernels.tune.search import BATCH, GAIN, HOPELESS, search, settle
from pallas_kernels.tune.space import HOPPER, Limits, make_space
from pallas_kernels.tune.verdict import Refusal

DEFAULT = Tile(16, 16, 4, 1)
NEVER = time.monotonic() + 1e6
KERNELS = LocalAttention.kernels


# What is tried


def row(width, dtype_bytes=2, *, precise=False):
    return Key(None, width, dtype_bytes, "long", precise)


def candidates(kernel, key, default, limits=HOPPER):
    tiles = Tiles(default, default, default)
    return LocalAttention().space(kernel, key, tiles, limits).candidates


@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_are_powers_of_two_behind_the_default(kernel):
    for key, tiles in read_table().items():
        default = getattr(tiles, kernel)
        found = candidates(kernel, key, default)
        assert found[0] == default
        assert len(set(found)) == len(found) > 10
        for tile in found:
            assert min(tile.rows, tile.keys) >= 16
            assert all(n & (n - 1) == 0 for n in (tile.rows, tile.keys, tile.warps))
        apart = [cost(tile, default) for tile in found]
        assert apart == sorted(apart)


def test_the_default_is_tried_where_it_does_not_fit():
    default = Tile(128, 128, 8, 3)
    small = Limits(shared_memory=99 * 1024)
    found = candidates("forward", row(128), default, small)
    assert found[0] == default
    assert all(
        estimated_shared_memory("forward", tile, row(128)) <= small.shared_memory
        for tile in found[1:]
    )


# Compiled for sm_90a by XLA of jax 0.10.2: kernel, width, bytes, tile, bytes of shared
# memory, bytes spilled.
COMPILED = [
    ("forward", 64, 2, (64, 64, 4, 2), 41_984, 0),
    ("forward", 128, 2, (64, 64, 4, 3), 115_712, 0),
    ("forward", 128, 2, (128, 128, 8, 3), 230_400, 36),
    ("forward", 256, 2, (128, 64, 8, 2), 196_864, 0),
    ("forward", 128, 4, (128, 32, 8, 2), 114_816, 0),
    ("forward", 256, 4, (128, 32, 8, 2), 229_504, 1788),
    ("dq", 64, 2, (64, 64, 4, 3), 66_560, 0),
    ("dq", 128, 2, (128, 64, 8, 3), 164_864, 0),
    ("dq", 128, 4, (64, 64, 8, 2), 164_096, 384),
    ("dq", 256, 4, (64, 32, 4, 2), 229_504, 3528),
    ("dkv", 128, 2, (32, 64, 4, 2), 65_920, 0),
    ("dkv", 128, 2, (32, 128, 8, 3), 115_456, 0),
    ("dkv", 256, 2, (32, 64, 4, 2), 131_456, 4216),
    ("dkv", 256, 2, (32, 128, 16, 2), 196_992, 2416),
    ("dkv", 64, 4, (32, 64, 8, 2), 57_728, 0),
    ("dkv", 256, 4, (32, 64, 8, 2), 229_760, 4548),
]


@pytest.mark.parametrize(("kernel", "width", "size", "tile", "shared", "_"), COMPILED)
def test_shared_memory_is_estimated(kernel, width, size, tile, shared, _):
    estimate = estimated_shared_memory(kernel, Tile(*tile), row(width, size))
    assert shared - 2048 <= estimate <= shared


@pytest.mark.parametrize(("kernel", "width", "size", "tile", "_", "spilled"), COMPILED)
def test_tiles_that_spill_much_are_dropped(kernel, width, size, tile, _, spilled):
    kept = fits(kernel, Tile(*tile), key=row(width, size), limits=HOPPER)
    assert kept if spilled < 1000 else not kept


def test_what_exceeds_the_shared_memory_is_dropped():
    # XLA: "Shared memory size limit exceeded: requested 262400, available: 232448".
    assert not fits("forward", Tile(64, 64, 8, 2), key=row(256, 4), limits=HOPPER)
    assert not fits("forward", Tile(64, 64, 4, 3), key=row(128), limits=Limits(101_376))


def test_products_in_full_keep_to_small_blocks():
    precise = row(128, 4, precise=True)
    assert fits("forward", Tile(32, 32, 8, 1), key=precise, limits=HOPPER)
    assert not fits("forward", Tile(64, 32, 8, 1), key=precise, limits=HOPPER)


def test_moves_lead_back():
    tile, space = Tile(64, 32, 4, 2), grid()
    moved = space.around(tile)
    assert len(set(moved)) == len(moved) == 14
    assert tile not in moved
    assert all(tile in space.around(other) for other in moved)


def test_landmarks_are_candidates():
    tiles = Tiles(*[Tile(16, 16, 8, 1)] * 3)
    space = LocalAttention().space("dq", row(128, 4, precise=True), tiles, HOPPER)
    assert list(space.landmarks) == []
    space = LocalAttention().space("dq", row(128), tiles, HOPPER)
    assert set(space.landmarks) < set(local_attention.LANDMARKS)
    assert set(space.landmarks) < set(space.candidates)


# The search


def grid(landmarks=()):
    """A space around DEFAULT."""
    sides, warps = (16, 32, 64, 128), (2, 4, 8)
    tiles = itertools.product(sides, sides, warps, (1, 2, 3))
    tiles = itertools.starmap(Tile, tiles)
    return make_space(DEFAULT, tiles, fits=lambda tile: True, landmarks=landmarks)


def cost(tile, best=(64, 32, 8, 3)):
    """Seconds, least at `best`."""
    apart = sum(abs(math.log2(a / b)) for a, b in zip(tile[:3], best[:3], strict=True))
    return 1e-3 * (1 + apart + abs(tile.stages - best[3]))


class FakeRace:
    """A race whose seconds are `cost`, or what `results` says."""

    def __init__(self, results=None):
        self.results = results or {}
        self.races = []

    def __call__(self, tiles, /, *, kept, deadline):
        self.races.append(list(tiles))
        return {tile: self.results.get(tile, cost(tile)) for tile in tiles}


def test_the_descent_finds_the_best():
    race = FakeRace()
    outcome = search(grid(), [DEFAULT], race, deadline=NEVER)
    assert outcome.finished
    assert outcome.best == Tile(64, 32, 8, 3)
    assert outcome.anchor == DEFAULT
    assert outcome.trials[outcome.best].ratio == pytest.approx(1 / cost(DEFAULT) / 1e3)
    assert len(outcome.trials) < len(grid().candidates) / 2
    assert all(DEFAULT in raced for raced in race.races)


def test_the_descent_sets_out_from_a_known_tile():
    race = FakeRace()
    start = Tile(64, 32, 8, 2)
    outcome = search(grid(), [start, DEFAULT], race, deadline=NEVER)
    assert outcome.best == Tile(64, 32, 8, 3)
    assert len(race.races) == 2
    assert outcome.anchor == DEFAULT


def test_landmarks_are_raced_first():
    far = Tile(128, 128, 8, 3)
    race = FakeRace({far: 1e-6})
    outcome = search(grid([far]), [DEFAULT], race, deadline=NEVER)
    assert far in race.races[0]
    assert outcome.best == far


def test_a_start_that_is_no_candidate_is_left_out():
    race = FakeRace()
    search(grid(), [Tile(512, 16, 4, 1)], race, deadline=NEVER)
    assert race.races[0][0] == DEFAULT


def test_what_gains_less_than_the_clock_tells_is_not_taken():
    flat = {
        tile: 1e-3 * (1 - GAIN / 2 * (tile != DEFAULT)) for tile in grid().candidates
    }
    outcome = search(grid(), [DEFAULT], FakeRace(flat), deadline=NEVER)
    assert outcome.best == DEFAULT
    assert outcome.ranking()[0] == DEFAULT


def test_without_the_default_the_first_that_works_is_the_measure():
    lost = {
        tile: Refusal(verdict.SHARED) for tile in grid().candidates if tile.stages == 1
    }
    outcome = search(grid(), [DEFAULT], FakeRace(lost), deadline=NEVER)
    assert outcome.best == Tile(64, 32, 8, 3)
    assert outcome.anchor is not None
    assert Tile(*outcome.anchor).stages != 1
    assert outcome.trials[DEFAULT].refusal == Refusal(verdict.SHARED)


def test_a_search_in_which_nothing_works_gives_up():
    lost = dict.fromkeys(grid().candidates, Refusal(verdict.WRONG))
    outcome = search(grid(), [DEFAULT], FakeRace(lost), deadline=NEVER)
    assert outcome.finished
    assert outcome.best is None
    assert HOPELESS <= len(outcome.trials) < HOPELESS + BATCH
    assert settle(outcome, lambda tile: None) is None


def test_the_budget_ends_a_search_with_the_best_so_far(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    outcome = search(grid(), [DEFAULT], FakeRace(), deadline=1.5)
    assert not outcome.finished
    assert cost(outcome.best) < cost(DEFAULT)


def test_nothing_is_chosen_before_the_default_was_timed():
    class NoDefault(FakeRace):
        def __call__(self, tiles, **options):
            found = super().__call__(tiles, **options)
            return {tile: s for tile, s in found.items() if tile != DEFAULT}

    outcome = search(grid(), [DEFAULT], NoDefault(), deadline=NEVER)
    assert not outcome.finished
    assert outcome.best is None
    assert outcome.ranking() == []


def test_a_winner_that_is_not_confirmed_gives_way():
    outcome = search(grid(), [DEFAULT], FakeRace(), deadline=NEVER)
    best, second = outcome.ranking()[:2]
    wrong = Refusal(verdict.WRONG, "dk")
    chosen = settle(outcome, lambda tile: wrong if tile == best else None)
    assert chosen == second
    assert outcome.trials[best].refusal == wrong


# The clock


def program(tile=DEFAULT, compiled=lambda operands: operands):
    return Program(tile, compiled, [jnp.ones(2)])


def test_slow_tiles_leave_a_race_early_but_those_kept():
    tiles = [Tile(n, 16, 4, 1) for n in (16, 32, 64)]
    seconds = {tiles[0]: 1.0, tiles[1]: 2.0, tiles[2]: 2.0}
    heard = []

    def fake(program, first, calls):
        heard.append(program.candidate)
        return seconds[program.candidate]

    timing = Timing(5, fake)
    programs = [program(tile) for tile in tiles]
    found = timing.turns(programs, kept=[tiles[2]], late=lambda: False)
    assert found == seconds
    assert heard[:6] == [*tiles, *tiles]
    assert [heard.count(tile) for tile in tiles] == [5, 2, 5]


def test_a_race_that_is_late_ends_after_the_least_rounds():
    heard = []
    timing = Timing(7, lambda *arguments: heard.append(arguments) or 1.0)
    timing.turns([program()], kept=[], late=lambda: True)
    assert len(heard) == 2


def test_a_tile_that_fails_in_a_race_leaves_it():
    bad = Tile(32, 16, 4, 1)

    def compiled(operands):
        raise ValueError("no launch\nat all")

    timing = Timing(3, lambda *_: 1.0)
    programs = [program(), program(bad, compiled)]
    found = timing.turns(programs, kept=[], late=lambda: False)
    assert found == {DEFAULT: 1.0, bad: Refusal(verdict.RUN, "no launch")}


def test_without_cupti_the_wall_clock_is_used(monkeypatch):
    def broken(*_):
        raise ClockError("CUPTI has gone")

    monkeypatch.setattr(clock, "kernel_clock", broken)
    chosen, words = clock.find_clock(program())
    assert chosen is clock.wall_clock
    assert "CUPTI has gone" in words
    timing = Timing(3, broken)
    found = timing.turns([program()], kept=[], late=lambda: False)
    assert isinstance(found[DEFAULT], float)
    assert timing.clock is clock.wall_clock


def test_the_profiler_gives_the_time_of_a_call(monkeypatch):
    from jax.experimental.mosaic.gpu import profiler

    def measure(function):
        assert isinstance(function, jax.stages.Wrapped)
        return lambda: (function(), 6.0)

    calls = []
    compiled = lambda operands: calls.append(1) or operands  # noqa: E731
    monkeypatch.setattr(profiler, "measure", measure)
    assert clock.kernel_clock(program(compiled=compiled), 0, 3) == pytest.approx(2e-3)
    assert len(calls) == 3
    monkeypatch.setattr(profiler, "measure", lambda f: lambda: (f(), None))
    with pytest.raises(ClockError, match="no kernel"):
        clock.kernel_clock(program(), 0, 3)
