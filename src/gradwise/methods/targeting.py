"""Selection towards a target: how close the samples of a pool are to it, by n-grams and by directions.

A target's `domain`s are subtasks, each of which gets its share of a selection. Scores of several subtasks
become one: for a selection of B samples, each subtask's scores are taken above the score of its share-of-B-th
best sample, and the highest of them counts (`joint`). A sample that serves two subtasks is then picked once.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gradwise.data.settings import Goal
from gradwise.data.texts import Texts
from gradwise.errors import RecipeError, SignalError
from gradwise.methods.decision import Selection, check_signals
from gradwise.methods.subset import Subset
from gradwise.numerics.ngrams import Affinity, Counts, affinities, affinity
from gradwise.numerics.streams import stream
from gradwise.signals import Signals

MIN_SUBTASK = 8
"""Target samples of a subtask; smaller ones are put together, since few samples are no direction."""

MIN_CLOSENESS = 0.25
"""Closeness below which a pool is said to hold little that resembles the target. It was 0.02 to
0.06 for plays, and 0.16 (PIQA) to 0.69 (GSM8K, part of the pool) for mixed pools
(`benchmarks.grace.words`)."""

CLOSENESS_TEXTS = 20_000
"""Texts of a pool by which selections that do not compare all of them judge whether it is far."""


AT_ONCE = 32
"""Subtasks whose n-grams are compared in one reading of the pool; each takes 40 MB."""


@dataclass(frozen=True)
class Subtasks:
    """The parts of a target. Shapes: m target samples, T subtasks."""

    names: tuple[str, ...]
    of: NDArray[np.int64]
    """(m,) the subtask of each target sample."""

    @staticmethod
    def of_domains(domain: NDArray[np.str_] | None, count: int) -> "Subtasks":
        """A subtask for each domain with `MIN_SUBTASK` samples, and one for all others."""
        if domain is None:
            return Subtasks(("target",), np.zeros(count, np.int64))
        names, codes, sizes = np.unique(domain, return_inverse=True, return_counts=True)
        large = np.flatnonzero(sizes >= MIN_SUBTASK)
        if len(large) == len(names):
            return Subtasks(tuple(map(str, names)), codes.astype(np.int64))
        # Small subtasks share one direction: the mean of a few samples is mostly noise.
        place = np.full(len(names), len(large))
        place[large] = np.arange(len(large))
        return Subtasks((*map(str, names[large]), "others"), place[codes])

    @property
    def shares(self) -> NDArray[np.float64]:
        """(T,) of a selection, in proportion to the target samples."""
        return np.bincount(self.of, minlength=len(self.names)) / len(self.of)


def joint(scores: NDArray[np.float64], shares: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(N,) one score for each sample from those of T subtasks.

    Args:
        scores: (T, N), higher is closer.
        shares: (T,) of the selection.
        size: samples of the selection.

    >>> joint(np.array([[3.0, 2.0, 1.0], [1.0, 8.0, 9.0]]), np.array([0.5, 0.5]), 2).tolist()
    [0.0, -1.0, 0.0]
    """
    return (scores - bounds(scores, shares, size)[:, None]).max(axis=0)


def bounds(scores: NDArray[np.float64], shares: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(T,) the scores that `joint` takes off; 0 for a single subtask."""
    if len(scores) == 1:
        return np.zeros(1)
    places = [min(scores.shape[1], max(1, round(share * size))) - 1 for share in shares]
    # The score of the last sample that a subtask's share admits: above it each subtask has about its share.
    return np.array([-np.partition(-row, place)[place] for row, place in zip(scores, places, strict=True)])


@dataclass(frozen=True, eq=False)
class NgramMatch:
    """How the words of a pool's samples compare with a target's."""

    score: NDArray[np.float64]
    """(N,) higher is closer; garbled samples come after all others."""
    garbled: NDArray[np.bool_]
    """(N,) words in random order, or lines repeated."""
    closeness: float
    """How far the closest samples are on the way from the pool's average (0) to the target's own (1)."""
    size: int
    """Samples of the selection."""

    def best(self, count: int) -> NDArray[np.int64]:
        """The closest samples, best first; ties go to the earlier one."""
        return np.argsort(-self.score, kind="stable")[:count]


def match_ngrams(texts: Texts, target: Texts, subtasks: Subtasks, size: int) -> NgramMatch:
    """Compare the n-grams of all samples with each subtask's, reading the pool twice or more.

    Args:
        texts: of the pool.
        target: of the target samples.
        subtasks: of the target.
        size: samples of the selection.
    """
    pool = Counts.of(texts.chunks())
    target_affinity = affinity(target.chunks(), pool, Counts.of(target.chunks()), member=False)
    parts = [np.flatnonzero(subtasks.of == number) for number in range(len(subtasks.names))]
    # Texts are read twice, once for the pool's counts and once for the scores (once more for every `AT_ONCE`
    # further subtasks), and never held in memory.
    by_subtask: list[Affinity] = []
    for start in range(0, len(parts), AT_ONCE):
        counts = [Counts.of(target.take(rows).chunks()) for rows in parts[start : start + AT_ONCE]]
        by_subtask += affinities(texts.chunks(), pool, counts)
    halves = [_own_score(target, rows, pool) for rows in parts]
    garbled = by_subtask[0].garbled(target_affinity)
    scores = np.stack([each.ratio for each in by_subtask])
    score = joint(scores, subtasks.shares, size)
    spread = float(np.ptp(score)) + 1.0
    # Below all others rather than left out, so that a selection larger than the natural texts can still be
    # filled. Shuffled words were up to 83 % of the picks before (docs/log.md).
    score = np.where(garbled, score - spread, score)
    best = np.argsort(-score, kind="stable")[:size]
    nearest = scores.max(axis=0)
    closeness = _between(float(nearest.mean()), float(np.mean(halves)), float(nearest[best].mean()))
    return NgramMatch(score, garbled, closeness, size)


def _own_score(target: Texts, rows: NDArray[np.int64], pool: Counts) -> float:
    """What the texts of one half of a target score by the other half, on average."""
    if len(rows) < 2:
        return 0.0
    halves = rows[::2], rows[1::2]
    half_scores = [
        affinity(target.take(one).chunks(), pool, Counts.of(target.take(other).chunks()), member=False)
        for one, other in (halves, halves[::-1])
    ]
    return float(np.concatenate([each.ratio for each in half_scores]).mean())


def _between(low: float, high: float, value: float) -> float:
    return round(float(np.clip((value - low) / (high - low), 0.0, 1.0)), 4) if high > low else 1.0


@dataclass(frozen=True, eq=False)
class Direction:
    """The mean directions of a target's subtasks, that samples are compared with by cosine."""

    means: NDArray[np.float64]
    """(T, k) mean of the target samples' vectors brought to unit length."""
    shares: NDArray[np.float64]
    """(T,) of the selection."""

    @staticmethod
    def of(vectors: NDArray[Any], subtasks: Subtasks) -> "Direction":
        """That of (m, k) finite vectors, one for each target sample; others do not count."""
        rows = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        if not vectors[rows].any():
            raise SignalError(
                f"None of {len(vectors)} target samples has signals that are finite and not zero; give other "
                "target samples."
            )
        units, subtask = unit_rows(vectors[rows].astype(np.float64)), subtasks.of[rows]
        means = [
            units[subtask == number].mean(axis=0) if (subtask == number).any() else np.zeros(units.shape[1])
            for number in range(len(subtasks.names))
        ]
        return Direction(np.stack(means), subtasks.shares)

    def cosines(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(T, n) mean cosine of each vector with the target samples of each subtask."""
        return self.means @ unit_rows(vectors.astype(np.float64)).T


def unit_rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length one; rows of zeros stay what they are. No row's length overflows or vanishes."""
    # Divided by the largest number first: squares of 1e200 overflow, and those of 1e-200 vanish.
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.divide(scaled, length, out=np.zeros_like(scaled), where=length > 0)


def percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) ranks in 0..1, mean ranks where values tie."""
    from scipy.stats import rankdata  # a third of the time that commands take to start

    return (rankdata(values) - 0.5) / max(1, len(values))


def closeness_of(texts: Texts, target: Texts, subtasks: Subtasks, size: int, seed: int) -> float:
    """`NgramMatch.closeness`, from at most `CLOSENESS_TEXTS` texts of the pool, drawn at random."""
    count = len(texts)
    if count > CLOSENESS_TEXTS:
        rows = np.sort(stream(seed, "closeness").choice(count, CLOSENESS_TEXTS, replace=False))
        texts, size = texts.take(rows), max(1, round(size * CLOSENESS_TEXTS / count))
    return match_ngrams(texts, target, subtasks, size).closeness


def closeness_advice(closeness: float) -> str | None:
    """A sentence where no sample is much closer to the target than random ones; None otherwise."""
    if closeness >= MIN_CLOSENESS:
        return None
    return (
        "The pool holds little that resembles the target: by their words, the closest samples are "
        f"{closeness:.0%} of the way from random ones to the target's own, so that a random part or all of "
        "the data may do as well."
    )


@dataclass(frozen=True)
class Targeted(Subset):
    """A selection that can aim at a target."""

    target: Goal | None = None
    """Set of samples that the selection aims at: `target` or `validation`, as in `data`. If unset, `target`
    if it is given, otherwise none; baselines that cannot do without one then use `validation`."""

    @property
    def uses_target(self) -> bool:
        return self.target is not None

    def advice(self, selection: Selection) -> str | None:
        """A sentence on a pool that holds little that resembles the target; None if there is nothing to
        say."""
        closeness = selection.details.get("closeness")
        return None if closeness is None else closeness_advice(closeness)

    def with_target(self, goal: Goal | None) -> Self:
        """The same method with its target settled."""
        return self if goal is None or self.target is not None else replace(self, target=goal)

    def resolve_target(self, *, target: bool, validation: bool) -> Goal | None:
        if self.target == "validation" and target:
            raise RecipeError(
                "select.target is validation, so that data.target has no effect; leave one of them out."
            )
        available = {"target": target, "validation": validation}
        if self.target is not None and not available[self.target]:
            raise RecipeError(
                f"select.target is {self.target}, and no such data are given; give data.{self.target}."
            )
        return self.target or ("target" if target else None)


@dataclass(frozen=True)
class AlwaysTargeted(Targeted):
    """A baseline that cannot do without a target."""

    @property
    def uses_target(self) -> bool:
        return True

    def resolve_target(self, *, target: bool, validation: bool) -> Goal | None:
        goal = super().resolve_target(target=target, validation=validation)
        if goal is None and not validation:
            raise RecipeError(
                f"select: {self.method} selects towards a target, and none is given; give data.target (or "
                "data.validation)."
            )
        return goal or "validation"


def check_target(target: Signals | None, by: str) -> Signals:
    """The target's signals; raises SignalError if they are not given."""
    if target is None:
        raise SignalError(
            f"{by} selects towards a target: give `target=`, signals of examples of what the model should "
            "become good at, collected as those of the pool."
        )
    check_signals(target, by, "target signals")
    return target


def texts_of(signals: Signals, by: str) -> Texts:
    """The texts of samples; raises SignalError where they are not known."""
    if signals.texts is None:
        raise SignalError(
            f"{by} compares texts, which signals from a folder do not hold; set them with "
            "dataclasses.replace(signals, texts=Texts(dataset, tokenizer)), from gradwise.data.texts."
        )
    return signals.texts
