"""Relations of the kind "i comes before j": their cycles, and orders that keep to them."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components


def linear_extension(before: NDArray[np.bool_], wish: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order that keeps to a relation and is nearest to a wish: always the first wished for of those that
    wait for no other.

    Args:
        before: (n, n) True at [i, j] where i has to come before j.
        wish: (n,) a permutation.

    Returns:
        (m,) items; fewer than n where the others lie on a cycle or wait for one.

    >>> linear_extension(np.array([[False, False], [True, False]]), np.array([0, 1])).tolist()
    [1, 0]
    """
    return extended(before, wish)


@numba.njit(nogil=True, cache=True)
def extended(before: Any, wish: Any) -> Any:
    """`linear_extension`, where numba calls it."""
    n = len(wish)
    waits_for, order, placed = np.zeros(n, dtype=np.int64), np.empty(n, dtype=np.int64), 0
    for i in range(n):
        for j in range(n):
            waits_for[j] += before[i, j]
    while placed < n:
        item = -1
        for wished in wish:
            if waits_for[wished] == 0:
                item = wished
                break
        if item < 0:
            break
        order[placed] = item
        placed += 1
        waits_for[item] = -1
        for j in range(n):
            if before[item, j]:
                waits_for[j] -= 1
    return order[:placed]


def components(arcs: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Items in parts: those of a part lie on common cycles, and arcs between parts lead to later ones. Of
    parts that may come next, the one with the lowest item does.

    >>> [part.tolist() for part in components(np.array([[0, 0, 0], [1, 0, 1], [0, 1, 0]], dtype=bool))]
    [[1, 2], [0]]
    """
    if not len(arcs):
        return []
    count, labels = connected_components(csr_matrix(arcs), connection="strong")
    between = np.zeros((count, count), dtype=bool)
    starts, ends = np.nonzero(arcs)
    between[labels[starts], labels[ends]] = True
    np.fill_diagonal(between, False)
    lowest = np.unique(labels, return_index=True)[1]
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    return [members[part] for part in linear_extension(between, np.argsort(lowest))]


def on_a_cycle(arcs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Items from which arcs lead back to themselves, ascending.

    >>> on_a_cycle(np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=bool)).tolist()
    [0, 1]
    """
    joined = [part for part in components(arcs) if len(part) > 1 or arcs[part[0], part[0]]]
    return np.sort(np.concatenate(joined)) if joined else np.empty(0, dtype=np.int64)


def reachable(arcs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n, n) True at [i, j] where arcs without a cycle lead from i to j.

    >>> reachable(np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool))[0].tolist()
    [False, True, True]
    """
    reach = np.array(arcs, dtype=bool)
    for item in linear_extension(reach, np.arange(len(reach)))[::-1]:
        reach[item] |= reach[arcs[item]].any(axis=0)
    return reach
