"""Relevance of samples where the target samples take turns.

Every target sample ranks the candidates by the cosine of their middle embeddings. A candidate counts by the
best place that it has in any of these rankings, so that each target sample has its nearest among the picks,
and no common kind of target sample speaks for all. Where target samples are many, groups of similar ones take
turns. Compared with the mean direction of all, this lowered the loss on the target in most cases
(docs/log.md).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import SignalError
from gradwise.methods.targeting import Subtasks, unit_rows
from gradwise.methods.validation import check_aligned
from gradwise.numerics.kernels import parts

MOST_TURNS = 512
"""Target samples that are ranked by, at most; of more, some are taken at even distances."""

AT_ONCE = 64
"""Rankings whose cosines are held in memory at a time."""

STEPS = 2
"""Places that are remembered of a ranking for each doubling: between them, places are interpolated."""


@dataclass(frozen=True, eq=False)
class TargetTurns:
    """Rankings of candidates. Shapes: t target samples or groups of them, T subtasks, h numbers in an
    embedding, p places that are remembered."""

    centre: NDArray[np.float64]
    """(h,) that embeddings are taken around."""
    units: NDArray[np.float64]
    """(t, h) of length one."""
    subtask: NDArray[np.int64]
    """(t,) of each ranking."""
    names: tuple[str, ...]
    """Names of the subtasks, T of them."""
    shares: NDArray[np.float64]
    """(T,) of a selection, in proportion to the target samples."""
    places: NDArray[np.float64]
    """(p,) the first and the last, and some between."""
    levels: NDArray[np.float64]
    """(t, p) minus the cosines of the candidates in these places, ascending."""

    @staticmethod
    def of(
        vectors: NDArray[Any],
        subtasks: Subtasks,
        candidates: NDArray[Any],
        centre: NDArray[Any],
        most: int,
    ) -> "TargetTurns":
        """The rankings of n candidates.

        Args:
            vectors: (m, h) embeddings of the target samples; those that are not finite do not count.
            subtasks: of the target samples.
            candidates: (n, h) embeddings.
            centre: (h,) that both are taken around.
            most: rankings; more target samples are put into groups.

        Raises:
            SignalError: no target sample can be used, or every candidate is orthogonal to all of them.
        """
        around = centre.astype(np.float64)
        rows = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        all_units = unit_rows(vectors[rows].astype(np.float64) - around)
        if not all_units.any():
            raise SignalError(
                f"None of {len(vectors)} target samples has signals that are finite and not zero; give other "
                "target samples."
            )
        # Subtasks without any finite vector get nothing.
        present, subtask = np.unique(subtasks.of[rows], return_inverse=True)
        shares = np.bincount(subtask) / len(rows)
        groups = [
            _groups(all_units[subtask == number], round(share * MOST_TURNS), round(share * most))
            for number, share in enumerate(shares)
        ]
        units = np.concatenate(groups)
        places = _places(len(candidates))
        levels = np.empty((len(units), len(places)))
        largest = np.zeros(len(candidates))
        for some in parts(len(units), AT_ONCE):
            cosines = _cosines(units[some], candidates, around)
            largest = np.maximum(largest, np.abs(cosines).max(axis=0))
            cosines.sort(axis=1)
            levels[some] = -cosines[:, len(candidates) - places]
        check_aligned(largest, "grace", "embeddings")
        names = tuple(subtasks.names[number] for number in present)
        of_group = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return TargetTurns(around, units, of_group, names, shares, places.astype(np.float64), levels)

    def by_subtask(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(T, n) minus the binary logarithm of the best place that each of (n, h) vectors has among the
        candidates by any ranking of a subtask: 0 for the nearest one."""
        values = -np.log2(self.places)
        best = np.full((len(self.names), len(vectors)), values[-1])
        for some in parts(len(self.units), AT_ONCE):
            cosines = _cosines(self.units[some], vectors, self.centre)
            for of, row, levels in zip(self.subtask[some], cosines, self.levels[some], strict=True):
                # Candidates that are equally near have the last of their places: a target sample that all are
                # equally far from, such as one in the pool's middle, says nothing for any.
                best[of] = np.maximum(best[of], np.interp(-row, levels, values))
        return best

    def importance(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(n,) of (n, h) vectors, higher is closer: `by_subtask` of the subtask where it is highest."""
        return self.by_subtask(vectors).max(axis=0)


def _cosines(
    units: NDArray[np.float64], vectors: NDArray[Any], around: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(t, n) of unit rows with (n, h) vectors around a centre; a large pool is read a part at a time."""
    cosines = np.empty((len(units), len(vectors)))
    for part in parts(len(vectors), 2**14):
        cosines[:, part] = units @ unit_rows(vectors[part].astype(np.float64) - around).T
    return cosines


def _groups(units: NDArray[np.float64], most: int, count: int) -> NDArray[np.float64]:
    """(t, h) mean directions, of length one, of `count` groups of similar rows; the rows themselves where
    they are no more. Of the rows `most` count."""
    units = units[_even(len(units), most)]
    if len(units) <= max(1, count):
        return units
    from scipy.cluster.vq import kmeans2  # a third of the time that commands take to start

    with warnings.catch_warnings():
        # It may say that a group is empty, where rows are alike; the others are all that is needed.
        warnings.simplefilter("ignore")
        # Begun with rows that are given rather than drawn: the same groups whenever it is asked.
        _, group = kmeans2(units, units[_even(len(units), count)], minit="matrix")
    means = [units[group == number].mean(axis=0) for number in np.unique(group)]
    return unit_rows(np.stack(means))


def _even(length: int, count: int) -> NDArray[np.int64]:
    """At most `count` places, at least one, at even distances."""
    return np.linspace(0, length - 1, max(1, min(length, count))).round().astype(np.int64)


def _places(count: int) -> NDArray[np.int64]:
    """`STEPS` places for each doubling from the first to the last of `count`."""
    doublings = int(np.ceil(np.log2(max(2, count))))
    spread = np.round(2.0 ** (np.arange(STEPS * doublings + 1) / STEPS)).astype(np.int64)
    return np.unique(np.minimum(spread, count))
