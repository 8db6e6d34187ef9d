"""From decisions to a plan: a selection, seen as often as its weights say, in the order of each epoch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import PlanError
from gradwise.methods.decision import Order, Selection
from gradwise.numerics import multiplicities
from gradwise.signals import Signals
from gradwise.training.batches import Batches
from gradwise.training.plan import Plan, Segment

COPIES_STREAM = 0xC091E5
"""Keeps the rounding of weights apart from the other random streams of a seed."""


class Orders(Protocol):
    """A method that puts the entries of one epoch in order."""

    def order(self, signals: Signals, entries: NDArray[np.int64], *, epoch: int, seed: int) -> Order: ...


MOST_EPOCHS, MOST_ENTRIES = 1000, 2**24
"""Epochs and entries that a plan lays out ahead; those of a longer run follow when these are served."""


def epochs_ahead(entries: int) -> int:
    """How many epochs of so many entries a plan lays out: at least two, for the next are made from them."""
    return max(2, min(MOST_EPOCHS, MOST_ENTRIES // max(1, entries)))


def epochs_from(plan: Plan, epoch: int) -> range:
    """The epochs that a decision made in `epoch` lays out again."""
    entries = sum(len(segment) for segment in plan.of_epoch(plan.first_epoch))
    return range(epoch, min(plan.epochs_of_run, epoch + epochs_ahead(entries)))


def laid_out(plan: Plan, segments: list[Segment], after: int, epochs: range) -> Plan:
    """The plan with segments of `epochs` in place of all but its first `after`; where the run is longer than
    a plan, the epochs before are dropped."""
    more = plan.epochs_of_run > epochs.stop
    new = replace(
        plan, segments=(*plan.segments[:after], *segments), until=plan.epochs_of_run if more else None
    )
    return new.from_epoch(epochs.start) if more or plan.until is not None else new


def continued(plan: Plan) -> Plan:
    """A plan whose epochs were all served, with the next ones: the epochs after its first once more.

    The first is passed over, because a decision may have been made within it. Nothing else has to be known,
    so that a run of any length resumes exactly.
    """
    assert plan.until is not None
    last = plan.epochs - 1
    new = []
    for epoch in range(plan.epochs, min(plan.until, plan.epochs + last - plan.first_epoch)):
        parts = list(plan.of_epoch(plan.first_epoch + 1 + epoch - plan.epochs))
        new.append(joined(parts, sum(map(len, parts)), epoch))
    kept = plan.from_epoch(last)
    return laid_out(kept, new, len(kept.segments), range(last, new[-1].epoch + 1))


def make_plan(selection: Selection, order: Orders, signals: Signals, *, epochs: int, seed: int) -> Plan:
    """The plan of a run whose selection is made once, one segment per epoch.

    Weights become whole copies, rounded anew each epoch so that every sample gets its share in expectation;
    every epoch has as many entries as the selection has samples.

    Args:
        selection: what to train on.
        order: how to order each epoch.
        signals: of the whole pool.
        epochs: number of passes, at least 1.
        seed: decides roundings and permutations.
    """
    if not len(selection.indices):
        raise PlanError("The selection is empty; there is nothing to train on.")
    segments = [_segment(selection, order, signals, epoch, seed) for epoch in range(epochs)]
    return Plan(tuple(segments), pool=len(signals))


def passes_over(
    selection: Selection, order: Orders, signals: Signals, *, first: int, length: int, epoch: int, seed: int
) -> Segment:
    """So many entries of an epoch: as many passes over a selection as that takes, the last one cut off.

    Args:
        selection: what to train on from now on.
        order: how to order each pass.
        signals: of the whole pool.
        first: number of the first pass, which decides its order and its roundings.
        length: entries wanted.
        epoch: that they belong to.
        seed: decides roundings and permutations.
    """
    if not len(selection.indices):
        raise PlanError("The selection is empty; there is nothing to train on.")
    parts = []
    while sum(len(part) for part in parts) < length:
        parts.append(_segment(selection, order, signals, first + FAR_APART * len(parts), seed))
    return joined(parts, length, epoch)


FAR_APART = 1_000_000
"""Between the numbers of passes of one epoch, so that no other epoch has them."""


def joined(parts: list[Segment], length: int, epoch: int) -> Segment:
    """The first `length` entries of several segments as one."""
    why = tuple(dict.fromkeys(sentence for part in parts for sentence in part.why))
    reasons = [
        np.array([why.index(sentence) for sentence in part.why])[
            np.zeros(len(part), dtype=int) if part.reasons is None else part.reasons
        ]
        for part in parts
    ]
    weights = [part.weights for part in parts if part.weights is not None]
    return Segment(
        np.concatenate([part.indices for part in parts])[:length],
        epoch,
        why,
        np.concatenate(reasons)[:length],
        np.concatenate(weights)[:length] if weights else None,
    )


@dataclass(frozen=True)
class Cuts:
    """Where the entries of an epoch, or the rest of one, are cut into segments."""

    places: tuple[int, ...]
    """Ascending, counted from the first entry."""

    @staticmethod
    def of(batches: Batches, epoch: int, due: Callable[[int], bool], done: int = 0) -> "Cuts":
        """Before every step at which a decision is due.

        Args:
            batches: how the plan is cut into steps; a row holds one entry.
            epoch: which one.
            due: tells of a step whether one is.
            done: entries of the epoch that are not counted any more.
        """
        first = epoch * batches.steps_per_epoch
        steps = range(first + 1, first + batches.steps_per_epoch)
        places = [(step - first) * batches.batch_size - done for step in steps if due(step)]
        return Cuts(tuple(place for place in places if place > 0))

    def apply(self, segment: Segment) -> list[Segment]:
        """The segment in pieces."""
        edges = [0, *(place for place in self.places if place < len(segment)), len(segment)]
        return [part_of(segment, *edge) for edge in pairwise(edges)]


def part_of(segment: Segment, start: int, stop: int) -> Segment:
    """A stretch of a segment, for the same reasons."""
    part = slice(start, stop)
    kept = {
        name: None if values is None else values[part]
        for name in ("reasons", "weights")
        for values in [getattr(segment, name)]
    }
    return replace(segment, indices=segment.indices[part], **kept)


def _segment(selection: Selection, order: Orders, signals: Signals, epoch: int, seed: int) -> Segment:
    entries = entries_of(selection, epoch, seed)
    ordered = order.order(signals, entries, epoch=epoch, seed=seed)
    if not np.array_equal(np.sort(ordered.indices), np.sort(entries)):
        raise PlanError(f"The order of epoch {epoch} does not hold exactly the selected samples.")
    place = np.zeros(len(signals), dtype=np.int32)
    place[selection.indices] = np.arange(len(selection.indices))
    weights = None if selection.weights is None else selection.weights[place[ordered.indices]]
    chosen = selection.why if selection.summary is None else (selection.summary,)
    if len(chosen) == len(ordered.why) == 1:
        return Segment(ordered.indices, epoch, (f"{chosen[0]}; {ordered.why[0]}",), weights=weights)
    return Segment(ordered.indices, epoch, *_reasons(chosen, ordered, place), weights=weights)


def entries_of(selection: Selection, epoch: int, seed: int) -> NDArray[np.int64]:
    """What an epoch holds: every sample as often as its weight says, which is rounded anew each epoch."""
    weights = selection.weights
    if weights is None or np.all(weights == weights[0]):
        return selection.indices
    copies = multiplicities(weights, len(weights), np.random.default_rng([seed, COPIES_STREAM, epoch]))
    return np.repeat(selection.indices, copies)


def _reasons(
    chosen: tuple[str, ...], ordered: Order, place: NDArray[np.int32]
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    if len(chosen) == 1:
        chosen = chosen * len(place)
    placed = ordered.why * len(ordered.indices) if len(ordered.why) == 1 else ordered.why
    sentences = [f"{chosen[place[i]]}; {why}" for i, why in zip(ordered.indices, placed, strict=True)]
    known = {sentence: code for code, sentence in enumerate(dict.fromkeys(sentences))}
    return tuple(known), np.array([known[sentence] for sentence in sentences], dtype=np.int32)
