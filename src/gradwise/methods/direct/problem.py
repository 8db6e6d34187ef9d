"""What DiReCT chooses from and by: usable rows, their stiff costs, the budget, and how far it is kept."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import RecipeError, SignalError
from gradwise.methods.direct.descent import Descent
from gradwise.methods.validation import validation_rows
from gradwise.numerics.budgeted import budgeted_top, least_cost, whole_rows
from gradwise.numerics.rows import Rows, near_copy_leaders
from gradwise.numerics.spectrum import Spectrum
from gradwise.signals import Signals

Normalise = Literal["length", "unit", "none"]

Outliers = Literal["leave_out", "clip", "keep"]

USUAL_LENGTH = 0.95
"""Quantile of the validation gradients' lengths beyond which a sample of the pool is an outlier."""

SHORT = 0.5
"""Label tokens below which a sample can be a fragment, as a fraction of the smaller of two: those that nearly
all validation samples exceed, and the pool's median. Fragments of 1 to 11 label tokens beside 360 texts were
up to 72 % of the picks towards 24-token sentences, and 10 % of the pool (docs/log.md)."""

FRAGMENT = 16.0
"""Label tokens from which on no sample is a fragment. Beginnings of texts with more were picked less often
than their share towards targets of long texts, and the texts of ordinary pools have more."""

CHOICE = 2.0
"""Samples left to choose from, as a multiple of those to choose. Outliers are kept if fewer would be left."""


class CandidatePool(NamedTuple):
    """The n samples that may be chosen, without regard to what they are chosen for."""

    rows: NDArray[np.int64]
    """(n,) places in the pool, ascending: finite, not zero, not a copy too many, no outlier, not too
    short."""
    sizes: NDArray[np.float64] | None
    """(n,) label tokens, where these are what is counted."""
    count: float
    """Samples, or label tokens, to choose."""
    set_aside: int
    """Samples of the pool that cannot be used."""
    copies: int
    """Samples left out because enough of their copies are there."""
    outliers: int
    """Samples left out because their gradients are longer than those of nearly all validation samples."""
    short: int
    """Samples left out because they have far fewer label tokens than the validation samples and the pool."""
    largest: float | None = None
    """Largest weight of a sample, where samples get weights; `sizes` are then 1, and `count` is the sum of
    weights divided by it."""
    length: float = 1.0
    """What all gradients were divided by, so that no power of theirs overflows."""

    @property
    def left_out(self) -> str:
        """The candidates that were left out as junk, to be added to a sentence; can be empty."""
        kinds = {"too short": self.short, "with long gradients": self.outliers}
        counted = [f"{count:,} {kind}" for kind, count in kinds.items() if count]
        return f"; left out: {', '.join(counted)}" if counted else ""


@dataclass(frozen=True, eq=False)
class Problem:
    """Shapes: n samples that may be chosen, gradients of k numbers."""

    pool: CandidatePool
    gradients: Rows
    """Normalised gradients of the samples."""
    spectrum: Spectrum
    """Spectrum of the validation gradients."""
    stiff: int
    """k*, how many of its directions are stiff."""
    costs: NDArray[np.float64]
    """(n,) a_i = sum over stiff j of lam_j (g_i . v_j)^2."""
    way: Descent | None
    """The direction of descent; None for the authors' objective, which has none."""

    @property
    def rows(self) -> NDArray[np.int64]:
        return self.pool.rows

    @property
    def sizes(self) -> NDArray[np.float64] | None:
        return self.pool.sizes

    @property
    def count(self) -> float:
        return self.pool.count

    @property
    def flat(self) -> Rows:
        """The gradients without their stiff part."""
        rows = self.gradients
        return Rows(rows.x, rows.chosen, rows.scale, without=self.spectrum.vectors[:, : self.stiff])

    def unit(self, *, relative: bool) -> float:
        """The budget that `tau` 1 stands for: the usual cost, or 1 in the paper's units, whose projected
        gradients are as long as ours and are multiplied by the root of their k numbers."""
        if relative:  # what as many samples drawn at random would cost on average
            whole = float(len(self.costs)) if self.sizes is None else float(self.sizes.sum())
            return float(self.costs.sum()) * self.count / whole
        return 1 / (self.gradients.width * (self.pool.largest or 1.0) * self.pool.length**4)

    def least_tau(self, *, relative: bool) -> float:
        """The smallest `tau` that can be met."""
        least, unit = least_cost(self.costs, self.count, sizes=self.sizes), self.unit(relative=relative)
        return least / unit if unit > 0 else 0.0

    def budget(self, tau: float, *, relative: bool) -> float:
        """Total cost of the picks, at most; at the least tau what the cheapest cost, to the last bit."""
        if math.isinf(tau):
            return math.inf  # also where no sample costs anything, and the unit is 0
        budget = tau * self.unit(relative=relative)
        if tau == self.least_tau(relative=relative):
            budget = max(budget, least_cost(self.costs, self.count, sizes=self.sizes))
        return budget

    def best(self, scores: NDArray[np.float64], budget: float) -> NDArray[np.int64]:
        """Places of whole rows with the highest scores within a budget."""
        optimum = budgeted_top(scores, self.costs, self.count, budget, sizes=self.sizes)
        return whole_rows(optimum, scores, self.costs, self.count, budget, sizes=self.sizes)


def usable(signals: Signals) -> NDArray[np.int64]:
    """Places of the samples whose gradients are finite and not zero."""
    grad = signals.require("grad", "direct")
    squares = Rows(grad).squares()
    # A gradient of zeros has no direction, and one NaN would make every sum NaN: the authors' code then
    # returns samples 0..K-1.
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
        # sqrt(L): a mean over L tokens has noise of 1 / sqrt(L), so that short samples would seem to move
        # most.
        return np.sqrt(tokens / usual)
    if how == "unit":
        return 1 / np.sqrt(Rows(signals.require("grad", "direct"), rows).squares())
    return np.ones(len(rows))


def relative_lengths(
    signals: Signals, rows: NDArray[np.int64], validation: Signals | None
) -> NDArray[np.float64]:
    """(n,) gradient lengths, normalised for label tokens, over that of nearly all validation samples.

    Random tokens have gradients twice as long as those of text, which point a little everywhere, and so also
    along what is to be learned: unclipped, they were 11 to 13 of 40 picks (benchmarks/direct/sketch.py).
    """
    has_tokens = (
        validation is not None and signals.num_tokens is not None and validation.num_tokens is not None
    )
    how: Normalise = "length" if has_tokens else "none"
    usual = mean_tokens(validation, how)
    theirs = validation_rows(validation, "direct")
    assert validation is not None

    def lengths(part: Signals, places: NDArray[np.int64]) -> NDArray[np.float64]:
        squares = Rows(part.require("grad", "direct"), places).squares()
        return np.sqrt(squares) * lengths_of(part, places, how, usual)

    return lengths(signals, rows) / float(np.quantile(lengths(validation, theirs), USUAL_LENGTH))


def relative_shortness(
    signals: Signals, rows: NDArray[np.int64], validation: Signals | None
) -> NDArray[np.float64]:
    """(n,) the fewest label tokens of a sample that is no fragment (`SHORT`, `FRAGMENT`), over those of each
    sample; above 1 for fragments.

    The gradient of a few tokens is mostly what the beginnings of all texts have in common. At unit length it
    points towards any target of similar sentences more exactly than a whole text does.
    """
    if validation is None or validation.num_tokens is None or signals.num_tokens is None:
        return np.zeros(len(rows))
    tokens = np.maximum(1, signals.num_tokens[rows]).astype(np.float64)
    # By validation samples alone, most of a pool of short texts could count as too short for a long target.
    theirs = validation.num_tokens[validation_rows(validation, "direct")]
    usual = min(float(np.quantile(theirs, 1 - USUAL_LENGTH)), float(np.median(tokens)))
    return min(SHORT * usual, FRAGMENT) / tokens


def without_odd(
    signals: Signals,
    rows: NDArray[np.int64],
    validation: Signals | None,
    sizes: NDArray[np.float64],
    count: float,
) -> tuple[NDArray[np.int64], int, int]:
    """(m,) places in `rows`, ascending, without samples that are too short or have unusually long gradients;
    and how many have long gradients, and are too short.

    Args:
        signals, rows: of the pool, and those to choose from.
        validation: samples that say what is usual.
        sizes: (n,) of the rows, in the unit of `count`.
        count: samples, or label tokens, to choose.
    """
    # Short ones first: where nearly all of the pool has longer gradients than a formulaic target, the least
    # odd samples stay, and fragments would be among them.
    places = without_outliers(relative_shortness(signals, rows, validation), sizes, count)
    lengths = relative_lengths(signals, rows[places], validation)
    inliers = places[without_outliers(lengths, sizes[places], count)]
    return inliers, len(places) - len(inliers), len(rows) - len(places)


def without_outliers(
    relative: NDArray[np.float64], sizes: NDArray[np.float64], count: float
) -> NDArray[np.int64]:
    """(m,) places, ascending, whose relative length is at most 1. The shortest others join them until there
    are `CHOICE` times as many as are to be chosen, or half of those that need not be chosen are there."""
    # Shortest first: where most of the pool is longer than the validation samples, the least odd ones stay.
    order = np.argsort(relative, kind="stable")
    # The factor below 1 keeps rounding from asking for one sample more than there are.
    least_amount = min(CHOICE * count, (count + sizes.sum()) / 2) * (1 - 1e-12)
    enough = int(np.searchsorted(np.cumsum(sizes[order]), least_amount)) + 1
    return np.sort(order[: max(enough, int((relative <= 1).sum()))])


def target_gradients(validation: Signals | None, how: Normalise) -> tuple[NDArray[np.float64], float]:
    """(M, k) normalised gradients of the validation samples that have one, and what they were divided by: the
    median of their lengths, so that no power of theirs overflows.

    Raises:
        SignalError: no sample has a gradient, or nearly none.
    """
    rows = validation_rows(validation, "direct")
    assert validation is not None
    grad = validation.require("grad", "direct")
    if how == "unit":
        rows = rows[Rows(grad).squares()[rows] > 0]
    scale = lengths_of(validation, rows, how, mean_tokens(validation, how))
    z = np.asarray(grad[rows], dtype=np.float64) * scale[:, None]
    lengths = np.linalg.norm(z, axis=1)
    # Fourth powers of a gradient occur in the paper's budget, and overflow for gradients of 1e80.
    unit = float(np.median(lengths[lengths > 0]))
    return z / unit, unit


def unlikeness(z: NDArray[np.float64], gradients: Rows) -> float:
    """How far the mean gradient b of the validation samples is from the pool's g: |b - g|^2 / |b|^2, both
    squares less what their standard errors contribute.

    About 0 where the samples are drawn from the pool's mix; 0 where the difference could be noise.

    Args:
        z: (M, k) validation gradients.
        gradients: (n, k) of the pool, normalised alike.
    """
    if len(z) < 8:
        return 0.0
    b, g = z.mean(axis=0), gradients.sum_of(np.arange(len(gradients))) / len(gradients)
    # |b|^2 of M samples is too large by the variance of their mean; the distance to the pool by both
    # variances.
    target_noise = float(np.square(z - b).sum()) / (len(z) * (len(z) - 1))
    noise = target_noise + max(0.0, float(gradients.squares().mean() - g @ g)) / len(gradients)
    apart, length = float(np.square(b - g).sum()), float(b @ b)
    # With few validation samples most of the distance is noise. Then nothing speaks for a target.
    if apart <= 2 * noise or length <= 2 * target_noise:
        return 0.0
    return (apart - noise) / (length - target_noise)


def without_copies(
    grad: Any, rows: NDArray[np.int64], cosine: float, most: int | None
) -> tuple[NDArray[np.int64], int]:
    """The first `most` rows of each group of similar ones, and how many rows were left out."""
    if most is None:
        return rows, 0
    leader = near_copy_leaders(grad, cosine, rows=rows)
    if np.array_equal(leader, np.arange(len(rows))):
        return rows, 0
    order = np.argsort(leader, kind="stable")
    starts = np.flatnonzero(np.diff(leader[order], prepend=-1))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    remaining = rows[rank < most]
    return remaining, len(rows) - len(remaining)


def stiff_costs(
    gradients: Rows, spectrum: Spectrum, stiff: int, along: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """(n,) a_i, read a part at a time.

    Args:
        gradients, spectrum, stiff: as in `Problem`.
        along: (k,) of length 1, a direction that costs nothing. Where validation samples have much in common,
            the direction of descent is stiff itself, and to forbid it is to forbid what helps.
    """
    vectors = spectrum.vectors[:, :stiff]
    if along is not None:
        # The direction of descent is projected out of the stiff ones: movement along it is what the phase is
        # for.
        vectors = vectors - np.outer(along, along @ vectors)
    directions = (vectors * np.sqrt(spectrum.values[:stiff])).astype(np.float32)
    # A part at a time: the gradients of a million samples stay on disk.
    costs = np.empty(len(gradients))
    for part, rows in gradients.parts():
        costs[part] = (((rows @ directions).astype(np.float64) * gradients.scale[part, None]) ** 2).sum(
            axis=1
        )
    return costs


def movement_budget(problem: Problem, tau: float | None, usual: float, *, relative: bool) -> float:
    """The movement budget tau, in units.

    Args:
        problem: whose least cost counts.
        tau: the given value; it is met or refused.
        usual: what to take where nothing was; raised as far as it must be.
        relative: whether tau is a share of the usual cost.

    Raises:
        RecipeError: the given value cannot be met.
    """
    least = problem.least_tau(relative=relative)
    if tau is None:
        return max(usual, least)
    if tau < least:
        largest = problem.pool.largest
        samples = problem.sizes is None or largest is not None
        raise RecipeError(
            f"anneal.tau is {tau:g}, but the {problem.count * (largest or 1):,.0f} "
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


def cosine_to(gradients: Rows, b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) cosine of each gradient with b."""
    length = float(np.linalg.norm(b))
    return gradients.times(b / (length or 1.0)) / np.sqrt(gradients.squares())


def cosines_of(gradients: Rows, places: NDArray[np.int64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) of the picks' gradients with the mean validation gradient."""
    picks = Rows(gradients.x, gradients.chosen[np.sort(places)])
    values = picks.times(b) / np.sqrt(picks.squares() * float(b @ b)) if b.any() else np.zeros(len(places))
    return values[np.argsort(np.argsort(places, kind="stable"), kind="stable")]
