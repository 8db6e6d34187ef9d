"""What the graph is made of: samples that differ, copies merged into one node, embeddings centred.

The hidden states of a language model share a large common part, so that any two have a cosine near 1; around
their mean they tell samples apart.
"""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from gradwise.errors import RecipeError
from gradwise.methods.grace.costs import EXACT_UP_TO
from gradwise.numerics import KnnGraph, knn_graph
from gradwise.numerics.nearest import unit
from gradwise.numerics.rows import first_equal

Search = Literal["auto", "exact", "approximate"]

COPY = 1 - 1e-6
"""Cosine above which two samples are copies."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """Samples merged into nodes, and the graph of the nodes. Shapes: n samples, m nodes."""

    node: NDArray[np.int32]
    """(n,) the node that each sample belongs to; nodes are numbered by their first sample."""
    first: NDArray[np.int64]
    """(m,) place of each node's first sample, ascending; it stands for the node."""
    centre: NDArray[np.float32]
    """(h,) mean of the embeddings."""
    placed: NDArray[np.float32]
    """(m, h) where the nodes lie: around the centre, of unit length."""
    graph: KnnGraph
    """k-NN graph of the nodes."""


def nodes_of(embedding: NDArray[np.floating], k: int, **search: Any) -> Nodes:
    """Nodes and graph of (n, h) embeddings.

    Rows that are equal to the last bit are merged before the graph is built, those that only nearly are
    (padding changes last bits) where the graph shows them; it is then built once more.

    Args:
        embedding: finite.
        k: neighbours of each node; twice as many are kept, for repairs.
        search: `approximate`, `device`, `seed`, as `knn_graph` takes them.
    """
    centre = embedding.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = unit(embedding - centre)
    # First by equal bits, which costs one hash a row: twenty copies of a sample would fill every list of
    # neighbours with themselves.
    first, node = np.unique(first_equal(x), return_inverse=True)
    placed = rows_of(x, first)
    graph = knn_graph(placed, k, spare=k, **search)
    joined = _joined(graph)
    # Near-copies show only in the graph, so it is built again, over what remains.
    if joined.max(initial=-1) + 1 < len(first):
        node, first = joined[node], first[_first_of(joined)]
        placed = rows_of(x, first)
        graph = knn_graph(placed, k, spare=k, **search)
    return Nodes(node.astype(np.int32), first, centre, placed, graph)


def rows_of(x: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Some rows, ascending; `x` itself where that is all of them: a million embeddings are gigabytes."""
    return x if len(rows) == len(x) else x[rows]


def _joined(graph: KnnGraph) -> NDArray[np.int32]:
    """(m,) group of each row: those that a chain of copies connects, numbered by their first row."""
    # Padding changes the last bits of a hidden state, which equal bits alone would miss.
    near = graph.sims > COPY
    if not near.any():
        return np.arange(len(graph), dtype=np.int32)
    rows = np.broadcast_to(np.arange(len(graph))[:, None], graph.ids.shape)[near]
    links = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, graph.ids[near])), (len(graph), len(graph)))
    label = connected_components(links, directed=False)[1]
    order = np.argsort(_first_of(label), kind="stable")
    renumbered = np.empty(len(order), dtype=np.int32)
    renumbered[order] = np.arange(len(order))
    return renumbered[label]


def _first_of(label: NDArray[np.integer]) -> NDArray[np.int64]:
    """Place of the first member of each label."""
    return np.unique(label, return_index=True)[1]


def search_of(search: Search, rows: int) -> Search:
    """How the neighbours of `rows` samples are found; `auto` where both would be the exact search.

    Args:
        search: as it was set.
        rows: number of samples.

    Raises:
        RecipeError: the approximate search is asked for, and faiss is not installed.
    """
    installed = find_spec("faiss") is not None
    if search == "approximate" and not installed:
        raise RecipeError(
            "select.search is approximate, and faiss is not installed; install the extra `faiss`, or give "
            "search: exact."
        )
    if search != "auto" or rows <= EXACT_UP_TO:
        return search
    if not installed:
        warnings.warn(
            f"The neighbours of {rows:,} samples are searched exactly, which takes long; install the extra "
            "`faiss` for an approximate search with a measured recall, or score fewer candidates.",
            stacklevel=4,
        )
    return "approximate" if installed else "exact"
