"""A record as it was found: its values, where it stands, and what is wrong with it, if anything."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gradwise.errors import DataError


class UnreadableError(DataError):
    """One record that cannot become a sample; its message is the reason, without the record's text."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record stands: a line of a text file, a row of a table; counted from 1."""

    file: str
    number: int
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"

    @property
    def words(self) -> str:
        """`train.jsonl, line 17`: for the start of a sentence."""
        return f"{self.file}, {self.unit} {self.number}"


class Record(NamedTuple):
    """What a reader yields; `values` is empty and `problem` says why where a record could not be read."""

    origin: Origin
    values: dict[str, Any]
    problem: str = ""


def few(names: list[str], most: int = 12) -> str:
    """Names for a message, cut short: a file without a header offers its first record as names."""
    shown = ", ".join(name if len(name) <= 40 else name[:37] + "..." for name in names[:most])
    more = len(names) - most
    return (shown or "none") + (f" and {more} more" if more > 0 else "")


def reason(error: BaseException) -> str:
    """The first line of an exception's message, cut short; its class where it has none."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 200 else first[:197] + "..."


def whole_characters(text: str) -> str:
    """A file's name in one line of UTF-8; characters that do not fit are escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
