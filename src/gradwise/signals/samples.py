"""What is known of samples before any is measured: lengths, label tokens, flaws, a fingerprint; and the
batches that follow from that."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gradwise.data import ragged
from gradwise.errors import SignalError
from gradwise.signals.head import NO_LOSS
from gradwise.signals.vocabulary import vocabulary_size

CHUNK = 10_000
"""Samples read at a time, as many as `ragged` does: the fingerprint goes chunk by chunk."""


@dataclass(frozen=True)
class Inspection:
    """The samples of a data set, before any is measured."""

    lengths: NDArray[np.int32]
    """(N,) tokens."""

    num_tokens: NDArray[np.int32]
    """(N,) label tokens: those whose prediction counts."""

    problems: dict[str, NDArray[np.int64]]
    """Samples that cannot be measured, by what is wrong with them."""

    fingerprint: str
    """SHA-256 of all token ids and labels in order."""

    def measurable(self) -> NDArray[np.int64]:
        """Indices of all samples without a problem, longest first.

        Longest first, so that running out of memory happens at once or not at all.
        """
        well = np.ones(len(self.lengths), dtype=bool)
        for indices in self.problems.values():
            well[indices] = False
        good = np.flatnonzero(well)
        return good[np.argsort(-self.lengths[good], kind="stable")]


def inspect(dataset: Any, model: nn.Module, collate: Callable[[list[Any]], Any]) -> Inspection:
    """Read every sample once; memory grows by 8 bytes a sample, and by what a chunk of them takes.

    Args:
        dataset: anything indexable of {"input_ids": [...], "labels": [...]}.
        model: its vocabulary and its positions bound what can be measured.
        collate: makes the labels where samples have none of their own.
    """
    count = len(dataset)
    lengths, tokens = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
    foreign = np.zeros(count, dtype=bool)
    vocabulary = vocabulary_size(model)
    digests, start = [hashlib.sha256() for _ in range(3)], 0
    for offsets, ids, labels in _chunks(dataset, collate):
        rows = slice(start, start := start + len(offsets) - 1)
        lengths[rows] = np.diff(offsets)
        learned = labels != NO_LOSS
        learned[offsets[:-1][np.diff(offsets) > 0]] = False  # the first token is never predicted
        tokens[rows] = _sums(learned, offsets)
        wrong = (ids < 0) | (ids >= vocabulary) | (learned & ((labels < 0) | (labels >= vocabulary)))
        foreign[rows] = _sums(wrong, offsets) > 0
        # Each stream has its own digest, so that chunks may be of any size.
        for digest, part in zip(digests, (np.diff(offsets), ids, labels), strict=True):
            digest.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
    positions = _positions(model)
    kinds = {
        "empty": lengths == 0,
        "no label token": (lengths > 0) & (tokens == 0),
        f"token outside the model's vocabulary of {vocabulary}": (tokens > 0) & foreign,
        f"longer than the model's {positions} positions": (tokens > 0) & ~foreign & (lengths > positions),
    }
    problems = {kind: np.flatnonzero(found) for kind, found in kinds.items() if found.any()}
    fingerprint = hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
    return Inspection(lengths, tokens, problems, fingerprint)


def batches(
    order: NDArray[np.int64], lengths: NDArray[np.int32], batch_tokens: int
) -> list[NDArray[np.int64]]:
    """Cut samples, longest first, into batches of at most `batch_tokens` padded tokens, at least one sample
    each."""
    cut, start = [], 0
    while start < len(order):
        rows = max(1, batch_tokens // int(lengths[order[start]]))
        cut.append(order[start : start + rows])
        start += rows
    return cut


def _chunks(dataset: Any, collate: Callable[[list[Any]], Any]) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """(rows + 1,) offsets, and the flat token ids and labels of those rows."""
    if "labels" in (getattr(dataset, "column_names", None) or ()) and hasattr(dataset, "with_format"):
        both = zip(ragged(dataset, "input_ids"), ragged(dataset, "labels"), strict=True)
        start = 0
        for (offsets, ids), (label_offsets, labels) in both:
            _check_same_length(np.diff(offsets), np.diff(label_offsets), start)
            start += len(offsets) - 1
            yield offsets, ids, labels
        return
    for start in range(0, len(dataset), CHUNK):
        samples = [dataset[i] for i in range(start, min(start + CHUNK, len(dataset)))]
        samples = [sample if "labels" in sample else _labelled(sample, collate) for sample in samples]
        ids, labels = (
            [np.asarray(sample[name], dtype=np.int64).reshape(-1) for sample in samples]
            for name in ("input_ids", "labels")
        )
        lengths = np.array([len(one) for one in ids])
        _check_same_length(lengths, np.array([len(one) for one in labels]), start)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        yield offsets, np.concatenate(ids), np.concatenate(labels)


def _labelled(sample: Any, collate: Callable[[list[Any]], Any]) -> Any:
    """A sample as its collator completes it, as TRL's do."""
    return {**sample, **collate([sample])} if len(sample["input_ids"]) else {**sample, "labels": []}


def _check_same_length(ids: NDArray, labels: NDArray, start: int) -> None:
    if len(wrong := np.flatnonzero(ids != labels)):
        first = wrong[0]
        raise SignalError(
            f"Sample {start + first} has {ids[first]} input_ids and {labels[first]} labels; give one label "
            f"for each token, {NO_LOSS} where it does not count."
        )


def _sums(flags: NDArray[np.bool_], offsets: NDArray) -> NDArray[np.int64]:
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[offsets])


def _positions(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(getattr(config, "max_position_embeddings", None) or np.iinfo(np.int32).max)
