"""Precedence relations ("i must come before j"): their cycles, what they imply, and orders that obey them."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from gradwise.numerics.kernels import compiled

Relation = NDArray[np.bool_]
"""(n, n) True at [i, j] if an arc leads from i to j: i must come before j."""

Order = NDArray[np.int64]


@compiled
def linear_extension(before: Relation, preferred: Order) -> Order:
    """The order that obeys a relation and stays near a preferred one.

    Each place goes to the first preferred item whose predecessors are all placed.

    Args:
        before: (n, n) the relation.
        preferred: (n,) a permutation.

    Returns:
        (m,) items; m < n if some lie on a cycle or behind one.

    >>> linear_extension(np.array([[False, False], [True, False]]), np.array([0, 1])).tolist()
    [1, 0]
    """
    n = len(preferred)
    predecessors, order, placed = np.zeros(n, dtype=np.int64), np.empty(n, dtype=np.int64), 0
    for i in range(n):
        for j in range(n):
            predecessors[j] += before[i, j]
    while placed < n:
        item = -1
        for candidate in preferred:
            if predecessors[candidate] == 0:
                item = candidate
                break
        if item < 0:
            break
        order[placed] = item
        placed += 1
        # Never 0 again, so that a placed item is not chosen twice.
        predecessors[item] = -1
        for j in range(n):
            if before[item, j]:
                predecessors[j] -= 1
    return order[:placed]


def components(arcs: Relation) -> list[NDArray[np.int64]]:
    """Strongly connected components in topological order: arcs between components lead to later ones.

    Of the components that may come next, the one with the lowest item comes first.

    >>> [part.tolist() for part in components(np.array([[0, 0, 0], [1, 0, 1], [0, 1, 0]], dtype=bool))]
    [[1, 2], [0]]
    """
    if not len(arcs):
        return []
    count, labels = cast(
        tuple[int, NDArray[np.int32]], connected_components(csr_matrix(arcs), connection="strong")
    )
    between = np.zeros((count, count), dtype=np.bool_)
    starts, ends = np.nonzero(arcs)
    between[labels[starts], labels[ends]] = True
    # Arcs within a component say nothing about the order of components.
    np.fill_diagonal(between, False)
    lowest = np.unique(labels, return_index=True)[1]
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    return [members[component] for component in linear_extension(between, np.argsort(lowest))]


def on_a_cycle(arcs: Relation) -> NDArray[np.int64]:
    """Items from which arcs lead back to themselves, ascending.

    >>> on_a_cycle(np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=bool)).tolist()
    [0, 1]
    """
    cyclic = [part for part in components(arcs) if len(part) > 1 or arcs[part[0], part[0]]]
    return np.sort(np.concatenate(cyclic)) if cyclic else np.empty(0, dtype=np.int64)


def reachable(arcs: Relation) -> Relation:
    """(n, n) True at [i, j] if acyclic arcs lead from i to j, over any number of steps.

    >>> reachable(np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool))[0].tolist()
    [False, True, True]
    """
    reach = np.array(arcs, dtype=np.bool_)
    # From the last item back, so that what an item's successors reach is complete.
    for item in linear_extension(reach, np.arange(len(reach)))[::-1]:
        reach[item] |= reach[arcs[item]].any(axis=0)
    return reach
