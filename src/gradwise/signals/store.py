"""Signals on disk: one flat .npy file per quantity, a byte per finished block, a manifest.

A killed pass goes on where it stopped. A manifest made with other weights, data or settings is refused and
the difference named; nothing is ever mixed. Rows are written with plain writes rather than through a memory
map, so that resident memory does not grow with what was written.

manifest.json   what was asked of which model and data; seconds spent; what was wrong with which samples
done            a byte per block: 1 once its rows are on disk
<quantity>.npy  (N, ...) rows in the data set's order
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.lib import format as npy
from numpy.typing import NDArray

from gradwise.atomic import write_json
from gradwise.errors import SignalError
from gradwise.signals.quantities import Signals
from gradwise.signals.sheet import MEASURED, Column, Sheet, blank

MANIFEST, DONE, LOCK = "manifest.json", "done", ".lock"
FORMAT = 1


class Store(Sheet):
    """A sheet on disk that several processes fill and a later one can go on with.

    Args:
        path: the folder; made if it does not exist.
        request: what decides the values; a store made for another request is refused.
        size: N.
        columns: the quantities.
        blocks: number of blocks.

    Raises:
        SignalError: when the folder holds something else, another request's signals, or is in use; or when
            the disk has too little room.
    """

    def __init__(
        self, path: Path, request: Mapping[str, Any], size: int, columns: Mapping[str, Column], blocks: int
    ) -> None:
        self.path = path
        self.columns = columns
        self._size = size
        self._request = json.loads(json.dumps(request))
        self._first = not dist.is_initialized() or dist.get_rank() == 0
        self._lock: int | None = None
        problem, done = None, b""
        if self._first:
            try:
                self._claim(blocks)
                done = (self.path / DONE).read_bytes()
            except SignalError as error:
                problem = str(error)
            except (
                OSError,
                ValueError,
                KeyError,
            ) as error:  # a file where the folder should be; a manifest cut short
                problem = f"Cannot keep signals in {path}: {error}; give another folder."
        try:
            # From the first rank: another might look when blocks of this pass are already there.
            self._was_done = _agreed(problem, done)
        except SignalError:
            self._unlock()
            raise
        self._done_file = os.open(self.path / DONE, os.O_RDWR)
        self._files = {name: os.open(self._file(name), os.O_RDWR) for name in columns}
        self._starts = {name: _header_size(self._file(name)) for name in columns}

    def _claim(self, blocks: int) -> None:
        """Lock the folder, and make the files or check that they are this request's."""
        self.path.mkdir(parents=True, exist_ok=True)
        _check_own(self.path)
        self._lock = _locked(self.path)
        manifest = self.path / MANIFEST
        if manifest.exists():
            _check_same(self.path, json.loads(manifest.read_text())["request"], self._request)
            return
        self._check_room()
        # First of all: it says that the arrays beside it are nobody else's.
        (self.path / DONE).write_bytes(bytes(blocks))
        for name, column in self.columns.items():
            _make_array(self._file(name), (self._size, *column.tail), column.dtype)
        write_json(
            manifest,
            {
                "format": FORMAT,
                "versions": {name: version(name) for name in ("gradwise", "torch", "transformers")},
                "request": self._request,
                "complete": False,
                "seconds": 0.0,
                "problems": {},
            },
        )

    def _check_room(self) -> None:
        needed = sum(
            self._size * int(np.prod(column.tail)) * np.dtype(column.dtype).itemsize
            for column in self.columns.values()
        )
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise SignalError(
                f"The signals need {needed / 2**30:.1f} GiB in {self.path}, which has {free / 2**30:.1f} GiB "
                "free; give a smaller grad_dim, grad_dtype='float16', or another disk."
            )

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npy"

    @property
    def manifest(self) -> dict[str, Any]:
        """As it stands on disk."""
        return json.loads((self.path / MANIFEST).read_text())

    def note(self, **what: Any) -> None:
        """Replace entries of the manifest; on the first rank only."""
        if self._first:
            write_json(self.path / MANIFEST, {**self.manifest, **what})

    def done(self) -> NDArray[np.bool_]:
        return np.frombuffer(self._was_done, dtype=np.uint8).astype(bool)

    def fill(self, name: str, values: NDArray) -> None:
        if self._first:
            self._put(name, 0, values)

    def leave_out(self, rows: NDArray[np.int64]) -> None:
        if self._first:
            for name, column in self.columns.items():
                if np.issubdtype(column.dtype, np.floating):
                    nothing = blank(1, column)
                    for row in rows.tolist():
                        self._put(name, row, nothing)

    def write(self, block: int, rows: NDArray[np.int64], values: Mapping[str, NDArray]) -> None:
        for name, rows_of in values.items():
            for row, value in zip(rows.tolist(), rows_of, strict=True):
                self._put(name, row, value[None])
        _write(self._done_file, b"\1", block)

    def _put(self, name: str, row: int, values: NDArray) -> None:
        """Write rows from `row` on."""
        column = self.columns[name]
        content = np.ascontiguousarray(values, dtype=column.dtype).tobytes()
        width = np.dtype(column.dtype).itemsize * math.prod(column.tail)
        _write(self._files[name], content, self._starts[name] + row * width)

    def close(self, blocks: Sequence[NDArray[np.int64]]) -> dict[str, NDArray]:
        for file in (*self._files.values(), self._done_file):
            os.fsync(file)
        if dist.is_initialized():
            dist.barrier()
        if self._first:
            done = np.frombuffer((self.path / DONE).read_bytes(), dtype=np.uint8)
            assert done.all() and len(done) == len(blocks)
        return _arrays(self.path, self.columns)

    def release(self) -> None:
        """Let go of files and lock."""
        for file in (self._done_file, *self._files.values()):
            os.close(file)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def read(path: Path) -> Signals:
    """The signals in a store whose pass came to its end."""
    manifest_file = path / MANIFEST
    if not manifest_file.exists():
        raise SignalError(f"{path} holds no signals (no {MANIFEST}); make them with gw.collect(store=...).")
    manifest = json.loads(manifest_file.read_text())
    if not manifest["complete"]:
        done = np.frombuffer((path / DONE).read_bytes(), dtype=np.uint8)
        raise SignalError(
            f"The pass in {path} stopped after {int(done.sum())} of {len(done)} blocks; run the same command "
            "again to go on."
        )
    columns = {name: Column(*column) for name, column in manifest["request"]["columns"].items()}
    arrays: dict[str, Any] = _arrays(path, columns)
    problems = {kind: np.array(found, dtype=np.int64) for kind, found in manifest["problems"].items()}
    ok = arrays.pop("flags") == MEASURED
    size, seconds = manifest["request"]["size"], manifest["seconds"]
    return Signals(size, **arrays, ok=ok, problems=problems, seconds=seconds)


def _arrays(path: Path, columns: Mapping[str, Column]) -> dict[str, NDArray]:
    return {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in columns}


def _make_array(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """A .npy file of the right length whose rows are holes, which cost no room until written."""
    with path.open("wb") as file:
        header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        npy.write_array_header_2_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


def _header_size(path: Path) -> int:
    with path.open("rb") as file:
        npy.read_magic(file)
        npy.read_array_header_2_0(file)
        return file.tell()


def _write(file: int, content: bytes, start: int) -> None:
    """All of it: a disk that is nearly full takes a part and says so only by a number."""
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written


def _check_own(path: Path) -> None:
    """Refuse a folder that holds something else than signals, or the beginnings of them."""
    if (path / MANIFEST).exists():
        return
    begun = (path / DONE).exists()
    for entry in path.iterdir():
        name = entry.name
        ours = name in (LOCK, DONE) or name.startswith(f".{MANIFEST}") or (begun and name.endswith(".npy"))
        if not ours:
            raise SignalError(
                f"{path} is not empty and holds no signals (found {name}); give another folder."
            )


def _locked(path: Path) -> int:
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SignalError(f"Cannot write to {path}: {error.strerror}; give another folder.") from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise SignalError(
            f"Another process is writing signals to {path}; wait for it, or give another folder."
        ) from None
    return lock


def _check_same(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    differ = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    if differ:
        told = "; ".join(
            f"{name} was {_short(there.get(name))}, now {_short(here.get(name))}" for name in differ
        )
        raise SignalError(f"{path} holds signals of another pass: {told}. Give another folder.")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _agreed(problem: str | None, done: bytes) -> bytes:
    """Every rank raises what the first one found, or goes on from the same blocks."""
    told: list[Any] = [problem, done]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise SignalError(told[0])
    return told[1]
