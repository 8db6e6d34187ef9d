"""Writes the samples of one loading to an Arrow file, with a fingerprint; counts and names what is flawed."""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow

from gradwise.data.pool import Report, digest
from gradwise.data.records import Origin, UnreadableError
from gradwise.data.settings import Data
from gradwise.data.tokenise import Tokens
from gradwise.errors import DataError
from gradwise.text import clean

SCHEMA = pyarrow.schema(
    [
        ("input_ids", pyarrow.list_(pyarrow.int32())),
        ("labels", pyarrow.list_(pyarrow.int32())),
        ("domain", pyarrow.string()),
        ("weight", pyarrow.float64()),
        ("origin", pyarrow.string()),
    ]
)
_NAMED = 3  # examples kept of each kind of flaw
_ROWS = 1000  # rows to an Arrow batch
_FLAWS = {
    "cut": "longer than data.max_length = {max_length} and would lose their end; raise it",
    "empty": "without a token to learn (a blank completion, no assistant's turn, or a prompt that fills "
    "data.max_length = {max_length}); correct them",
    "duplicate": "the same as an earlier one; remove them",
    "unreadable": "unreadable; correct them",
}


def setting(part: str) -> str:
    """The setting that names the sources of a part of the data."""
    return "anneal.data" if part == "anneal" else f"data.{part}"


class Row(NamedTuple):
    """One record's outcome: its tokens, None if it is blank, or why it is unreadable."""

    origin: Origin
    outcome: Tokens | UnreadableError | None
    domain: str = ""
    weight: float = 1.0


class SampleWriter:
    """Takes a row for every record of a part, in order, and writes the samples to keep as an Arrow stream."""

    def __init__(self, settings: Data, part: str, file: BinaryIO) -> None:
        self._settings, self._part = settings, part
        self._writer = pyarrow.ipc.new_stream(file, SCHEMA)
        self._hash = hashlib.sha256()
        self._digests: set[bytes] = set()
        self._waiting: list[Row] = []
        self._examples: dict[str, list[str]] = {kind: [] for kind in _FLAWS}
        self._count = dict.fromkeys(("read", "kept", *_FLAWS, "tokens", "label_tokens"), 0)
        self._endless = 0
        self._records = array("q")

    @property
    def records(self) -> np.ndarray:
        """(N,) int64: the place of each kept sample's record among all rows, from 0."""
        return np.array(self._records, dtype=np.int64)

    def write(self, row: Row) -> None:
        """Count a row, and keep its sample if it has a token to learn. Raises DataError at the first
        unreadable record if `allow.unreadable` is 0."""
        self._count["read"] += 1
        if isinstance(row.outcome, UnreadableError):
            problem = f"{row.origin.words}: {row.outcome}"
            self._flaw("unreadable", row.origin, problem)
            # Refused at the first one, before hours are spent on reading the rest.
            if self._settings.allow.unreadable == 0:
                raise DataError(
                    f"{problem}. Correct it, or leave such records out: data.allow.unreadable is the share "
                    "of them to tolerate, now 0"
                )
            return
        # Counted, and still kept if the recipe tolerates it: a cut sample has tokens to learn from.
        if row.outcome is not None and row.outcome.cut:
            self._flaw("cut", row.origin)
        if row.outcome is None or not row.outcome.learned:
            self._flaw("empty", row.origin)
        elif self._is_new(row, row.outcome) or self._settings.duplicates == "keep":
            self._keep(row, row.outcome)

    def close(self, notes: Sequence[str] = ()) -> tuple[Report, str]:
        """The report with `notes`, and the fingerprint, after the last row. Raises DataError if more records
        are flawed than allowed, or too few are left."""
        self._flush()
        self._writer.close()
        examples = {kind: tuple(texts) for kind, texts in self._examples.items() if texts}
        notes = tuple(map(clean, [*notes, *self._warnings()]))
        report = Report(**self._count, examples=examples, notes=notes)
        problems = [self._excess(kind) for kind in _FLAWS]
        if any(problems):
            raise DataError(
                f"{setting(self._part)}: " + "\n".join(problem for problem in problems if problem)
            )
        if report.kept < (2 if self._part == "train" else 1):
            needed = "training needs two samples or more" if report.kept else "nothing is left"
            raise DataError(f"{setting(self._part)}: {needed}. {report}")
        return report, self._hash.hexdigest()

    def _warnings(self) -> list[str]:
        if not self._endless:
            return []
        return [
            f"{self._endless:,} samples end without an end token, which neither the chat template nor the "
            "tokenizer writes; the model will not learn to stop"
        ]

    def _flaw(self, kind: str, origin: Origin, problem: str = "") -> None:
        self._count[kind] += 1
        if len(self._examples[kind]) < _NAMED:
            self._examples[kind].append(clean(problem or str(origin)))

    def _excess(self, kind: str) -> str:
        count, total, allowed = self._count[kind], self._count["read"], getattr(self._settings.allow, kind)
        if not total or count / total <= allowed:
            return ""
        why = _FLAWS[kind].format(max_length=self._settings.max_length)
        return (
            f"{count:,} of {total:,} records are {why}, or tolerate more: data.allow.{kind} is "
            f"{allowed:g}, here it is {count / total:.3g}. First: {'; '.join(self._examples[kind])}"
        )

    def _is_new(self, row: Row, tokens: Tokens) -> bool:
        # By what is trained on: texts that differ only behind the cut are the same sample.
        key = digest(tokens.ids, tokens.labels)
        if key in self._digests:
            self._flaw("duplicate", row.origin)
            return False
        self._digests.add(key)
        return True

    def _keep(self, row: Row, tokens: Tokens) -> None:
        self._records.append(self._count["read"] - 1)
        self._count["kept"] += 1
        self._count["tokens"] += len(tokens.ids)
        self._count["label_tokens"] += tokens.learned
        self._endless += not tokens.ended
        domain = row.domain.encode()
        # Lengths first, or the same bytes could be divided into other samples and domains.
        self._hash.update(struct.pack("<qqd", len(tokens.ids), len(domain), row.weight) + domain)
        self._hash.update(tokens.ids.astype("<i4").tobytes() + tokens.labels.astype("<i4").tobytes())
        self._waiting.append(row)
        if len(self._waiting) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        tokens = [row.outcome for row in self._waiting if isinstance(row.outcome, Tokens)]
        columns = [
            _lists([item.ids for item in tokens]),
            _lists([item.labels for item in tokens]),
            pyarrow.array([row.domain for row in self._waiting], pyarrow.string()),
            pyarrow.array([row.weight for row in self._waiting], pyarrow.float64()),
            pyarrow.array([str(row.origin) for row in self._waiting], pyarrow.string()),
        ]
        self._writer.write_batch(pyarrow.record_batch(columns, schema=SCHEMA))
        self._waiting = []


def _lists(rows: list[np.ndarray]) -> pyarrow.Array:
    offsets = list(accumulate((len(row) for row in rows), initial=0))
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *rows])
    return pyarrow.ListArray.from_arrays(
        pyarrow.array(offsets, pyarrow.int32()), pyarrow.array(flat, pyarrow.int32())
    )
