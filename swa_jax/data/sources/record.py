"""What a reader of a format hands over: texts, and the records that hold none."""

from typing import NamedTuple


class Record(NamedTuple):
    """One record of a file: its text, or why it has none."""

    number: int  # from 1 in its file; 0: the file as a whole
    text: str | None
    reason: str = ""  # in a few words, the same for all such records
    detail: str = ""  # what came
    harmless: bool = False  # nothing is lost by leaving it out


def bad(number: int, reason: str, detail: object = "", /) -> Record:
    """A record that holds no text, though it should."""
    return Record(number, None, reason, " ".join(str(detail).split())[:200])


def text_of(number: int, value: object, /) -> Record:
    """The record of a value that should be a text."""
    if not isinstance(value, str):
        wanted = "no value" if value is None else f"a {type(value).__name__}"
        return bad(number, "no string", f"got {wanted}")
    if not value:
        return Record(number, None, "empty", harmless=True)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return bad(number, "not UTF-8", error)
    return Record(number, value)
