"""From a selection and an order to segments of a plan: epochs laid out, continued, and cut where decisions
are due."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import PlanError
from gradwise.methods.decision import Order, Selection, reasons
from gradwise.numerics import multiplicities
from gradwise.numerics.streams import stream
from gradwise.signals import Signals
from gradwise.training.batches import Batches
from gradwise.training.plan import Plan, Segment


class EpochOrderer(Protocol):
    """Puts the entries of an epoch in order."""

    def order(self, signals: Signals, entries: NDArray[np.int64], *, epoch: int, seed: int) -> Order: ...


MOST_EPOCHS, MOST_ENTRIES = 1000, 2**24
"""Epochs and entries that a plan lays out ahead; those of a longer run follow when these are served."""

FAR_APART = 1_000_000
"""Distance between the numbers of orders within one epoch, so that no other epoch has the same."""


def epochs_ahead(entries: int) -> int:
    """How many epochs of this many entries a plan lays out: at least two, since the next are made from
    them."""
    return max(2, min(MOST_EPOCHS, MOST_ENTRIES // max(1, entries)))


def epochs_from(plan: Plan, epoch: int) -> range:
    """The epochs that a decision made in `epoch` lays out again."""
    return range(epoch, min(plan.epochs_of_run, epoch + epochs_ahead(epoch_length(plan))))


def epoch_length(plan: Plan) -> int:
    """Entries of an epoch, the same for all."""
    return sum(len(segment) for segment in plan.of_epoch(plan.first_epoch))


def laid_out(plan: Plan, segments: list[Segment], after: int, epochs: range) -> Plan:
    """The plan with segments of `epochs` in place of all but its first `after`. If the run is longer than a
    plan, the epochs before are dropped."""
    # A run of a million epochs would otherwise be laid out at once; `continued` makes the next ones when
    # these are served.
    more = plan.epochs_of_run > epochs.stop
    new = replace(
        plan, segments=(*plan.segments[:after], *segments), until=plan.epochs_of_run if more else None
    )
    return new.from_epoch(epochs.start) if more or plan.until is not None else new


def continued(plan: Plan) -> Plan:
    """A plan whose epochs were all served, with the next ones: the epochs after its first, repeated.

    The first is skipped because a decision may have been made within it. Nothing else has to be known, so a
    run of any length resumes exactly.
    """
    assert plan.until is not None
    last = plan.epochs - 1
    new = []
    for epoch in range(plan.epochs, min(plan.until, plan.epochs + last - plan.first_epoch)):
        parts = list(plan.of_epoch(plan.first_epoch + 1 + epoch - plan.epochs))
        new.append(joined(parts, sum(map(len, parts)), epoch))
    # The last epoch becomes the first of the new plan, which the next continuation skips.
    tail = plan.from_epoch(last)
    return laid_out(tail, new, len(tail.segments), range(last, new[-1].epoch + 1))


def make_plan(selection: Selection, order: EpochOrderer, signals: Signals, *, epochs: int, seed: int) -> Plan:
    """The plan of a run whose selection is made once, one segment per epoch.

    Weights become whole copies, rounded again each epoch so that every sample gets its share in expectation;
    every epoch has as many entries as the selection has samples.

    Args:
        selection: what to train on.
        order: puts each epoch in order.
        signals: of the whole pool.
        epochs: number of epochs, at least 1.
        seed: decides roundings and permutations.
    """
    if not len(selection.indices):
        raise PlanError("The selection is empty; there is nothing to train on.")
    segments = [_segment(selection, order, signals, epoch, seed) for epoch in range(epochs)]
    return Plan(tuple(segments), pool=len(signals))


def repeated(
    selection: Selection,
    order: EpochOrderer,
    signals: Signals,
    *,
    first: int,
    length: int,
    epoch: int,
    seed: int,
) -> Segment:
    """`length` entries of an epoch: a selection as often as that takes, each time in a new order, the last
    one cut off.

    Args:
        selection: what to train on from now on.
        order: puts each repetition in order.
        signals: of the whole pool.
        first: number of the first repetition, which decides its order and its roundings.
        length: number of entries.
        epoch: that they belong to.
        seed: decides roundings and permutations.
    """
    if not len(selection.indices):
        raise PlanError("The selection is empty; there is nothing to train on.")
    parts: list[Segment] = []
    while sum(len(part) for part in parts) < length:
        # Each repetition has a number of its own, so that it gets another order and other roundings.
        parts.append(_segment(selection, order, signals, first + FAR_APART * len(parts), seed))
    return joined(parts, length, epoch)


def joined(parts: list[Segment], length: int, epoch: int) -> Segment:
    """The first `length` entries of several segments as one."""
    why = tuple(dict.fromkeys(sentence for part in parts for sentence in part.why))
    reasons = [
        np.array([why.index(sentence) for sentence in part.why])[
            np.zeros(len(part), dtype=int) if part.reasons is None else part.reasons
        ]
        for part in parts
    ]
    weighted = any(part.weights is not None for part in parts)
    weights = [np.ones(len(part)) if part.weights is None else part.weights for part in parts]
    return Segment(
        np.concatenate([part.indices for part in parts])[:length],
        epoch,
        why,
        np.concatenate(reasons)[:length],
        np.concatenate(weights)[:length] if weighted else None,
    )


def cut_where_due(plan: Plan, batches: Batches, due: Callable[[int], bool], after: int = 0) -> Plan:
    """The plan with every segment but the first `after` cut before each step at which a decision is due.

    Args:
        plan: to be cut.
        batches: the same plan in steps, a row holding one entry.
        due: whether a decision is due before a step.
        after: number of segments that stay as they are.
    """
    segments = list(plan.segments[:after])
    changed = plan.segments[after].epoch if after < len(plan.segments) else plan.epochs
    epoch, start, places = -1, 0, []
    for number, segment in enumerate(plan.segments):
        # Cuts are counted from the start of an epoch, since each epoch ends with a short batch.
        if segment.epoch != epoch:
            epoch, start = segment.epoch, 0
            first = epoch * batches.steps_per_epoch
            steps = range(first + 1, first + batches.steps_per_epoch)
            places = [(step - first) * batches.batch_size for step in steps if epoch >= changed and due(step)]
        if number >= after:
            # No cut at the edges: a segment without entries would have nothing to decide over.
            inner = [place - start for place in places if 0 < place - start < len(segment)]
            segments += [part_of(segment, *edge) for edge in pairwise([0, *inner, len(segment)])]
        start += len(segment)
    return replace(plan, segments=tuple(segments))


def part_of(segment: Segment, start: int, stop: int) -> Segment:
    """A stretch of a segment, for the same reasons."""
    return rearranged(segment, np.arange(start, stop))


def rearranged(segment: Segment, order: NDArray[np.int64]) -> Segment:
    """Entries of a segment, by their positions in it, with their reasons and weights."""
    values = {name: getattr(segment, name) for name in ("indices", "reasons", "weights")}
    return replace(segment, **{name: value[order] for name, value in values.items() if value is not None})


def entries_of(selection: Selection, epoch: int, seed: int) -> NDArray[np.int64]:
    """The entries of an epoch: every sample as often as its weight says, which is rounded again each
    epoch; once where weights multiply losses."""
    weights = selection.weights
    if weights is None or selection.in_loss or np.all(weights == weights[0]):
        return selection.indices
    # Another rounding in each epoch, so that a weight of 1.5 gives one copy in half of the epochs and two in
    # the others.
    copies = multiplicities(weights, len(weights), stream(seed, "copies by weight", epoch))
    return np.repeat(selection.indices, copies)


def _segment(selection: Selection, order: EpochOrderer, signals: Signals, epoch: int, seed: int) -> Segment:
    entries = entries_of(selection, epoch, seed)
    ordered = order.order(signals, entries, epoch=epoch, seed=seed)
    # An order that loses or repeats a sample would change the selection unseen.
    if not np.array_equal(np.sort(ordered.indices), np.sort(entries)):
        raise PlanError(f"The order of epoch {epoch} does not hold exactly the selected samples.")
    place = np.zeros(len(signals), dtype=np.int32)
    place[selection.indices] = np.arange(len(selection.indices))
    weights = None if selection.weights is None else selection.weights[place[ordered.indices]]
    chosen = selection.why if selection.summary is None else (selection.summary,)
    if len(chosen) == len(ordered.why) == 1:
        return Segment(ordered.indices, epoch, (f"{chosen[0]}; {ordered.why[0]}",), weights=weights)
    return Segment(ordered.indices, epoch, *_reasons(chosen, ordered, place), weights=weights)


def _reasons(
    chosen: tuple[str, ...], ordered: Order, place: NDArray[np.int32]
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The sentences that occur, each once, and (n,) which of them each entry has."""
    if len(chosen) == 1:
        chosen = chosen * len(place)
    sentences = [
        f"{chosen[place[i]]}; {why}" for i, why in zip(ordered.indices, reasons(ordered), strict=True)
    ]
    codes = {sentence: code for code, sentence in enumerate(dict.fromkeys(sentences))}
    return tuple(codes), np.array([codes[sentence] for sentence in sentences], dtype=np.int32)
