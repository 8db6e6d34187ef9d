"""Signals on disk: one flat .npy file per quantity, a byte per finished block, a manifest.

Interrupted scoring resumes. A manifest made with other weights, data or settings is refused and the
difference named; nothing is ever mixed. Rows are written with plain writes rather than through a memory map,
so that resident memory does not grow with what was written.

manifest.json   request, model and data; seconds spent; samples set aside, with the reason
done            a byte per block: 1 once its rows are on disk
<quantity>.npy  (N, ...) rows in the data set's order
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from gradwise import __version__
from gradwise.atomic import free_bytes, sha256, size_text, write_json, writing
from gradwise.errors import SignalError
from gradwise.folders import FORMAT, check_format, claimed
from gradwise.ranks import on_each, on_first, wait_for_all
from gradwise.signals.column_buffer import MEASURED, Column, ColumnBuffer, blank
from gradwise.stored import damaged, read_json
from gradwise.text import clipped

MANIFEST, DONE = "manifest.json", "done"

ALWAYS_READ = 256 * 2**20
"""Bytes of a store whose content is compared with its digests whenever it is opened, in under a second. The
content of a larger one is read again only where a file's time or size differs from when it was finished."""


class Store(ColumnBuffer):
    """A buffer on disk that several processes fill and a later one can resume.

    Args:
        path: the folder; created if missing.
        request: what decides the values; a store made for another request is refused.
        size: N.
        columns: the quantities.
        blocks: number of blocks.

    Raises:
        SignalError: the folder holds something else, another request's signals, or is in use; or the disk has
            too little room.
    """

    def __init__(
        self, path: Path, request: Mapping[str, Any], size: int, columns: Mapping[str, Column], blocks: int
    ) -> None:
        self.path = path
        self.columns = columns
        self._size = size
        # As JSON has it, so that tuples and lists compare equal with what an earlier run has written.
        self._request = json.loads(json.dumps(request))
        self._open = ExitStack()
        try:
            self._owned = self._open.enter_context(claimed(path, "signals", error=SignalError))
            # From the first rank: another might look when blocks of this scoring run are already there.
            self._was_done = on_first(lambda: self._create_or_resume(blocks))
            on_each(self._open_files)
        except BaseException:
            self._open.close()
            raise

    def _create_or_resume(self, blocks: int) -> bytes:
        """Make the files, or check that they are this request's; which blocks are done."""
        manifest = self.path / MANIFEST
        if manifest.exists():
            _check_same(self.path, self.manifest["request"], self._request)
            _check_arrays(self.path, self.columns, self._size)
            with damaged(self.path / DONE, SignalError):
                done = (self.path / DONE).read_bytes()
                if len(done) != blocks or not set(done) <= {0, 1}:
                    raise ValueError(f"{len(done)} bytes for {blocks} blocks")
            return done
        self._check_room()
        self._owned.reserve(MANIFEST, DONE, *(self._file(name).name for name in self.columns))
        for name, column in self.columns.items():
            with writing(self._file(name)):
                _make_array(self._file(name), (self._size, *column.tail), column.dtype)
        with writing(self.path / DONE):
            (self.path / DONE).write_bytes(bytes(blocks))
        # Last: after a kill before this point the folder has no manifest, and its files are made again.
        write_json(
            manifest,
            {
                "format": FORMAT,
                "versions": {
                    "gradwise": __version__,
                    **{name: version(name) for name in ("torch", "transformers")},
                },
                "request": self._request,
                "complete": False,
                "seconds": 0.0,
                "problems": {},
            },
        )
        return bytes(blocks)

    def _open_files(self) -> None:
        with writing(self.path):
            self._done_file = self._opened(self.path / DONE)
            self._files = {name: self._opened(self._file(name)) for name in self.columns}
        self._starts = {name: _header(self._file(name))[1] for name in self.columns}

    def _opened(self, path: Path) -> int:
        file = os.open(path, os.O_RDWR)
        self._open.callback(os.close, file)
        return file

    def _check_room(self) -> None:
        needed = sum(
            self._size * math.prod(column.tail) * np.dtype(column.dtype).itemsize
            for column in self.columns.values()
        )
        free = free_bytes(self.path)
        if needed > free:
            raise SignalError(
                f"The signals need {size_text(needed)} in {self.path}, which has {size_text(free)} free; "
                "give a smaller grad_dim, grad_dtype='float16', or another disk."
            )

    def _file(self, name: str) -> Path:
        return _column_file(self.path, name)

    @property
    def manifest(self) -> dict[str, Any]:
        """As it stands on disk."""
        return read_manifest(self.path)

    def note(self, **entries: object) -> None:
        """Replace entries of the manifest; does nothing on ranks other than the first."""
        if self._owned.writes:
            write_json(self.path / MANIFEST, {**self.manifest, **entries})

    def done(self) -> NDArray[np.bool_]:
        return np.frombuffer(self._was_done, dtype=np.uint8).astype(bool)

    def fill(self, name: str, values: NDArray) -> None:
        if self._owned.writes:
            self._put(name, 0, values)

    def leave_out(self, rows: NDArray[np.int64]) -> None:
        if self._owned.writes:
            for name, column in self.columns.items():
                if np.issubdtype(column.dtype, np.floating):
                    nothing = blank(1, column)
                    for row in rows.tolist():
                        self._put(name, row, nothing)

    def write(self, block: int, rows: NDArray[np.int64], values: Mapping[str, NDArray]) -> None:
        for name, rows_of in values.items():
            for row, value in zip(rows.tolist(), rows_of, strict=True):
                self._put(name, row, value[None])
        # Last, so that a kill in between leaves the block to be measured again, never one that counts without
        # its rows.
        self._write(self._done_file, b"\1", block)

    def _put(self, name: str, row: int, values: NDArray) -> None:
        """Write rows from `row` on."""
        column = self.columns[name]
        content = np.ascontiguousarray(values, dtype=column.dtype).tobytes()
        width = np.dtype(column.dtype).itemsize * math.prod(column.tail)
        self._write(self._files[name], content, self._starts[name] + row * width)

    def _write(self, file: int, content: bytes, start: int) -> None:
        """All of it: a disk that is nearly full takes a part and says so only by a number."""
        left = memoryview(content)
        with writing(self.path):
            while left:
                written = os.pwrite(file, left, start)
                left, start = left[written:], start + written

    def close(self, blocks: Sequence[NDArray[np.int64]]) -> dict[str, NDArray]:
        with writing(self.path):
            for file in (*self._files.values(), self._done_file):
                # On disk before the manifest says complete: after a power failure it would otherwise vouch
                # for holes.
                os.fsync(file)
        wait_for_all()
        on_first(lambda: self._check_done(len(blocks)))
        return _arrays(self.path, self.columns)

    def _check_done(self, blocks: int) -> None:
        done = np.frombuffer((self.path / DONE).read_bytes(), dtype=np.uint8)
        assert done.all() and len(done) == blocks

    def finish(self, problems: Mapping[str, NDArray[np.int64]], seconds: float) -> None:
        """Complete the manifest, with digests of the columns; a collective call."""
        on_first(
            lambda: self.note(
                complete=True,
                seconds=seconds,
                problems={kind: indices.tolist() for kind, indices in problems.items()},
                digests=_digests(self.path, self.columns),
            )
        )

    def release(self) -> None:
        """Let go of files and lock."""
        self._open.close()


def read_manifest(path: Path) -> dict[str, Any]:
    """A store's manifest; raises SignalError where there is none, or it is damaged or of another format."""
    file = path / MANIFEST
    if not file.exists():
        raise SignalError(f"{path} holds no signals (no {MANIFEST}); make them with gw.collect(store=...).")
    manifest = read_json(file, SignalError)
    check_format(manifest.get("format"), f"The store {path}", SignalError)
    return manifest


def read(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """What is in a store whose scoring run is complete: the arguments of `Signals`.

    Args:
        path: the store.
        verify: compare its content with the digests in its manifest; types and shapes are always compared.

    Raises:
        SignalError: there is no store, it is unfinished, or it is damaged.
    """
    manifest = read_manifest(path)
    with damaged(path / MANIFEST, SignalError):
        complete, request = manifest["complete"], manifest["request"]
        size, seconds = int(request["size"]), float(manifest["seconds"])
        columns = {name: Column(dtype, tuple(tail)) for name, (dtype, tail) in request["columns"].items()}
        problems = {kind: np.array(rows, dtype=np.int64) for kind, rows in manifest["problems"].items()}
        stamps = manifest.get("digests", {}).items()
        digests = {name: (int(changed), str(digest)) for name, (changed, digest) in stamps}
    if not complete:
        with damaged(path / DONE, SignalError):
            done = np.frombuffer((path / DONE).read_bytes(), dtype=np.uint8)
        raise SignalError(
            f"The scoring run in {path} stopped after {int(done.sum())} of {len(done)} blocks; run the same "
            "command again to resume it."
        )
    _check_arrays(path, columns, size)
    if verify:
        _check_contents(path, columns, digests)
    arrays: dict[str, Any] = _arrays(path, columns)
    ok = arrays.pop("flags") == MEASURED
    return {"size": size, **arrays, "ok": ok, "problems": problems, "seconds": seconds}


def verify(path: Path) -> None:
    """Raise SignalError where a finished store is damaged."""
    read(path)


def _check_arrays(path: Path, columns: Mapping[str, Column], size: int) -> None:
    """Raise SignalError where an array is missing or has another type, shape or length than it should."""
    for name, column in columns.items():
        file, shape = _column_file(path, name), (size, *column.tail)
        with damaged(file, SignalError):
            header, bytes_before = _header(file)
            expected = (shape, False, np.dtype(column.dtype))
            length = bytes_before + math.prod(shape) * expected[2].itemsize
            if header != expected or file.stat().st_size != length:
                raise ValueError(f"{header[2]} of shape {header[0]} in {file.stat().st_size} bytes")


Stamp = tuple[int, str]
"""Time of a file's last change in nanoseconds, and SHA-256 of its content."""


def _digests(path: Path, columns: Mapping[str, Column]) -> dict[str, Stamp]:
    files = [_column_file(path, name) for name in columns]
    with ThreadPoolExecutor() as pool:
        return {
            name: (file.stat().st_mtime_ns, digest)
            for name, file, digest in zip(columns, files, pool.map(sha256, files), strict=True)
        }


def _check_contents(path: Path, columns: Mapping[str, Column], digests: Mapping[str, Stamp]) -> None:
    files = {name: _column_file(path, name) for name in columns}
    # Small stores are read whole whenever they are opened; of larger ones the time of the last change must
    # do.
    everything = sum(file.stat().st_size for file in files.values()) <= ALWAYS_READ
    changed = {
        name: file
        for name, file in files.items()
        if everything or name not in digests or file.stat().st_mtime_ns != digests[name][0]
    }
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(changed, pool.map(sha256, changed.values()), strict=True):
            if name not in digests or digest != digests[name][1]:
                raise SignalError(
                    f"{files[name]} has changed since it was written; delete {path} and measure again."
                )


def _column_file(path: Path, name: str) -> Path:
    return path / f"{name}.npy"


def _arrays(path: Path, columns: Mapping[str, Column]) -> dict[str, NDArray]:
    return {name: np.load(_column_file(path, name), mmap_mode="r") for name in columns}


def _make_array(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """A .npy file of the right length whose rows are holes, which cost no room until written."""
    with path.open("wb") as file:
        header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        npy.write_array_header_2_0(file, header)
        # Holes read as zeros; whether a row was measured is in its flags, never in its numbers.
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


def _header(path: Path) -> tuple[tuple[tuple[int, ...], bool, np.dtype], int]:
    """Shape, order and type of a .npy file, and how many bytes stand before the values."""
    with path.open("rb") as file:
        npy.read_magic(file)
        return npy.read_array_header_2_0(file), file.tell()


def _check_same(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    differ = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    if differ:
        described = "; ".join(
            f"{name} was {clipped(str(there.get(name)), 80)}, now {clipped(str(here.get(name)), 80)}"
            for name in differ
        )
        raise SignalError(f"{path} holds signals of another request: {described}. Give another folder.")
