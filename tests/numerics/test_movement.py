"""Long sums against all subsets, and the steps of a climb against their promises."""

from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import budgeted_top, least_cost, movement
from gradwise.numerics.movement import longest_sum
from gradwise.numerics.rows import Rows


def longest_of_all(x: np.ndarray, a: np.ndarray, count: int, budget: float) -> float:
    return max(
        float((x[list(rows)].sum(axis=0) ** 2).sum())
        for rows in combinations(range(len(x)), count)
        if a[list(rows)].sum() <= budget
    )


@given(n=st.integers(2, 10), seed=st.integers(0, 300), tau=st.floats(0.0, 1.5))
@settings(max_examples=60)
def test_sum_is_near_the_longest_and_within_the_bound(n: int, seed: int, tau: float) -> None:
    rng = np.random.default_rng(seed)
    x, a, count = rng.standard_normal((n, 4)) + 0.5, rng.random(n), n // 2
    budget = max(np.sort(a)[:count].sum() * (1 + 1e-12), tau * a.mean() * count)
    result = longest_sum(Rows(x), a, count, budget, starts=16)
    longest = longest_of_all(x, a, count, budget)
    assert len(result.rows) == count and a[result.rows].sum() <= budget
    assert result.objective <= longest * (1 + 1e-6) <= result.bound * (1 + 2e-6)
    assert np.isclose(result.objective, (x[result.rows].sum(axis=0) ** 2).sum(), rtol=1e-5)
    # Rounding to whole rows may end a climb early, so it is not always the optimum.
    assert result.objective >= 0.66 * longest


def test_more_starts_give_longer_sums() -> None:
    """On average: only the best climbs after three steps continue."""
    rng, ratios = np.random.default_rng(1), []
    for _ in range(20):
        x, a = rng.standard_normal((60, 6)), rng.random(60)
        few, many = (longest_sum(Rows(x), a, 10, 3.0, starts=starts).objective for starts in (1, 12))
        ratios.append(many / few)
    assert min(ratios) > 0.95 and np.mean(ratios) > 1.005


@pytest.mark.parametrize("sized", [False, True])
def test_steps_among_the_nearest_rows_obey_the_limits_and_lose_little(sized: bool) -> None:
    rng, ratios = np.random.default_rng(3), []
    for _ in range(4):
        x, a = rng.standard_normal((600, 8)) + 0.1, rng.random(600)
        sizes = rng.integers(1, 9, 600).astype(float) if sized else None
        count = 60 if sizes is None else 300.0
        budget = 1.5 * least_cost(a, count, sizes=sizes) + 3
        plain = longest_sum(Rows(x), a, count, budget, sizes=sizes)
        with patch.object(movement, "NEAR", 40):
            near = longest_sum(Rows(x), a, count, budget, sizes=sizes)
        assert a[near.rows].sum() <= budget
        assert len(near.rows) == 60 if sizes is None else sizes[near.rows].sum() <= count
        ratios.append(near.objective / plain.objective)
    assert min(ratios) > 0.97 and np.mean(ratios) > 0.995


def test_the_sum_of_a_climb_is_that_of_its_weights() -> None:
    rng, improved = np.random.default_rng(4), 0
    for _ in range(8):
        rows, a = Rows(rng.standard_normal((600, 8)) + 0.1), rng.random(600)
        limits = movement._Limits(a, 60, 1.5 * least_cost(a, 60) + 3, None)
        climb = movement._Climb(limits, np.zeros(8))
        climb.step(rows, rows.times(rng.standard_normal(8)))
        before = climb.value
        with patch.object(movement, "NEAR", 80):
            climb.finish_among_nearest(rows)
        improved += climb.value > before
        picks = np.flatnonzero(climb.optimum.weights)
        total = rows.sum_of(picks, climb.optimum.weights[picks])
        np.testing.assert_allclose(climb.total, total, atol=1e-4)
        assert np.isclose(climb.value, total @ total, rtol=1e-4)
    assert improved > 4


def test_partly_taken_rows_are_among_the_nearest_however_many_tie() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a = rng.integers(1, 9, 400).astype(float)
        budget = least_cost(a, 200) * (1 + rng.choice([1e-6, 1e-3]))
        with patch.object(movement, "NEAR", 30):
            result = longest_sum(Rows(a[:, None].astype(np.float32)), a, 200, budget)
        assert len(result.rows) == 200 and a[result.rows].sum() <= budget


def test_a_linearised_step_never_lowers_the_objective() -> None:
    """Climbs rely on this: the objective lies above its tangents."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        x, a, w = rng.standard_normal((40, 5)), rng.random(40), rng.random(40)
        w *= 8 / w.sum()
        after = budgeted_top(x @ (x.T @ w), a, 8, float(a @ w)).weights
        assert ((x.T @ after) ** 2).sum() >= ((x.T @ w) ** 2).sum() * (1 - 1e-12)


def test_the_seed_decides_the_random_starts() -> None:
    rng = np.random.default_rng(5)
    rows, axes = Rows(rng.standard_normal((30, 6))), np.zeros((6, 2))
    one, same, other = (movement._starts(rows, axes, 9, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same) and one.shape == (6, 9)
    assert not np.array_equal(one, other)
