"""What gradwise prints: safe to show in a terminal, and never the reason that a run ends."""

import io
import os
import re
import sys
from typing import Any, TextIO

_CONTROL = re.compile(
    # C0 and C1 controls but for tab and line feed, marks that reverse the direction of text, half surrogates.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: str) -> str:
    r"""Text with control characters spelled out, so that data, keys and file names cannot steer a terminal.

    >>> clean("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape", "surrogatepass").decode(), text)


def say(text: str = "", *, error: bool = False) -> None:
    """Print a line, cleaned; a stream that is closed, full or gone is passed over."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    try:
        print(clean(text), file=stream, flush=True)
    except (OSError, ValueError):
        return


class TolerantStream:
    """A text stream whose writes never raise: a closed pipe or a full disk only loses the output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Make standard output and error safe for a whole process; called once, by the command line.

    A process started without standard streams would give their numbers to the next files it opens, and what
    libraries print would land in those. So missing ones are opened on the null device first.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, TolerantStream(stream))
