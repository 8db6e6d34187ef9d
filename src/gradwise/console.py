"""What gradwise prints: safe to show in a terminal, and never the reason that a run ends."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from gradwise.text import clean

FIRST_LINE, NEXT_LINE = 10.0, 60.0
"""Seconds to the first line of progress where there is no terminal, and from one to the next."""


def say(text: str = "", *, error: bool = False) -> None:
    """Print a line, cleaned; a stream that is closed, full or gone is passed over."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    try:
        print(clean(text), file=stream, flush=True)
    except UnicodeEncodeError:
        print(clean(text).encode("ascii", "backslashreplace").decode(), file=stream, flush=True)
    except (OSError, ValueError):
        return


def on_terminal() -> bool:
    """Whether standard error, where bars go, is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


class TolerantStream:
    """A text stream whose writes never raise: a closed pipe or a full disk only loses the output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Let what could not be written go, or it would be tried again, last when the interpreter ends."""
        with contextlib.suppress(OSError, ValueError):
            number = self._stream.fileno()
            original = os.dup(number)
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
                self._stream.flush()
            finally:
                os.dup2(original, number)
                os.close(original)

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
        if isinstance(stream, TolerantStream):
            continue
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, TolerantStream(stream))


class Progress:
    """How far something is: a bar on a terminal, elsewhere a line now and then, both on standard error.

    >>> with Progress("signals", total=2, unit="samples", shown=False) as progress:
    ...     progress.update()
    """

    def __init__(self, what: str, total: int | None, unit: str, *, shown: bool = True) -> None:
        """Args:
        what: names what is under way.
        total: how much there is of it, None where that is unknown.
        unit: what is counted.
        shown: False shows nothing.
        """
        self._bar: Any = None
        self._lines = Lines(what, total, unit) if shown and not on_terminal() else None
        if shown and self._lines is None:
            from tqdm import tqdm

            self._bar = tqdm(desc=clean(what), total=total, unit=f" {unit}", delay=2, disable=False)

    def update(self, count: int = 1) -> None:
        """A number of further ones are done."""
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines is not None:
            self._lines.update(self._lines.done + count)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Lines:
    """A line of progress now and then, for logs.

    Args:
        what: names what is under way.
        total: how much there is of it, None where that is unknown.
        unit: what is counted.
        done: how much was done before, by an interrupted run for example.
        clock: gives seconds.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._clock = clock
        self._began, self._before = clock(), done
        self._due = self._began + FIRST_LINE

    def update(
        self,
        done: int,
        figures: Callable[[], str] = str,
        left: Callable[[], float | None] | None = None,
    ) -> None:
        """A number is done in total.

        Args:
            done: the number.
            figures: gives what else to show, if a line is due.
            left: gives the seconds left, if a line is due. If unset, by the mean rate so far.
        """
        self.done = done
        now = self._clock()
        if now < self._due:
            return
        self._due = now + NEXT_LINE
        seconds = self._left(now - self._began) if left is None else left()
        shown = "" if seconds is None else f"{duration(seconds)} left"
        more = [text for text in (figures(), shown) if text]
        of = "" if self.total is None else f" of {self.total:,}"
        share = f" ({done / self.total:.0%})" if self.total else ""
        say(f"{self.what}: {', '.join([f'{done:,}{of} {self.unit}{share}', *more])}", error=True)

    def _left(self, seconds: float) -> float | None:
        made = self.done - self._before
        return seconds / made * (self.total - self.done) if self.total is not None and made > 0 else None


def duration(seconds: float, digits: int = 0) -> str:
    """Seconds as people say them, with `digits` decimals below a minute.

    >>> duration(5.2), duration(5.2, digits=1), duration(125), duration(7500)
    ('5 s', '5.2 s', '2 min 5 s', '2 h 5 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{max(0.0, seconds):.{digits}f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
