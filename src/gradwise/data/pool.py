"""The result of loading: the samples, a report on the records, and a fingerprint of the contents."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute

from gradwise.data.tokenise import NO_LOSS


@dataclass(frozen=True)
class Report:
    """What became of the records of one part. All fields are counts but for `examples` and `notes`.

    The `kept` records include the `cut` ones and, unless they are dropped, the `duplicate` ones. They never
    include `empty` and `unreadable` ones.
    """

    read: int
    kept: int
    cut: int = 0
    empty: int = 0
    duplicate: int = 0
    unreadable: int = 0
    tokens: int = 0
    label_tokens: int = 0
    """Tokens the model is asked to predict."""
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The first few records with each kind of flaw, by origin; never their text."""
    notes: tuple[str, ...] = ()
    """What else the user should know: files and columns that are not read, an end token that is missing."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        examples = {kind: list(texts) for kind, texts in self.examples.items()}
        return asdict(self) | {"examples": examples, "notes": list(self.notes)}

    def __str__(self) -> str:
        words = {
            "cut": "cut at max_length",
            "empty": "without a token to learn, left out",
            "duplicate": "the same as an earlier one",
            "unreadable": "unreadable, left out",
        }
        lines = [
            f"{self.read:,} records read, {self.kept:,} kept: "
            f"{self.tokens:,} tokens, {self.label_tokens:,} to learn"
        ]
        for kind, flaw in words.items():
            if count := getattr(self, kind):
                lines.append(f"  {count:,} {flaw} (first: {'; '.join(self.examples.get(kind, ()))})")
        lines += [f"  {note if note.startswith('Warning') else f'Note: {note}'}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Pool:
    """The samples of one part.

    Attributes:
        dataset: one row per sample: `input_ids`, `labels`, `domain`, `weight` (float above 0) and `origin`
            (`train.jsonl:17`), memory-mapped.
        report: what became of the records.
        fingerprint: SHA-256 of token ids, labels, domains and weights in order. The same contents have the
            same fingerprint, whatever files they come from.
        records: (N,) int64; the place of each sample's record among all that were read, from 0. Origins are
            alike where files in several folders have one name.
    """

    dataset: datasets.Dataset
    report: Report
    fingerprint: str
    records: np.ndarray

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, rows: np.ndarray) -> "Pool":
        """Some of the samples, in the order given; the report stays that of all."""
        contents = hashlib.sha256(f"{self.fingerprint} {rows.tolist()}".encode())
        return Pool(self.dataset.select(rows), self.report, contents.hexdigest(), self.records[rows])

    def followed_by(self, other: "Pool") -> "Pool":
        """These samples, and behind them those of another pool; the report stays that of these."""
        contents = hashlib.sha256(f"{self.fingerprint} {other.fingerprint}".encode())
        both = datasets.concatenate_datasets([self.dataset, other.dataset])
        # As if both had been read in one go.
        records = np.concatenate([self.records, other.records + self.report.read])
        return Pool(both, self.report, contents.hexdigest(), records)

    @cached_property
    def domains(self) -> dict[str, int]:
        """Number of samples of each domain, in the order in which the domains first occur."""
        return dict(Counter(self.dataset["domain"]))

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int32: tokens of each sample."""
        parts = [np.diff(offsets) for offsets, _ in ragged(self.dataset, "input_ids")]
        return np.concatenate([np.zeros(0), *parts]).astype(np.int32)

    @cached_property
    def label_tokens(self) -> np.ndarray:
        """(N,) int32: tokens of each sample that the model is asked to predict, `labels[1:] != -100`."""
        parts = []
        for offsets, labels in ragged(self.dataset, "labels"):
            learned = labels != NO_LOSS
            # The first token of a sample is never predicted, whatever its label.
            learned[offsets[:-1]] = False
            parts.append(np.diff(np.concatenate([[0], np.cumsum(learned)])[offsets]))
        return np.concatenate([np.zeros(0), *parts]).astype(np.int32)


def overlap(train: Pool, validation: Pool) -> int:
    """Number of validation samples that have exactly the tokens of some training sample."""
    return int(occurs_in(validation.dataset, train.dataset).sum())


def occurs_in(samples: object, others: object) -> np.ndarray:
    """(N,) bool: whether each sample has exactly the tokens of one of `others`."""
    digests = [digest(ids) for ids in _rows(samples)]
    # Only the smaller part's digests are held; the other part streams past them.
    distinct = set(digests)
    shared = {key for ids in _rows(others) if (key := digest(ids)) in distinct}
    return np.array([key in shared for key in digests], dtype=bool)


def digest(*arrays: np.ndarray) -> bytes:
    """16 bytes for one array of int32, or several of one length; 1e9 digests clash with probability 1e-21."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
    return state.digest()


def _rows(dataset: Any) -> Iterator[np.ndarray]:
    if not hasattr(dataset, "select_columns"):
        yield from (np.asarray(dataset[place]["input_ids"]) for place in range(len(dataset)))
        return
    for offsets, values in ragged(dataset, "input_ids"):
        yield from np.split(values, offsets[1:-1])


def ragged(dataset: datasets.Dataset, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A column of lists of a `datasets.Dataset`, in chunks of rows.

    Yields:
        (rows + 1,) offsets and the flat array that they divide, a copy that may be written to.
    """
    arrow = dataset.select_columns(column).with_format("arrow")
    tables: Any = arrow.iter(batch_size=10_000)  # pyarrow.Table, whatever `datasets` declares
    for table in tables:
        # One flat array for each chunk of rows, without a Python object for each sample.
        lists = table.column(column).combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pyarrow.ChunkedArray) else lists
        lengths = np.asarray(lists.value_lengths())
        # `flatten`, since `values` would begin where the table does, even if its rows are a selection.
        yield np.concatenate([[0], np.cumsum(lengths)]), np.array(lists.flatten())


def token_lengths(dataset: Any) -> np.ndarray:
    """(N,) int64: tokens of each sample; those of a `datasets.Dataset` are not read for it."""
    if hasattr(dataset, "with_format"):
        column = dataset.with_format("arrow")["input_ids"]
        return np.asarray(pyarrow.compute.call_function("list_value_length", [column[:]])).astype(np.int64)
    return np.array([len(dataset[i]["input_ids"]) for i in range(len(dataset))], dtype=np.int64)
