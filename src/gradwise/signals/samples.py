"""What is known of samples before any is measured: lengths, label tokens, flaws, a fingerprint; and the
batches that follow from that."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gradwise.data import ragged
from gradwise.signals.head import NO_LOSS

CHUNK = 1000


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


def inspect(dataset: Any, model: nn.Module) -> Inspection:
    """Read every sample once; memory grows by 8 bytes a sample, and by what a chunk of them takes.

    Args:
        dataset: anything indexable of {"input_ids": [...], "labels": [...]}.
        model: its vocabulary and its positions bound what can be measured.
    """
    count = len(dataset)
    lengths, tokens = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
    foreign = np.zeros(count, dtype=bool)
    vocabulary = _vocabulary(model)
    digest, start = hashlib.sha256(), 0
    for offsets, ids, labels in _chunks(dataset):
        rows = slice(start, start := start + len(offsets) - 1)
        lengths[rows] = np.diff(offsets)
        learned = labels != NO_LOSS
        learned[offsets[:-1][np.diff(offsets) > 0]] = False  # the first token is never predicted
        tokens[rows] = _sums(learned, offsets)
        wrong = (ids < 0) | (ids >= vocabulary) | (learned & ((labels < 0) | (labels >= vocabulary)))
        foreign[rows] = _sums(wrong, offsets) > 0
        for part in (np.diff(offsets), ids, labels):
            digest.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
    positions = _positions(model)
    kinds = {
        "empty": lengths == 0,
        "no label token": (lengths > 0) & (tokens == 0),
        f"token outside the model's vocabulary of {vocabulary}": (tokens > 0) & foreign,
        f"longer than the model's {positions} positions": (tokens > 0) & ~foreign & (lengths > positions),
    }
    problems = {kind: np.flatnonzero(found) for kind, found in kinds.items() if found.any()}
    return Inspection(lengths, tokens, problems, digest.hexdigest())


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


def _chunks(dataset: Any) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """(rows + 1,) offsets, and the flat token ids and labels of those rows."""
    if hasattr(dataset, "with_format"):
        both = zip(ragged(dataset, "input_ids"), ragged(dataset, "labels"), strict=True)
        for (offsets, ids), (_, labels) in both:
            yield offsets, ids, labels
        return
    for start in range(0, len(dataset), CHUNK):
        samples = [dataset[i] for i in range(start, min(start + CHUNK, len(dataset)))]
        ids = [np.asarray(sample["input_ids"], dtype=np.int64).reshape(-1) for sample in samples]
        labels = [np.asarray(sample["labels"], dtype=np.int64).reshape(-1) for sample in samples]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64)
        yield offsets, np.concatenate(ids), np.concatenate(labels)


def _sums(flags: NDArray[np.bool_], offsets: NDArray) -> NDArray[np.int64]:
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[offsets])


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _positions(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(getattr(config, "max_position_embeddings", None) or np.iinfo(np.int32).max)
