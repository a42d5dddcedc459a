"""Tables, on the screen and in Markdown."""

import dataclasses
from collections.abc import Sequence

import rich.console
import rich.table

SCREEN_WIDTH = 132  # columns, where the output is no terminal


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, a note below it (may be empty), column names, and rows of text."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def page(title: str, introduction: str, tables: Sequence[Table], /) -> str:
    """Returns the tables as one Markdown page."""
    lines = [f"# {title}", "", introduction, ""]
    for table in tables:
        lines += [f"## {table.title}", ""]
        if table.rows:
            lines += [_markdown_row(table.columns)]
            lines += [_markdown_row(["---"] * len(table.columns))]
            lines += [_markdown_row(row) for row in table.rows] + [""]
        if table.note:
            lines += [f"{table.note}.", ""]
    return "\n".join(lines)


def show(introduction: str, tables: Sequence[Table], /) -> None:
    """Prints the tables and returns nothing."""
    console = rich.console.Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = SCREEN_WIDTH
    console.print(introduction)
    for table in tables:
        grid = rich.table.Table(*table.columns, title=table.title)
        grid.title_justify = "left"
        for row in table.rows:
            grid.add_row(*row)
        console.print()
        console.print(grid if table.rows else table.title)
        if table.note:
            console.print(f"{table.note}.")


def milliseconds(seconds: float, /) -> str:
    """Returns a time with three digits, in ms."""
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def percent(share: float, /) -> str:
    """Returns a share with one decimal."""
    return f"{100 * share:.1f} %"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
