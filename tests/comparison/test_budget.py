"""Budgets: what is read, and that what follows from them is as much as fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise import RecipeError
from gradwise.comparison.budget import (
    MARGIN,
    Budget,
    Speed,
    parse_budget,
    seconds_for,
    steps_within_seconds,
    steps_within_tokens,
)

positive = st.floats(0.01, 100)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("steps", Budget("steps")),
        ("tokens", Budget("tokens")),
        ("time", Budget("time")),
        ("steps=200", Budget("steps", 200)),
        ("tokens=1e6", Budget("tokens", 1e6)),
        ("time=600", Budget("time", 600)),
        ("time=90s", Budget("time", 90)),
        ("time=1.5h", Budget("time", 5400)),
        (" time = 10m ", Budget("time", 600)),
    ],
)
def test_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epochs",
        "steps=",
        "steps=0",
        "steps=2.5",
        "steps=10m",
        "tokens=-1",
        "time=5d",
        "time=.",
        "time=1e999",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--budget: "):
        parse_budget(text)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 1000))
def test_tokens_as_many_whole_steps_as_fit(tokens: list[int], amount: int) -> None:
    fit = [steps for steps in range(1, len(tokens) + 1) if sum(tokens[:steps]) <= amount]
    if not fit:
        with pytest.raises(RecipeError, match="The first step alone has"):
            steps_within_tokens(np.array(tokens), amount)
    else:
        assert steps_within_tokens(np.array(tokens), amount) == max(fit)


@given(deciding=positive, start=positive, step=positive, amount=st.floats(1, 1000))
def test_seconds_as_many_steps_as_end_inside_the_margin(
    deciding: float, start: float, step: float, amount: float
) -> None:
    speed = Speed(deciding, start, step)
    inside = (1 - MARGIN) * amount
    if inside < deciding + start + step * (1 - 1e-6):
        with pytest.raises(RecipeError, match=f"deciding takes {deciding:,.1f} s"):
            steps_within_seconds(speed, amount)
        return
    steps = steps_within_seconds(speed, amount)
    assert deciding + start + steps * step <= inside + 1e-6 * step
    assert deciding + start + (steps + 1) * step > inside - 1e-6 * step


@given(deciding=positive, start=positive, step=positive, steps=st.integers(1, 10_000))
def test_the_references_own_time_lets_it_make_its_own_steps(
    deciding: float, start: float, step: float, steps: int
) -> None:
    speed = Speed(deciding, start, step)
    assert steps_within_seconds(speed, seconds_for(speed, steps)) == steps
