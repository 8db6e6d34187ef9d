"""What DiReCT chooses from and by: usable rows, their stiff costs, the budget, and how far it is kept."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import RecipeError, SignalError
from gradwise.methods.validation import validation_rows
from gradwise.numerics.budgeted import least_cost
from gradwise.numerics.rows import Rows, alike
from gradwise.numerics.spectrum import Spectrum
from gradwise.signals import Signals

Normalise = Literal["length", "unit", "none"]

USUAL_LENGTH = 0.95
"""Quantile of the validation gradients' lengths beyond which the pool's are cut to it."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Shapes: n samples that may be chosen, gradients of k numbers."""

    rows: NDArray[np.int64]
    """(n,) places in the pool, ascending: finite, not zero, not a copy too many."""
    gradients: Rows
    """Normalised gradients of these samples."""
    spectrum: Spectrum
    """Spectrum of the validation gradients."""
    stiff: int
    """k*, how many of its directions are stiff."""
    costs: NDArray[np.float64]
    """(n,) a_i = sum over stiff j of lam_j (g_i . v_j)^2."""
    sizes: NDArray[np.float64] | None
    """(n,) label tokens, where these are what is counted."""
    count: float
    """Samples, or label tokens, to choose."""
    set_aside: int
    """Samples of the pool that cannot be used."""
    copies: int
    """Samples left out because enough of their copies are there."""
    largest: float | None = None
    """Largest weight of a sample, where samples get weights; `sizes` are then 1, and `count` is the sum of
    weights divided by it."""

    @property
    def flat(self) -> Rows:
        """The gradients without their stiff part."""
        own = self.gradients
        return Rows(own.x, own.chosen, own.scale, without=self.spectrum.vectors[:, : self.stiff])

    @property
    def usual_cost(self) -> float:
        """What as many samples drawn at random would cost on average: what tau is a share of."""
        whole = float(len(self.costs)) if self.sizes is None else float(self.sizes.sum())
        return float(self.costs.sum()) * self.count / whole

    def unit(self, *, relative: bool) -> float:
        """The budget that `tau` 1 stands for: the usual cost, or 1 in the paper's units, whose projected
        gradients are as long as ours and are multiplied by the root of their k numbers."""
        return self.usual_cost if relative else 1 / (self.gradients.width * (self.largest or 1.0))

    def least_tau(self, unit: float) -> float:
        """The smallest `tau` that can be met."""
        least = least_cost(self.costs, self.count, sizes=self.sizes)
        return least / unit if unit > 0 else 0.0


def usable(signals: Signals) -> NDArray[np.int64]:
    """Places of the samples whose gradients are finite and not zero."""
    grad = signals.require("grad", "direct")
    squares = Rows(grad).squares()
    fine = np.isfinite(squares) & (squares > 0)
    rows = np.flatnonzero(fine if signals.ok is None else fine & signals.ok)
    if not rows.size:
        raise SignalError(
            f"direct found no sample with a gradient that is finite and not zero among {len(signals)}."
        )
    return rows


def mean_tokens(validation: Signals | None, how: Normalise) -> float:
    """Label tokens of a validation sample on average, by which all lengths are measured."""
    if how != "length" or validation is None:
        return 1.0
    return max(1.0, float(validation.require("num_tokens", "direct with normalise: length").mean()))


def lengths_of(
    signals: Signals, rows: NDArray[np.int64], how: Normalise, usual: float
) -> NDArray[np.float64]:
    """(n,) factors that make gradients comparable.

    `length`: the square root of the label tokens over the `usual` number. The gradient of a mean over L
    tokens is noise of length 1 / sqrt(L) beside what the tokens have in common, so that short samples seem to
    move most.
    `unit`: all of the same length.
    """
    if how == "length":
        tokens = signals.require("num_tokens", "direct with normalise: length")[rows].astype(np.float64)
        return np.sqrt(tokens / usual)
    if how == "unit":
        return 1 / np.sqrt(Rows(signals.require("grad", "direct"), rows).squares())
    return np.ones(len(rows))


def clipped(signals: Signals, rows: NDArray[np.int64], scale: NDArray[np.float64], z: NDArray[Any]) -> Any:
    """(n,) the factors that leave no gradient longer than nearly all of the validation samples' are.

    Random tokens have long gradients, which point a little everywhere, and so also along what is to be
    learned (benchmarks/direct_sketch.py).
    """
    longest = float(np.quantile(np.linalg.norm(z, axis=1), USUAL_LENGTH))
    lengths = np.sqrt(Rows(signals.require("grad", "direct"), rows).squares()) * scale
    return scale * np.minimum(1.0, longest / lengths)


def target_gradients(validation: Signals | None, how: Normalise) -> NDArray[np.float64]:
    """(M, k) normalised gradients of the validation samples that have one.

    Raises:
        SignalError: no sample has a gradient, or nearly none.
    """
    rows = validation_rows(validation, "direct")
    assert validation is not None
    grad = validation.require("grad", "direct")
    if how == "unit":
        rows = rows[Rows(grad).squares()[rows] > 0]
    scale = lengths_of(validation, rows, how, mean_tokens(validation, how))
    return np.asarray(grad[rows], dtype=np.float64) * scale[:, None]


def without_copies(
    grad: Any, rows: NDArray[np.int64], cosine: float, most: int | None
) -> tuple[NDArray[np.int64], int]:
    """The first `most` rows of each group of similar ones, and how many rows were left out."""
    if most is None:
        return rows, 0
    leader = alike(grad, cosine, rows=rows)
    if np.array_equal(leader, np.arange(len(rows))):
        return rows, 0
    order = np.argsort(leader, kind="stable")
    starts = np.flatnonzero(np.diff(leader[order], prepend=-1))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    kept = rows[rank < most]
    return kept, len(rows) - len(kept)


def stiff_costs(gradients: Rows, spectrum: Spectrum, stiff: int) -> NDArray[np.float64]:
    """(n,) a_i, read a part at a time."""
    values = spectrum.values[:stiff]
    directions = (spectrum.vectors[:, :stiff] * np.sqrt(values)).astype(np.float32)
    costs = np.empty(len(gradients))
    for part, rows in gradients.parts():
        costs[part] = ((rows @ directions).astype(np.float64) ** 2).sum(axis=1)
    return costs * gradients.scale**2


def kept_to(problem: Problem, tau: float | None, usual: float, unit: float) -> float:
    """The budget to keep to, in units.

    Args:
        problem: whose least cost counts.
        tau: the given value; it is met or refused.
        usual: what to take where nothing was; raised as far as it must be.
        unit: the cost that `tau` is counted in.

    Raises:
        RecipeError: the given value cannot be met.
    """
    least = problem.least_tau(unit)
    if tau is None:
        return max(usual, least)
    if tau < least:
        samples = problem.sizes is None or problem.largest is not None
        relative = unit == problem.usual_cost
        raise RecipeError(
            f"anneal.tau is {tau:g}, but the {problem.count * (problem.largest or 1):,.0f} "
            f"{'samples' if samples else 'label tokens'} with the least cost in stiff directions already "
            f"cost {least:.4g}{' of what as many cost on average' if relative else ''}; give tau: "
            f"{_rounded_up(least)} or more, choose fewer, or leave tau out to have it raised as far as it "
            "must be."
        )
    return tau


def _rounded_up(value: float) -> str:
    """Three digits that are not below the value."""
    text = f"{value:.3g}"
    return text if float(text) >= value else f"{value * 1.01:.3g}"
