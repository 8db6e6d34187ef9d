"""Selection towards a target: how close the samples of a pool are to it, by n-grams and by directions.

A target's `domain`s are subtasks, each of which gets its share of a selection. Rankings of several subtasks
become one (`joint`), in which a sample that serves two subtasks comes once.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gradwise.data.settings import Goal
from gradwise.data.subtasks import subtask_names
from gradwise.data.texts import Texts
from gradwise.errors import RecipeError, SignalError
from gradwise.methods.decision import Selection, check_signals
from gradwise.methods.subset import Subset
from gradwise.numerics.ngrams import Affinity, Counts, affinities, affinity
from gradwise.numerics.streams import stream
from gradwise.signals import Signals

MIN_CLOSENESS = 0.25
"""Closeness below which a pool is said to hold little that resembles the target. It was 0.02 to
0.06 for plays, and 0.16 (PIQA) to 0.69 (GSM8K, part of the pool) for mixed pools
(`benchmarks.grace.words`)."""

CLOSEST = 0.05
"""Share of a pool, at most, by whose closeness to the target a pool is judged: the mean of a selection of all
of it says nothing."""

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
    def of_target(target: Signals) -> "Subtasks":
        """Those of target samples: as they were before the target was divided, or else by domain."""
        if target.subtask is None:
            return Subtasks.of_domains(target.domain, len(target))
        names, codes = np.unique(target.subtask, return_inverse=True)
        return Subtasks(tuple(map(str, names)), codes.astype(np.int64))

    @staticmethod
    def of_domains(domain: NDArray[np.str_] | None, count: int) -> "Subtasks":
        """A subtask for each domain that is large enough, and one for all others."""
        if domain is None:
            return Subtasks(("target",), np.zeros(count, np.int64))
        return Subtasks.of_target(Signals(count, subtask=subtask_names(domain)))

    @property
    def shares(self) -> NDArray[np.float64]:
        """(T,) of a selection, in proportion to the target samples."""
        return np.bincount(self.of, minlength=len(self.names)) / len(self.of)


def joint(scores: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) one score for each sample from those of T subtasks; a single subtask's scores are what they are.

    With several, the first K samples of the ranking hold the best share-of-K of each subtask, for any K.

    Args:
        scores: (T, N), higher is closer.
        shares: (T,) of a selection, above 0.

    >>> joint(np.array([[3.0, 2.0, 1.0], [1.0, 8.0, 9.0]]), np.array([0.5, 0.5])).tolist()
    [-2.0, -4.0, -2.0]
    """
    if len(scores) == 1:
        return scores[0]
    from scipy.stats import rankdata  # a third of the time that commands take to start

    # The number of picks at which each subtask's share admits a sample.
    return -(rankdata(-scores, axis=1) / shares[:, None]).min(axis=0)


def bounds(scores: NDArray[np.float64], shares: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(T,) the score of each subtask's last pick, so that differences from it can be compared between
    subtasks; 0 for a single one.

    Args:
        scores: (T, N), higher is closer.
        shares: (T,) of the selection.
        size: samples of the selection.
    """
    if len(scores) == 1:
        return np.zeros(1)
    places = [min(scores.shape[1], max(1, round(share * size))) - 1 for share in shares]
    # The score of the last sample that a subtask's share admits: above it each subtask has about its share.
    return np.array([-np.partition(-row, place)[place] for row, place in zip(scores, places, strict=True)])


@dataclass(frozen=True, eq=False)
class NgramMatch:
    """How the words of a pool's samples compare with a target's."""

    score: NDArray[np.float64]
    """(N,) higher is closer; copies of earlier samples come after all others, and garbled ones last."""
    garbled: NDArray[np.bool_]
    """(N,) words in random order, or lines repeated."""
    copies: NDArray[np.bool_]
    """(N,) an earlier sample has the same words."""
    closeness: float | None
    """How far the closest samples are on the way from the pool's average (0) to the target's own (1); None
    where the target is too small to say."""
    size: int
    """Samples of the selection."""
    tied: bool
    """Whether all samples are equally close."""
    subtasks: tuple[str, ...]
    """Names of the T subtasks."""
    by_subtask: NDArray[np.float64]
    """(T, N) closeness to each subtask alone."""
    ties: NDArray[np.uint64]
    """(N,) order of samples that are equally close."""

    def best(self, count: int) -> NDArray[np.int64]:
        """The closest samples, best first; ties are drawn by a hash of the words, whatever the order of the
        pool."""
        return np.lexsort((self.ties, -self.score))[:count]

    def advice(self) -> str | None:
        """A sentence where words do not tell any sample from another; None otherwise."""
        if not self.tied:
            return None
        return (
            f"The words of all {len(self.score):,} samples are equally close to the target, so that the "
            "ranking by n-grams is random."
        )


def match_ngrams(texts: Texts, target: Texts, subtasks: Subtasks, size: int) -> NgramMatch:
    """Compare the n-grams of all samples with each subtask's, reading the pool twice or more.

    Args:
        texts: of the pool.
        target: of the target samples.
        subtasks: of the target.
        size: samples of the selection.
    """
    pool = Counts.of(texts.chunks(), distinct=True)
    target_affinity = affinity(target.chunks(), pool, Counts.of(target.chunks()), member=False)
    parts = [np.flatnonzero(subtasks.of == number) for number in range(len(subtasks.names))]
    # Texts are read twice, once for the pool's counts and once for the scores (once more for every `AT_ONCE`
    # further subtasks), and never held in memory.
    affinities_of: list[Affinity] = []
    for start in range(0, len(parts), AT_ONCE):
        counts = [Counts.of(target.take(rows).chunks()) for rows in parts[start : start + AT_ONCE]]
        affinities_of += affinities(texts.chunks(), pool, counts)
    garbled = affinities_of[0].garbled(target_affinity)
    scores = np.stack([each.ratio for each in affinities_of])
    # Below all others rather than left out, so that a selection larger than the distinct natural texts can
    # still be filled. Shuffled words were up to 83 % of the picks before (docs/log.md), and copies took the
    # places of the samples that the model was to compare.
    tier = np.where(garbled, 2, pool.copies.astype(np.int64))
    score = np.zeros(len(tier))
    for number in range(3):
        score[tier == number] = joint(scores[:, tier == number], subtasks.shares)
    score -= tier * (float(np.ptp(score)) + 1.0 if len(score) else 1.0)
    sound = np.flatnonzero(tier == 0)
    tied = len(sound) > 1 and bool(np.ptp(score[sound]) == 0)
    itself = [_own_score(target, rows, pool) for rows in parts if len(rows) > 1]
    closeness = None if not itself or tied else _closeness(scores[:, sound], size, float(np.mean(itself)))
    return NgramMatch(
        score, garbled, pool.copies, closeness, size, tied, subtasks.names, scores, ties=pool.digests
    )


def _closeness(scores: NDArray[np.float64], size: int, itself: float) -> float:
    """`NgramMatch.closeness`, from (T, N) scores and what the target scores by itself."""
    nearest = scores.max(axis=0)
    count = max(1, min(size, round(CLOSEST * len(nearest))))
    closest = -np.partition(-nearest, count - 1)[:count] if len(nearest) else nearest
    low, value = (float(each.mean()) if len(each) else 0.0 for each in (nearest, closest))
    return round(float(np.clip((value - low) / (itself - low), 0.0, 1.0)), 4) if itself > low else 1.0


def _own_score(target: Texts, rows: NDArray[np.int64], pool: Counts) -> float:
    """What the texts of one half of a target score by the other half, on average."""
    halves = rows[::2], rows[1::2]
    half_scores = [
        affinity(target.take(one).chunks(), pool, Counts.of(target.take(other).chunks()), member=False)
        for one, other in (halves, halves[::-1])
    ]
    return float(np.concatenate([each.ratio for each in half_scores]).mean())


@dataclass(frozen=True, eq=False)
class Direction:
    """The mean directions of a target's subtasks, that samples are compared with by cosine."""

    means: NDArray[np.float64]
    """(T, k) mean of the target samples' vectors brought to unit length."""
    shares: NDArray[np.float64]
    """(T,) of the selection."""
    names: tuple[str, ...]
    """Names of the T subtasks."""

    @staticmethod
    def of(vectors: NDArray[Any], subtasks: Subtasks) -> "Direction":
        """That of (m, k) finite vectors, one for each target sample; others do not count."""
        rows = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        if not vectors[rows].any():
            raise SignalError(
                f"None of {len(vectors)} target samples has signals that are finite and not zero; give other "
                "target samples."
            )
        # Subtasks without any finite vector get nothing.
        present, subtask = np.unique(subtasks.of[rows], return_inverse=True)
        units = unit_rows(vectors[rows].astype(np.float64))
        means = [units[subtask == number].mean(axis=0) for number in range(len(present))]
        names = tuple(subtasks.names[number] for number in present)
        return Direction(np.stack(means), np.bincount(subtask) / len(rows), names)

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


def closeness_of(texts: Texts, target: Texts, subtasks: Subtasks, size: int, seed: int) -> float | None:
    """`NgramMatch.closeness`, from at most `CLOSENESS_TEXTS` texts of the pool, drawn at random."""
    count = len(texts)
    if count > CLOSENESS_TEXTS:
        rows = np.sort(stream(seed, "closeness").choice(count, CLOSENESS_TEXTS, replace=False))
        texts, size = texts.take(rows), max(1, round(size * CLOSENESS_TEXTS / count))
    return match_ngrams(texts, target, subtasks, size).closeness


def closeness_advice(closeness: float | None) -> str | None:
    """A sentence where no sample is much closer to the target than random ones; None otherwise."""
    if closeness is None or closeness >= MIN_CLOSENESS:
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
        return closeness_advice(selection.details.get("closeness"))

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
    """The target's signals, of the samples that could be measured.

    Raises:
        SignalError: none are given, or none could be measured.
    """
    if target is None:
        raise SignalError(
            f"{by} selects towards a target: give `target=`, signals of examples of what the model should "
            "become good at, collected as those of the pool."
        )
    check_signals(target, by, "target signals")
    if target.ok is None or target.ok.all():
        return target
    if not target.ok.any():
        raise SignalError(
            f"{by}: none of the {len(target)} target samples could be measured (they are not `ok`); give "
            "other target samples."
        )
    return target.take(np.flatnonzero(target.ok))


def texts_of(signals: Signals, by: str) -> Texts:
    """The texts of samples; raises SignalError where they are not known."""
    if signals.texts is None:
        raise SignalError(
            f"{by} compares texts, which signals from a folder do not hold; set them with "
            "dataclasses.replace(signals, texts=Texts(dataset, tokenizer)), from gradwise.data.texts."
        )
    return signals.texts
