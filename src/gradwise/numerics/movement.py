"""Rows whose sum is as long as possible, within a budget: max ||sum_i w_i x_i||^2, by linear programs.

The objective is convex, so that it lies above its tangents: the best rows by the tangent at one point are
never worse than that point, and the steps come to rest after a few. Where they rest depends on where they
began, so that several beginnings are followed at once and the best is kept.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from gradwise.numerics.budgeted import budgeted_top, upper_bound, whole
from gradwise.numerics.rows import Rows

STEPS = 50
"""Linearised steps at most; most beginnings rest within ten."""


@dataclass(frozen=True)
class Movement:
    """The longest sum found. Shapes: N rows."""

    rows: NDArray[np.int64]
    """Places picked, ascending."""
    objective: float
    """||sum of those rows||^2."""
    steps: int
    """Linearised steps of the beginning that took the most."""
    bound: float
    """No rows within the budget have a longer sum, squared."""


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
    squares, gram = rows.squares(), rows.gram()
    values, axes = scipy.linalg.eigh(gram)
    bound = _bound(float(values[-1]), upper_bound(squares, a, count, budget, sizes=sizes), count, sizes)
    directions = _beginnings(rows, axes[:, ::-1], starts - 1, seed)

    def take(c: NDArray[Any]) -> NDArray[np.int64]:
        found = budgeted_top(c, a, count, budget, sizes=sizes)
        return whole(found, c, a, count, budget, sizes=sizes)

    picked = [take(squares), *(take(along) for along in rows.times(directions).T)]
    sums = np.array([rows.sum_of(some) for some in picked]).T
    return Movement(*_climbed(rows, picked, sums, take), bound=bound)


def _climbed(rows: Rows, picked: list[Any], sums: NDArray[np.float64], take: Any) -> tuple[Any, float, int]:
    """Linearised steps from every beginning until none gains; the best picks and what they are worth."""
    worth, moving, steps = (sums**2).sum(axis=0), np.arange(len(picked)), 0
    while moving.size and steps < STEPS:
        steps += 1
        scores, still = rows.times(sums[:, moving]), []
        for place, start in enumerate(moving):
            found = take(scores[:, place])
            total = rows.sum_of(found)
            # Whole rows may be worth a little less than the step's own optimum; then this start rests.
            if (gained := float(total @ total)) > worth[start] * (1 + 1e-9):
                picked[start], sums[:, start], worth[start] = found, total, gained
                still.append(start)
        moving = np.array(still, dtype=np.int64)
    best = int(np.argmax(worth))
    return picked[best], float(worth[best]), steps


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
    along = [mean] + [sense * axes[:, i] for i in range(2) for sense in (1.0, -1.0)]
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal(rows.width) for _ in range(count - len(along))]
    return np.array([*along, *drawn][:count]).reshape(count, rows.width).T
