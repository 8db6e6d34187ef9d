"""What a sample is worth by itself: loss, gradient norm, or how well its gradient agrees with the others'.

Garbage has high losses and large gradients; what it lacks is a direction that it shares with other samples.
Alignment is therefore a mean cosine: as an inner product it bought random characters (docs/log.md).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import SignalError
from gradwise.numerics.kernels import parts
from gradwise.signals import Signals

if TYPE_CHECKING:
    from gradwise.methods.grace.cascade import Comparison

Kind = Literal["alignment", "relevance", "loss", "norm", "head_norm"]

NEEDS: dict[str, str] = {
    "alignment": "grad", "relevance": "embedding", "loss": "loss", "norm": "grad_norm",
    "head_norm": "head_norm",
}  # fmt: skip
"""The signal each kind is made of."""

USUALLY_HIGHEST = 99.0
"""Percentile that importance is compared with to tell outliers."""

OUTLIER = 10.0
"""How many times that percentile a sample has to exceed to be listed."""


@dataclass(frozen=True)
class Worth:
    """Importance brought to 0..1."""

    scores: NDArray[np.float64]
    """(n,) s^: the share of the others whose importance is lower, so that no outlier rules."""
    outliers: NDArray[np.int64]
    """Places of samples far above that percentile, highest first."""


def importance(
    kind: Kind,
    signals: Signals,
    rows: NDArray[np.int64],
    *,
    mean_tokens: float | None = None,
    target: "MeanDirection | Comparison | None" = None,
) -> NDArray[np.float64]:
    """(n,) of some samples of a pool.

    Args:
        kind: what it is made of.
        signals: with what `NEEDS` names for that kind.
        rows: (n,) the samples.
        mean_tokens: scale by the sample's label tokens over this: what a token of it is worth becomes what
            all of it is.
        target: direction for `alignment`, or that of a target. If unset, the mean over
            `rows`.
    """
    values = np.asarray(signals.require(NEEDS[kind], f"grace with importance {kind}"))
    if target is not None and not isinstance(target, MeanDirection):
        return target.importance(values[rows])
    if kind == "alignment":
        grads = values[rows].astype(np.float64)
        # A mean cosine, not an inner product: garbage has the longest gradients, and as an inner product it
        # was picked for them; as a cosine it stays at 1 to 3 % of the picks (docs/log.md).
        scores = (target or MeanDirection.of(grads)).alignment(grads)
    else:
        scores = values[rows].astype(np.float64)
    if mean_tokens is None:
        return scores
    # Per sample instead of per token, the head's norm finds both kinds of garbage: random characters, where
    # it is low, and snippets, where it is high (docs/log.md).
    return scores * signals.require("num_tokens", "grace")[rows] / mean_tokens


@dataclass(frozen=True)
class MeanDirection:
    """The mean direction of a number of samples' gradients, that others are aligned with."""

    mean: NDArray[np.float64]
    """(k,) mean of gradients brought to unit length."""
    count: int

    @staticmethod
    def of(grads: NDArray[np.float64]) -> "MeanDirection":
        """That of (n, k) gradients."""
        return MeanDirection(_unit(grads).mean(axis=0), len(grads))

    def alignment(self, grads: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) mean cosines, -1..1, of gradients, (n, k), with those of the others.

        Each of them counts as one of the samples that the mean is of, and is taken out.
        """
        if self.count < 2:
            return np.zeros(len(grads))
        units = _unit(grads)
        # The mean over all n less the sample's own unit vector, whose inner product with itself is 1.
        return (self.count * (units @ self.mean) - np.square(units).sum(axis=1)) / (self.count - 1)

    def moved(self, grads: NDArray[np.float64]) -> "MeanDirection":
        """The mean after some of its samples, (a, k), were scored again."""
        share = len(grads) / self.count
        return MeanDirection((1 - share) * self.mean + share * _unit(grads).mean(axis=0), self.count)


def _unit(grads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; rows of zeros stay what they are."""
    length = np.linalg.norm(grads, axis=1, keepdims=True)
    return np.divide(grads, length, out=np.zeros_like(grads), where=length > 0)


def worth(values: NDArray[np.float64]) -> Worth:
    """Importance as ranks in 0..1, mean ranks where it ties; 0 where it does not tell samples apart.

    >>> worth(np.array([-1.0, 1.0, 1.0, 200.0])).scores.tolist()
    [0.0, 0.5, 0.5, 1.0]
    """
    if not np.isfinite(values).all():
        raise SignalError("grace was given an importance that is not finite.")
    if np.ptp(values) == 0:
        return Worth(np.zeros(len(values)), np.zeros(0, dtype=np.int64))
    highest = np.percentile(np.abs(values), USUALLY_HIGHEST)
    # Only listed: as ranks they weigh no more than any other high value. Clipped at the 99th percentile
    # instead, the head norm let more garbage than its share into a selection of 30 % (docs/log.md).
    over = np.flatnonzero((values > OUTLIER * highest) & (highest > 0))
    from scipy.stats import rankdata  # a third of the time that commands take to start

    scores = (rankdata(values) - 1) / (len(values) - 1)
    return Worth(scores, over[np.argsort(-values[over], kind="stable")])


def finite_rows(values: NDArray[Any]) -> NDArray[Any]:
    """(N,) whether all numbers of a row are finite; a large pool is read a part at a time."""
    finite = np.empty(len(values), dtype=bool)
    for part in parts(len(values), 2**14):
        finite[part] = np.isfinite(values[part]).all(axis=1)
    return finite
