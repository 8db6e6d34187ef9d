"""Rows of tables: Parquet files, saved datasets and datasets of the hub.

A table gives every row the keys of all rows: where one tool call has `city` and another `a` and `b`, each
comes back with the other's keys as nulls. A null inside a nested object therefore counts as a key that is not
there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from gradwise.data.records import Origin, Record, reason
from gradwise.errors import DataError

_ROWS = 1000


def parquet_rows(path: Path, name: str) -> Iterator[Record]:
    """Records of a Parquet file, called `name` in origins. Raises DataError if the file as a whole is
    damaged."""
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_ROWS):
            for values in _values(batch):
                number += 1
                yield _record(values, Origin(name, number, "row"))
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({reason(error)})") from None


def _values(batch: pyarrow.RecordBatch) -> list[dict[str, Any] | str]:
    """The values of each row, or why they cannot be read: batches are halved until a faulty row is alone."""
    try:
        batch.validate(full=True)  # or damaged offsets would crash the process
        return batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError, ImportError) as error:
        if len(batch) == 1:
            return [_why(error)]
        half = len(batch) // 2
        return _values(batch.slice(0, half)) + _values(batch.slice(half))


def dataset_rows(dataset: datasets.Dataset, name: str) -> Iterator[Record]:
    """Records of a dataset, called `name` in origins."""
    for start in range(0, len(dataset), _ROWS):
        rows = range(start, min(start + _ROWS, len(dataset)))
        for number, values in zip(rows, _dataset_values(dataset, rows), strict=True):
            yield _record(values, Origin(name, number + 1, "row"))


def _dataset_values(dataset: datasets.Dataset, rows: range) -> list[dict[str, Any] | str]:
    try:
        columns = dataset[rows.start : rows.stop]
        if not columns:
            return [{} for _ in rows]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    except Exception as error:  # what decoding raises: no Pillow for images, text that is not UTF-8
        if len(rows) == 1:
            return [_why(error)]
        half = rows.start + len(rows) // 2
        first, second = range(rows.start, half), range(half, rows.stop)
        return _dataset_values(dataset, first) + _dataset_values(dataset, second)


def _record(values: dict[str, Any] | str, origin: Origin) -> Record:
    if isinstance(values, str):
        return Record(origin, {}, values)
    return Record(origin, {name: _without_nulls(value) for name, value in values.items()})


def _without_nulls(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _why(error: Exception) -> str:
    wrong_text = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
    return "not UTF-8" if wrong_text else f"a value cannot be read ({reason(error)})"
