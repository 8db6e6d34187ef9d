"""Readers of single files. They stream, and yield each record with the line or row where it stands.

Text formats are read by us rather than through Arrow: a flawed line can then be named, and records keep the
types they have. Arrow wants one type per column, which refuses mixed columns and adds absent keys to nested
objects (tool schemas).
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from gradwise.data.records import Origin, Record, few
from gradwise.errors import DataError

EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet")
_SPACE = re.compile(r"\s*")
_UNDECODED = re.compile("[\udc80-\udcff]")


def read_file(path: Path, name: str) -> Iterator[Record]:
    """Records of one file, called `name` in origins.

    Raises:
        DataError: the extension is not known, or the file as a whole is damaged.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{name}: files ending in {path.suffix or 'nothing'!r} are not read; known are "
            f"{', '.join(EXTENSIONS)} (plain text goes into a .jsonl file, one object per line with a "
            "field `text`)"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty")
    return reader(path, name)


def count_rows(path: Path) -> int:
    """About how many records a file holds, for a progress bar: exact for Parquet, else an upper bound."""
    if path.suffix.lower() == ".parquet":
        return parquet.read_metadata(path).num_rows
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) + 1


def _jsonl(path: Path, name: str) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_line(line, Origin(name, number))


def _json_line(line: bytes, origin: Origin) -> Record:
    try:
        return _object(json.loads(line.decode()), origin)
    except UnicodeDecodeError as error:
        return Record(origin, {}, f"not UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return Record(origin, {}, f"not JSON ({error.msg}, column {error.colno})")
    except RecursionError:
        return Record(origin, {}, "JSON nested too deeply")


def _object(value: Any, origin: Origin) -> Record:
    if isinstance(value, dict):
        return Record(origin, value)
    return Record(origin, {}, f"a record is a JSON object, this is a {type(value).__name__}")


def _json(path: Path, name: str) -> Iterator[Record]:
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from _json_array(path, name)
    else:
        yield from _jsonl(path, name)


def _json_array(path: Path, name: str) -> Iterator[Record]:
    """One top-level array. Each record is decoded by itself, so that it is known on which line it begins."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: not UTF-8") from None
    decode = json.JSONDecoder().raw_decode
    at = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decode(text, at)
            at = _skip(text, at)
            if not text.startswith(("]", ","), at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}, line {error.lineno}: not JSON ({error.msg}, column {error.colno})"
            ) from None
        yield _object(value, Origin(name, line))
        at = _skip(text, at + 1) if text[at] == "," else at
    if text[at + 1 :].strip():
        raise DataError(f"{name}: something follows the end of its array")


def _skip(text: str, at: int) -> int:
    """The first position from `at` on that is not white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _csv(path: Path, name: str) -> Iterator[Record]:
    csv.field_size_limit(
        max(csv.field_size_limit(), 2**31 - 1)
    )  # the default refuses documents above 128 KiB
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header) or not all(header):
                raise DataError(f"{name}: the first line must name each column once; it holds {few(header)}")
            line = reader.line_num + 1
            for row in reader:
                if row:
                    yield _csv_row(row, header, Origin(name, line))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{name}, line {reader.line_num}: not CSV ({error})") from None


def _csv_row(row: list[str], header: list[str], origin: Origin) -> Record:
    if len(row) != len(header):
        return Record(origin, {}, f"{len(row)} values where the first line names {len(header)} columns")
    if any(_UNDECODED.search(value) for value in row):
        return Record(origin, {}, "not UTF-8")
    return Record(origin, dict(zip(header, row, strict=True)))


def _parquet(path: Path, name: str) -> Iterator[Record]:
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            for values in batch.to_pylist():
                number += 1
                yield Record(Origin(name, number, "row"), values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def at_home(path: str) -> Path:
    """A path with a leading `~` or `~user` resolved; as it stands where there is no such user, since a file
    may have such a name.

    >>> at_home("~no one of this name/x")
    PosixPath('~no one of this name/x')
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
