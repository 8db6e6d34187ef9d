"""Layer policies to measure GRASS against: all, uniform (LISA), static, round-robin (BAdam), top."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.layer_policy import (
    AdaptingPolicy,
    DrawnByScore,
    LayerChoice,
    LayerPolicy,
    Scores,
    draw_rng,
)


@dataclass(frozen=True)
class AllLayers(LayerChoice):
    """Every layer at every step: ordinary training, nothing frozen, nothing measured."""

    method: Literal["all"] = "all"
    """Ordinary training."""


@dataclass(frozen=True)
class UniformLayers(LayerPolicy):
    """LISA (arXiv 2403.17919): every layer has the same chance at every draw.

    Its authors always train embeddings and head as well: `embeddings: always`.
    """

    method: Literal["lisa"] = "lisa"
    """Drawn uniformly."""

    def probabilities(self, scores: Scores) -> Scores:
        """(L,) all 1 / L."""
        return np.full(len(scores), 1 / len(scores))

    def draw(self, scores: Scores, number: int, seed: int) -> NDArray[np.int64]:
        """`active` distinct layers, uniformly."""
        return np.sort(draw_rng(seed, number).choice(len(scores), self.active, replace=False))


@dataclass(frozen=True)
class RoundRobinLayers(LayerPolicy):
    """Block coordinate descent as in BAdam (arXiv 2404.02827): the layers take turns, first to last.

    BAdam drops the optimizer state of the block it leaves: `state: drop`.
    """

    method: Literal["round_robin"] = "round_robin"
    """In turn."""

    def draw(self, scores: Scores, number: int, seed: int) -> NDArray[np.int64]:  # noqa: ARG002
        """The next `active` layers in cyclic order."""
        return np.sort((number * self.active + np.arange(self.active)) % len(scores))


@dataclass(frozen=True)
class StaticLayers(DrawnByScore):
    """Drawn like GRASS, but from the scores of the probe for the whole run."""

    method: Literal["static"] = "static"
    """Drawn by the gradient norm of the probe."""


@dataclass(frozen=True)
class TopLayers(AdaptingPolicy):
    """Always the layers with the highest scores; scores adapt as in GRASS, but nothing is left to chance.

    Frozen layers keep their score, so one that the probe underrated may never be seen again.
    """

    method: Literal["top"] = "top"
    """Highest gradient norm."""

    def draw(self, scores: Scores, number: int, seed: int) -> NDArray[np.int64]:  # noqa: ARG002
        """The `active` highest scores, the earlier layer first where they tie."""
        return np.sort(np.argsort(-scores, kind="stable")[: self.active])
