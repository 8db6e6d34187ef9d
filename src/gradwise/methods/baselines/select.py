"""Simple selections: everything, at random, by loss, by length, by gradient norm, spread out."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import SignalError
from gradwise.methods.decision import Selection, check_signals
from gradwise.methods.interfaces import Selector
from gradwise.methods.subset import Subset
from gradwise.numerics import k_center
from gradwise.numerics.streams import stream
from gradwise.signals import Signals


@dataclass(frozen=True)
class FullData(Selector):
    """Every sample of the pool.

    >>> FullData().select(Signals(2)).indices.tolist()
    [0, 1]
    """

    method: Literal["full"] = "full"
    """Every sample."""

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:
        """All indices, in the order of the data."""
        check_signals(signals, self.method, seed=seed)
        return Selection(np.arange(len(signals)), why=("all of the data",), weights=signals.weight)


@dataclass(frozen=True)
class RandomSubset(Subset):
    """A random part of the pool, another one for each seed."""

    method: Literal["random"] = "random"
    """A random part."""

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:
        """`size` distinct indices without replacement, in the order of the data."""
        check_signals(signals, self.method, seed=seed)
        rng, usable = stream(seed, "random subset"), _sound(signals)
        # Left out before, not after: otherwise a selection is smaller than was asked for.
        indices = np.sort(usable[rng.choice(len(usable), self.size(len(usable)), replace=False)])
        weights = None if signals.weight is None else signals.weight[indices]
        return Selection(indices, why=(f"drawn at random with seed {seed}",), weights=weights)


@dataclass(frozen=True)
class Highest(Subset):
    """The samples with the highest values of one signal, the earlier one first where they tie."""

    signal: ClassVar[str]
    signal_name: ClassVar[str]
    """The signal's name in a sentence."""

    @property
    def needs(self) -> frozenset[str]:
        """The signal alone."""
        return frozenset({self.signal})

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:
        """The `size` highest values; samples whose value is not finite are never picked."""
        name = self.method
        check_signals(signals, name, seed=seed)
        # By loss or gradient norm, a tenth of a pool with garbage ended 0.61 and 0.58 nats above a random
        # tenth (docs/results/compare-grace_dirty_10.md).
        scores = signals.require(self.signal, name).astype(np.float64)
        if signals.ok is not None:
            scores[~signals.ok] = np.nan
        ranked, highest = best_first(scores, self.signal_name)
        size = self.size(len(ranked))
        why = (f"{self.signal_name} among the {size} highest, at least {highest[size - 1]:.4g}",)
        weights = None if signals.weight is None else signals.weight[ranked[:size]]
        return Selection(ranked[:size], why=why, weights=weights, scores=highest[:size])


@dataclass(frozen=True)
class LossTop(Highest):
    """The samples with the highest mean loss per label token."""

    method: Literal["loss_top"] = "loss_top"
    """Highest loss first."""

    signal: ClassVar[str] = "loss"
    signal_name: ClassVar[str] = "loss"


@dataclass(frozen=True)
class LengthTop(Highest):
    """The samples with the most label tokens."""

    method: Literal["length_top"] = "length_top"
    """Most label tokens first."""

    signal: ClassVar[str] = "num_tokens"
    signal_name: ClassVar[str] = "label tokens"


@dataclass(frozen=True)
class GradNormTop(Highest):
    """The samples with the largest norm of the gradient of their mean loss."""

    method: Literal["grad_norm_top"] = "grad_norm_top"
    """Largest gradient norm first."""

    signal: ClassVar[str] = "grad_norm"
    signal_name: ClassVar[str] = "gradient norm"


@dataclass(frozen=True)
class KCenter(Subset):
    """Samples spread over the pool: always the one whose embedding lies farthest from all picked so far."""

    method: Literal["k_center"] = "k_center"
    """Farthest from what was picked."""

    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:
        """`size` samples by farthest-first traversal of the embeddings around their mean."""
        check_signals(signals, self.method, seed=seed)
        embedding = signals.require("embedding", "k_center")
        usable = _sound(signals)
        rows = usable[np.isfinite(embedding[usable]).all(axis=1)]
        if not rows.size:
            raise SignalError("No sample has a finite embedding.")
        # Hidden states share a large common part; around their mean they distinguish samples (docs/log.md).
        x = embedding[rows] - embedding[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
        indices = rows[k_center(x, self.size(rows.size))]
        weights = None if signals.weight is None else signals.weight[indices]
        return Selection(indices, why=("farthest from what was picked before",), weights=weights)


def best_first(scores: NDArray[np.float64], name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(n,) places of the finite scores, the highest first and the earlier of equal ones, and these scores.

    Raises:
        SignalError: none is finite; `name` is that of the score.
    """
    finite = np.flatnonzero(np.isfinite(scores))
    if not finite.size:
        raise SignalError(f"No sample has a finite {name}.")
    best = finite[np.argsort(-scores[finite], kind="stable")]
    return best, scores[best]


def _sound(signals: Signals) -> NDArray[np.int64]:
    """(n,) the samples that could be measured."""
    return np.arange(len(signals)) if signals.ok is None else np.flatnonzero(signals.ok)
