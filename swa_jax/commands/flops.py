"""``swax flops``: what the presets cost, in closed form."""

import dataclasses
import json

from rich.console import Console
from rich.table import Table

from swa_jax.models.accounting import Account, account
from swa_jax.models.presets import PRESETS, preset

UNITS = ("", "k", "M", "G", "T")


def print_flops(
    name: str | None, /, *, seq_len: int, windows: tuple[int, ...], as_json: bool
) -> None:
    """Prints the costs of one preset, or of all, at a length and each of ``windows``.

    Raises ValueError for an unknown preset and for lengths or windows below 1.
    """
    if not windows:
        raise ValueError(f"wanted at least one window (tokens), got {windows=}.")
    names = list(PRESETS) if name is None else [name]
    accounts = {
        name: [account(preset(name), seq_len=seq_len, window=w) for w in windows]
        for name in names
    }
    if as_json:
        print(json.dumps(_document(accounts, seq_len, windows), indent=2))
        return
    console = Console(highlight=False)
    console.print(_presets_table(accounts, windows))
    if name is not None:
        console.print(_layers_table(accounts[name][-1]))
    console.print(
        f"\nSequences of {seq_len:,} tokens, windows W in tokens. Forward and training "
        "in GFLOPs/token: 2 per parameter of a matrix product, scores and sums over "
        "values of every key that is read, update and read of the matrix memory; "
        "training is three times the forward pass. State: bytes that one sequence "
        "carries from token to token.",
        style="dim",
    )


def _document(
    accounts: dict[str, list[Account]], seq_len: int, windows: tuple[int, ...]
) -> dict:
    return {
        "seq_len": seq_len,
        "windows": list(windows),
        "units": {
            "forward_flops": "FLOPs/token",
            "training_flops": "FLOPs/token",
            "remat_flops": "FLOPs/token",
            "state_bytes": "bytes/sequence",
        },
        "presets": [
            {
                "preset": name,
                "parameters": dataclasses.asdict(costs[0].parameters),
                "costs": [_cost(cost) for cost in costs],
            }
            for name, costs in accounts.items()
        ],
    }


def _cost(cost: Account) -> dict:
    fields = dataclasses.asdict(cost)
    return {n: v for n, v in fields.items() if n not in ("parameters", "seq_len")}


def _presets_table(
    accounts: dict[str, list[Account]], windows: tuple[int, ...]
) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    headings = ["params\n", "without\nembed."]
    headings += [f"forward\nW={window:,}" for window in windows]
    headings += [f"training\nW={max(windows):,}"]
    headings += [f"state\nW={window:,}" for window in windows]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    size = None
    for name, costs in accounts.items():
        if size not in (None, name.partition("-")[2]):
            table.add_section()
            table.add_row()
        size = name.partition("-")[2]
        count = costs[0].parameters
        largest = max(costs, key=lambda cost: cost.window)
        table.add_row(
            name,
            in_units(count.total),
            in_units(count.non_embedding),
            *(f"{cost.forward_flops / 1e9:.4g}" for cost in costs),
            f"{largest.training_flops / 1e9:.4g}",
            *(in_units(cost.state_bytes) for cost in costs),
        )
    return table


def _layers_table(cost: Account) -> Table:
    table = Table(
        title=f"\nby kind of layer, W={cost.window:,}",
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("kind")
    for title in ("layers", "parameters", "forward GFLOPs/token", "state bytes"):
        table.add_column(title, justify="right")
    for kind in cost.kinds:
        table.add_row(
            kind.kind,
            str(kind.layers),
            in_units(kind.parameters),
            f"{kind.forward_flops / 1e9:.4g}",
            in_units(kind.state_bytes),
        )
    return table


def in_units(number: int, /) -> str:
    """Returns the number in thousands, millions, ...: 1_476_657_216 -> "1.48G"."""
    value, unit = float(number), 0
    while value >= 999.5 and unit + 1 < len(UNITS):
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{UNITS[unit]}"
