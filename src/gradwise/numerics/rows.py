"""Rows of a matrix too large for memory, such as a stored gradient for each sample: products and near-copies.

Shapes: N rows of k numbers, of any floating type. Results have at least single precision.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import hashlib
from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from gradwise.numerics.streams import stream

Ids = NDArray[np.int64]

PART = 2**14
"""Rows read at a time: 64 MiB with 1,024 float32 numbers each."""

WIDTH = 16
"""Numbers that `alike` projects a row to: in more dimensions its k-d tree degrades to a scan."""

WIDER = 2.0
"""Factor by which the projected radius is wider: the odds of a longer distance are 1e-7 for a pair."""


class Rows:
    """Rows of a matrix, scaled and with some directions projected out; read in parts, never copied whole.

    Args:
        x: (M, k) a matrix, memory-mapped or not.
        chosen: (N,) ids of its rows, ascending; the default is all.
        scale: (N,) factors; the default is 1.
        without: (k, s) orthonormal directions to project out of every row.

    >>> rows = Rows(np.eye(3), np.array([0, 2]), scale=np.array([1.0, 2.0]))
    >>> rows.times(np.ones(3)).tolist(), rows.sum_of([1]).tolist()
    ([1.0, 2.0], [0.0, 0.0, 2.0])
    """

    def __init__(
        self,
        x: NDArray[np.floating],
        chosen: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        without: NDArray[np.float64] | None = None,
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
        """Slices of the rows, and the rows in float32 as they are in `x`, neither scaled nor projected."""
        for start in range(0, len(self), PART):
            part = slice(start, start + PART)
            ids = self.chosen[part]
            # A stretch without gaps is read as a slice; picking single rows takes several times as long.
            gapless = ids[-1] - ids[0] == len(ids) - 1
            yield part, np.asarray(self.x[ids[0] : ids[-1] + 1] if gapless else self.x[ids], dtype=np.float32)

    def times(self, p: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, ...) inner products of the rows with the columns of `p` (k, ...)."""
        # Projecting the few columns of p once gives the same products as projecting every row.
        p = self.projected(np.asarray(p, dtype=np.float64)).astype(np.float32)
        result = np.empty((len(self), *p.shape[1:]))
        for part, rows in self.parts():
            result[part] = rows @ p
        return result * self.scale.reshape(-1, *[1] * (p.ndim - 1))

    def some(self, places: ArrayLike) -> NDArray[np.float64]:
        """(n, k) the rows at some places, in that order."""
        places = np.asarray(places)
        order = np.argsort(places, kind="stable")
        values = np.empty((len(places), self.width))
        values[order] = self.x[self.chosen[places[order]]]  # ascending, so a file is read from front to back
        return self.projected((values * self.scale[places, None]).T).T

    def sum_of(self, places: ArrayLike, weights: ArrayLike | None = None) -> NDArray[np.float64]:
        """(k,) weighted sum of the rows at some places; the default weight is 1."""
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
        """(k, k) sum of the rows' outer products with themselves, X^T X."""
        total = np.zeros((self.width, self.width))
        for part, rows in self.parts():
            # Sums of each part are formed in single precision and added in double, so that a million rows do
            # not drown the last ones.
            scaled = rows * self.scale[part, None].astype(np.float32)
            total += scaled.T @ scaled
        return self.projected(self.projected(total).T)

    def projected(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """(k, ...) `p` with the directions in `without` projected out."""
        return p if self.without is None else p - self.without @ (self.without.T @ p)


# ---- near-copies -------------------------------------------------------------------------------------------


def near_copy_leaders(
    x: NDArray[np.floating], cosine: float, *, rows: ArrayLike | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """(N,) the leader of each row: the first row that it is a near-copy of, or itself.

    Rows are scanned in order. A row that is no near-copy of an earlier leader becomes a leader, so no two
    leaders are near-copies. A row of zeros is a near-copy of nothing.

    Args:
        x: (M, k), read in parts.
        cosine: two rows are near-copies if their cosine exceeds this.
        rows: (N,) ids of the rows of x to compare, ascending; the default is all. The result holds places in
            it.
        seed: of the random projection.

    >>> near_copy_leaders(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), cosine=0.999).tolist()
    [0, 1, 0]
    """
    compared = Rows(x, rows)
    first, projected = _projected_units(compared, seed)
    leader = first.copy()
    distinct = np.flatnonzero((first == np.arange(len(compared))) & (np.abs(projected).sum(axis=1) > 0))
    for follower, earlier in _near_copies(compared, distinct, projected, cosine).items():
        leader[follower] = earlier
    # The first of some equal rows may follow a leader, and then the others follow it too.
    return leader[leader]


def first_equal(
    x: NDArray[np.floating], seen: dict[bytes, int] | None = None, start: int = 0
) -> NDArray[np.int64]:
    """(n,) the place of the first row with equal numbers, for each row.

    Args:
        x: (n, k).
        seen: carries the rows of one part to the next if a matrix is read in parts.
        start: place of the first row.

    >>> first_equal(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -0.0]])).tolist()
    [0, 1, 0]
    """
    seen = {} if seen is None else seen
    places = (seen.setdefault(_fingerprint(row), place) for place, row in enumerate(x, start))
    return np.fromiter(places, dtype=np.int64, count=len(x))


def _fingerprint(row: NDArray[np.floating]) -> bytes:
    """128 bits that identify a row; the rows of a million as keys would take gigabytes."""
    # Adding 0 turns -0.0, which has another bit pattern, into 0.0.
    return hashlib.blake2b((row + 0.0).data, digest_size=16).digest()


def _projected_units(rows: Rows, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(N,) the first equal row of each, and (N, min(WIDTH, k)) unit rows projected to a few numbers."""
    first_places: dict[bytes, int] = {}
    first = np.arange(len(rows))
    width = min(WIDTH, rows.width)
    onto = np.eye(width)
    if width < rows.width:
        rng = stream(seed, "projection that finds near-copies")
        onto = rng.standard_normal((rows.width, width)) / np.sqrt(width)
    projected = np.empty((len(rows), width), dtype=np.float32)
    for part, values in rows.parts():
        unit = _unit(values)
        projected[part] = unit @ onto.astype(np.float32)
        first[part] = np.where(unit.any(axis=1), first_equal(unit, first_places, part.start), first[part])
    return first, projected


def _near_copies(
    rows: Rows, distinct: NDArray[np.int64], projected: NDArray[np.float32], cosine: float
) -> dict[int, int]:
    """The leader of each row that is near an earlier one, without being equal to it.

    A k-d tree over the projected rows proposes pairs, and their exact cosines decide.
    """
    if len(distinct) < 2:
        return {}
    exact = projected.shape[1] == rows.width
    # |a - b|^2 = 2 (1 - cosine) for unit rows.
    radius = np.sqrt(2 * max(0.0, 1 - cosine)) * (1.0 if exact else WIDER) + 1e-6
    tree = KDTree(projected[distinct])
    counts = cast(Ids, tree.query_ball_point(projected[distinct], radius, return_length=True, workers=-1))
    leader: dict[int, int] = {}
    for place in np.flatnonzero(counts > 1):
        row = int(distinct[place])
        if row in leader:
            continue
        # The tree is asked again row by row: the pairs of a pool of copies all at once would take memory of
        # N^2.
        near = distinct[np.asarray(tree.query_ball_point(projected[row], radius), dtype=np.int64)]
        # Only later rows follow, and none that has a leader: so no two leaders are alike, whatever the order
        # of the tree.
        later = np.array([other for other in near.tolist() if other > row and other not in leader])
        if later.size:
            unit_row, unit_later = (_unit(rows.x[rows.chosen[ids]]) for ids in ([row], later))
            leader.update(dict.fromkeys(later[(unit_later @ unit_row[0]) > cosine].tolist(), row))
    return leader


def _unit(values: NDArray[np.floating]) -> NDArray[np.float32]:
    rows = np.asarray(values, dtype=np.float32)
    # Squares of very long or short rows leave the range of single precision.
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows = rows / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)
