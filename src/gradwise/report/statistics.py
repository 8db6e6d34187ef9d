"""Does an arm differ from the reference? Pairs by seed, t intervals, Holm's correction, a verdict in words.

The paired t test asks whether the mean over seeds of (arm - reference) is zero. Seeds decide both the data
drawn and the order, so that two arms of the same seed share much of what is luck. With several arms in a
table, one of them looks better by chance soon enough: p-values are corrected over all arms of the table
(Holm 1979), which keeps the probability of any false verdict in a table at 5 %.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special  # a tenth of the time that scipy.stats takes to import

BETTER, WORSE, UNSEEN, UNTOLD = "better", "worse", "no difference seen", "too few seeds"

LEVEL = 0.05
"""Probability of a false verdict in a table whose arms are all alike."""

FEWEST = 3
"""Common seeds below which nothing is said."""

ENOUGH = 5
"""Common seeds that a claim of a gain wants."""

Direction = Literal["lower", "higher"]
"""Which values of a metric are better."""


@dataclass(frozen=True)
class Comparison:
    """One arm against the reference, over the seeds that both have."""

    arm: str
    seeds: int
    mean: float
    """Over all of the arm's own seeds."""
    sd: float
    difference: float
    """Mean of arm minus reference, paired by seed."""
    interval: tuple[float, float] | None
    """95 % t interval of the difference, not corrected; None with fewer than two pairs."""
    p: float | None
    """Two-sided, Holm-corrected over the arms of the table; None with fewer than three pairs."""
    verdict: str


def compare(
    values: Mapping[str, Mapping[int, float]], reference: str, better: Direction = "lower"
) -> list[Comparison]:
    """Every other arm against `reference`.

    Args:
        values: by arm and seed.
        reference: an arm of `values`.
        better: which values are better.

    Returns:
        In the order of `values`, the reference left out, and arms without a seed in common with it.

    >>> found = compare({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 0.5, 1: 1.49, 2: 2.51}}, "a")
    >>> found[0].verdict, round(found[0].difference, 2)
    ('better', -0.5)
    """
    base = values[reference]
    gaps = {
        arm: np.array([values[arm][seed] - base[seed] for seed in sorted(set(values[arm]) & set(base))])
        for arm in values
        if arm != reference and set(values[arm]) & set(base)
    }
    raw = {arm: p_value(gap) for arm, gap in gaps.items()}
    corrected = holm({arm: p for arm, p in raw.items() if p is not None})
    return [_comparison(arm, values[arm], gap, corrected.get(arm), better) for arm, gap in gaps.items()]


def mean_sd(values: Mapping[int, float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; NaN for one value)."""
    found = np.array(list(values.values()))
    return float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else math.nan


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected, highest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - place)))
        corrected[name] = highest
    return corrected


def t_interval(differences: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % t interval of the mean of (n,) differences, or None for fewer than two."""
    count = len(differences)
    if count < 2:
        return None
    half = float(special.stdtrit(count - 1, 1 - LEVEL / 2) * differences.std(ddof=1) / math.sqrt(count))
    return float(differences.mean()) - half, float(differences.mean()) + half


def p_value(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p of the paired t test of (n,) differences, or None for fewer than `FEWEST`.

    Differences that are all exactly zero (two arms that are the same run) give 1; all the same but not zero
    give 0.
    """
    if len(differences) < FEWEST:
        return None
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if differences.mean() == 0 else 0.0
    return float(2 * special.stdtr(len(differences) - 1, -abs(differences.mean()) / error))


def _comparison(
    arm: str, values: Mapping[int, float], gap: NDArray[np.float64], p: float | None, better: Direction
) -> Comparison:
    mean, sd = mean_sd(values)
    difference = float(gap.mean())
    return Comparison(
        arm, len(gap), mean, sd, difference, t_interval(gap), p, _verdict(difference, p, better)
    )


def _verdict(difference: float, p: float | None, better: Direction) -> str:
    if p is None:
        return UNTOLD
    if p >= LEVEL:
        return UNSEEN
    return BETTER if (difference < 0) == (better == "lower") else WORSE
