"""Long sums against all subsets, and against a slow climb from many points."""

from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.numerics import budgeted_top, least_cost, movement
from gradwise.numerics.movement import longest_sum
from gradwise.numerics.rows import Rows


def best_of_all(x: np.ndarray, a: np.ndarray, count: int, budget: float) -> float:
    return max(
        float((x[list(rows)].sum(axis=0) ** 2).sum())
        for rows in combinations(range(len(x)), count)
        if a[list(rows)].sum() <= budget
    )


@given(n=st.integers(2, 10), seed=st.integers(0, 300), tau=st.floats(0.0, 1.5))
def test_near_the_best_of_all_subsets_and_within_the_bound(n: int, seed: int, tau: float) -> None:
    rng = np.random.default_rng(seed)
    x, a, count = rng.standard_normal((n, 4)) + 0.5, rng.random(n), n // 2
    budget = max(np.sort(a)[:count].sum() * (1 + 1e-12), tau * a.mean() * count)
    found = longest_sum(Rows(x), a, count, budget, starts=16)
    best = best_of_all(x, a, count, budget)
    assert len(found.rows) == count and a[found.rows].sum() <= budget
    assert found.objective <= best * (1 + 1e-6) <= found.bound * (1 + 2e-6)
    assert np.isclose(found.objective, (x[found.rows].sum(axis=0) ** 2).sum(), rtol=1e-5)
    # Not exact: rounding to whole rows may end a climb early. On these it loses a third at most.
    assert found.objective >= 0.66 * best


def test_more_beginnings_do_better() -> None:
    """Not always, since only the best after three steps are followed to their end."""
    rng, gains = np.random.default_rng(1), []
    for _ in range(20):
        x, a = rng.standard_normal((60, 6)), rng.random(60)
        few, many = (longest_sum(Rows(x), a, 10, 3.0, starts=starts).objective for starts in (1, 12))
        gains.append(many / few)
    assert min(gains) > 0.95 and np.mean(gains) > 1.005


@pytest.mark.parametrize("sized", [False, True])
def test_steps_among_the_nearest_rows_keep_to_the_limits_and_lose_nothing(sized: bool) -> None:
    rng, worth = np.random.default_rng(3), []
    for _ in range(8):
        x, a = rng.standard_normal((600, 8)) + 0.1, rng.random(600)
        sizes = rng.integers(1, 9, 600).astype(float) if sized else None
        count = 60 if sizes is None else 300.0
        budget = 1.5 * least_cost(a, count, sizes=sizes) + 3
        found = longest_sum(Rows(x), a, count, budget, sizes=sizes)
        with patch.object(movement, "NEAR", 40):
            near = longest_sum(Rows(x), a, count, budget, sizes=sizes)
        assert a[near.rows].sum() <= budget
        assert len(near.rows) == 60 if sizes is None else sizes[near.rows].sum() <= count
        worth.append(near.objective / found.objective)
    assert min(worth) > 0.97 and np.mean(worth) > 0.995


def test_the_sum_kept_is_that_of_the_weights() -> None:
    rng, settled = np.random.default_rng(4), 0
    for _ in range(8):
        rows, a = Rows(rng.standard_normal((600, 8)) + 0.1), rng.random(600)
        limits = movement._Limits(a, 60, 1.5 * least_cost(a, 60) + 3, None)
        climb = movement._Climb(limits, np.zeros(8))
        climb.step(rows, rows.times(rng.standard_normal(8)))
        before = climb.worth
        with patch.object(movement, "NEAR", 80):
            climb.settle(rows)
        settled += climb.worth > before
        taken = np.flatnonzero(climb.found.weights)
        total = rows.sum_of(taken, climb.found.weights[taken])
        np.testing.assert_allclose(climb.total, total, atol=1e-4)
        assert np.isclose(climb.worth, total @ total, rtol=1e-4)
    assert settled > 4


def test_more_ties_than_rows_are_looked_at_together() -> None:
    """The two rows that are partly taken are among those looked at, however many are worth as much."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a = rng.integers(1, 9, 400).astype(float)
        budget = least_cost(a, 200) * (1 + rng.choice([1e-6, 1e-3]))
        with patch.object(movement, "NEAR", 30):
            found = longest_sum(Rows(a[:, None].astype(np.float32)), a, 200, budget)
        assert len(found.rows) == 200 and a[found.rows].sum() <= budget


def test_the_iterates_of_the_relaxed_problem_never_lower_it() -> None:
    """What the climb rests on: the objective lies above its tangents."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        x, a, w = rng.standard_normal((40, 5)), rng.random(40), rng.random(40)
        w *= 8 / w.sum()
        budget = float(a @ w)
        after = budgeted_top(x @ (x.T @ w), a, 8, budget).weights
        assert ((x.T @ after) ** 2).sum() >= ((x.T @ w) ** 2).sum() * (1 - 1e-12)
