"""Readers of single files. They stream, and yield each record with the line or row where it stands.

Text formats are read here rather than through Arrow: a flawed line can then be named, and records keep the
types they have. Arrow wants one type per column, which refuses mixed columns and adds absent keys to nested
objects (tool schemas).
"""

import csv
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from pyarrow import parquet

from gradwise.data.records import Origin, Record, few, reason
from gradwise.data.tables import parquet_rows
from gradwise.errors import DataError

EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet")
_SPACE = re.compile(r"[ \t\r\n]*")
# `surrogateescape` turns bytes that are not UTF-8 into these code points.
_UNDECODED = re.compile("[\udc80-\udcff]")
_BOM = b"\xef\xbb\xbf"

_OTHER_CONTENTS = {
    b"\x1f\x8b": "is compressed with gzip; unpack it",
    b"BZh": "is compressed with bzip2; unpack it",
    b"\xfd7zXZ": "is compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or export it as CSV",
    b"PAR1": "is a Parquet file; name it .parquet",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"\xff\xfe": "is encoded in UTF-16; save it in UTF-8",
    b"\xfe\xff": "is encoded in UTF-16; save it in UTF-8",
    b"version https://git-lfs": "is a Git LFS pointer without the data; fetch them with `git lfs pull`",
}
"""First bytes of files that are not what their names say, each with a sentence on what to do."""


def read_file(path: Path, name: str) -> Iterator[Record]:
    """Records of one file, called `name` in origins. Raises DataError, also later, if the file is damaged."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": parquet_rows}
    kind = path.suffix.lower()
    reader = readers.get(kind)
    if reader is None:
        raise DataError(
            f"{name}: files ending in {path.suffix or 'nothing'!r} are not read; known are "
            f"{', '.join(EXTENSIONS)} (plain text goes into a .jsonl file, one object per line with a "
            "field `text`)"
        )
    try:
        _check_contents(path, name, kind)
    except OSError as error:
        raise _unreadable(name, error) from None
    return _guarded(reader(path, name), name)


def _check_contents(path: Path, name: str, kind: str) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{name} is not a regular file; data are read more than once, so copy them into one")
    if status.st_size == 0:
        raise DataError(f"{name} is empty")
    with path.open("rb") as file:
        start = file.read(64)
    for begins, description in _OTHER_CONTENTS.items():
        if start.startswith(begins) and not (kind == ".parquet" and begins == b"PAR1"):
            raise DataError(f"{name} {description}")


def _guarded(records: Iterator[Record], name: str) -> Iterator[Record]:
    try:
        yield from records
    except OSError as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: OSError) -> DataError:
    return DataError(f"{name} cannot be read ({error.strerror or reason(error)})")


def count_rows(path: Path) -> int:
    """About how many records a file holds, for a progress bar: exact for Parquet, else an upper bound."""
    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_metadata(path).num_rows
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) + 1
    except Exception:  # pyarrow raises many kinds; reading the file will say what is wrong
        return 0


class _Decoder:
    """JSON in which NaN and Infinity, which pandas writes, are missing values. A number that Python cannot
    hold makes its record unreadable, even in a field that nobody reads."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(
            parse_constant=lambda _: None, parse_float=self._float, parse_int=self._int
        )
        self._problem = ""

    def record(self, text: str, at: int, origin: Origin) -> tuple[Record, int]:
        """The record at position `at`, and where it ends. Raises JSONDecodeError or RecursionError."""
        self._problem = ""
        value, end = self._decoder.raw_decode(text, at)
        if self._problem:
            return Record(origin, {}, self._problem), end
        if isinstance(value, dict):
            return Record(origin, value), end
        return Record(origin, {}, f"a record is a JSON object, this is a {type(value).__name__}"), end

    def _int(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:  # Python reads no more than some thousand digits
            self._problem = f"a number of {len(text):,} digits cannot be read"
            return 0

    def _float(self, text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            self._problem = "a number is too large to be read"
        return value


def _jsonl(path: Path, name: str) -> Iterator[Record]:
    decoder = _Decoder()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                # Editors on Windows begin files with it; JSON does not know it.
                line = line.removeprefix(_BOM)
            if line.strip():
                yield _json_line(line, decoder, Origin(name, number))


def _json_line(line: bytes, decoder: _Decoder, origin: Origin) -> Record:
    try:
        text = line.decode()
        record, end = decoder.record(text, _skip(text, 0), origin)
        end = _skip(text, end)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return record
    except UnicodeDecodeError as error:
        return Record(origin, {}, f"not UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return Record(origin, {}, f"not JSON ({error.msg}, column {error.colno})")
    except RecursionError:
        return Record(origin, {}, "JSON nested too deeply")


def _json(path: Path, name: str) -> Iterator[Record]:
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(_BOM).lstrip()
    if start.startswith(b"["):
        yield from _json_array(path, name)
    # As lines it would fail at the first one with words that say nothing about the cause.
    elif start.partition(b"\n")[0].strip() == b"{":
        raise DataError(
            f"{name} holds one object over several lines; a .json file holds an array of records, or one "
            "record to a line"
        )
    else:
        yield from _jsonl(path, name)


def _json_array(path: Path, name: str) -> Iterator[Record]:
    """One top-level array. Each record is decoded by itself, so that it is known on which line it begins."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: not UTF-8") from None
    decoder = _Decoder()
    at = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    while not text.startswith("]", at):
        # Counted from the last record on: from the start it would cost the square of the file.
        line, counted = line + text.count("\n", counted, at), at
        try:
            record, at = decoder.record(text, at, Origin(name, line))
            at = _skip(text, at)
            if not text.startswith(("]", ","), at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}, line {error.lineno}: not JSON ({error.msg}, column {error.colno})"
            ) from None
        except RecursionError:
            raise DataError(f"{name}, line {line}: JSON nested too deeply") from None
        yield record
        at = _skip(text, at + 1) if text[at] == "," else at
    if text[at + 1 :].strip():
        raise DataError(f"{name}: something follows the end of its array")


def _skip(text: str, at: int) -> int:
    """The first position from `at` on that is not white space."""
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _csv(path: Path, name: str) -> Iterator[Record]:
    csv.field_size_limit(
        max(csv.field_size_limit(), 2**31 - 1)
    )  # the default refuses documents above 128 KiB
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Without `strict` a stray quote swallows the rest of the file into one field.
        reader = csv.reader(file, strict=True)
        try:
            header = [column.strip() and column for column in next(reader, [])]
            names = [column for column in header if column]
            if len(set(names)) < len(names) or not names:
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
    # A column without a name is the index that pandas writes; no format could read it.
    return Record(origin, {name: value for name, value in zip(header, row, strict=True) if name})
