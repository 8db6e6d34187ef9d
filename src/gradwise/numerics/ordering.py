"""The linear ordering problem: a permutation with as much weight as possible from earlier to later items.

    max over permutations   sum of weights[i, j] over all i that come before j

Only the differences c = weights - weights^T matter. Items that no cycle of positive differences joins are
put in order exactly, whatever their number; what is left is solved part by part. Small parts are solved
exactly by a recursion over subsets (Held and Karp 1962), larger ones by a memetic search in the
neighbourhood of insertions (`insertion.py`), which is bounded by a number of moves and reads no clock.
"""

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.insertion import evolved
from gradwise.numerics.precedence import components, linear_extension, on_a_cycle

Matrix = NDArray[np.float64]
Relation = NDArray[np.bool_]
Order = NDArray[np.int64]

EXACT = 16
"""Items up to which a part is solved exactly: 20 ms, and each item more would double it."""

MOVES_PER_PAIR, SCANNED = 250, 2_000_000_000
"""Moves by default: so many for each pair (i, j), and no more than look at so many places in all."""


def linear_order(
    weights: Any, seed: int = 0, max_moves: int | None = None, precedences: Any = None
) -> NDArray[np.int64]:
    """A permutation of high value, the best one where few items lie on common cycles; the same for the same
    seed.

    Args:
        weights: (n, n) of any sign and unit; weights[i, j] is gained where i comes before j. The diagonal
            does not count.
        seed: of the search; without influence on what is solved exactly.
        max_moves: how often the search may look for a row's best place, over all places; by default some two
            seconds for n = 200, growing with the square of n up to there.
        precedences: (n, n) bool, True at [i, j] where i has to come before j, whatever the weights.

    Returns:
        (n,) items in their order.

    Raises:
        ValueError: when a weight is not finite, shapes differ, or the precedences contradict each other.

    Source: insertions and recombination as in Schiavinotto and Stuetzle (2004), "The linear ordering problem:
    instances, search space analysis and algorithms".

    >>> linear_order([[0, 1, 3], [2, 0, 1], [0, 2, 0]]).tolist()
    [0, 2, 1]
    >>> linear_order([[0, 1], [0, 0]], precedences=[[False, False], [True, False]]).tolist()
    [1, 0]
    """
    if max_moves is not None and max_moves < 0:
        raise ValueError(f"max_moves must not be negative; found {max_moves}.")
    problem = _Problem.of(weights, precedences)
    parts = components((problem.gains > 0) | problem.before)
    rng = np.random.default_rng(seed)
    searched = sum(len(part) ** 2 for part in parts if len(part) > EXACT)
    order = []
    for part in parts:
        inner = problem.among(part)
        if len(part) <= EXACT:
            found = inner.best()
        elif max_moves is None:
            found = inner.searched(rng, default_moves(len(part)))
        else:
            found = inner.searched(rng, max_moves * len(part) ** 2 // searched)
        order.append(part[found])
    return np.concatenate(order) if order else np.empty(0, dtype=np.int64)


def default_moves(n: int) -> int:
    """Moves of a search among n items unless told otherwise.

    >>> default_moves(200)
    10000000
    """
    return min(MOVES_PER_PAIR * n * n, SCANNED // max(n, 1))


def order_value(weights: Any, order: Any) -> float:
    """Sum of weights[i, j] over all i that come before j in the order.

    >>> order_value([[0, 1], [5, 0]], [1, 0])
    5.0
    """
    w, order = square(weights), np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(len(w))):
        raise ValueError(f"Expected an order of {len(w)} items, each of them once.")
    return float(np.triu(w[np.ix_(order, order)], 1).sum())


def order_bound(weights: Any) -> float:
    """What no order exceeds: the larger weight of every pair.

    >>> order_bound([[0, 1], [5, 0]])
    5.0
    """
    w = square(weights)
    return float(np.triu(np.maximum(w, w.T), 1).sum())


def square(weights: Any) -> Matrix:
    """(n, n) a copy in float64, with zeros on the diagonal.

    Raises:
        ValueError: when it is not square, or a weight is not finite.
    """
    w = np.array(weights, dtype=np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1]:
        raise ValueError(f"Expected as many rows as columns of weights; found shape {w.shape}.")
    np.fill_diagonal(w, 0)
    if not np.isfinite(w).all():
        i, j = np.argwhere(~np.isfinite(w))[0]
        raise ValueError(f"Weights must be finite; the one from {i} to {j} is {w[i, j]}.")
    return w


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is to be ordered. Shapes: n items."""

    gains: Matrix
    """(n, n) c, antisymmetric, the largest in 1..2 unless all are zero: what i before j is worth more than j
    before i."""
    before: Relation
    """(n, n) i has to come before j."""

    @staticmethod
    def of(weights: Any, precedences: Any) -> "_Problem":
        w = _scaled(square(weights))
        if precedences is None:
            return _Problem(_scaled(w - w.T), np.zeros(w.shape, dtype=bool))
        before = np.array(precedences)
        if before.shape != w.shape or before.dtype != bool:
            raise ValueError(
                f"Expected precedences of bool in shape {w.shape}; found {before.dtype} in {before.shape}."
            )
        if len(stuck := on_a_cycle(before)):
            named = ", ".join(map(str, stuck[:8])) + (", ..." if len(stuck) > 8 else "")
            raise ValueError(f"Precedences contradict each other: each of {named} has to come before itself.")
        return _Problem(_scaled(w - w.T), before)

    def among(self, items: Order) -> "_Problem":
        """Some of the items."""
        here = np.ix_(items, items)
        return _Problem(self.gains[here], self.before[here])

    @property
    def tolerance(self) -> float:
        """By how much a sum of gains can be wrong through rounding."""
        n = len(self.gains)
        return n * n * np.finfo(np.float64).eps * float(np.abs(self.gains).max(initial=0))

    def best(self) -> Order:
        """By the recursion over subsets; for few items."""
        if len(self.gains) == 1:
            return np.zeros(1, dtype=np.int64)
        later = (self.before * (1 << np.arange(len(self.gains)))).sum(axis=1)
        return _best_by_subsets(self.gains, later.astype(np.int64), self.tolerance)

    def searched(self, rng: np.random.Generator, moves: int) -> Order:
        """By insertions, at most so many rows being looked at."""
        moves = min(moves, 2**62)
        walls = np.where(self.before, np.inf, np.where(self.before.T, -np.inf, self.gains))
        bound = np.where(self.before, self.gains, np.where(self.before.T, 0, np.maximum(self.gains, 0))).sum()
        # Those first that give more than they take; Becker (1967) uses the quotient.
        first = linear_extension(self.before, np.argsort(-self.gains.sum(axis=1), kind="stable"))
        return evolved(self.gains, walls, self.before, first, rng, moves, float(bound), self.tolerance)


def _scaled(values: Matrix) -> Matrix:
    """By a power of two, so that nothing is rounded: the largest between 1 and 2, unless all are zero."""
    largest = float(np.abs(values).max(initial=0))
    return np.ldexp(values, 1 - math.frexp(largest)[1]) if largest else values


@numba.njit(nogil=True, cache=True)
def _best_by_subsets(gains: Any, later: Any, tolerance: float) -> Any:
    """best[S], the value of the best order of the items in S, is the best over its last item j of best[S - j]
    plus what S - j gains before j. `later` holds each item's successors, a bit each; none may be in S."""
    n = len(gains)
    best, last = np.full(1 << n, -np.inf), np.zeros(1 << n, dtype=np.int8)
    best[0] = 0.0
    for some in range(1, 1 << n):
        for j in range(n):
            rest = some ^ (1 << j)
            if some >> j & 1 == 0 or some & later[j] != 0 or best[rest] == -np.inf:
                continue
            value = best[rest]
            for i in range(n):
                if rest >> i & 1:
                    value += gains[i, j]
            if value > best[some] + tolerance:
                best[some], last[some] = value, j
    order, some = np.empty(n, dtype=np.int64), (1 << n) - 1
    for place in range(n - 1, -1, -1):
        order[place] = last[some]
        some ^= 1 << order[place]
    return order
