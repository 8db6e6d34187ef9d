"""Long sums against all subsets, and against a slow climb from many points."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradwise.numerics import budgeted_top
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


def test_the_iterates_of_the_relaxed_problem_never_lower_it() -> None:
    """What the climb rests on: the objective lies above its tangents."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        x, a, w = rng.standard_normal((40, 5)), rng.random(40), rng.random(40)
        w *= 8 / w.sum()
        budget = float(a @ w)
        after = budgeted_top(x @ (x.T @ w), a, 8, budget).weights
        assert ((x.T @ after) ** 2).sum() >= ((x.T @ w) ** 2).sum() * (1 - 1e-12)
