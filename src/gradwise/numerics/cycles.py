"""Directed graphs made acyclic by removing arcs of little weight (feedback arc set)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.ordering import linear_order, square
from gradwise.numerics.precedence import reachable


class Acyclic(NamedTuple):
    """What is left, and what had to go. Shapes: n nodes."""

    weights: NDArray[np.float64]
    """(n, n) without a cycle; zeros on the diagonal."""
    removed: NDArray[np.int64]
    """(m, 2) arcs removed, from and to, ascending. Each of them alone would close a cycle again."""


def break_cycles(weights: Any, seed: int = 0, max_moves: int | None = None) -> Acyclic:
    """Remove arcs until there is no cycle: the least total weight where few nodes lie on common cycles (16 at
    most), little elsewhere.

    The arcs that lead backwards in a linear order of high value are removed, and those of them that close no
    cycle put back, the heaviest first. An arc that lies on no cycle is never removed.

    Args:
        weights: (n, n) of the arcs, 0 where there is none. The diagonal does not count.
        seed: as in `linear_order`.
        max_moves: as in `linear_order`.

    Raises:
        ValueError: when a weight is negative or not finite, or the matrix is not square.

    >>> break_cycles([[0, 5, 0], [0, 0, 4], [1, 0, 0]]).removed.tolist()
    [[2, 0]]
    """
    w = square(weights)
    if np.any(w < 0):
        i, j = np.argwhere(w < 0)[0]
        raise ValueError(f"Weights of arcs must not be negative; the one from {i} to {j} is {w[i, j]}.")
    place = np.argsort(linear_order(w, seed, max_moves))
    backwards = (w > 0) & (place[:, None] > place[None, :])
    removed = backwards & ~_closing_none(w, backwards)
    return Acyclic(np.where(removed, 0.0, w), np.argwhere(removed))


def _closing_none(w: NDArray[np.float64], backwards: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n, n) arcs that can be put back: all of them together close no cycle, and each of the others would."""
    reach = reachable((w > 0) & ~backwards)
    back = np.zeros(w.shape, dtype=bool)
    # What closes a cycle now does so with more arcs as well.
    starts, ends = np.nonzero(backwards & ~reach.T)
    for arc in np.argsort(-w[starts, ends], kind="stable"):
        i, j = starts[arc], ends[arc]
        if not reach[j, i]:
            back[i, j] = True
            above, below = reach[:, i].copy(), reach[j].copy()
            above[i] = below[j] = True
            reach[np.ix_(above, below)] = True
    return back
