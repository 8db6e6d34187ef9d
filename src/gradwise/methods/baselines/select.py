"""Simple selections: everything, at random, by loss, by length, by gradient norm, spread out."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import RecipeError, SignalError
from gradwise.methods.decision import Selection
from gradwise.numerics import k_center
from gradwise.settings import Settings
from gradwise.signals import Signals


@dataclass(frozen=True)
class FullData(Settings):
    """Every sample of the pool.

    >>> FullData().select(Signals(2)).indices.tolist()
    [0, 1]
    """

    method: Literal["full"] = "full"
    """Every sample."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:  # noqa: ARG002
        """All indices, in the order of the data."""
        return Selection(np.arange(len(signals)), why=("all of the data",), weights=signals.weight)


@dataclass(frozen=True)
class Subset(Settings):
    """A part of the pool, its size given as a share or as a number."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the pool to keep, above 0 and at most 1."""

    count: Annotated[int, Field(ge=1)] | None = None
    """Number of samples to keep."""

    def check(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise RecipeError(
                f"select: give either fraction or count; found fraction={self.fraction}, count={self.count}."
            )

    def size(self, pool: int) -> int:
        """How many of `pool` samples to keep, at least one; raises RecipeError when there are fewer."""
        if self.count is not None:
            if self.count > pool:
                raise RecipeError(
                    f"select.count is {self.count}, but only {pool} samples can be chosen from; lower it."
                )
            return self.count
        assert self.fraction is not None
        return max(1, round(self.fraction * pool))


@dataclass(frozen=True)
class RandomSubset(Subset):
    """A random part of the pool, another one for each seed."""

    method: Literal["random"] = "random"
    """A random part."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:
        """`size` distinct indices without replacement, in the order of the data."""
        rng = np.random.default_rng([seed, _RANDOM_SUBSET])
        indices = np.sort(rng.choice(len(signals), self.size(len(signals)), replace=False))
        weights = None if signals.weight is None else signals.weight[indices]
        return Selection(indices, why=(f"drawn at random with seed {seed}",), weights=weights)


@dataclass(frozen=True)
class LossTop(Subset):
    """The samples on which the model does worst: highest own-mean loss at its present weights."""

    method: Literal["loss_top"] = "loss_top"
    """Highest loss first."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:  # noqa: ARG002
        """The `size` highest losses; samples whose loss is not finite are never picked."""
        loss = signals.require("loss", "loss_top")
        return _top(self, loss.astype(np.float64), "loss", signals)


@dataclass(frozen=True)
class LengthTop(Subset):
    """The samples with the most label tokens."""

    method: Literal["length_top"] = "length_top"
    """Most label tokens first."""

    needs: ClassVar[frozenset[str]] = frozenset({"num_tokens"})

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:  # noqa: ARG002
        """The `size` longest by label tokens."""
        tokens = signals.require("num_tokens", "length_top")
        return _top(self, tokens.astype(np.float64), "label tokens", signals)


@dataclass(frozen=True)
class GradNormTop(Subset):
    """The samples with the largest gradients: highest exact norm of the own-mean loss's gradient."""

    method: Literal["grad_norm_top"] = "grad_norm_top"
    """Largest gradient norm first."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad_norm"})

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:  # noqa: ARG002
        """The `size` highest norms; samples whose norm is not finite are never picked."""
        norm = signals.require("grad_norm", "grad_norm_top")
        return _top(self, norm.astype(np.float64), "gradient norm", signals)


@dataclass(frozen=True)
class KCenter(Subset):
    """Samples spread over the pool: always the one whose embedding lies farthest from all picked so far."""

    method: Literal["k_center"] = "k_center"
    """Farthest from what was picked."""

    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:  # noqa: ARG002
        """`size` samples by farthest-first traversal of the embeddings around their mean."""
        embedding = signals.require("embedding", "k_center")
        usable = np.isfinite(embedding).all(axis=1)
        rows = np.flatnonzero(usable if signals.ok is None else usable & signals.ok)
        if not rows.size:
            raise SignalError("No sample has a finite embedding.")
        x = embedding[rows] - embedding[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
        indices = rows[k_center(x, self.size(rows.size))]
        weights = None if signals.weight is None else signals.weight[indices]
        return Selection(indices, why=("farthest from what was picked before",), weights=weights)


_RANDOM_SUBSET = 0x5E1EC7
"""Keeps this draw's random stream apart from those of the order and of the layers."""


def _top(settings: Subset, scores: NDArray[np.float64], name: str, signals: Signals) -> Selection:
    finite = np.flatnonzero(np.isfinite(scores))
    if not finite.size:
        raise SignalError(f"No sample has a finite {name}.")
    best_first = finite[np.argsort(-scores[finite], kind="stable")][: settings.size(finite.size)]
    why = (f"{name} among the {len(best_first)} highest, at least {scores[best_first[-1]]:.4g}",)
    weights = None if signals.weight is None else signals.weight[best_first]
    return Selection(best_first, why=why, weights=weights, scores=scores[best_first])
