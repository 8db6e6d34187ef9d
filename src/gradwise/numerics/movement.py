"""Rows whose sum is as long as possible, within a budget: max ||sum_i w_i x_i||^2, by linear programs.

The objective is convex, so that it lies above its tangents: the best weights by the tangent at one point are
never worse than that point, and the steps come to rest after a few. Where they rest depends on where they
began, so several beginnings are followed at once. Each is then rounded to whole rows and mended by exchanges
of a row for another, until none gains; the best is kept.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from gradwise.numerics.budgeted import BudgetedTop, budgeted_top, upper_bound, whole
from gradwise.numerics.rows import Rows

STEPS, RESTED = 50, 1e-6
"""Linearised steps at most, and the relative gain below which a beginning rests; exchanges do the rest."""

SCREENED, FOLLOWED = 3, 2
"""Steps that all beginnings make, and how many of them, the best by then, go on and are mended."""

AHEAD = 2.0
"""How much further than the last step went the next tangent touches."""

NEAR = 2**11
"""Rows among which steps are made between two that look at all of them."""

LOOKS, EXCHANGED = 20, 256
"""How often exchanges are looked for at most, and among how many rows on either side: those that are worth
least of the picks and most of the others."""


@dataclass(frozen=True)
class Movement:
    """The longest sum found. Shapes: N rows."""

    rows: NDArray[np.int64]
    """Places picked, ascending."""
    objective: float
    """||sum of those rows||^2."""
    bound: float
    """No rows within the budget have a longer sum, squared."""
    steps: int
    """Linearised steps until the last beginning rested."""


@dataclass(frozen=True)
class _Limits:
    """What rows must keep to."""

    costs: NDArray[np.float64]
    count: float
    budget: float
    sizes: NDArray[np.float64] | None

    def best(self, c: NDArray[Any]) -> BudgetedTop:
        return budgeted_top(c, self.costs, self.count, self.budget, sizes=self.sizes)

    def whole(self, found: BudgetedTop, c: NDArray[Any]) -> NDArray[np.int64]:
        return whole(found, c, self.costs, self.count, self.budget, sizes=self.sizes)

    def among(self, places: NDArray[np.int64], weights: NDArray[np.float64]) -> "_Limits":
        """For the rows at some places, all others keeping their weights."""
        others = weights.copy()
        others[places] = 0
        sizes = None if self.sizes is None else self.sizes[places]
        count = round(float(weights[places].sum())) if sizes is None else float(sizes @ weights[places])
        # What they cost now they may go on costing, whatever sums round to.
        budget = max(self.budget - float(self.costs @ others), float(self.costs[places] @ weights[places]))
        return _Limits(self.costs[places], count, budget, sizes)

    def room(self, picks: NDArray[np.int64]) -> tuple[float, float]:
        """Budget and size that picks leave."""
        size = 0.0 if self.sizes is None else self.count - float(self.sizes[picks].sum())
        # Sums round; what is left is taken a little short so that the budget holds to the last bit.
        return (self.budget - float(self.costs[picks].sum())) * (1 - 1e-9) - 1e-12 * self.budget, size


def longest_sum(
    rows: Rows,
    a: NDArray[Any],
    count: float,
    budget: float,
    *,
    starts: int = 8,
    seed: int = 0,
    sizes: Any = None,
) -> Movement:
    """Pick rows within a budget whose sum is as long as can be found, and bound how long any could be.

    Args:
        rows: N rows of k numbers.
        a: (N,) costs.
        count: how many rows; or how much of `sizes`.
        budget: most that the picks may cost.
        starts: beginnings: by length, along the mean, along both senses of the principal axes, the rest
            drawn.
        seed: of those.
        sizes: (N,) positive, where rows count for more or less than one.

    Raises:
        InfeasibleError: when even the cheapest rows exceed the budget.
    """
    limits = _Limits(np.asarray(a, dtype=np.float64), count, float(budget), sizes)
    squares = rows.squares()
    largest, axes = _principal(rows)
    bound = _bound(largest, upper_bound(squares, a, count, budget, sizes=sizes), count, sizes)
    directions = _beginnings(rows, axes, starts - 1, seed)
    scores = np.column_stack([squares, rows.times(directions)])
    picks, steps = _climbed(rows, scores, limits)
    found, worth = _mended(rows, picks, limits)
    return Movement(found, worth, bound, steps)


def _principal(rows: Rows) -> tuple[float, NDArray[np.float64]]:
    """The largest eigenvalue of X^T X, and its first eigenvectors (k, two at most)."""
    if len(rows) < rows.width:
        x = rows.some(np.arange(len(rows)))
        values, vectors = scipy.linalg.eigh(x @ x.T)
        first = np.flatnonzero(values[::-1][:2] > 0)
        left = vectors[:, ::-1][:, first] / np.sqrt(values[::-1][first])
        return float(values[-1]), x.T @ left
    values, axes = scipy.linalg.eigh(rows.gram())
    return float(values[-1]), axes[:, ::-1][:, :2]


def _climbed(rows: Rows, scores: NDArray[np.float64], limits: _Limits) -> tuple[list[NDArray[np.int64]], int]:
    """Linearised steps from every column of scores, from the best ones until none gains; then whole rows."""
    climbs = [_Climb(limits, np.zeros(rows.width)) for _ in scores.T]
    for step in range(SCREENED):
        scores = rows.times(np.array([climb.ahead for climb in climbs]).T) if step else scores
        for climb, c in zip(climbs, scores.T, strict=True):
            climb.step(rows, c.copy())
    best = sorted(climbs, key=lambda climb: -climb.worth)[:FOLLOWED]
    steps = SCREENED + max(climb.on(rows) for climb in best)
    return [limits.whole(climb.found, climb.scores) for climb in best], steps


class _Climb:
    """One beginning's way up: weights, each the best by a tangent at the sum before, or further that way.

    Where the tangent touches as far again beyond the sum as the last step went, and more, fewer steps are
    needed, and some points at which they would rest are passed over. Where that gains nothing, the tangent
    at the sum decides.
    """

    found: BudgetedTop
    """The best weights so far."""
    scores: NDArray[np.float64]
    """(N,) what the rows were worth by the tangent that these came of."""

    def __init__(self, limits: _Limits, fixed: NDArray[np.float64]) -> None:
        self.limits = limits
        self.fixed = fixed
        """(k,) the sum of what is taken in any case."""
        self.total, self.moved, self.worth = fixed, np.zeros_like(fixed), -1.0

    @property
    def ahead(self) -> NDArray[np.float64]:
        """(k,) where the next tangent touches."""
        return self.total + AHEAD * self.moved

    def step(self, rows: Rows, c: NDArray[np.float64]) -> bool:
        """The best weights by these scores; whether they gained anything to speak of."""
        found = self.limits.best(c)
        taken = np.flatnonzero(found.weights)
        total = self.fixed + rows.sum_of(taken, found.weights[taken])
        worth = float(total @ total)
        gained = worth > self.worth * (1 + RESTED)
        self.moved = total - self.total if gained and self.worth >= 0 else np.zeros_like(total)
        if worth > self.worth:
            self.total, self.worth, self.found, self.scores = total, worth, found, c
        return gained

    def on(self, rows: Rows) -> int:
        """Steps until none gains; how many."""
        step = 0
        while step < STEPS:
            step += 1
            if len(rows) > 2 * NEAR:
                self.settle(rows)
            beyond = self.moved.any()
            if not self.step(rows, rows.times(self.ahead)) and not beyond:
                break
        return step

    def settle(self, rows: Rows) -> None:
        """Steps among the rows that are nearest to being taken or left; what is taken of others stays."""
        limits, weights = self.limits, self.found.weights.copy()
        keys = self.scores - self.found.multiplier * limits.costs
        keys = keys if limits.sizes is None else keys / limits.sizes
        last = keys[weights > 0].min(initial=np.inf)
        away = np.where((weights > 0) & (weights < 1), -1.0, np.abs(keys - last))
        places = np.sort(np.argpartition(away, NEAR)[:NEAR])
        among = weights[places]
        inner = _Climb(limits.among(places, weights), self.total - rows.sum_of(places, among))
        inner.total, inner.moved, inner.worth = self.total, self.moved, self.worth
        inner.on(Rows(rows.some(places).astype(np.float32)))
        if inner.worth > self.worth * (1 + RESTED):
            weights[places] = inner.found.weights
            self.moved = self.moved + inner.total - self.total
            self.total, self.worth = inner.total, inner.worth
            self.found = inner.found._replace(weights=weights)


def _mended(rows: Rows, picks: list[NDArray[np.int64]], limits: _Limits) -> tuple[NDArray[np.int64], float]:
    """Exchanges of one row for another in all picks until none gains; the best of them."""
    distinct = list({some.tobytes(): some for some in picks}.values())
    sums = np.array([rows.sum_of(some) for some in distinct]).T
    open_ones = list(range(len(distinct)))
    for _ in range(LOOKS):
        if not open_ones:
            break
        scores = rows.times(sums[:, open_ones])
        still = []
        for place, number in enumerate(open_ones):
            better = _exchanged(rows, distinct[number], sums[:, number], scores[:, place], limits)
            if better is not None:
                distinct[number], sums[:, number] = better, rows.sum_of(better)
                still.append(number)
        open_ones = still
    worth = (sums**2).sum(axis=0)
    best = int(np.argmax(worth))
    return np.sort(distinct[best]), float(worth[best])


def _exchanged(
    rows: Rows,
    picks: NDArray[np.int64],
    total: NDArray[np.float64],
    scores: NDArray[np.float64],
    limits: _Limits,
) -> NDArray[np.int64] | None:
    """Picks after the exchanges that gain among the rows looked at; None where there are none."""
    outside = np.setdiff1d(np.arange(len(rows)), picks)
    if not outside.size or not picks.size:
        return None
    gives = picks[np.argsort(scores[picks], kind="stable")[:EXCHANGED]]
    takes = outside[np.argsort(-scores[outside], kind="stable")[:EXCHANGED]]
    given, taken = rows.some(gives), rows.some(takes)
    money, size = limits.room(picks)
    dearer = limits.costs[takes][None, :] - limits.costs[gives][:, None]
    larger = np.zeros_like(dearer)
    if limits.sizes is not None:
        larger = limits.sizes[takes][None, :] - limits.sizes[gives][:, None]
    apart = (given**2).sum(axis=1)[:, None] + (taken**2).sum(axis=1)[None, :] - 2 * given @ taken.T
    done: dict[int, int] = {}
    while True:
        gain = 2 * ((taken @ total)[None, :] - (given @ total)[:, None]) + apart
        gain[(dearer > money) | (larger > size)] = -np.inf
        gain[list(done), :] = -np.inf
        gain[:, list(done.values())] = -np.inf
        out, into = divmod(int(np.argmax(gain)), len(takes))
        if not gain[out, into] > 1e-9 * float(total @ total):
            break
        done[out] = into
        total = total - given[out] + taken[into]
        money, size = money - dearer[out, into], size - larger[out, into]
    if not done:
        return None
    kept = np.setdiff1d(picks, gives[list(done)])
    return np.concatenate([kept, takes[list(done.values())]])


def _bound(largest: float, lengths: float, count: float, sizes: Any) -> float:
    """||X^T w||^2 is at most s^2 ||w||^2 <= s^2 sum w, and by Cauchy and Schwarz at most sum w times
    sum w_i ||x_i||^2."""
    most = count if sizes is None else float(_most_rows(np.asarray(sizes), count))
    return most * min(largest, lengths)


def _most_rows(sizes: NDArray[Any], room: float) -> int:
    return int(np.searchsorted(np.cumsum(np.sort(sizes)), room, side="right"))


def _beginnings(rows: Rows, axes: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """(k, count) directions: the mean, both senses of the first axes, and random ones."""
    mean = rows.sum_of(np.arange(len(rows)))
    along = [mean] + [sense * axis for axis in axes.T for sense in (1.0, -1.0)]
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal(rows.width) for _ in range(count - len(along))]
    return np.array([*along, *drawn][:count]).reshape(count, rows.width).T
