"""What the annealing phase is made of: its own samples, training samples, or both in stated shares.

Its own samples have the positions behind the training samples. Where both are trained on, the method chooses
among each part on its own, and the parts take turns, so that every stretch of the phase has their shares.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.annealer import Annealer
from gradwise.methods.decision import Selection, reasons
from gradwise.numerics.sampling import stratified_sample
from gradwise.numerics.streams import stream_seed
from gradwise.planning.context import Samples
from gradwise.signals import Signals


class Part(NamedTuple):
    """Samples to choose from, for a share of the phase."""

    rows: NDArray[np.int64]
    """Positions, ascending."""
    share: float = 1.0
    """Fraction of the phase's entries that come from this part."""


Parts = Sequence[Part]
"""One part; or the training samples' and then that of the phase's own samples."""


def parts_of(method: Annealer, pool: NDArray[np.int64], count: int, added: int) -> Parts:
    """The parts of a phase.

    Args:
        method: that chooses.
        pool: training samples to choose from, ascending.
        count: training samples in all.
        added: samples of the phase's own, behind them.
    """
    if not added:
        return (Part(pool),)
    # Behind the training samples, so that a plan numbers both without a second index.
    added_part = Part(np.arange(count, count + added), method.share or 1.0)
    return (added_part,) if added_part.share == 1 else (Part(pool, 1 - added_part.share), added_part)


def scored_parts(method: Annealer, samples: Samples, parts: Parts, seed: int, number: int = 0) -> Parts:
    """The parts with the samples that are scored in one round: all of them, or some that are drawn."""
    drawn = stream_seed(seed, "annealing candidates", number)
    parts_to_score = []
    for rows, share in parts:
        count = method.part(share).candidates
        if count is not None and count < len(rows):
            domain = None if samples.domain is None else samples.domain[rows]
            rows = rows[stratified_sample(len(rows), count, domain, drawn)]
        parts_to_score.append(Part(rows, share))
    return tuple(parts_to_score)


def counts(parts: Parts, length: int) -> list[int]:
    """Entries of each part in a phase of `length`."""
    last_count = _of_last(parts, length)
    return [length - last_count, last_count][-len(parts) :]


def interleaving(parts: Parts, length: int) -> NDArray[np.int64]:
    """(length,) the order in which entries of the parts take turns, as places among the first part's entries
    and the last one's behind them; every stretch has the parts' shares to within one entry.

    >>> interleaving((Part(np.arange(4), 0.5), Part(np.arange(4, 6), 0.5)), 4)
    array([2, 0, 3, 1])
    """
    if len(parts) == 1:
        return np.arange(length)
    # An entry belongs to the phase's own samples where their rounded number grows: so every prefix has the
    # shares to within one entry.
    last = np.diff([_of_last(parts, place) for place in range(length + 1)]).astype(bool)
    order = np.empty(length, dtype=np.int64)
    order[~last] = np.arange(length - last.sum())
    order[last] = np.arange(length - last.sum(), length)
    return order


def _of_last(parts: Parts, length: int) -> int:
    return math.floor(length * parts[-1].share + 0.5)


def select_parts(
    method: Annealer,
    parts: Parts,
    signals: Signals,
    *,
    validation: Signals | None,
    room: int | None,
    seed: int,
) -> list[Selection]:
    """What a method keeps of each part, as positions among all samples.

    Args:
        method: that chooses.
        parts: with the samples that were scored.
        signals: of those, one part after the other.
        validation: of the samples that it chooses by.
        room: entries of the phase; None outside of a run.
        seed: of what is left to chance.
    """
    selections, start = [], 0
    rooms = [None] * len(parts) if room is None else counts(parts, room)
    for (rows, share), entries in zip(parts, rooms, strict=True):
        part_signals = signals if len(parts) == 1 else signals.take(np.arange(start, start + len(rows)))
        picked = method.part(share).select(part_signals, validation=validation, room=entries, seed=seed)
        selections.append(replace(picked, indices=rows[picked.indices]))
        start += len(rows)
    return selections


def joined_selections(selections: list[Selection]) -> Selection:
    """Selections of the parts as one; its details are the last one's, with the first one's in `training`."""
    first, last = selections[0], selections[-1]
    if len(selections) == 1:
        return last
    training = {name: value for name, value in first.details.items() if name != "spectrum"}
    weights = [np.ones(len(each.indices)) if each.weights is None else each.weights for each in selections]
    weighted = any(each.weights is not None for each in selections)
    columns: dict[str, Any] = {
        name: np.ma.concatenate([first.columns[name], last.columns[name]])
        for name in first.columns
        if name in last.columns
    }
    return Selection(
        np.concatenate([each.indices for each in selections]),
        why=tuple(why for each in selections for why in reasons(each)),
        weights=np.concatenate(weights) if weighted else None,
        columns=columns,
        details=last.details | {"training": training},
        in_loss=last.in_loss,
    )
