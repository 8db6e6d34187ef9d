"""The best rows within a budget, and exactly so many: a linear program with a single multiplier.

    max c.w   subject to   0 <= w <= 1,   sizes.w = count,   a.w <= budget

For a multiplier mu >= 0 on the budget the best w fills `count` by (c - mu a) / sizes, highest first, and
costs less the larger mu is. Two such fillings, one above the budget and one within it, give the next mu to
try: the one at which both are worth the same. Where no filling is worth more there, a mixture of the two is
the optimum. Rows that every mu in between would take, or none would, are set aside, so that few are left
after a few rounds.

Among rows that are worth the same at the last mu any filling is as good. Ordered by cost, a window is slid
over them until the budget is met: all but the two rows at its ends are then taken wholly or not at all.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]

MANY, EVERY = 2**14, 16
"""Above so many rows one in so many is solved first, to guess what the optimum of all is like."""

WIDE, ERRORS = 12.0, 4.0
"""How far from the guess the multiplier may lie, as a share of it that falls with the root of the rows that
were asked, and the key of the last row, in standard errors of its rank. Beyond that all rows are searched."""

ROUNDS = 400
"""More than any problem has been seen to need (a few dozen): a guard against rounding that goes round in
circles."""

SAME = 1e-15
"""Relative difference of two fillings' worth that is rounding."""

WHOLE = 1e-12
"""A row of which less than this is left out, or taken, is taken or left out."""

ROUNDING = 1e-13
"""Relative difference of what is spent and the budget that is rounding; whole rows are checked exactly."""


class BudgetedTop(NamedTuple):
    """The optimum. Shapes: N rows."""

    weights: Row
    """(N,) in 0..1; at most two rows are neither 0 nor 1."""
    objective: float
    """c.w."""
    multiplier: float
    """mu >= 0: what a little more budget would add to the objective, per unit."""


class InfeasibleError(ValueError):
    """No filling stays within the budget."""

    def __init__(self, least: float, budget: float) -> None:
        super().__init__(f"The cheapest rows cost {least:.6g}, more than the budget of {budget:.6g}.")
        self.least = least
        """What the cheapest rows cost."""


def budgeted_top(c: Any, a: Any, count: float, budget: float, *, sizes: Any = None) -> BudgetedTop:
    """Maximise c.w with weights in 0..1, sizes.w = count and a.w <= budget, exactly.

    Args:
        c: (N,) what each row is worth.
        a: (N,) what it costs.
        count: how many rows, a whole number; or how much of `sizes`.
        budget: most that may be spent.
        sizes: (N,) positive, where rows count for more or less than one.

    Raises:
        InfeasibleError: (a ValueError) when even the cheapest rows exceed the budget.
        ValueError: when shapes differ, a number is not finite, or there are too few rows.

    >>> budgeted_top([3.0, 2.0, 0.5], [2.0, 1.0, 0.0], count=1, budget=0.5)
    BudgetedTop(weights=array([0. , 0.5, 0.5]), objective=1.25, multiplier=1.5)
    """
    given = _Fillings.of(c, a, count, sizes)
    amounts, multiplier = _optimum(given, float(budget))
    weights = amounts
    if given.room is not None:
        weights = np.clip(amounts / given.room, 0, 1)
        rounded = np.round(weights)
        weights = np.where(np.abs(weights - rounded) < WHOLE, rounded, weights)
    return BudgetedTop(weights, float(np.asarray(c, dtype=np.float64) @ weights), multiplier)


def least_cost(a: Any, count: float, *, sizes: Any = None) -> float:
    """What the cheapest rows cost: the smallest budget that `budgeted_top` can keep to.

    >>> least_cost([2.0, 1.0, 0.5], count=2)
    1.5
    """
    a = np.asarray(a, dtype=np.float64)
    given = _Fillings.of(np.zeros(len(a)), a, count, sizes)
    return math.fsum(given.cost * given.filled(-given.cost))


def upper_bound(c: Any, a: Any, count: float, budget: float, *, sizes: Any = None) -> float:
    """What no rows within both limits exceed: the optimum where `count` need not be used up.

    Exactly `count` rows are always taken; `sizes` need not fill it, and rows that are worth less than nothing
    may be left out.
    """
    if sizes is None or not count:
        return budgeted_top(c, a, count, budget, sizes=sizes).objective
    c, a, sizes = (
        np.append(np.asarray(each, np.float64), last) for each, last in ((c, 0), (a, 0), (sizes, count))
    )
    return budgeted_top(c, a, count, budget, sizes=sizes).objective


def whole(
    found: BudgetedTop, c: Any, a: Any, count: float, budget: float, *, sizes: Any = None
) -> NDArray[np.int64]:
    """Whole rows out of an optimum, ascending, within the budget to the last bit.

    Of the two rows that are partly taken the cheaper one is kept, so that there are exactly `count`. With
    `sizes` neither fits; they are left out, and the best rows that still fit take their place.
    """
    a = np.asarray(a, dtype=np.float64)
    if sizes is not None:
        taken = np.flatnonzero(found.weights == 1)
        sizes = np.asarray(sizes, dtype=np.float64)
        worth = (np.asarray(c, dtype=np.float64) - found.multiplier * a) / sizes
        return _topped_up(_within(taken, worth, a, budget), worth, a, count, budget, sizes)
    rows = _kept(found, a, count)
    aim, less = budget, 0.0
    while (over := math.fsum(a[rows]) - budget) > 0:
        # Sums of a million costs round; the next cheaper optimum is no further away than that, or not much.
        less = max(2 * less, over)
        aim = math.nextafter(aim, -math.inf) - less
        # At the least cost only the cheapest rows will do.
        if least_cost(a, count) * (1 + 2 * ROUNDING) > aim:
            return np.sort(np.lexsort((-np.asarray(c), a))[: round(count)])
        rows = _kept(budgeted_top(c, a, count, aim), a, count)
    return rows


def _kept(found: BudgetedTop, a: Row, count: float) -> NDArray[np.int64]:
    """(count,) the rows taken, ascending, and of those that are partly taken the cheapest."""
    w = found.weights
    taken, partly = np.flatnonzero(w == 1), np.flatnonzero((w > 0) & (w < 1))
    cheapest = partly[np.argsort(a[partly], kind="stable")][: round(count) - len(taken)]
    rows = np.sort(np.concatenate([taken, cheapest]))
    assert len(rows) == round(count)
    return rows


def _within(taken: NDArray[np.int64], worth: Row, a: Row, budget: float) -> NDArray[np.int64]:
    """Those of the rows that the budget pays for: the optimum keeps to it but for rounding, and where that
    matters the least worthy goes."""
    paid = taken[a[taken] > 0]
    for row in paid[np.argsort(worth[paid], kind="stable")]:
        if math.fsum(a[taken]) <= budget:
            break
        taken = taken[taken != row]
    return taken


def _topped_up(
    taken: NDArray[np.int64], worth: Row, a: Row, count: float, budget: float, sizes: Row
) -> NDArray[np.int64]:
    """Those taken and the worthiest that still fit."""
    aim = budget
    while True:
        room, left = count - math.fsum(sizes[taken]), aim - math.fsum(a[taken])
        free = np.setdiff1d(np.flatnonzero((sizes <= room) & (a <= left)), taken)
        more: list[int] = []
        for row in free[np.argsort(-worth[free], kind="stable")].tolist():
            if sizes[row] <= room and a[row] <= left:
                more.append(row)
                room, left = room - sizes[row], left - a[row]
        rows = np.sort(np.concatenate([taken, np.array(more, dtype=np.int64)]))
        over = math.fsum(a[rows]) - budget
        if over <= 0 or not more:
            return rows
        # What is left was rounded with every row that was added: aim lower by as much.
        aim = math.nextafter(aim, -math.inf) - over


# ---- the search --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fillings:
    """Rows by unit of size: each can give up to `room` of itself, and `total` is wanted of them together."""

    value: Row
    cost: Row
    room: Row | None
    """None where every row has room 1, so that the best are found without sorting."""
    total: float

    @staticmethod
    def of(c: Any, a: Any, count: float, sizes: Any) -> "_Fillings":
        c, a = np.asarray(c, dtype=np.float64), np.asarray(a, dtype=np.float64)
        room = None if sizes is None else np.asarray(sizes, dtype=np.float64)
        for values in (c, a, room):
            if values is not None and (values.shape != c.shape or values.ndim != 1):
                raise ValueError(f"Expected rows of one length; found {c.shape} and {values.shape}.")
            if values is not None and not np.isfinite(values).all():
                raise ValueError("Values, costs and sizes must be finite.")
        if room is not None and not np.all(room > 0):
            raise ValueError("Sizes must be positive.")
        if room is None and count != round(count):
            raise ValueError(f"The count must be a whole number; found {count}.")
        most = len(c) if room is None else float(room.sum())
        if not 0 <= count <= most:
            raise ValueError(f"Of {most:g} there is, {count:g} cannot be taken.")
        if room is not None and count == most:
            count = float(np.cumsum(room)[-1])  # summed as the fillings are
        return _Fillings(*((c, a) if room is None else (c / room, a / room)), room, float(count))

    def filled(self, key: Row) -> Row:
        """(N,) the total, taken from the rows with the highest keys."""
        amounts = np.zeros(len(key))
        if self.room is None:
            count = round(self.total)
            if count:
                amounts[np.argpartition(-key, count - 1)[:count] if count < len(key) else slice(None)] = 1
            return amounts
        order = np.argsort(-key, kind="stable")
        before = np.cumsum(self.room[order]) - self.room[order]
        amounts[order] = np.clip(self.total - before, 0, self.room[order])
        return amounts

    def cheapest(self) -> Row:
        """(N,) the total at the least cost, of equal costs the most valuable first."""
        if self.room is None and 0 < self.total < len(self.cost):
            limit = -self.last_key(-self.cost)
            below, ties = self.cost < limit, np.flatnonzero(self.cost == limit)
            amounts = below.astype(np.float64)
            order = np.argsort(-self.value[ties], kind="stable")
            amounts[ties[order[: round(self.total) - int(below.sum())]]] = 1
            return amounts
        rank = np.empty(len(self.cost))
        rank[np.lexsort((-self.value, self.cost))] = -np.arange(len(self.cost))
        return self.filled(rank)

    def last_key(self, key: Row) -> float:
        """The key of the last row that is needed for the total, highest first."""
        if not 0 < self.total <= self.most():
            return math.inf if self.total <= 0 else -math.inf
        if self.room is None:
            count = math.ceil(self.total)
            return -float(np.partition(-key, count - 1)[count - 1])
        order = np.argsort(-key, kind="stable")
        last = np.searchsorted(np.cumsum(self.room[order]), self.total)
        return float(key[order[min(int(last), len(key) - 1)]])

    def most(self) -> float:
        """All that could be taken."""
        return float(len(self.value) if self.room is None else self.room.sum())

    def share(self, rows: NDArray[Any]) -> tuple[float, float]:
        """How much of all is in some rows, and how far what is taken of them may be from that share."""
        room = np.ones(len(rows)) if self.room is None else self.room[rows]
        taken = min(1.0, self.total / self.most())
        spread = ERRORS * math.sqrt(taken * (1 - taken) * float(room @ room))
        return float(room.sum()) / self.most(), spread

    def of_rows(self, rows: NDArray[Any], less: float) -> "_Fillings":
        """The same over some rows, `less` of the total being taken already."""
        room = None if self.room is None else self.room[rows]
        return _Fillings(self.value[rows], self.cost[rows], room, self.total - less)


@dataclass
class _End:
    """One end of the bracket: a filling that is best for a multiplier, and what it is worth and costs."""

    amounts: Row
    multiplier: float
    worth: float
    spent: float

    def kept(self, problem: _Fillings, rows: NDArray[Any]) -> "_End":
        """Over some rows only."""
        amounts = self.amounts[rows]
        return _End(amounts, self.multiplier, _sum(problem.value, amounts), _sum(problem.cost, amounts))


def _optimum(given: _Fillings, budget: float) -> tuple[Row, float]:
    """(N,) amounts and the multiplier."""
    if math.isnan(budget):
        raise ValueError("The budget is not a number.")
    found = _guessed(given, budget) if len(given.value) > MANY else None
    return _searched(given, budget) if found is None else found


def _guessed(given: _Fillings, budget: float) -> tuple[Row, float] | None:
    """The optimum by way of a guess from some of the rows; None where the guess was wrong.

    Rows that are taken wherever the multiplier and the key of the last row taken lie in the ranges guessed,
    or never, are set aside, and the optimum of the others is found. Where it lies in the ranges, it is the
    optimum of all: by duality, no row set aside could be placed better.
    """
    try:
        ends, (least, most) = _ranges(given, budget)
        at_ends = [given.value - end * given.cost for end in ends]
        always, never = np.minimum(*at_ends) > most, np.maximum(*at_ends) < least
        rows = np.flatnonzero(~(always | never))
        amounts: Row = np.where(always, 1.0 if given.room is None else given.room, 0.0)
        others = given.of_rows(rows, float(amounts.sum()))
        if not 0 < others.total < others.most():
            return None
        amounts[rows], multiplier = _searched(others, budget - _sum(given.cost, amounts))
    except InfeasibleError:
        return None
    last = others.last_key(others.value - multiplier * others.cost)
    right = ends[0] <= multiplier <= ends[1] and least <= last <= most
    return (amounts, multiplier) if right else None


def _ranges(given: _Fillings, budget: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the multiplier lies, and the key of the last row taken, by the optimum of some rows."""
    rows = np.arange(0, len(given.value), EVERY)
    share, spread = given.share(rows)
    total = share * given.total
    some = replace(given.of_rows(rows, 0.0), total=total if given.room is not None else float(round(total)))
    _, near = _optimum(some, share * budget)
    wide = 1 + WIDE / math.sqrt(len(rows))
    ends = near / wide, near * wide
    keys = [some.value - end * some.cost for end in ends]
    fewer, more = replace(some, total=some.total - spread), replace(some, total=some.total + spread)
    return ends, (min(more.last_key(key) for key in keys), max(fewer.last_key(key) for key in keys))


def _searched(given: _Fillings, budget: float) -> tuple[Row, float]:
    """The same by narrowing from all multipliers there are."""
    low, high = _end(given, 0.0), _end(given, math.inf)
    rounding = ROUNDING * max(abs(budget), _sum(np.abs(given.cost), high.amounts))
    if high.spent > budget + rounding:
        raise InfeasibleError(math.fsum(given.cost * high.amounts), budget)
    budget = max(budget, high.spent)
    if low.spent <= budget + rounding:
        return low.amounts, 0.0
    amounts, ids = np.zeros(len(given.value)), np.arange(len(given.value))
    problem, width, crossing = given, math.inf, 0.0
    for turn in range(ROUNDS):
        if low.spent <= high.spent:
            break  # rounding, among the few rows that are left
        crossing = max(0.0, (low.worth - high.worth) / (low.spent - high.spent))
        # Tangents of a dual that bends sharply close in from one side only; halving does from both.
        halve = turn % 3 == 2 and high.multiplier - low.multiplier > width / 4
        multiplier = (low.multiplier + high.multiplier) / 2 if halve else crossing
        width = high.multiplier - low.multiplier
        if not halve and crossing in (low.multiplier, high.multiplier):
            break  # known there: what is left is rounding
        found = _end(problem, multiplier)
        if not halve and _no_better(problem, found, low, multiplier):
            break
        if found.spent > budget:
            low = found
        else:
            high = found
        if high.multiplier < math.inf:
            problem, ids, low, high, budget = _narrowed(problem, ids, low, high, budget, amounts)
    mixed = _mixed(problem, low.amounts, high.amounts, budget)
    amounts[ids] = mixed
    return amounts, crossing


def _end(problem: _Fillings, multiplier: float) -> _End:
    if multiplier == math.inf:
        amounts = problem.cheapest()
    else:
        amounts = problem.filled(problem.value - multiplier * problem.cost)
    return _End(amounts, multiplier, _sum(problem.value, amounts), _sum(problem.cost, amounts))


def _no_better(problem: _Fillings, found: _End, low: _End, multiplier: float) -> bool:
    """Whether nothing is worth more at the multiplier than what both ends are worth there."""
    differ = found.amounts != low.amounts
    change = (found.amounts - low.amounts)[differ]
    value, cost = problem.value[differ] * change, multiplier * problem.cost[differ] * change
    gain = math.fsum(value) - math.fsum(cost)
    return gain <= SAME * (np.abs(value).sum() + np.abs(cost).sum())


def _narrowed(
    problem: _Fillings, ids: NDArray[np.int64], low: _End, high: _End, budget: float, amounts: Row
) -> tuple[_Fillings, NDArray[np.int64], _End, _End, float]:
    """Set aside the rows that every multiplier of the bracket takes, or none does.

    A row's key is linear in the multiplier, so that it lies between its values at the ends, and so does the
    key of the last row taken between that of the lower values and that of the higher ones.
    """
    at_low = problem.value - low.multiplier * problem.cost
    at_high = problem.value - high.multiplier * problem.cost
    least, most = np.minimum(at_low, at_high), np.maximum(at_low, at_high)
    always, never = least > problem.last_key(most), most < problem.last_key(least)
    rows = np.flatnonzero(~(always | never))
    if len(rows) > 0.9 * len(ids) or not len(rows):
        return problem, ids, low, high, budget
    taken = np.ones(int(always.sum())) if problem.room is None else problem.room[always]
    amounts[ids[always]] = taken
    budget -= _sum(problem.cost[always], taken)
    smaller = problem.of_rows(rows, float(taken.sum()))
    return smaller, ids[rows], low.kept(smaller, rows), high.kept(smaller, rows), budget


def _mixed(problem: _Fillings, low: Row, high: Row, budget: float) -> Row:
    """A filling between two that are worth the same, and that spends the budget."""
    result = low.copy()
    differ = np.flatnonzero(low != high)
    order = differ[np.argsort(problem.cost[differ], kind="stable")]
    room = np.ones(len(order)) if problem.room is None else problem.room[order]
    ends = np.concatenate([[0.0], np.cumsum(room)])
    length = float(low[order].sum())
    left = budget - _sum(problem.cost, low) + _sum(problem.cost[order], low[order])
    spent = np.concatenate([[0.0], np.cumsum(room * problem.cost[order])])

    def within(start: Any) -> Any:
        return np.interp(start + length, ends, spent) - np.interp(start, ends, spent)

    # What a window costs bends only where one of its ends passes from one row to the next.
    bends = np.unique(np.clip(np.concatenate([ends, ends - length]), 0, ends[-1] - length))
    costs = np.maximum.accumulate(within(bends))  # ascending, but for rounding
    last = max(0, int(np.searchsorted(costs, left, side="right")) - 1)
    start = bends[last]
    if last + 1 < len(bends) and costs[last + 1] > costs[last]:
        part = (left - costs[last]) / (costs[last + 1] - costs[last])
        start += min(max(0.0, part), 1.0) * (bends[last + 1] - start)
    result[order] = np.clip(np.minimum(ends[1:], start + length) - np.maximum(ends[:-1], start), 0, None)
    return result


def _sum(values: Row, amounts: Row) -> float:
    taken = np.flatnonzero(amounts)
    return float((values[taken] * amounts[taken]).sum())
