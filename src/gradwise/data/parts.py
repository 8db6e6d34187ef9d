"""Which samples train, which choose, and which measure.

The samples that choose never measure: what was selected towards them is fitted to them. Where one set has to
do both, it is split, once and for all seeds, so that the runs of a comparison are measured by the same
samples.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from gradwise.data.loading import load
from gradwise.data.pool import Pool, occurs_in, overlap
from gradwise.data.settings import HALF, Data, Goal, Sources
from gradwise.errors import DataError
from gradwise.numerics.sampling import interleaved
from gradwise.numerics.streams import stream


class Split(NamedTuple):
    """Rows of one set."""

    choosing: NDArray[np.int64]
    measuring: NDArray[np.int64]

    def sentence(self, subject: str) -> str:
        """How the set was split, for the user."""
        chosen, others = len(self.choosing), len(self.measuring)
        return f"{subject} is split: {chosen} of its samples choose, {others} others measure."


def split(domains: list[str] | None, count: int, share: float) -> Split:
    """Rows of a set that choose and rows that measure, at random, every domain in proportion; the same for
    every seed.

    Args:
        domains: of each sample, if known.
        count: samples of the set.
        share: of them that chooses.

    Raises:
        DataError: the set has fewer than two samples.

    >>> [len(rows) for rows in split(["a"] * 6 + ["b"] * 2, 8, 0.5)]
    [4, 4]
    """
    if count < 2:
        raise DataError(
            f"Choosing and measuring need different samples, and there is {count} in all; give more, or "
            "both data.target and data.validation."
        )
    # Not the run's seed: the runs of a comparison must be measured by the same samples.
    shuffled = stream(0, "target split").permutation(count)
    if domains is not None:
        shuffled = shuffled[interleaved(np.asarray(domains)[shuffled])]
    chosen = min(count - 1, max(1, round(share * count)))
    return Split(np.sort(shuffled[:chosen]), np.sort(shuffled[chosen:]))


class DataParts(NamedTuple):
    """The data of a run."""

    train: Pool
    validation: Pool | None
    """What measures."""
    target: Pool | None
    """What a selection aims at."""
    notes: tuple[str, ...]
    """Sentences on samples in common, and on a set that was split."""
    annealing: Pool | None = None
    """What only the annealing phase trains on."""


def load_parts(
    settings: Data,
    tokenizer: PreTrainedTokenizerBase,
    *,
    goal: Goal | None,
    annealing: Sources = None,
    progress: bool = True,
) -> DataParts:
    """Read all parts of the data, and keep those that choose apart from those that measure.

    Args:
        settings: the recipe's `data`.
        tokenizer: the model's.
        goal: the set that the selection aims at; None for no aim.
        annealing: the recipe's `anneal.data`.
        progress: show how far it is.

    Raises:
        DataError: a part cannot be read, or is too small to be split.
    """
    parts = _chosen_and_measured(settings, tokenizer, goal, progress)
    if annealing is None:
        return parts
    added = load(settings, "anneal", tokenizer, sources=annealing, progress=progress)
    notes = []
    if common := overlap(parts.train, added):
        notes.append(f"{common} of {len(added)} samples of anneal.data also stand in the training data.")
    if parts.target is not None and (common := overlap(added, parts.target)):
        notes.append(f"{common} of {len(parts.target)} target samples also stand in anneal.data.")
    measuring = parts.validation
    if measuring is not None and _alone(settings) and _splits(settings, goal):
        measuring, note = _not_among(measuring, added, "anneal.data")
        notes += note
    elif measuring is not None and (common := overlap(added, measuring)):
        notes.append(f"Warning: {common} of {len(measuring)} held-out samples also occur in anneal.data.")
    return parts._replace(validation=measuring, annealing=added, notes=(*parts.notes, *notes))


def load_choosing(
    settings: Data, tokenizer: PreTrainedTokenizerBase, *, goal: Goal | None, progress: bool = True
) -> Pool | None:
    """The samples by which an annealing selection chooses: the target, or else the validation data, without
    the part of them that only measures. None where neither is given. Arguments as of `load_parts`."""
    if settings.target is None and settings.validation is None:
        return None
    part = "validation" if settings.target is None else "target"
    whole = load(settings, part, tokenizer, progress=progress)
    # Not all of it where the set also measures: DiReCT beside `select.target: validation` once chose by the
    # samples that measured (docs/log.md).
    splits = _alone(settings) and _splits(settings, goal)
    return whole.take(_split(settings, whole).choosing) if splits else whole


def _alone(settings: Data) -> bool:
    """Whether at most one of the two sets is given."""
    return settings.target is None or settings.validation is None


def _splits(settings: Data, goal: Goal | None) -> bool:
    """Whether a set that is alone both chooses and measures."""
    return settings.target is not None or goal == "validation" or settings.target_share is not None


def _split(settings: Data, whole: Pool) -> Split:
    return split(list(whole.dataset["domain"]), len(whole), settings.target_share or HALF)


def _chosen_and_measured(
    settings: Data, tokenizer: PreTrainedTokenizerBase, goal: Goal | None, progress: bool
) -> DataParts:
    train = load(settings, "train", tokenizer, progress=progress)
    validation = None
    if settings.validation is not None:
        validation = load(settings, "validation", tokenizer, progress=progress)
    target = load(settings, "target", tokenizer, progress=progress) if settings.target is not None else None
    notes = []
    if target is not None and (common := overlap(train, target)):
        notes.append(f"{common} of {len(target)} target samples also stand in the training data.")
    if target is not None and validation is not None:
        validation, note = _not_among(validation, target, "the target's")
        return DataParts(train, validation, target, (*notes, *note, *_warned(train, validation)))
    whole = target or validation
    if whole is None or not _splits(settings, goal):
        return DataParts(train, validation, None, (*notes, *_warned(train, validation)))
    name = "target" if target is not None else "validation"
    rows = _split(settings, whole)
    notes.append(rows.sentence(f"data.{name}"))
    target, measuring = whole.take(rows.choosing), whole.take(rows.measuring)
    # What was chosen by, or trained on, would be measured as better than it is.
    for others, of in ((target, "those that choose"), (train, "the training data")):
        measuring, note = _not_among(measuring, others, of)
        notes += note
    return DataParts(train, measuring, target, tuple(notes))


def _not_among(measuring: Pool, others: Pool, of: str) -> tuple[Pool, list[str]]:
    rows, note = not_among(measuring.dataset, others.dataset, of)
    return (measuring.take(rows) if note else measuring), note


def not_among(measuring: Any, others: object, of: str) -> tuple[NDArray[np.int64], list[str]]:
    """Rows of the samples that are not among others, and a sentence where some are.

    Args:
        measuring, others: samples with input_ids.
        of: what the others are, for the sentence.

    Raises:
        DataError: no sample is left.
    """
    shared = occurs_in(measuring, others)
    count = int(shared.sum())
    if count == len(shared):
        raise DataError(f"All {count} samples that would measure are among {of}; give others.")
    sentence = f"{count} of {len(shared)} samples that measure are among {of}; they are left out."
    return np.flatnonzero(~shared), [sentence] if count else []


def _warned(train: Pool, validation: Pool | None) -> list[str]:
    if validation is None or not (common := overlap(train, validation)):
        return []
    return [f"Warning: {common} of {len(validation)} held-out samples also occur in the training data."]
