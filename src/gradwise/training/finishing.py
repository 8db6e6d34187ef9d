"""What of `anneal` a run is bound to before it is acted upon: when the last phase is decided, by what method,
and from what pool.

A budget that cannot be kept to shows only when the phase begins. Nothing of the run should be lost by that:
with another budget it goes on.
"""

from pathlib import Path
from typing import Any

from gradwise.stored import read_lines

BINDING = ("last", "times", "method", "pool")
"""Settings that decide where a plan is cut, which data and optimizer the run was checked for before it began,
and whether its checkpoints hold what was selected."""


def not_yet_finishing(folder: Path) -> bool:
    """Whether nothing of the last phase was decided in a run directory so far."""
    return not any(line.get("event") == "anneal" for line in read_lines(folder / "events.jsonl"))


def binding(anneal: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings that count until then."""
    return None if anneal is None else {name: anneal[name] for name in BINDING}
