"""From decisions to a plan: a selection, seen as often as its weights say, in the order of each epoch."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import PlanError
from gradwise.methods.decision import Order, Selection
from gradwise.numerics import multiplicities
from gradwise.signals import Signals
from gradwise.training.plan import Plan, Segment

COPIES_STREAM = 0xC091E5
"""Keeps the rounding of weights apart from the other random streams of a seed."""


class Orders(Protocol):
    """A method that puts the entries of one epoch in order."""

    def order(self, entries: NDArray[np.int64], signals: Signals, *, epoch: int, seed: int) -> Order: ...


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


def _segment(selection: Selection, order: Orders, signals: Signals, epoch: int, seed: int) -> Segment:
    entries = _entries(selection, epoch, seed)
    ordered = order.order(entries, signals, epoch=epoch, seed=seed)
    if not np.array_equal(np.sort(ordered.indices), np.sort(entries)):
        raise PlanError(f"The order of epoch {epoch} does not hold exactly the selected samples.")
    place = np.zeros(len(signals), dtype=np.int32)
    place[selection.indices] = np.arange(len(selection.indices))
    weights = None if selection.weights is None else selection.weights[place[ordered.indices]]
    if len(selection.why) == len(ordered.why) == 1:
        return Segment(ordered.indices, epoch, (f"{selection.why[0]}; {ordered.why[0]}",), weights=weights)
    return Segment(ordered.indices, epoch, *_reasons(selection, ordered, place), weights=weights)


def _entries(selection: Selection, epoch: int, seed: int) -> NDArray[np.int64]:
    weights = selection.weights
    if weights is None or np.all(weights == weights[0]):
        return selection.indices
    copies = multiplicities(weights, len(weights), np.random.default_rng([seed, COPIES_STREAM, epoch]))
    return np.repeat(selection.indices, copies)


def _reasons(
    selection: Selection, ordered: Order, place: NDArray[np.int32]
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    chosen = selection.why * len(selection.indices) if len(selection.why) == 1 else selection.why
    placed = ordered.why * len(ordered.indices) if len(ordered.why) == 1 else ordered.why
    sentences = [f"{chosen[place[i]]}; {why}" for i, why in zip(ordered.indices, placed, strict=True)]
    known = {sentence: code for code, sentence in enumerate(dict.fromkeys(sentences))}
    return tuple(known), np.array([known[sentence] for sentence in sentences], dtype=np.int32)
