"""The best candidates of many rows at once: a heap for each, fed with tiles of products.

Shapes: M rows, C candidates of each; a tile is a block of the matrix of all products.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

Tile = NDArray[np.float32]


class Heaps:
    """The `count` highest products of each of M rows, and which columns they came from."""

    def __init__(self, rows: int, count: int) -> None:
        self.ids = np.full((rows, count), -1, dtype=np.int32)
        """(M, C) columns, in no order; -1 where fewer than C were offered."""
        self.products = np.full((rows, count), -np.inf, dtype=np.float32)
        """(M, C) a heap in each row, the lowest first."""
        self.lowest = np.full(rows, -np.inf, dtype=np.float32)
        """(M,) no column left out has a higher product than this."""

    def offer(self, tile: Tile, first_row: int, own: NDArray[np.int64], first_column: int) -> None:
        """The products of some rows with some columns.

        Args:
            tile: (m, n).
            first_row: which of the M rows the tile's first one is.
            own: (m,) the column that each row is itself, which is left out.
            first_column: number of the tile's first column.
        """
        heaps = (self.ids, self.products, self.lowest)
        in_threads(lambda a, b: _offer(tile, a, b, first_row, own, first_column, *heaps), len(tile))


def in_threads(work: Callable[[int, int], Any], count: int) -> None:
    """`work(start, stop)` on contiguous shares of `count`, as many as torch has threads.

    Meant for kernels that let go of the interpreter's lock.
    """
    shares = min(count, torch.get_num_threads())
    if shares <= 1:
        work(0, count)
        return
    edges = np.linspace(0, count, shares + 1).astype(int).tolist()
    with ThreadPoolExecutor(shares) as pool:
        for done in [pool.submit(work, *edge) for edge in pairwise(edges)]:
            done.result()


def parts(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@numba.njit(nogil=True, cache=True)
def _offer(
    tile: Any,
    start: int,
    stop: int,
    first_row: int,
    own: Any,
    first_column: int,
    ids: Any,
    products: Any,
    lowest: Any,
) -> None:
    for i in range(start, stop):
        row = first_row + i
        itself = own[i] - first_column
        for j in range(tile.shape[1]):
            if tile[i, j] > lowest[row] and j != itself:
                lowest[row] = _replace_lowest(ids[row], products[row], first_column + j, tile[i, j])


@numba.njit(nogil=True, cache=True)
def _replace_lowest(ids: Any, products: Any, new_id: int, product: float) -> float:
    """Put a candidate in the place of the lowest one and restore the heap; returns its new lowest."""
    place, size = 0, len(products)
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and products[child + 1] < products[child]:
            child += 1
        if products[child] >= product:
            break
        ids[place], products[place] = ids[child], products[child]
        place = child
    ids[place], products[place] = new_id, product
    return products[0]
