"""Equal cost: the budget of every arm of a comparison, and how many optimizer steps that makes.

Whatever the budget is counted in, it becomes a number of steps before a run starts. A run then makes all of
them, with its whole learning-rate schedule; nothing is ever cut short by a clock.
"""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import RecipeError
from gradwise.text import shown

Kind = Literal["steps", "tokens", "time"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MARGIN = 0.05
"""Share of a time budget that is not planned for, so that runs end inside it although speed varies."""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """The budget of every run."""

    kind: Kind
    amount: float | None = None
    """Optimizer steps, input tokens, or seconds; None for what the reference arm spends under the recipe."""

    def __str__(self) -> str:
        if self.amount is None:
            return self.kind
        unit = {"steps": "steps", "tokens": "input tokens", "time": "s"}[self.kind]
        return f"{self.amount:,.0f} {unit}" if self.amount >= 100 else f"{self.amount:g} {unit}"


@dataclass(frozen=True)
class Speed:
    """The result of an arm's calibration, in charged seconds."""

    deciding: float
    """Before the first step: signals, selection, order."""
    start: float
    """The rest that does not grow with the number of steps: probes, the first steps' warming up."""
    step: float
    """Per optimizer step."""
    steps: int = 0
    """How many steps were timed."""

    @property
    def fixed(self) -> float:
        """Seconds that do not depend on the number of steps."""
        return self.deciding + self.start


class Calibrated(NamedTuple):
    """An arm's speed, and the steps it would make under its recipe."""

    speed: Speed
    steps: int


def parse_budget(text: str) -> Budget:
    """A budget such as `steps`, `tokens=1e6` or `time=10m`; without an amount, the recipe decides it.

    >>> parse_budget("time=10m"), parse_budget("steps")
    (Budget(kind='time', amount=600.0), Budget(kind='steps', amount=None))
    """
    word, equals, amount = (part.strip() for part in text.partition("="))
    kind: Kind | None = next((each for each in KINDS if each == word), None)
    if kind is None:
        raise RecipeError(
            f"--budget: {shown(text)} is no budget; give steps, tokens or time, or an amount: steps=200, "
            "tokens=1e6, time=10m."
        )
    if not equals:
        return Budget(kind)
    match = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-z]*)", amount)
    units = _UNITS if kind == "time" else {"": 1}
    try:
        value = float(match[1]) * units[match[2]] if match else 0.0
    except (KeyError, ValueError):
        value = 0.0
    if not 0 < value < float("inf"):
        examples = "seconds, or 10m, 2h" if kind == "time" else "a number such as 200 or 1e6"
        raise RecipeError(f"--budget: {shown(amount)} is no amount of {kind}; give {examples}.")
    if kind == "steps" and value != round(value):
        raise RecipeError(f"--budget: steps come whole; found {amount}.")
    return Budget(kind, value)


def steps_within_tokens(tokens: NDArray[np.int64], amount: float) -> int:
    """How many steps stay inside a budget of tokens, from the (steps,) input tokens of each. Raises
    RecipeError if the first step is larger.

    >>> steps_within_tokens(np.array([40, 30, 40]), 75)
    2
    """
    # From the right: a step that ends exactly at the budget is inside it.
    steps = int(np.searchsorted(np.cumsum(tokens), amount, side="right"))
    if not steps:
        raise RecipeError(
            f"The first step alone has {tokens[0]:,} input tokens, more than the budget of {amount:,.0f}; "
            "give a larger budget or a smaller batch_size."
        )
    return steps


def steps_within_seconds(speed: Speed, amount: float) -> int:
    """How many steps end inside a time budget, its margin left free, deciding included. Raises RecipeError if
    there is no time for a single step.

    >>> steps_within_seconds(Speed(deciding=15.0, start=4.0, step=0.5), amount=100.0)
    152
    """
    # A billionth of a step, or the round trip through `seconds_for` would lose one.
    steps = int(((1 - MARGIN) * amount - speed.fixed) / speed.step + 1e-9)
    if steps < 1:
        raise RecipeError(
            f"Of {amount:,.1f} s, {MARGIN:.0%} are kept as a margin, deciding takes {speed.deciding:,.1f} s, "
            f"getting under way {speed.start:,.1f} s and a step {speed.step:,.2f} s: there is no time for "
            "one; give a larger budget."
        )
    return steps


def seconds_for(speed: Speed, steps: int) -> float:
    """The time budget inside which an arm makes exactly `steps` steps."""
    return (speed.fixed + steps * speed.step) / (1 - MARGIN)
