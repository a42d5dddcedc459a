"""The pieces of a report's page, as HTML."""

from collections.abc import Iterable, Sequence
from html import escape


def card(title: str, note: str, content: str, kind: str = "") -> str:
    """Returns a section with a title, a quiet note and content that is HTML."""
    quiet = f'<span class="quiet">{escape(note)}</span>' if note else ""
    return f'<section class="{kind}"><h2>{escape(title)}</h2>{quiet}{content}</section>'


def pair(left: str, right: str) -> str:
    """Returns two sections beside each other, where there is room."""
    return f'<div class="pair">{left}{right}</div>'


def table(rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of texts."""
    lines = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
