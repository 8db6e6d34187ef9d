"""The best rows within a budget: a linear program with one dual variable, solved exactly.

    max c.w   subject to   0 <= w <= 1,   sizes.w = count,   a.w <= budget

This is each linearised step of DiReCT (arXiv 2605.31175). Fix the multiplier mu >= 0 of the budget. The best
w then fills `count` with the rows of the highest keys (c - mu a) / sizes, and its cost falls as mu grows. Two
fillings, one above the budget and one within it, bracket the optimal mu. The next mu is the one at which both
have the same Lagrangian value, where two tangents of the dual cross. If no filling is better there, a mixture
of the two is the optimum. Rows that every mu in the bracket takes, and rows that none takes, are set aside,
so few remain after a few rounds.

Rows with equal keys at the last mu can be exchanged at no loss. They are sorted by cost, and a window slides
over them until the budget is met. Only the two rows at its ends can then be partly taken.

A million rows take 0.10 to 0.18 s on one core. At 100,000 rows the optimum equals that of HiGHS within 4e-15,
which takes 0.2 to 17 s there.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
Ids = NDArray[np.int64]

ROUNDS = 400
"""Multipliers tried, at most. A few dozen were the most needed; this guards against cycling by rounding."""

SAME = 1e-15
"""Relative difference of two fillings' values that is rounding."""

WHOLE = 1e-12
"""A weight this close to 0 or 1 is 0 or 1."""

ROUNDING = 1e-13
"""Relative excess over the budget that is rounding in the search; `whole_rows` meets the budget exactly."""


class BudgetedTop(NamedTuple):
    """The optimum. Shapes: N rows."""

    weights: Vector
    """(N,) in 0..1; at most two are neither 0 nor 1."""
    objective: float
    """c.w."""
    multiplier: float
    """mu >= 0: increase of the objective for a unit of budget more."""


class InfeasibleError(ValueError):
    """No filling stays within the budget.

    Attributes:
        least: cost of the cheapest filling.
    """

    def __init__(self, least: float, budget: float) -> None:
        super().__init__(f"The cheapest rows cost {least:.6g}, more than the budget of {budget:.6g}.")
        self.least = least


def budgeted_top(
    c: ArrayLike, a: ArrayLike, count: float, budget: float, *, sizes: ArrayLike | None = None
) -> BudgetedTop:
    """Maximise c.w over weights in 0..1 with sizes.w = count and a.w <= budget, exactly.

    Args:
        c: (N,) value of each row.
        a: (N,) cost of each row.
        count: number of rows; with `sizes`, their total size.
        budget: total cost, at most.
        sizes: (N,) positive; the default is 1.

    Raises:
        InfeasibleError: (a ValueError) the cheapest rows exceed the budget.
        ValueError: shapes differ, a number is not finite, or there are too few rows.

    >>> budgeted_top([3.0, 2.0, 0.5], [2.0, 1.0, 0.0], count=1, budget=0.5)
    BudgetedTop(weights=array([0. , 0.5, 0.5]), objective=1.25, multiplier=1.5)
    """
    program = _Program.of(c, a, count, sizes)
    weights, multiplier = _optimum(program, float(budget))
    # Amounts become weights again by division, which leaves 1 - 1e-16 where a row is wholly taken.
    if program.room is not None:
        weights = np.clip(weights / program.room, 0, 1)
        rounded = np.round(weights)
        weights = np.where(np.abs(weights - rounded) < WHOLE, rounded, weights)
    return BudgetedTop(weights, float(np.asarray(c, dtype=np.float64) @ weights), multiplier)


def least_cost(a: ArrayLike, count: float, *, sizes: ArrayLike | None = None) -> float:
    """Cost of the cheapest rows: the smallest budget for which `budgeted_top` has a solution.

    >>> least_cost([2.0, 1.0, 0.5], count=2)
    1.5
    """
    a = np.asarray(a, dtype=np.float64)
    program = _Program.of(np.zeros(len(a)), a, count, sizes)
    return math.fsum(program.cost * program.filled(-program.cost))


def upper_bound(
    c: ArrayLike, a: ArrayLike, count: float, budget: float, *, sizes: ArrayLike | None = None
) -> float:
    """Upper bound on the value of whole rows within both limits.

    Without `sizes` exactly `count` rows are taken, and this is the optimum. With `sizes`, whole rows need not
    fill `count`, and rows of negative value may be left out: the optimum with one more row, which is worth
    and costs nothing and fills the rest.
    """
    if sizes is None or not count:
        return budgeted_top(c, a, count, budget, sizes=sizes).objective
    c, a, sizes = (np.append(np.asarray(v, np.float64), last) for v, last in ((c, 0), (a, 0), (sizes, count)))
    return budgeted_top(c, a, count, budget, sizes=sizes).objective


def whole_rows(
    optimum: BudgetedTop,
    c: ArrayLike,
    a: ArrayLike,
    count: float,
    budget: float,
    *,
    sizes: ArrayLike | None = None,
) -> Ids:
    """Ids of whole rows near an optimum, ascending, within the budget to the last bit.

    Without `sizes` the cheaper of the two partly taken rows is kept, so there are exactly `count`. With
    `sizes` both are dropped, and the best rows that still fit are added.
    """
    a = np.asarray(a, dtype=np.float64)
    if sizes is not None:
        sizes = np.asarray(sizes, dtype=np.float64)
        key = (np.asarray(c, dtype=np.float64) - optimum.multiplier * a) / sizes
        # Weights are whole up to `WHOLE`, so the rows may exceed a limit by as much.
        rows = _within(np.flatnonzero(optimum.weights == 1), key, a, budget)
        return _topped_up(_within(rows, key, sizes, count), key, a, count, budget, sizes)
    rows = _cheaper_kept(optimum, a, count)
    aim, less = budget, 0.0
    # Sums of a million costs are rounded. Aim below the budget by the excess, twice as far each time.
    while (excess := math.fsum(a[rows]) - budget) > 0:
        less = max(2 * less, excess)
        aim = math.nextafter(aim, -math.inf) - less
        if least_cost(a, count) * (1 + 2 * ROUNDING) > aim:
            return np.sort(np.lexsort((-np.asarray(c), a))[: round(count)])  # only the cheapest rows fit
        rows = _cheaper_kept(budgeted_top(c, a, count, aim), a, count)
    return rows


def rounded_at_random(weights: Vector, rng: np.random.Generator) -> Ids:
    """(n,) places drawn with weights in 0..1 as their probabilities, ascending; as many as the weights sum
    to, up or down to a whole number.

    >>> rounded_at_random(np.array([1.0, 0.0, 0.25, 0.75]), np.random.default_rng(0)).tolist()
    [0, 3]
    """
    partial = np.flatnonzero((weights > 0) & (weights < 1))
    # Systematic sampling: one random offset decides all rows, so the number drawn differs from the sum of the
    # weights by less than one.
    ends = np.floor(np.concatenate([[0.0], np.cumsum(weights[partial])]) + rng.random() + WHOLE)
    return np.sort(np.concatenate([np.flatnonzero(weights == 1), partial[np.diff(ends) > 0]]))


def _cheaper_kept(optimum: BudgetedTop, a: Vector, count: float) -> Ids:
    """(count,) the fully taken rows and the cheapest of the partly taken ones, ascending."""
    w = optimum.weights
    full, partial = np.flatnonzero(w == 1), np.flatnonzero((w > 0) & (w < 1))
    cheapest = partial[np.argsort(a[partial], kind="stable")][: round(count) - len(full)]
    rows = np.sort(np.concatenate([full, cheapest]))
    assert len(rows) == round(count)
    return rows


def _within(rows: Ids, key: Vector, values: Vector, limit: float) -> Ids:
    """The rows without the worst ones that make the sum of their values exceed a limit."""
    counted = rows[values[rows] > 0]
    for row in counted[np.argsort(key[counted], kind="stable")]:
        if math.fsum(values[rows]) <= limit:
            break
        rows = rows[rows != row]
    return rows


def _topped_up(rows: Ids, key: Vector, a: Vector, count: float, budget: float, sizes: Vector) -> Ids:
    """The rows and, by descending key, those that still fit both limits."""
    aim = budget
    while True:
        room, money = count - math.fsum(sizes[rows]), aim - math.fsum(a[rows])
        free = np.setdiff1d(np.flatnonzero((sizes <= room) & (a <= money)), rows)
        added: list[int] = []
        for row in free[np.argsort(-key[free], kind="stable")].tolist():
            if sizes[row] <= room and a[row] <= money:
                added.append(row)
                room, money = room - sizes[row], money - a[row]
        result = np.sort(np.concatenate([rows, np.array(added, dtype=np.int64)]))
        excess = math.fsum(a[result]) - budget
        if excess <= 0 or not added:
            return result
        # Each subtraction from `money` was rounded. Aim below the budget by the excess.
        aim = math.nextafter(aim, -math.inf) - excess


# ---- the program -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Program:
    """The program with amounts x = sizes * w in place of weights: 0 <= x <= room, sum x = total. N rows."""

    value: Vector
    """(N,) c / sizes."""
    cost: Vector
    """(N,) a / sizes."""
    room: Vector | None
    """(N,) sizes; None if all are 1, and the best rows can then be found without sorting."""
    total: float

    @staticmethod
    def of(c: ArrayLike, a: ArrayLike, count: float, sizes: ArrayLike | None) -> "_Program":
        c, a = np.asarray(c, dtype=np.float64), np.asarray(a, dtype=np.float64)
        room = None if sizes is None else np.asarray(sizes, dtype=np.float64)
        for values in (c, a) if room is None else (c, a, room):
            if values.shape != c.shape or values.ndim != 1:
                raise ValueError(f"Expected vectors of one length; found {c.shape} and {values.shape}.")
            if not np.isfinite(values).all():
                raise ValueError("Values, costs and sizes must be finite.")
        if room is not None and not np.all(room > 0):
            raise ValueError("Sizes must be positive.")
        if room is None and count != round(count):
            raise ValueError(f"The count must be a whole number; found {count}.")
        most = len(c) if room is None else float(room.sum())
        if not 0 <= count <= most:
            raise ValueError(f"Cannot take {count:g} of {most:g}.")
        if room is None:
            return _Program(c, a, None, float(count))
        # A count that takes everything is summed here as `filled` sums it.
        total = float(np.cumsum(room)[-1]) if count == most > 0 else float(count)
        return _Program(c / room, a / room, room, total)

    def filled(self, key: Vector) -> Vector:
        """(N,) amounts that take the total from the rows with the highest keys."""
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

    def cheapest(self) -> Vector:
        """(N,) amounts that take the total at the least cost; of equal costs the most valuable rows first."""
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

    def last_key(self, key: Vector) -> float:
        """The key of the last row that the total takes from, highest keys first."""
        most = float(len(self.value) if self.room is None else self.room.sum())
        if not 0 < self.total <= most:
            return math.inf if self.total <= 0 else -math.inf
        if self.room is None:
            count = math.ceil(self.total)
            return -float(np.partition(-key, count - 1)[count - 1])
        order = np.argsort(-key, kind="stable")
        last = np.searchsorted(np.cumsum(self.room[order]), self.total)
        return float(key[order[min(int(last), len(key) - 1)]])

    def filling(self, multiplier: float) -> "_Filling":
        """The best filling for a multiplier; the cheapest for an infinite one."""
        if multiplier == math.inf:
            amounts = self.cheapest()
        else:
            amounts = self.filled(self.value - multiplier * self.cost)
        return _Filling.of(self, amounts, multiplier)


@dataclass
class _Filling:
    """A filling that is the best for a multiplier, with its value and cost."""

    amounts: Vector
    multiplier: float
    value: float
    cost: float

    @staticmethod
    def of(program: _Program, amounts: Vector, multiplier: float) -> "_Filling":
        return _Filling(amounts, multiplier, _dot(program.value, amounts), _dot(program.cost, amounts))


# ---- the search --------------------------------------------------------------------------------------------


def _optimum(program: _Program, budget: float) -> tuple[Vector, float]:
    """(N,) the optimal amounts, and the multiplier.

    Raises:
        InfeasibleError: even the cheapest filling exceeds the budget.
    """
    if math.isnan(budget):
        raise ValueError("The budget is not a number.")
    low, high = program.filling(0.0), program.filling(math.inf)
    # Sums of tenths round: without this a filling that meets the smallest feasible budget exactly was judged
    # to exceed it (docs/log.md).
    rounding = ROUNDING * max(abs(budget), _dot(np.abs(program.cost), high.amounts))
    # The cheapest filling is the last one that a growing multiplier reaches: above the budget there is none.
    if high.cost > budget + rounding:
        raise InfeasibleError(math.fsum(program.cost * high.amounts), budget)
    budget = max(budget, high.cost)
    # Without the budget the best rows are affordable already, so that its multiplier is 0.
    if low.cost <= budget + rounding:
        return low.amounts, 0.0
    amounts, ids = np.zeros(len(program.value)), np.arange(len(program.value))
    width, crossing = math.inf, 0.0
    for turn in range(ROUNDS):
        if low.cost <= high.cost:
            break  # rounding, with few rows left
        crossing = max(0.0, (low.value - high.value) / (low.cost - high.cost))
        # Where the dual bends sharply, tangents approach it from one side only. Halving works from both.
        halve = turn % 3 == 2 and high.multiplier - low.multiplier > width / 4
        multiplier = (low.multiplier + high.multiplier) / 2 if halve else crossing
        width = high.multiplier - low.multiplier
        if not halve and crossing in (low.multiplier, high.multiplier):
            break  # its filling is an end already, and the rest is rounding
        middle = program.filling(multiplier)
        if not halve and not _better(program, middle, low, multiplier):
            break
        # The bracket keeps one filling on either side of the budget; the optimum mixes the last two.
        if middle.cost > budget:
            low = middle
        else:
            high = middle
        # With an infinite end the keys have no finite range, and no row is certain yet.
        if high.multiplier < math.inf:
            program, ids, low, high, budget = _narrowed(program, ids, low, high, budget, amounts)
    amounts[ids] = _mixed(program, low.amounts, high.amounts, budget)
    return amounts, crossing


def _better(program: _Program, middle: _Filling, low: _Filling, multiplier: float) -> bool:
    """Whether a filling has a higher Lagrangian value than both ends, which are equal at the multiplier."""
    differ = middle.amounts != low.amounts
    change = (middle.amounts - low.amounts)[differ]
    value, cost = program.value[differ] * change, multiplier * program.cost[differ] * change
    return math.fsum(value) - math.fsum(cost) > SAME * float(np.abs(value).sum() + np.abs(cost).sum())


def _narrowed(
    program: _Program, ids: Ids, low: _Filling, high: _Filling, budget: float, amounts: Vector
) -> tuple[_Program, Ids, _Filling, _Filling, float]:
    """Set aside the rows that every multiplier of the bracket takes (written to `amounts`), or none.

    A row's key is linear in the multiplier, so it lies between its values at the ends. The last key therefore
    lies between the last keys of the lower and of the higher values.
    """
    at_low = program.value - low.multiplier * program.cost
    at_high = program.value - high.multiplier * program.cost
    least, most = np.minimum(at_low, at_high), np.maximum(at_low, at_high)
    always, never = least > program.last_key(most), most < program.last_key(least)
    rows = np.flatnonzero(~(always | never))
    # Copying is worth it only if it removes a tenth.
    if len(rows) > 0.9 * len(ids) or not len(rows):
        return program, ids, low, high, budget
    fixed = np.ones(int(always.sum())) if program.room is None else program.room[always]
    amounts[ids[always]] = fixed
    budget -= _dot(program.cost[always], fixed)
    room = None if program.room is None else program.room[rows]
    total = program.total - float(fixed.sum())
    smaller = _Program(program.value[rows], program.cost[rows], room, total)
    low, high = (_Filling.of(smaller, end.amounts[rows], end.multiplier) for end in (low, high))
    return smaller, ids[rows], low, high, budget


def _mixed(program: _Program, low: Vector, high: Vector, budget: float) -> Vector:
    """A filling that spends the budget, between two of equal Lagrangian value that cost more and less."""
    result = low.copy()
    # A row that both take partly joins the window; it would otherwise stay as a third partly taken row.
    partial = (low > 0) & (low < (1 if program.room is None else program.room))
    moving = np.flatnonzero((low != high) | partial)
    order = moving[np.argsort(program.cost[moving], kind="stable")]
    room = np.ones(len(order)) if program.room is None else program.room[order]
    ends = np.concatenate([[0.0], np.cumsum(room)])
    length = float(low[order].sum())
    money = budget - _dot(program.cost, low) + _dot(program.cost[order], low[order])
    spent = np.concatenate([[0.0], np.cumsum(room * program.cost[order])])
    # The window [start, start + length] costs more the further it slides, linearly between these starts.
    starts = np.unique(np.clip(np.concatenate([ends, ends - length]), 0, ends[-1] - length))
    costs = np.interp(starts + length, ends, spent) - np.interp(starts, ends, spent)
    costs = np.maximum.accumulate(costs)  # ascending up to rounding
    last = max(0, int(np.searchsorted(costs, money, side="right")) - 1)
    start = float(starts[last])
    if last + 1 < len(starts) and costs[last + 1] > costs[last]:
        share = float((money - costs[last]) / (costs[last + 1] - costs[last]))
        start += min(max(0.0, share), 1.0) * float(starts[last + 1] - start)
    overlap = np.minimum(ends[1:], start + length) - np.maximum(ends[:-1], start)
    result[order] = np.clip(overlap, 0, None)
    return result


def _dot(values: Vector, amounts: Vector) -> float:
    """values.amounts, read only where amounts are not zero."""
    nonzero = np.flatnonzero(amounts)
    return float((values[nonzero] * amounts[nonzero]).sum())
