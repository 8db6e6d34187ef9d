"""Rows that are alike: copies, and what differs from another by rounding or a token."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from gradwise.numerics.rows import Rows

WIDTH = 16
"""Numbers to which rows are projected before neighbours are looked for."""

WIDER = 2.0
"""By how much farther apart two rows may seem once projected; the odds of more are 1e-7 a pair."""


def alike(x: Any, cosine: float, *, rows: Any = None, seed: int = 0) -> NDArray[np.int64]:
    """(N,) for each row the first row that it is alike to, itself where there is none.

    Rows are taken in order: one that is not alike to an earlier leader leads itself, so that no two leaders
    are alike. A row of zeros is alike to nothing.

    Args:
        x: (M, k), of any floating type, read a part at a time.
        cosine: above which two rows are alike.
        rows: (N,) which rows of x, ascending; all unless given. Numbers in the result are places in it.
        seed: of the projection.

    >>> alike(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), cosine=0.999).tolist()
    [0, 1, 0]
    """
    given = Rows(x, rows)
    equal, projected = _looked_at(given, seed)
    leader = np.arange(len(given))
    leader[:] = equal
    distinct = np.flatnonzero((equal == np.arange(len(given))) & (np.abs(projected).sum(axis=1) > 0))
    for follower, first in _near(given, distinct, projected, cosine).items():
        leader[follower] = first
    # A copy of a row that itself follows another.
    return leader[leader]


def first_equal(
    x: NDArray[np.floating[Any]], seen: dict[bytes, int] | None = None, start: int = 0
) -> NDArray[np.int64]:
    """(n,) for each row the place of the first one with the same numbers, its own where there is none.

    Args:
        x: (n, k).
        seen: remembers the rows of one part for the next, where a matrix is read a part at a time.
        start: place of the first row.

    >>> first_equal(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -0.0]])).tolist()
    [0, 1, 0]
    """
    seen = {} if seen is None else seen
    places = (seen.setdefault(_fingerprint(row), place) for place, row in enumerate(x, start))
    return np.fromiter(places, dtype=np.int64, count=len(x))


def _fingerprint(row: NDArray[np.floating[Any]]) -> bytes:
    """128 bits that tell rows apart; a million whole rows as keys would take gigabytes."""
    # -0.0 + 0.0 is 0.0: a zero has two bit patterns.
    return hashlib.blake2b((row + 0.0).data, digest_size=16).digest()


def _looked_at(given: Rows, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first row with the same bytes, and all unit rows projected to a few numbers."""
    seen: dict[bytes, int] = {}
    equal = np.arange(len(given))
    width = min(WIDTH, given.width)
    onto = np.eye(width)
    if width < given.width:
        onto = np.random.default_rng(seed).standard_normal((given.width, width)) / np.sqrt(width)
    projected = np.empty((len(given), width), dtype=np.float32)
    for part, values in given.parts():
        unit = _unit(values)
        projected[part] = unit @ onto.astype(np.float32)
        equal[part] = np.where(unit.any(axis=1), first_equal(unit, seen, part.start), equal[part])
    return equal, projected


def _near(
    given: Rows, distinct: NDArray[np.int64], projected: NDArray[np.float32], cosine: float
) -> dict[int, int]:
    """Leaders of the rows that are near an earlier one, though not equal to it."""
    if len(distinct) < 2:
        return {}
    exact = projected.shape[1] == given.width
    radius = np.sqrt(2 * max(0.0, 1 - cosine)) * (1.0 if exact else WIDER) + 1e-6
    tree = KDTree(projected[distinct])
    counts = tree.query_ball_point(projected[distinct], radius, return_length=True, workers=-1)
    found: dict[int, int] = {}
    for place in np.flatnonzero(np.asarray(counts) > 1):
        row = int(distinct[place])
        if row in found:
            continue
        others = distinct[np.array(tree.query_ball_point(projected[row], radius), dtype=np.int64)]
        others = np.array([other for other in others if other > row and int(other) not in found])
        if not others.size:
            continue
        own, theirs = (_unit(given.x[given.chosen[which]]) for which in ([row], others))
        for other in others[(theirs @ own[0]) > cosine]:
            found[int(other)] = row
    return found


def _unit(values: Any) -> NDArray[np.float32]:
    values = np.asarray(values, dtype=np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1)
