"""What deciding may cost, and what follows from it: how many samples are looked at, how often the selection
is made again, how many samples are measured for that.

A pass over a pool costs as much as several epochs over a tenth of it, so a selection that looks at
everything, or looks again too often, costs more than the training it serves. One dial, the share of the
training time that deciding may take, and speeds measured once before the run give the rest.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FIRST_PART = 2 / 3
"""Of what may be spent, how much at most goes into the first pass where refreshes are to follow."""

MOST_REFRESHES, FEWEST_STEPS = 20, 5
"""Refreshes that are planned at most, and steps between two of them at least."""

FEWEST_MEASURED = 8
"""Samples that a refresh measures at least, unless told otherwise; fewer tell nothing of the others, and cost
a pass all the same."""

SPENT_AT_LEAST = 0.8
"""Of the share of anchors that is planned; fewer would save little and break the forecast's word."""

EXACT_UP_TO = 100_000
"""Nodes beyond which `search: auto` takes the approximate search, where faiss is installed."""

USUAL_ANCHORS = 0.1
"""Share of the samples looked at that a refresh measures, unless told otherwise."""


@dataclass(frozen=True)
class Speeds:
    """Seconds, measured before the first step."""

    train: float
    """Per sample: forward and backward pass."""
    measure: float
    """Per sample: what the selection needs."""
    begin: float = 0.0
    """Per measuring pass, whatever its size."""
    compare: float = 0.0
    """Per pair of samples whose embeddings are compared for the graph."""


@dataclass(frozen=True)
class Size:
    """How large the run is."""

    pool: int
    steps: int
    batch: int
    """Samples of a step."""


@dataclass(frozen=True)
class Forecast:
    """What is decided about deciding, and what it is expected to cost."""

    candidates: int
    """Samples of the pool that are looked at."""
    every: int
    """Steps from one selection to the next; 0 where there is one only."""
    anchors: float
    """Share of the candidates that the first refresh measures."""
    least_anchors: float
    """Share below which later refreshes do not fall."""
    allowance: int | None
    """Samples that all refreshes together may measure; None for no limit."""
    steps: int
    """Of the run."""
    training: float | None
    """Seconds of all of them; None where no speed was measured."""
    first: float = 0.0
    """Seconds of the first pass and its graph."""
    refreshes: float = 0.0
    """Seconds of all refreshes together."""

    @staticmethod
    def once(candidates: int, steps: int) -> "Forecast":
        """A single selection that was asked for as it is: no speed would change it, so none is measured."""
        return Forecast(candidates, 0, USUAL_ANCHORS, 0.0, None, steps, training=None)

    @property
    def share(self) -> float | None:
        """Of the training time that deciding takes."""
        return None if self.training is None else (self.first + self.refreshes) / self.training

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        if self.training is None or self.share is None:
            return asdict(self) | {"first": None, "share": None}
        seconds = {name: round(getattr(self, name), 3) for name in ("training", "first", "refreshes")}
        return asdict(self) | seconds | {"share": round(self.share, 4)}

    def __str__(self) -> str:
        again = f"again every {self.every} steps" if self.every else "once"
        looks = f"grace looks at {self.candidates:,} samples and selects {again}"
        if self.share is None:
            return looks
        return (
            f"{looks}; deciding is expected to take "
            f"{self.first + self.refreshes:,.1f} s, {self.share:.0%} of {self.training:,.1f} s of training"
        )


def forecast(
    size: Size,
    speeds: Speeds,
    overhead: float,
    *,
    candidates: int | None = None,
    every: int | None = None,
    anchors: float | None = None,
    limited: bool = True,
) -> Forecast:
    """What a share `overhead` of the training time affords.

    Args:
        size: of the run.
        speeds: of this machine.
        overhead: share of the training time that deciding may take.
        candidates: samples to look at, where that is settled.
        every: steps between selections, where that is settled.
        anchors: share of the candidates that a refresh measures, where that is settled.
        limited: whether refreshes that grow, because propagation cannot be trusted, stay within the share.

    >>> affordable = forecast(Size(pool=1000, steps=100, batch=10), Speeds(0.3, 0.1), overhead=0.5)
    >>> affordable.candidates, affordable.every, round(affordable.share, 2)
    (1000, 17, 0.5)
    """
    settled = candidates
    training = size.steps * size.batch * speeds.train
    allowed = overhead * training
    if candidates is None:
        candidates = _affordable(size.pool, speeds, allowed * (1 if every == 0 else FIRST_PART))
    first = _first_pass(candidates, speeds)
    left = allowed - first
    share = USUAL_ANCHORS if anchors is None else anchors
    if every is None:
        fewest = min(candidates, FEWEST_MEASURED if anchors is None else 1)
        each = speeds.begin + max(fewest, int(share * candidates)) * speeds.measure
        count = int(min(left / each, MOST_REFRESHES, size.steps / FEWEST_STEPS - 1)) if left > 0 else 0
        if count == 0:
            found = {"candidates": settled, "anchors": anchors, "limited": limited}
            return forecast(size, speeds, overhead, every=0, **found)
        every = -(-size.steps // (count + 1))
    count = -(-size.steps // every) - 1 if every else 0
    if anchors is None and count and limited:
        # What is left is for the refreshes: as many samples each as it pays for.
        paid = (left / count - speeds.begin) / speeds.measure / candidates
        share = float(np.clip(paid, min(USUAL_ANCHORS, 1 / candidates), 0.5))
    measured = max(1, int(share * candidates))
    return Forecast(
        candidates=candidates,
        every=every,
        anchors=share,
        least_anchors=SPENT_AT_LEAST * share if limited else 0.0,
        allowance=count * measured if limited else None,
        steps=size.steps,
        training=training,
        first=first,
        refreshes=count * (speeds.begin + measured * speeds.measure),
    )


def _first_pass(count: int, speeds: Speeds) -> float:
    # An approximate search compares each with some of the others only: at most with so many.
    pairs = count * min(count, EXACT_UP_TO)
    return speeds.begin + count * speeds.measure + pairs * speeds.compare


def _affordable(pool: int, speeds: Speeds, seconds: float) -> int:
    """The most samples whose first pass takes so many seconds; at least two, at most the pool."""
    if _first_pass(pool, speeds) <= seconds:
        return pool
    low, high = min(2, pool), pool
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _first_pass(middle, speeds) <= seconds else (low, middle)
    return low
