"""Products with the rows of a large matrix that is read a part at a time: a memory-mapped store of gradients.

Shapes: N rows of k numbers, of any floating type; all results are of at least single precision.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

PART = 2**14
"""Rows read at a time: 64 MiB of 1,024 numbers."""


class Rows:
    """Rows of `x`, some of them only, each multiplied by a factor and freed of some directions.

    >>> rows = Rows(np.eye(3), np.array([0, 2]), scale=np.array([1.0, 2.0]))
    >>> rows.times(np.ones(3)).tolist(), rows.sum_of([1]).tolist()
    ([1.0, 2.0], [0.0, 0.0, 2.0])

    Args:
        x: (M, k), read in parts and never copied as a whole.
        chosen: (N,) which of its rows, ascending; all unless given.
        scale: (N,) factors; 1 unless given.
        without: (k, s) orthonormal directions that are taken out of every row.
    """

    def __init__(
        self, x: Any, chosen: Any = None, scale: Any = None, without: NDArray[Any] | None = None
    ) -> None:
        self.x = x
        self.chosen = np.arange(len(x)) if chosen is None else np.asarray(chosen)
        self.scale = np.ones(len(self.chosen)) if scale is None else np.asarray(scale, dtype=np.float64)
        self.without = without

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def width(self) -> int:
        """k."""
        return self.x.shape[1]

    def parts(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Places and unscaled rows, a part at a time."""
        for start in range(0, len(self), PART):
            part = slice(start, start + PART)
            yield part, np.asarray(self.x[self._ids(part)], dtype=np.float32)

    def _ids(self, part: slice) -> Any:
        ids = self.chosen[part]
        # A stretch without gaps is read as one; picking rows singly takes several times as long.
        return slice(int(ids[0]), int(ids[-1]) + 1) if ids[-1] - ids[0] == len(ids) - 1 else ids

    def times(self, p: NDArray[Any]) -> NDArray[np.float64]:
        """(N, ...) inner products with the columns of `p` (k, ...)."""
        p = self.projected(np.asarray(p, dtype=np.float64)).astype(np.float32)
        result = np.empty((len(self), *p.shape[1:]))
        for part, rows in self.parts():
            result[part] = rows @ p
        return result * self.scale.reshape(-1, *[1] * (p.ndim - 1))

    def some(self, places: Any) -> NDArray[np.float64]:
        """The rows at some places, in that order."""
        places = np.asarray(places)
        order = np.argsort(places, kind="stable")
        values = np.empty((len(places), self.width))
        # Ascending: a file is read from front to back.
        values[order] = self.x[self.chosen[places[order]]]
        return self.projected((values * self.scale[places, None]).T).T

    def sum_of(self, places: Any, weights: Any = None) -> NDArray[np.float64]:
        """(k,) sum of the rows at some places, each times a weight where there are such."""
        places = np.asarray(places, dtype=np.int64)
        factors = self.scale[places] * (1.0 if weights is None else np.asarray(weights))
        order, total = np.argsort(places, kind="stable"), np.zeros(self.width)
        for start in range(0, len(places), PART):
            part = order[start : start + PART]
            values = np.asarray(self.x[self.chosen[places[part]]], dtype=np.float32)
            total += factors[part].astype(np.float32) @ values
        return self.projected(total)

    def squares(self) -> NDArray[np.float64]:
        """(N,) squared length of each row."""
        result = np.empty(len(self))
        for part, rows in self.parts():
            result[part] = np.einsum("nk,nk->n", rows, rows, dtype=np.float64)
            if self.without is not None:
                result[part] -= ((rows @ self.without.astype(np.float32)).astype(np.float64) ** 2).sum(axis=1)
        return np.maximum(result, 0) * self.scale**2

    def gram(self) -> NDArray[np.float64]:
        """(k, k) sum of the rows' outer products with themselves."""
        total = np.zeros((self.width, self.width))
        for part, rows in self.parts():
            scaled = rows * self.scale[part, None].astype(np.float32)
            total += scaled.T @ scaled
        return self.projected(self.projected(total).T)

    def projected(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """(k, ...) without the directions that are taken out."""
        return p if self.without is None else p - self.without @ (self.without.T @ p)
