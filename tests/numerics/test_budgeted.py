"""The budgeted linear program against a general solver, and its whole rows against every subset."""

import math
from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from gradwise.numerics import budgeted, budgeted_top, least_cost
from gradwise.numerics.budgeted import InfeasibleError, upper_bound, whole

KINDS = (
    "random",
    "zeros",
    "ties",
    "tenths",
    "equal costs",
    "one huge",
    "worth what it costs",
    "far apart",
    "alike",
)


def problem(kind: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and costs."""
    rng = np.random.default_rng(seed)
    c, a = rng.standard_normal(n), rng.random(n)
    if kind == "zeros":
        a[rng.random(n) < 0.5] = 0
    if kind == "ties":
        c, a = (rng.integers(0, 4, n).astype(float) for _ in range(2))
    if kind == "tenths":  # sums of which round
        a = rng.choice([0.1, 0.3, 0.7], n)
    if kind == "equal costs":
        a = np.full(n, 0.1)
    if kind == "one huge":
        c[0], a[0] = 10, 1e6
    if kind == "worth what it costs":
        c = a.copy()
    if kind == "far apart":
        a = np.exp(4 * rng.standard_normal(n))
        c = np.sqrt(a)
    if kind == "alike":
        c, a = np.ones(n), np.ones(n)
    return c, a


def general(c: np.ndarray, a: np.ndarray, count: float, budget: float, sizes: np.ndarray) -> float:
    """The optimum by HiGHS."""
    # Its own tolerance is 1e-7.
    exactly = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(
        -c, A_ub=a[None], b_ub=[budget], A_eq=sizes[None], b_eq=[count], bounds=(0, 1), method="highs",
        options=exactly,
    )  # fmt: skip
    assert found.status == 0, found.message
    return -found.fun


def check(c: np.ndarray, a: np.ndarray, count: float, budget: float, sizes: np.ndarray | None = None) -> None:
    found = budgeted_top(c, a, count, budget, sizes=sizes)
    amounts = np.ones(len(c)) if sizes is None else sizes
    expected = general(c, a, count, budget, amounts)
    assert found.objective == pytest.approx(expected, rel=1e-9, abs=1e-9 * max(1.0, np.abs(c).max(initial=0)))
    assert ((found.weights > 0) & (found.weights < 1)).sum() <= 2
    assert found.weights.min(initial=0) >= 0 and found.weights.max(initial=0) <= 1
    assert found.weights @ amounts == pytest.approx(count, abs=1e-9 * max(1.0, count))
    assert found.weights @ a <= budget + 1e-9 * max(1.0, abs(budget))
    assert found.multiplier >= 0


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(1, 60), part=st.floats(0, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
def test_equals_a_general_solver(kind: str, n: int, part: float, slack: float, seed: int) -> None:
    c, a = problem(kind, n, seed)
    count = round(part * n)
    least = least_cost(a, count)
    check(c, a, count, least + slack**3 * (float(a.sum()) - least))


@pytest.mark.parametrize("kind", KINDS)
@given(
    n=st.integers(40, 300),
    # HiGHS rounds what is all but used up to infeasible.
    part=st.floats(0.01, 0.9),
    slack=st.floats(0.05, 1),
    seed=st.integers(0, 999),
    sized=st.booleans(),
)
def test_equals_a_general_solver_where_some_rows_are_solved_first(
    kind: str, n: int, part: float, slack: float, seed: int, sized: bool
) -> None:
    """As with many rows: whatever the guess, it is the optimum of all rows that comes out."""
    c, a = problem(kind, n, seed)
    sizes = np.random.default_rng(seed).integers(1, 20, n).astype(float) if sized else None
    count = part * sizes.sum() if sizes is not None else round(part * n)
    least = least_cost(a, count, sizes=sizes)
    with patch.multiple(budgeted, MANY=32, EVERY=3, WIDE=2.0):
        check(c, a, count, least + slack**3 * (float(a.sum()) - least), sizes)


@pytest.mark.parametrize("kind", ["random", "zeros", "tenths", "one huge"])
@pytest.mark.parametrize("sized", [False, True])
def test_many_rows_are_solved_by_a_guess(kind: str, sized: bool) -> None:
    c, a = problem(kind, 40_000, 0)
    sizes = np.random.default_rng(1).integers(1, 20, len(c)).astype(float) if sized else None
    count = 4_000 if sizes is None else 40_000.0
    least = least_cost(a, count, sizes=sizes)
    budget = 0.7 * least + 0.3 * float(a @ budgeted_top(c, a, count, np.inf, sizes=sizes).weights)
    rows = budgeted._Fillings.of(c, a, count, sizes)
    found = budgeted._guessed(rows, budget)
    assert found is not None
    amounts, multiplier = budgeted._searched(rows, budget)
    assert rows.value @ found[0] == pytest.approx(rows.value @ amounts, rel=1e-12)
    assert found[1] == pytest.approx(multiplier, rel=1e-6) and multiplier > 0


def test_sizes_that_are_all_used_up() -> None:
    """Of many rows of odd sizes: their sum depends on how it is added up."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        c, a, sizes = rng.standard_normal(17_000), rng.random(17_000), 0.1 * rng.integers(1, 30, 17_000)
        found = budgeted_top(c, a, float(sizes.sum()), np.inf, sizes=sizes)
        assert found.weights == pytest.approx(1.0, abs=1e-6) and found.objective == pytest.approx(c.sum())


def test_rows_without_worth_or_cost_do_not_keep_it_busy() -> None:
    """Rounding made the same multiplier look better than itself, hundreds of times."""
    rng = np.random.default_rng(5)
    nothing = rng.random(20_000) < 0.6
    a, c = (np.where(nothing, 0, rng.random(len(nothing))) for _ in range(2))
    sizes = rng.integers(10, 500, len(a)).astype(float)
    count = float(round(sizes.sum() / 10))
    free = float(a @ budgeted_top(c, a, count, np.inf, sizes=sizes).weights)
    rows = budgeted._Fillings.of(c, a, count, sizes)
    with patch.object(budgeted, "_end", side_effect=budgeted._end) as ends:
        budgeted._searched(rows, 0.1 * free)
    assert ends.call_count < 60


def test_whole_rows_where_the_budget_is_what_the_best_would_cost() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        n = int(rng.choice([20, 60]))
        c, a = rng.random(n), np.where(rng.random(n) < 0.5, 0, rng.random(n))
        budget = float(a @ budgeted_top(c, a, n - 1, np.inf).weights)
        rows = whole(budgeted_top(c, a, n - 1, budget), c, a, n - 1, budget)
        assert len(rows) == n - 1 and math.fsum(a[rows]) <= budget * (1 + 1e-13)


def test_rows_that_mislead_do_no_harm() -> None:
    """Every row that is looked at first is dear and worthless."""
    c, a = problem("random", 40_000, 0)
    c[:: budgeted.EVERY], a[:: budgeted.EVERY] = -5, 10
    rows = budgeted._Fillings.of(c, a, 4_000, None)
    assert budgeted._guessed(rows, 500.0) is None
    check(c, a, 4_000, 500.0)


@given(n=st.integers(1, 40), part=st.floats(0.01, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
def test_equals_a_general_solver_with_sizes(n: int, part: float, slack: float, seed: int) -> None:
    c, a = problem(KINDS[seed % len(KINDS)], n, seed)
    sizes = np.random.default_rng(seed).integers(1, 20, n).astype(float)
    count = part * sizes.sum()
    least = least_cost(a, count, sizes=sizes)
    check(c, a, count, (least + slack**3 * (float(a.sum()) - least)) * (1 + 1e-9), sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_general_solver_on_many_rows(kind: str) -> None:
    c, a = problem(kind, 20_000, 3)
    count = 2_000
    check(c, a, count, max(least_cost(a, count), 0.3 * float(np.sort(a)[:-1].mean()) * count))


@given(n=st.integers(1, 60), part=st.floats(0, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
def test_whole_rows_keep_to_count_and_budget_exactly(n: int, part: float, slack: float, seed: int) -> None:
    c, a = problem(KINDS[seed % len(KINDS)], n, seed)
    count = round(part * n)
    cheapest = math.fsum(np.sort(a)[:count])
    budget = cheapest + slack**3 * (math.fsum(a) - cheapest)
    found = budgeted_top(c, a, count, budget)
    rows = whole(found, c, a, count, budget)
    assert len(set(rows.tolist())) == count
    assert math.fsum(a[rows]) <= budget
    # Rounding gives up no more than one row's worth for another's.
    partly = np.flatnonzero((found.weights > 0) & (found.weights < 1))
    lost = float(np.ptp(c[partly])) if len(partly) == 2 else 0.0
    assert c[rows].sum() >= found.objective - lost - 1e-9 * max(1.0, np.abs(c).sum())


@given(n=st.integers(1, 40), part=st.floats(0.05, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
def test_whole_rows_fit_both_limits_with_sizes(n: int, part: float, slack: float, seed: int) -> None:
    c, a = problem(KINDS[seed % 3], n, seed)
    sizes = np.random.default_rng(seed).integers(1, 20, n).astype(float)
    count = part * sizes.sum()
    budget = least_cost(a, count, sizes=sizes) * (1 + 1e-9) + slack * float(a.sum())
    rows = whole(budgeted_top(c, a, count, budget, sizes=sizes), c, a, count, budget, sizes=sizes)
    assert sizes[rows].sum() <= count and math.fsum(a[rows]) <= budget
    left_out = np.setdiff1d(np.arange(n), rows)
    room, money = count - sizes[rows].sum(), budget - a[rows].sum()
    assert not ((sizes[left_out] <= room) & (a[left_out] < money * (1 - 1e-9))).any(), "another would fit"


@given(n=st.integers(2, 30), part=st.floats(0.05, 1), slack=st.floats(0, 1), seed=st.integers(0, 999))
def test_budgets_met_almost_exactly_are_kept_with_sizes(n: int, part: float, slack: float, seed: int) -> None:
    """Where a sum that is rounded another way, or an optimum that is met but for rounding, would be above."""
    c, a = problem(KINDS[seed % len(KINDS)], n, seed)
    sizes = np.random.default_rng(seed).integers(1, 20, n).astype(float)
    count = float(max(1, round(part * sizes.sum())))
    budget = least_cost(a, count, sizes=sizes) * (1 + 1e-9) + slack * float(a.sum())
    for _ in range(6):
        try:
            found = budgeted_top(c, a, count, budget, sizes=sizes)
        except InfeasibleError:
            return
        rows = whole(found, c, a, count, budget, sizes=sizes)
        total = math.fsum(a[rows])
        assert total <= budget and sizes[rows].sum() <= count
        # What is found costs just that, or a little more than may be spent.
        budget = total if budget > total else math.nextafter(total, -math.inf)


@given(n=st.integers(1, 9), seed=st.integers(0, 999), sized=st.booleans())
def test_no_subset_is_above_the_bound(n: int, seed: int, sized: bool) -> None:
    c, a = problem("random", n, seed)
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, n).astype(float) if sized else None
    count = max(1, n // 2) if sizes is None else max(1.0, sizes.sum() // 2)
    budget = least_cost(a, count, sizes=sizes) * 1.2
    bound = upper_bound(c, a, count, budget, sizes=sizes)
    for size in range(n + 1):
        for rows in map(list, combinations(range(n), size)):
            within = a[rows].sum() <= budget
            filled = size == count if sizes is None else sizes[rows].sum() <= count
            if within and filled:
                assert c[rows].sum() <= bound + 1e-9


def test_the_multiplier_is_what_more_budget_would_add() -> None:
    c, a = problem("random", 50, 0)
    more = [budgeted_top(c, a, 10, 2.0 + step).objective for step in (0, 1e-6)]
    assert budgeted_top(c, a, 10, 2.0).multiplier == pytest.approx((more[1] - more[0]) / 1e-6, rel=1e-3)


def test_a_budget_that_cannot_be_kept_to_is_refused() -> None:
    with pytest.raises(
        InfeasibleError, match=r"cheapest rows cost 3, more than the budget of 2\.9"
    ) as caught:
        budgeted_top([0, 0, 0], [1, 2, 3], 2, 2.9)
    assert caught.value.least == least_cost([1, 2, 3], 2) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([1.0], [1.0, 2.0], 1, 1), "rows of one length"),
        (([np.nan], [1.0], 1, 1), "must be finite"),
        (([1.0], [np.inf], 1, 1), "must be finite"),
        (([1.0], [1.0], 2, 9), "Of 1 there is, 2 cannot be taken"),
        (([1.0], [1.0], 0.5, 9), "whole number"),
        (([1.0], [1.0], 1, np.nan), "budget is not a number"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        budgeted_top(*arguments)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="Sizes must be positive"):
        budgeted_top([1.0, 1.0], [1.0, 1.0], 1, 9, sizes=[1.0, 0.0])


def test_a_budget_met_exactly_though_its_sum_rounds() -> None:
    """0.1 + 0.1 + 0.1 + 0.3 is more than 0.6 in floating point, one after the other."""
    c, a = [-0.9, -0.3, 0, -0.3, 0.8], [0.1, 0.1, 0.1, 0.3, 0.3]
    found = budgeted_top(c, a, 4, 0.6)
    assert found.objective == pytest.approx(-0.4)
    assert whole(found, c, a, 4, 0.6).tolist() == [0, 1, 2, 4]


def test_none_and_all() -> None:
    assert budgeted_top([1.0, 2.0], [1.0, 1.0], 0, 0).weights.tolist() == [0, 0]
    assert budgeted_top([1.0, -2.0], [1.0, 1.0], 2, 2).weights.tolist() == [1, 1]
