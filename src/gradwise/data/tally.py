"""The books of one loading: what is kept is written and fingerprinted, the rest is counted and named."""

import hashlib
import struct
from itertools import accumulate
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow

from gradwise.data.pool import Report, digest
from gradwise.data.records import Origin, UnreadableError
from gradwise.data.settings import Data
from gradwise.data.tokenise import Tokens
from gradwise.errors import DataError

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
_WHY = {
    "cut": "longer than data.max_length = {max_length} and would lose their end; raise it",
    "empty": "without a token to learn from (a blank completion, no assistant's turn, or a prompt that fills "
    "data.max_length = {max_length}); mend them",
    "duplicate": "the same as an earlier one; remove them",
    "unreadable": "unreadable; mend them",
}


class Row(NamedTuple):
    """One record's outcome: its tokens, None if it is blank, or why it is unreadable."""

    origin: Origin
    outcome: Tokens | UnreadableError | None
    domain: str = ""
    weight: float = 1.0


class Tally:
    """Takes every row of a part, in order, and writes those that are kept to `file` as an Arrow stream."""

    def __init__(self, settings: Data, part: str, file: BinaryIO) -> None:
        self._settings, self._part = settings, part
        self._writer = pyarrow.ipc.new_stream(file, SCHEMA)
        self._hash = hashlib.sha256()
        self._seen: set[bytes] = set()
        self._waiting: list[Row] = []
        self._examples: dict[str, list[str]] = {kind: [] for kind in _WHY}
        self._count = dict.fromkeys(("read", "kept", *_WHY, "tokens", "label_tokens"), 0)

    def add(self, row: Row) -> None:
        """Count a row and keep it if it is fit.

        Raises:
            DataError: it is unreadable, and none may be.
        """
        self._count["read"] += 1
        if isinstance(row.outcome, UnreadableError):
            self._flaw("unreadable", row.origin, f"{row.origin.words}: {row.outcome}")
            if self._settings.allow.unreadable == 0:
                raise DataError(
                    f"{row.origin.words}: {row.outcome}. Mend it, or let such records be left out: "
                    "data.allow.unreadable is the share of them to put up with, now 0"
                )
            return
        if row.outcome is not None and row.outcome.cut:
            self._flaw("cut", row.origin)
        if row.outcome is None or not row.outcome.learned:
            self._flaw("empty", row.origin)
        elif self._is_new(row, row.outcome) or self._settings.duplicates == "keep":
            self._keep(row, row.outcome)

    def close(self) -> tuple[Report, str]:
        """The report and the fingerprint, once the last row is in.

        Raises:
            DataError: more flawed records than allowed, or too few left.
        """
        self._write()
        self._writer.close()
        report = Report(**self._count, examples={k: tuple(v) for k, v in self._examples.items() if v})
        problems = [self._excess(kind) for kind in _WHY]
        if any(problems):
            raise DataError(f"data.{self._part}: " + "\n".join(problem for problem in problems if problem))
        if report.kept < (2 if self._part == "train" else 1):
            needed = "training needs two at least" if report.kept else "nothing is left"
            raise DataError(f"data.{self._part}: {needed}. {report}")
        return report, self._hash.hexdigest()

    def _flaw(self, kind: str, origin: Origin, said: str = "") -> None:
        self._count[kind] += 1
        if len(self._examples[kind]) < _NAMED:
            self._examples[kind].append(said or str(origin))

    def _excess(self, kind: str) -> str:
        count, total, allowed = self._count[kind], self._count["read"], getattr(self._settings.allow, kind)
        if not total or count / total <= allowed:
            return ""
        why = _WHY[kind].format(max_length=self._settings.max_length)
        return (
            f"{count:,} of {total:,} records are {why}, or put up with more: data.allow.{kind} is "
            f"{allowed:g}, here it is {count / total:.3g}. First: {'; '.join(self._examples[kind])}"
        )

    def _is_new(self, row: Row, tokens: Tokens) -> bool:
        key = digest(tokens.ids, tokens.labels)
        if key in self._seen:
            self._flaw("duplicate", row.origin)
            return False
        self._seen.add(key)
        return True

    def _keep(self, row: Row, tokens: Tokens) -> None:
        self._count["kept"] += 1
        self._count["tokens"] += len(tokens.ids)
        self._count["label_tokens"] += tokens.learned
        domain = row.domain.encode()
        self._hash.update(struct.pack("<qqd", len(tokens.ids), len(domain), row.weight) + domain)
        self._hash.update(tokens.ids.astype("<i4").tobytes() + tokens.labels.astype("<i4").tobytes())
        self._waiting.append(row)
        if len(self._waiting) == _ROWS:
            self._write()

    def _write(self) -> None:
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
