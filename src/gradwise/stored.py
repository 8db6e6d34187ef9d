"""Reads files that gradwise wrote earlier; one that is damaged is named in one sentence."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradwise.errors import CheckpointError, GradwiseError
from gradwise.text import one_line

Error = type[GradwiseError]

ADVICE = "restore it from a copy, or start again in a new folder"


def read_json(path: Path, error: Error = CheckpointError, take: Callable[[Any], Any] = dict) -> Any:
    """The JSON object in a file, or what `take` makes of it.

    Raises:
        GradwiseError: the file is missing or damaged, or `take` finds something else than it needs.
    """
    with damaged(path, error):
        contents = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(contents, dict):
            raise ValueError("not a JSON object")
        return take(contents)


def read_lines(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file, each an object; none where there is no file.

    Args:
        path: the file.
        size: largest number of bytes to read.

    Raises:
        CheckpointError: the file is damaged; names the first line that is not an object.
    """
    if not path.exists():
        return []
    with damaged(path):
        # A kill can leave the last line half written; it is cut off at the next resume.
        lines = path.read_bytes()[:size].split(b"\n")[:-1]
    objects = []
    for number, line in enumerate(lines, 1):
        with damaged(path, where=f"line {number}: "):
            objects.append({**json.loads(line)})
    return objects


@contextmanager
def damaged(path: Path, error: Error = CheckpointError, *, where: str = "") -> Iterator[None]:
    """Raise any failure to read or to understand a file as one sentence.

    Args:
        path: the file.
        error: the class of what is raised.
        where: begins the reason.
    """
    try:
        yield
    except GradwiseError:
        raise
    except FileNotFoundError:
        raise error(f"{path} is missing; {ADVICE}.") from None
    except Exception as problem:  # there is no telling what a library makes of garbage
        reason = getattr(problem, "strerror", None) or one_line(problem, 120)
        raise error(f"{path} is damaged ({where}{reason}); {ADVICE}.") from None
