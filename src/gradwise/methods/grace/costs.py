"""What deciding may cost, and what follows from it: how many samples are scored, how often the selection is
made again, how many samples are scored for that.

Scoring a pool costs as much as several epochs over a tenth of it, so a selection that scores everything, or
does so too often, costs more than the training it serves. One dial, the share of the training time that
deciding may take, and speeds measured once before the run give the rest.
"""

import numpy as np

from gradwise.methods.costs import RunSize, SelectionForecast, Speeds

FIRST_PART = 2 / 3
"""Share of the budget that the first scoring run may take where refreshes are to follow."""

MOST_REFRESHES, FEWEST_STEPS = 20, 5
"""Refreshes that are planned at most, and steps between two of them at least."""

FEWEST_SCORED = 8
"""Smallest number of samples that a refresh scores where `anchors` is unset; fewer say little about the
others, and cost the start of a scoring run all the same."""

SPENT_AT_LEAST = 0.8
"""Share of the planned anchors below which later refreshes do not fall; fewer would save little."""

EXACT_UP_TO = 100_000
"""Nodes beyond which `search: auto` takes the approximate search, where faiss is installed."""

USUAL_ANCHORS = 0.1
"""Share of the scored samples that a refresh scores again, if nothing else decides."""


def single(candidates: int, steps: int) -> SelectionForecast:
    """A single selection with settings that leave nothing open: no speed would change it, so none is
    measured."""
    return SelectionForecast(candidates, 0, USUAL_ANCHORS, 0.0, None, steps, training=None)


def forecast(
    size: RunSize,
    speeds: Speeds,
    overhead: float,
    *,
    candidates: int | None = None,
    every: int | None = None,
    anchors: float | None = None,
) -> SelectionForecast:
    """What a share `overhead` of the training time affords.

    Args:
        size: of the run.
        speeds: of the machine.
        overhead: share of the training time that deciding may take.
        candidates: samples to score, where that is settled.
        every: steps between selections, where that is settled.
        anchors: share of the candidates that a refresh scores, where that is settled.

    Returns:
        What the share pays for. What is settled is done even where it costs more.

    >>> affordable = forecast(RunSize(pool=1000, steps=100, batch=10), Speeds(0.3, 0.1), overhead=0.5)
    >>> affordable.candidates, affordable.every, round(affordable.share, 2)
    (1000, 17, 0.5)
    """
    settled = candidates
    # Everything is a share of this: what the run's own forward/backward runs take, at the speed measured
    # before its first step.
    training = size.steps * size.batch * speeds.train
    allowed = overhead * training
    later = speeds.startup if speeds.later_startup is None else speeds.later_startup
    # The target is scored in a run of its own.
    aside = later + size.aside * speeds.score if size.aside else 0.0
    if candidates is None:
        # A first scoring run that takes the whole budget leaves no refresh, and a pool that is scored once is
        # stale after some steps.
        # The first scoring run gets the larger part: selected once, a tenth of the dirty pool gained 0.377
        # over random picks, and 0.300 with refreshes (docs/results/compare-grace_dirty_10.md).
        seconds = allowed * (1 if every == 0 else FIRST_PART) - aside
        candidates = _affordable(size.pool, speeds, seconds)
    first = _first_scoring(candidates, speeds) + aside
    left = allowed - first
    share = USUAL_ANCHORS if anchors is None else anchors
    fewest = min(candidates, FEWEST_SCORED if anchors is None else 1)
    if every is None:
        # A refresh scores the target again as well, since its direction moves with the model.
        each = later + aside + max(fewest, int(share * candidates)) * speeds.score
        # As many refreshes as the rest pays for, yet at least FEWEST_STEPS apart: two in a row would find
        # nothing changed.
        count = int(min(left / each, MOST_REFRESHES, size.steps / FEWEST_STEPS - 1)) if left > 0 else 0
        if count == 0:
            return forecast(size, speeds, overhead, every=0, candidates=settled, anchors=anchors)
        every = -(-size.steps // (count + 1))
    count = -(-size.steps // every) - 1 if every else 0
    if anchors is None and count:
        # What is left is for the refreshes: as many samples each as it pays for.
        paid = (left / count - later - aside) / speeds.score / candidates
        share = float(np.clip(paid, min(fewest / candidates, 0.5), 0.5))
    # A hair, or rounding could lose a sample.
    scored = max(1, int(share * candidates + 1e-9))
    return SelectionForecast(
        candidates=candidates,
        every=every,
        anchors=share,
        least_anchors=SPENT_AT_LEAST * share,
        allowance=count * scored,
        steps=size.steps,
        training=training,
        first=first,
        refreshes=count * (later + aside + scored * speeds.score),
    )


def _first_scoring(count: int, speeds: Speeds) -> float:
    # An approximate search compares each sample with at most EXACT_UP_TO others.
    pairs = count * min(count, EXACT_UP_TO)
    return speeds.startup + count * speeds.score + pairs * speeds.compare


def _affordable(pool: int, speeds: Speeds, seconds: float) -> int:
    """The most samples whose first scoring takes at most `seconds`; at least two, at most the pool."""
    if _first_scoring(pool, speeds) <= seconds:
        return pool
    low, high = min(2, pool), pool
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _first_scoring(middle, speeds) <= seconds else (low, middle)
    return low
