"""Selections towards a target that others have published: DSIR, nearest neighbours, LESS, TSDS."""

import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import SignalError
from gradwise.methods.decision import Selection, check_signals
from gradwise.methods.interfaces import WarmUp
from gradwise.methods.targeting import (
    AlwaysTargeted,
    Subtasks,
    check_target,
    closeness_of,
    texts_of,
    unit_rows,
)
from gradwise.methods.validation import check_aligned
from gradwise.numerics.ngrams import Counts, affinity
from gradwise.numerics.streams import stream
from gradwise.numerics.transport import spread_mass
from gradwise.signals import Signals


@dataclass(frozen=True)
class _RankedByTarget(AlwaysTargeted):
    """What the four have in common."""

    def pick(
        self,
        state: object,  # noqa: ARG002
        signals: Signals,
        *,
        target: Signals | None = None,
        seed: int = 0,
    ) -> Selection:
        return self._select(signals, target, seed)

    def select(self, signals: Signals, *, target: Signals | None = None, seed: int = 0) -> Selection:
        """The samples of a pool that serve a target; warns where texts are known and none resembles it.

        Args:
            signals: of the pool.
            target: of the target samples, measured alike.
            seed: of what is left to chance.

        Raises:
            SignalError: a signal is missing, or no target is given.
        """
        selection = self._select(signals, target, seed)
        if advice := self.advice(selection):
            warnings.warn(advice, stacklevel=2)
        return selection

    def _select(self, signals: Signals, target: Signals | None, seed: int) -> Selection:
        check_signals(signals, self.method, seed=seed)
        target = check_target(target, self.method)
        if target.ok is not None and not target.ok.all():
            target = target.take(np.flatnonzero(target.ok))
            check_target(target, self.method)
        if signals.ok is not None and not signals.ok.all():
            # Left out before others are counted, or a selection would be smaller than was asked for.
            sound = np.flatnonzero(signals.ok)
            picked = self._select(signals.take(sound), target, seed)
            return replace(picked, indices=sound[picked.indices])
        indices, scores, why = self._ranked(signals, target, seed)
        weights = None if signals.weight is None else signals.weight[indices]
        details: dict[str, Any] = {}
        if signals.texts is not None and target.texts is not None:
            # What the published methods leave open: whether anything in the pool resembles the target.
            subtasks = Subtasks.of_domains(target.domain, len(target))
            closeness = closeness_of(signals.texts, target.texts, subtasks, len(indices), seed)
            details["closeness"] = closeness
        return Selection(indices, why=(why,), weights=weights, scores=scores[indices], details=details)

    @abstractmethod
    def _ranked(
        self, signals: Signals, target: Signals, seed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], str]:
        """The picks in order, the score of every sample of the pool, and the reason."""


@dataclass(frozen=True)
class Dsir(_RankedByTarget):
    """Importance resampling by hashed n-grams (DSIR, Xie et al. 2023, arXiv 2302.03169).

    Texts are drawn without replacement in proportion to p_target(x) / p_pool(x), both products of the
    probabilities of hashed unigrams and bigrams, by adding Gumbel noise to the logarithms.
    """

    method: Literal["dsir"] = "dsir"
    """Resampling by hashed unigrams and bigrams."""

    buckets: Annotated[int, Field(ge=2)] = 10_000
    """Number of counters that n-grams are hashed into."""

    smoothing: Annotated[float, Field(ge=0)] = 10_000.0
    """n-grams of the pool's distribution that are added to the target's. With 0 only the authors' 1e-8 is: of
    a few target samples most n-grams are then 18 nats less likely than in the pool, and the shortest texts
    win."""

    needs: ClassVar[frozenset[str]] = frozenset({"texts"})

    def _ranked(
        self, signals: Signals, target: Signals, seed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], str]:
        texts = texts_of(signals, self.method)
        pool = Counts.of(texts.chunks(), self.buckets)
        aim = Counts.of(texts_of(target, f"{self.method}, of the target samples,").chunks(), self.buckets)
        weight = affinity(texts.chunks(), pool, aim, smoothing=self.smoothing).weight
        # Gumbel noise on logarithms makes the highest ones a draw without replacement in proportion to the
        # weights.
        drawn = weight + stream(seed, "dsir").gumbel(size=len(weight))
        best = np.argsort(-drawn, kind="stable")[: self.size(len(weight))]
        return best, weight, "drawn by the likelihood of its n-grams under the target's"


@dataclass(frozen=True)
class Nearest(_RankedByTarget):
    """Nearest neighbours of the target samples by embedding (as RDS+, Ivison et al. 2025, arXiv 2503.01807).

    The target samples take turns; each takes the sample with the highest cosine that is left. Embeddings are
    mean hidden states around the pool's mean; the paper weights positions, and does not centre.
    """

    method: Literal["nearest"] = "nearest"
    """Nearest neighbours by embedding, in turns."""

    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "texts"})

    def _ranked(
        self, signals: Signals, target: Signals, seed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], str]:
        rows, cosines = _cosines(signals, target, self.method)
        # Targets take turns in a random order, or the first ones would always get their nearest sample.
        turns = stream(seed, "nearest turns").permutation(len(cosines))
        best = rows[_in_turns(cosines[turns], self.size(len(rows)))]
        scores = np.full(len(signals), -1.0)
        scores[rows] = cosines.max(axis=0)
        return best, scores, "among the nearest to a target sample, by embedding"


@dataclass(frozen=True)
class Less(_RankedByTarget):
    """Gradient similarity with the target at warm-up checkpoints (LESS, Xia et al. 2024, arXiv 2402.04333).

    A sample scores max over subtasks of sum_c eta_c cos(Gamma_c(z), g_c), where Gamma_c is its gradient
    preconditioned by Adam's second moments at checkpoint c and g_c the subtask's mean gradient; eta_c is the
    mean learning rate of the epoch, of a linear decay. A run trains the warm-up by itself and takes it back.
    With `adapter` gradients are those of the adapter, as in the paper. Adam's momentum, the same for all
    samples, is left out of Gamma.
    """

    method: Literal["less"] = "less"
    """Gradient similarity at warm-up checkpoints."""

    checkpoints: Annotated[int, Field(ge=1)] = 4
    """Epochs of the warm-up, each of which ends in a checkpoint. Outside of a run, `grad` holds as many
    gradients side by side; give 1 for gradients at the present weights."""

    warm_up_fraction: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Fraction of the pool that the warm-up trains on, at random."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad", "texts"})

    @property
    def warm_up_training(self) -> WarmUp:
        return WarmUp(self.warm_up_fraction, self.checkpoints)

    def _ranked(
        self,
        signals: Signals,
        target: Signals,
        seed: int,  # noqa: ARG002
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], str]:
        grads, targets = (np.asarray(each.require("grad", self.method)) for each in (signals, target))
        if grads.shape[1] != targets.shape[1] or grads.shape[1] % self.checkpoints:
            raise SignalError(
                f"less needs gradients of {self.checkpoints} checkpoints side by side, as many numbers for "
                f"the pool as for the target; found {grads.shape[1]} and {targets.shape[1]}. "
                "Give checkpoints: 1 for gradients at the present weights."
            )
        subtasks = Subtasks.of_domains(target.domain, len(target))
        usable = np.isfinite(targets).all(axis=1)
        if not targets[usable].any():
            raise SignalError(
                f"less: none of {len(targets)} target samples has a gradient that is finite and not zero; "
                "give other target samples."
            )
        # eta_c of LESS: the mean rate of each epoch of a linear decay, up to a factor that all scores share.
        rates = 1 - (np.arange(self.checkpoints) + 0.5) / self.checkpoints
        scores = np.zeros((len(subtasks.names), len(grads)))
        for rate, pool, aim in zip(
            rates,
            *(np.split(each, self.checkpoints, axis=1) for each in (grads, targets)),
            strict=True,
        ):
            means = np.stack(
                [
                    aim[usable & (subtasks.of == number)].astype(np.float64).sum(axis=0)
                    for number in range(len(subtasks.names))
                ]
            )
            # Cosines rather than products: LESS normalises because short sequences have long gradients.
            scores += rate * (unit_rows(means) @ unit_rows(np.nan_to_num(pool.astype(np.float64))).T)
        check_aligned(scores, self.method)
        # The maximum over subtasks, as published: a sample need not serve all of them.
        best_of = scores.max(axis=0)
        best_of[~np.isfinite(grads).all(axis=1)] = -np.inf
        best = np.argsort(-best_of, kind="stable")[: self.size(int(np.isfinite(best_of).sum()))]
        scores = np.where(np.isfinite(best_of), best_of, -1.0)
        return best, scores, "its gradient is among the most like the target's"


@dataclass(frozen=True)
class Tsds(_RankedByTarget):
    """Optimal transport to the target with a term for diversity (TSDS, Liu et al. 2024, arXiv 2410.11303).

    Every target sample's mass moves to its nearest samples, as evenly as `spread` asks; where samples lie
    close together their density divides the mass among them, so that near duplicates get no more than one
    would. Samples are then drawn without replacement in proportion to their mass.
    """

    method: Literal["tsds"] = "tsds"
    """Optimal transport to the target, with diversity."""

    spread: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Weight of evenness against distance."""

    radius: Annotated[float, Field(gt=0)] = 0.1
    """Distance, as 1 - cosine, within which samples count in each other's density."""

    neighbours: Annotated[int, Field(ge=1)] = 2000
    """Nearest samples of each target sample that can get its mass."""

    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "texts"})

    def _ranked(
        self, signals: Signals, target: Signals, seed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], str]:
        rows, cosines = _cosines(signals, target, self.method)
        units = _units(signals, rows)
        near = np.unique(np.argsort(-cosines, axis=1, kind="stable")[:, : self.neighbours])
        # Only of samples that can get mass; the others' density would be n^2 products for nothing.
        density = np.ones(len(rows))
        for start in range(0, len(near), 1024):
            some = near[start : start + 1024]
            apart = 1 - units[some] @ units.T
            # An Epanechnikov kernel: near-copies divide one sample's mass among them.
            # At least itself, also where it lies in the middle of the pool and has no direction.
            near_by = np.maximum(0, 1 - np.square(apart / self.radius)).sum(axis=1)
            density[some] = np.maximum(1.0, near_by)
        size = self.size(len(rows))
        mass = spread_mass(1 - cosines, density, self.spread, self.neighbours)
        with np.errstate(divide="ignore"):
            drawn = np.log(mass) + stream(seed, "tsds").gumbel(size=len(mass))
        # Samples without mass follow, nearest first.
        without = np.lexsort((-cosines.max(axis=0), mass == 0))
        order = np.concatenate([np.argsort(-drawn, kind="stable")[: np.count_nonzero(mass)], without])
        best = rows[order[np.sort(np.unique(order, return_index=True)[1])][:size]]
        scores = np.zeros(len(signals))
        scores[rows] = mass
        return best, scores, "drawn by the mass that moves to it from the target"


def _units(signals: Signals, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    embedding = np.asarray(signals.require("embedding", "the selection"))[rows].astype(np.float64)
    return unit_rows(embedding - embedding.mean(axis=0))


def _cosines(signals: Signals, target: Signals, by: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Samples with a finite embedding, and (m, n) cosines of the target samples with them."""
    embeddings = np.asarray(signals.require("embedding", by))
    targets = np.asarray(target.require("embedding", f"{by}, of the target samples,"))
    rows = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    targets = targets[np.isfinite(targets).all(axis=1)].astype(np.float64)
    if not rows.size or not len(targets):
        raise SignalError(f"{by}: no sample of the pool or of the target has a finite embedding.")
    centre = embeddings[rows].mean(axis=0, dtype=np.float64)
    # Both around the pool's mean: without centring all embeddings of a language model are alike.
    cosines = unit_rows(targets - centre) @ _units(signals, rows).T
    check_aligned(cosines, by, "embeddings")
    return rows, cosines


def _in_turns(cosines: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """(size,) columns: each row in turn takes its highest that is left."""
    order = np.argsort(-cosines, axis=1, kind="stable")
    place = np.zeros(len(cosines), dtype=np.int64)
    is_picked = np.zeros(cosines.shape[1], dtype=bool)
    picks: list[int] = []
    while len(picks) < size:
        row = len(picks) % len(cosines)
        while is_picked[order[row, place[row]]]:
            place[row] += 1
        picks.append(int(order[row, place[row]]))
        is_picked[picks[-1]] = True
    return np.array(picks, dtype=np.int64)
