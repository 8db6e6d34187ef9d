"""Questions in files, as a user's recipe names them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., str]


@pytest.fixture
def records(tmp_path: Path) -> Write:
    """Writes records, one to a line, and gives the file's path."""

    def write(*rows: dict[str, Any], name: str = "questions.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


BEGINNINGS = (
    "Once upon a time, there was a little",
    "Lily and Ben went to the",
    "The dog was very",
    "One day, Tom found a big red",
    "She was so happy that",
    "Mommy said: It is time to go to",
)


@pytest.fixture
def stories_questions(records: Write) -> str:
    """Beginnings of stories, each with four continuations of different lengths."""
    ends = ("girl named Lily.", "bed", "park with her mom and played all day", "happy and wanted to help")
    return records(
        *(
            {"start": start, "ends": list(ends), "label": "ABCD"[number % 4], "number": number % 4}
            for number, start in enumerate(BEGINNINGS)
        )
    )
