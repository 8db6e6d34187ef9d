"""A score: a number, which direction is better, and over how many samples it was taken."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from gradwise.errors import EvaluationError
from gradwise.evaluation.settings import Better
from gradwise.text import shown


@dataclass(frozen=True)
class Score:
    """One entry of `scores.json`."""

    value: float
    better: Better
    samples: int
    """Samples, questions or records the value is taken over; 0 where the user's function was given none."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def finite(name: str, value: Any) -> float:
    """`value` as a float; raises EvaluationError where it is no number, or not a finite one."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = math.nan
    if not math.isfinite(number):
        raise EvaluationError(f"The metric {name} is not a finite number; found {shown(value)}.")
    return number
