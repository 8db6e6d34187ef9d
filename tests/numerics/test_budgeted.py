"""The budgeted linear program against a general solver, and its whole rows against every subset."""

import math
from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from gradwise.numerics import budgeted_top, least_cost
from gradwise.numerics.budgeted import InfeasibleError, _Program, upper_bound, whole_rows

KINDS = (
    "random",
    "zeros",
    "ties",
    "tenths",
    "equal costs",
    "one huge",
    "value equals cost",
    "far apart",
    "identical",
)


def problem(kind: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and costs."""
    rng = np.random.default_rng(seed)
    c, a = rng.standard_normal(n), rng.random(n)
    if kind == "zeros":
        a[rng.random(n) < 0.5] = 0
    if kind == "ties":
        c, a = (rng.integers(0, 4, n).astype(float) for _ in range(2))
    if kind == "tenths":  # their sums are rounded
        a = rng.choice([0.1, 0.3, 0.7], n)
    if kind == "equal costs":
        a = np.full(n, 0.1)
    if kind == "one huge":
        c[0], a[0] = 10, 1e6
    if kind == "value equals cost":
        c = a.copy()
    if kind == "far apart":
        a = np.exp(4 * rng.standard_normal(n))
        c = np.sqrt(a)
    if kind == "identical":
        c, a = np.ones(n), np.ones(n)
    return c, a


def random_sizes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 20, n).astype(float)


def general(c: np.ndarray, a: np.ndarray, count: float, budget: float, sizes: np.ndarray) -> float:
    """The optimum by HiGHS, with tighter tolerances than its own 1e-7."""
    tolerances = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    result = linprog(
        -c, A_ub=a[None], b_ub=[budget], A_eq=sizes[None], b_eq=[count], bounds=(0, 1), method="highs",
        options=tolerances,
    )  # fmt: skip
    assert result.status == 0, result.message
    return -result.fun


def check(c: np.ndarray, a: np.ndarray, count: float, budget: float, sizes: np.ndarray | None = None) -> None:
    optimum = budgeted_top(c, a, count, budget, sizes=sizes)
    amounts = np.ones(len(c)) if sizes is None else sizes
    expected, scale = general(c, a, count, budget, amounts), max(1.0, np.abs(c).max(initial=0))
    assert optimum.objective == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)
    assert ((optimum.weights > 0) & (optimum.weights < 1)).sum() <= 2
    assert optimum.weights.min(initial=0) >= 0 and optimum.weights.max(initial=0) <= 1
    assert optimum.weights @ amounts == pytest.approx(count, abs=1e-9 * max(1.0, count))
    assert optimum.weights @ a <= budget + 1e-9 * max(1.0, abs(budget))
    assert optimum.multiplier >= 0


class TestOptimum:
    @pytest.mark.parametrize("kind", KINDS)
    @given(n=st.integers(1, 60), part=st.floats(0, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
    @settings(max_examples=50)
    def test_equals_that_of_a_general_solver(self, kind: str, n: int, part: float, slack: float, seed: int):
        c, a = problem(kind, n, seed)
        count = round(part * n)
        least = least_cost(a, count)
        check(c, a, count, least + slack**3 * (float(a.sum()) - least))

    @pytest.mark.parametrize("kind", KINDS)
    @given(n=st.integers(1, 40), part=st.floats(0.01, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
    @settings(max_examples=50)
    def test_equals_that_of_a_general_solver_with_sizes(
        self, kind: str, n: int, part: float, slack: float, seed: int
    ):
        c, a = problem(kind, n, seed)
        sizes = random_sizes(n, seed)
        count = part * sizes.sum()
        least = least_cost(a, count, sizes=sizes)
        check(c, a, count, (least + slack**3 * (float(a.sum()) - least)) * (1 + 1e-9), sizes)

    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_that_of_a_general_solver_on_many_rows(self, kind: str):
        c, a = problem(kind, 4_000, 3)
        count = 400
        check(c, a, count, max(least_cost(a, count), 0.3 * float(np.sort(a)[:-1].mean()) * count))

    def test_multiplier_is_the_gain_from_more_budget(self):
        c, a = problem("random", 50, 0)
        less, more = (budgeted_top(c, a, 10, 2.0 + step).objective for step in (0, 1e-6))
        assert budgeted_top(c, a, 10, 2.0).multiplier == pytest.approx((more - less) / 1e-6, rel=1e-3)

    def test_sizes_that_are_all_used_up(self):
        """The sum of many odd sizes depends on the order in which they are added."""
        for seed in range(10):
            rng = np.random.default_rng(seed)
            c, a, sizes = rng.standard_normal(5_000), rng.random(5_000), 0.1 * rng.integers(1, 30, 5_000)
            optimum = budgeted_top(c, a, float(sizes.sum()), np.inf, sizes=sizes)
            assert optimum.weights == pytest.approx(1.0, abs=1e-6)
            assert optimum.objective == pytest.approx(c.sum())

    def test_rows_without_value_or_cost_do_not_prolong_the_search(self):
        """Rounding made a multiplier look better than itself, hundreds of times."""
        rng = np.random.default_rng(5)
        nothing = rng.random(20_000) < 0.6
        a, c = (np.where(nothing, 0, rng.random(len(nothing))) for _ in range(2))
        sizes = rng.integers(10, 500, len(a)).astype(float)
        count = float(round(sizes.sum() / 10))
        unlimited = float(a @ budgeted_top(c, a, count, np.inf, sizes=sizes).weights)
        with patch.object(_Program, "filling", autospec=True, side_effect=_Program.filling) as fillings:
            budgeted_top(c, a, count, 0.1 * unlimited, sizes=sizes)
        assert 2 < fillings.call_count < 60

    def test_nothing_and_everything(self):
        assert budgeted_top([1.0, 2.0], [1.0, 1.0], 0, 0).weights.tolist() == [0, 0]
        assert budgeted_top([1.0, -2.0], [1.0, 1.0], 2, 2).weights.tolist() == [1, 1]
        for sizes in (None, []):
            assert budgeted_top([], [], 0, 0, sizes=sizes).weights.tolist() == []


class TestWholeRows:
    @given(n=st.integers(1, 60), part=st.floats(0, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
    def test_meet_count_and_budget_exactly(self, n: int, part: float, slack: float, seed: int):
        c, a = problem(KINDS[seed % len(KINDS)], n, seed)
        count = round(part * n)
        cheapest = math.fsum(np.sort(a)[:count])
        budget = cheapest + slack**3 * (math.fsum(a) - cheapest)
        optimum = budgeted_top(c, a, count, budget)
        rows = whole_rows(optimum, c, a, count, budget)
        assert len(set(rows.tolist())) == count
        assert math.fsum(a[rows]) <= budget
        # Rounding loses at most the difference between the two partly taken rows.
        partial = np.flatnonzero((optimum.weights > 0) & (optimum.weights < 1))
        loss = float(np.ptp(c[partial])) if len(partial) == 2 else 0.0
        assert c[rows].sum() >= optimum.objective - loss - 1e-9 * max(1.0, np.abs(c).sum())

    @given(n=st.integers(1, 40), part=st.floats(0.05, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
    def test_fit_both_limits_with_sizes(self, n: int, part: float, slack: float, seed: int):
        c, a = problem(KINDS[seed % 3], n, seed)
        sizes = random_sizes(n, seed)
        count = part * sizes.sum()
        budget = least_cost(a, count, sizes=sizes) * (1 + 1e-9) + slack * float(a.sum())
        rows = whole_rows(budgeted_top(c, a, count, budget, sizes=sizes), c, a, count, budget, sizes=sizes)
        assert sizes[rows].sum() <= count and math.fsum(a[rows]) <= budget
        others = np.setdiff1d(np.arange(n), rows)
        room, money = count - sizes[rows].sum(), budget - a[rows].sum()
        assert not ((sizes[others] <= room) & (a[others] < money * (1 - 1e-9))).any(), "another row would fit"

    @given(n=st.integers(2, 30), part=st.floats(0.05, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
    def test_never_exceed_a_budget_that_is_met_up_to_rounding(
        self, n: int, part: float, slack: float, seed: int
    ):
        c, a = problem(KINDS[seed % len(KINDS)], n, seed)
        sizes = random_sizes(n, seed)
        count = float(max(1, round(part * sizes.sum())))
        budget = least_cost(a, count, sizes=sizes) * (1 + 1e-9) + slack * float(a.sum())
        for _ in range(6):
            try:
                optimum = budgeted_top(c, a, count, budget, sizes=sizes)
            except InfeasibleError:
                return
            rows = whole_rows(optimum, c, a, count, budget, sizes=sizes)
            total = math.fsum(a[rows])
            assert total <= budget and sizes[rows].sum() <= count
            # Next time the budget is what the rows cost, or a little less.
            budget = total if budget > total else math.nextafter(total, -math.inf)

    def test_when_the_budget_is_the_cost_of_the_best_rows(self):
        for seed in range(300):
            rng = np.random.default_rng(seed)
            n = int(rng.choice([20, 60]))
            c, a = rng.random(n), np.where(rng.random(n) < 0.5, 0, rng.random(n))
            budget = float(a @ budgeted_top(c, a, n - 1, np.inf).weights)
            rows = whole_rows(budgeted_top(c, a, n - 1, budget), c, a, n - 1, budget)
            assert len(rows) == n - 1 and math.fsum(a[rows]) <= budget * (1 + 1e-13)

    def test_when_the_sum_of_the_costs_rounds_above_the_budget(self):
        """0.1 + 0.1 + 0.1 + 0.3 exceeds 0.6 in floating point."""
        c, a = [-0.9, -0.3, 0, -0.3, 0.8], [0.1, 0.1, 0.1, 0.3, 0.3]
        optimum = budgeted_top(c, a, 4, 0.6)
        assert optimum.objective == pytest.approx(-0.4)
        assert whole_rows(optimum, c, a, 4, 0.6).tolist() == [0, 1, 2, 4]

    @given(n=st.integers(1, 9), seed=st.integers(0, 999), sized=st.booleans())
    @settings(max_examples=60)
    def test_no_subset_exceeds_the_upper_bound(self, n: int, seed: int, sized: bool):
        c, a = problem("random", n, seed)
        sizes = np.random.default_rng(seed).integers(1, 5, n).astype(float) if sized else None
        count = max(1, n // 2) if sizes is None else max(1.0, sizes.sum() // 2)
        budget = least_cost(a, count, sizes=sizes) * 1.2
        bound = upper_bound(c, a, count, budget, sizes=sizes)
        for size in range(n + 1):
            for rows in map(list, combinations(range(n), size)):
                fits = size == count if sizes is None else sizes[rows].sum() <= count
                if fits and a[rows].sum() <= budget:
                    assert c[rows].sum() <= bound + 1e-9


class TestRefusals:
    def test_an_infeasible_budget_is_refused_with_the_least_cost(self):
        with pytest.raises(
            InfeasibleError, match=r"cheapest rows cost 3, more than the budget of 2\.9"
        ) as error:
            budgeted_top([0, 0, 0], [1, 2, 3], 2, 2.9)
        assert error.value.least == least_cost([1, 2, 3], 2) == 3

    @pytest.mark.parametrize(
        ("arguments", "sizes", "sentence"),
        [
            (([1.0], [1.0, 2.0], 1, 1), None, "vectors of one length"),
            (([np.nan], [1.0], 1, 1), None, "must be finite"),
            (([1.0], [np.inf], 1, 1), None, "must be finite"),
            (([1.0], [1.0], 2, 9), None, "Cannot take 2 of 1"),
            (([1.0], [1.0], 0.5, 9), None, "whole number"),
            (([1.0], [1.0], 1, np.nan), None, "budget is not a number"),
            (([1.0, 1.0], [1.0, 1.0], 1, 9), [1.0, 0.0], "Sizes must be positive"),
        ],
    )
    def test_arguments_out_of_range_are_refused(self, arguments: tuple, sizes: list | None, sentence: str):
        with pytest.raises(ValueError, match=sentence):
            budgeted_top(*arguments, sizes=sizes)
