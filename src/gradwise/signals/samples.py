"""What is known of samples before any is measured: which of their columns the model takes, lengths, label
tokens, flaws, copies, a fingerprint."""

import hashlib
import inspect as signatures
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Subset

from gradwise.data import Collator, check_dropped, ragged
from gradwise.data.pool import label_mask, row_sums
from gradwise.data.tokenise import NO_LOSS
from gradwise.errors import SignalError
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
    """SHA-256 of all token ids, labels and other inputs in order."""

    first: NDArray[np.int64]
    """(N,) the first sample with the same contents, itself where there is none before it."""

    def measurable(self) -> NDArray[np.int64]:
        """Indices of all samples without a problem, longest first.

        Longest first, so that running out of memory happens at once or not at all.
        """
        well = np.ones(len(self.lengths), dtype=bool)
        for indices in self.problems.values():
            well[indices] = False
        good = np.flatnonzero(well)
        # Stable: samples of equal length keep the order of the data.
        return good[np.argsort(-self.lengths[good], kind="stable")]


def inputs_only(dataset: Any, model: nn.Module) -> Any:
    """The data set without the columns that the model's forward pass does not take, as the Trainer has it.

    Raises:
        DataError: when such a column would change what the model computes.
    """
    whole: Any = model
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    # The Trainer drops other columns as well, so that a collator sees the same samples in both.
    accepted = {*signatures.signature(base.forward).parameters, "labels"}
    if "input_ids" not in accepted:  # a wrapper that passes everything on
        return dataset
    check_dropped(dataset, accepted, type(base).__name__)
    if hasattr(dataset, "select_columns"):
        return dataset.select_columns([name for name in dataset.column_names if name in accepted])
    return _Chosen(dataset, accepted)


class _Chosen:
    """Some columns of samples that are mappings."""

    def __init__(self, dataset: Any, names: set[str]) -> None:
        self.dataset, self.names = dataset, names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        if not isinstance(sample, Mapping):
            return sample
        return {name: value for name, value in sample.items() if name in self.names}


def check_indexable(dataset: object) -> None:
    """Raise SignalError for what has no samples by position."""
    indexable = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not indexable or isinstance(dataset, Mapping):
        advice = (
            "one of its splits"
            if isinstance(dataset, Mapping)
            else "a datasets.Dataset, or a list of samples"
        )
        raise SignalError(
            f"Signals need samples that can be indexed; found {type(dataset).__name__}. Give {advice}."
        )


def inspect(dataset: Any, model: nn.Module, collate: Callable[[list[Any]], Any]) -> Inspection:
    """Read every sample once; memory grows by 32 bytes a sample, and by what a chunk of them takes.

    Args:
        dataset: anything indexable of {"input_ids": [...], "labels": [...]}.
        model: its vocabulary and its positions bound what can be measured.
        collate: makes the labels where samples have none of their own. Of gradwise's own it is known that it
            uses the model's inputs and nothing else, so that samples which agree in these are copies.
    """
    count = len(dataset)
    lengths, tokens = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
    foreign = np.zeros(count, dtype=bool)
    # Digests of 16 bytes rather than the samples: by them copies are found in a pool that does not fit in
    # memory.
    contents = np.zeros(count, dtype="S16")
    vocabulary = vocabulary_size(model)
    digests: dict[str, Any] = {}
    start, comparable = 0, isinstance(collate, Collator)
    for chunk in _chunks(dataset, collate, others=comparable):
        ids, labels, offsets = chunk.columns["input_ids"], chunk.columns["labels"], chunk.offsets
        rows = slice(start, start := start + len(offsets) - 1)
        lengths[rows] = np.diff(offsets)
        learned = label_mask(labels, offsets)
        tokens[rows] = row_sums(learned, offsets)
        # On a GPU an id outside of the table ends the process with an assertion that names no sample.
        wrong = (ids < 0) | (ids >= vocabulary) | (learned & ((labels < 0) | (labels >= vocabulary)))
        foreign[rows] = row_sums(wrong, offsets) > 0
        # Each column has its own digest, so that chunks may be of any size.
        for name, part in {"lengths": np.diff(offsets), **chunk.columns}.items():
            digests.setdefault(name, hashlib.sha256()).update(_bytes(part))
        if comparable:
            contents[rows] = [
                hashlib.blake2b(
                    b"".join(_bytes(part[begin:end]) for part in chunk.columns.values()), digest_size=16
                ).digest()
                for begin, end in pairwise(offsets.tolist())
            ]
    positions = _positions(model)
    kinds = {
        "empty": lengths == 0,
        "no label token": (lengths > 0) & (tokens == 0),
        f"token outside the model's vocabulary of {vocabulary}": (tokens > 0) & foreign,
        f"longer than the model's {positions} positions": (tokens > 0) & ~foreign & (lengths > positions),
    }
    problems = {kind: np.flatnonzero(mask) for kind, mask in kinds.items() if mask.any()}
    return Inspection(lengths, tokens, problems, _fingerprint(digests), _firsts(contents, comparable))


def _fingerprint(digests: Mapping[str, Any]) -> str:
    usual = ("lengths", "input_ids", "labels")
    parts = [digests[name].digest() for name in usual if name in digests]
    parts += [name.encode() + digests[name].digest() for name in sorted(digests) if name not in usual]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _firsts(contents: NDArray[np.bytes_], comparable: bool) -> NDArray[np.int64]:
    if not comparable:
        return np.arange(len(contents))
    _, places, inverse = np.unique(contents, return_index=True, return_inverse=True)
    # np.unique gives the first place of each content, which makes the earliest of several copies their first.
    return places[inverse]


def _bytes(values: NDArray[Any]) -> bytes:
    kind = "<f8" if np.issubdtype(values.dtype, np.floating) else "<i4"
    return np.ascontiguousarray(values, dtype=kind).tobytes()


class _Chunk(NamedTuple):
    """Some samples in a row."""

    offsets: NDArray[np.int64]
    """(rows + 1,) where each begins."""
    columns: dict[str, NDArray[Any]]
    """Flat, by name: `input_ids`, `labels`, then others."""


def _chunks(dataset: Any, collate: Callable[[list[Any]], Any], *, others: bool) -> Iterator[_Chunk]:
    """The samples in chunks, with the columns besides ids and labels if `others`."""
    names = getattr(dataset, "column_names", None) or ()
    if {"input_ids", "labels"} <= set(names) and hasattr(dataset, "with_format"):
        column_names = [
            "input_ids",
            "labels",
            *(sorted({*names} - {"input_ids", "labels"}) if others else ()),
        ]
        for name in column_names:
            _check_lists(dataset, name)
        start = 0
        for parts in zip(*(ragged(dataset, name) for name in column_names), strict=True):
            offsets = parts[0][0]
            for name, (theirs, _) in zip(column_names, parts, strict=True):
                _check_same_length(name, np.diff(offsets), np.diff(theirs), start)
            start += len(offsets) - 1
            yield _Chunk(
                offsets, {name: values for name, (_, values) in zip(column_names, parts, strict=True)}
            )
        return
    for start in range(0, len(dataset), CHUNK):
        places = range(start, min(start + CHUNK, len(dataset)))
        samples = [_labelled(dataset[i], i, collate) for i in places]
        column_names = ["input_ids", "labels"]
        if others:
            column_names += sorted({name for sample in samples for name in sample} - {"input_ids", "labels"})
        lengths, columns = np.zeros(0), {}
        for name in column_names:
            values = [
                _flat(sample.get(name), name, place) for place, sample in zip(places, samples, strict=True)
            ]
            counts = np.array([len(one) for one in values])
            lengths = counts if name == "input_ids" else lengths
            _check_same_length(name, lengths, counts, start)
            columns[name] = np.concatenate(values)
        yield _Chunk(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), columns)


def _check_lists(dataset: Any, name: str) -> None:
    # The type of the column holds for all values; a pool may have billions of them.
    kind = dataset.data.schema.field(name).type
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)) or not (
        pyarrow.types.is_primitive(kind.value_type)
    ):
        raise SignalError(
            f"The column {name!r} holds {kind}, not a list of numbers for each sample; give one number for "
            "each token, or leave the column out."
        )


def _flat(values: object, name: str, place: int) -> NDArray[Any]:
    integers = name in ("input_ids", "labels")
    try:
        # Collators give a row of a batch, (1, T); samples give (T,).
        array = np.asarray(values).reshape(-1)
        flat = array.astype(np.int64) if integers else array
    except (TypeError, ValueError, OverflowError):
        array = flat = np.empty(0, dtype=object)
    if flat.dtype.kind not in "iufb" or (integers and len(flat) and not np.array_equal(flat, array)):
        kind = "whole numbers" if integers else "numbers"
        raise SignalError(
            f"Sample {place} has no {kind} in its column {name!r}; give one for each token, or leave the "
            "column out."
        )
    return flat


def _labelled(sample: Any, place: int, collate: Callable[[list[Any]], Any]) -> Any:
    """A sample as its collator completes it, as TRL's do."""
    if not isinstance(sample, Mapping) or sample.get("input_ids") is None:
        raise SignalError(
            f"Sample {place} has no input_ids; give each sample as a mapping with its input_ids and labels."
        )
    if sample.get("labels") is not None:
        return sample
    if not len(sample["input_ids"]):
        return {**sample, "labels": []}
    completed = {} if isinstance(collate, Collator) else collate([sample])
    if not isinstance(completed, Mapping):
        raise SignalError(f"The collator must return a mapping of tensors; found {type(completed).__name__}.")
    if completed.get("labels") is None:
        raise SignalError(
            f"Sample {place} has no labels, and the collator makes none; give labels: the input_ids again, "
            f"with {NO_LOSS} for tokens that are not to be learned."
        )
    return {**sample, **completed}


def _check_same_length(name: str, ids: NDArray[Any], others: NDArray[Any], start: int) -> None:
    if len(wrong := np.flatnonzero(ids != others)):
        first = wrong[0]
        one = "label" if name == "labels" else "number"
        advice = f", {NO_LOSS} where it does not count" if name == "labels" else " in it, or leave it out"
        raise SignalError(
            f"Sample {start + first} has {ids[first]} input_ids and {others[first]} {name}; give one {one} "
            f"for each token{advice}."
        )


def _positions(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(getattr(config, "max_position_embeddings", None) or np.iinfo(np.int32).max)


def rows_of(samples: Any, rows: NDArray[np.int64] | None) -> Any:
    """Some rows of samples, or all of them."""
    if rows is None:
        return samples
    return samples.select(rows) if hasattr(samples, "select") else Subset(samples, rows.tolist())
