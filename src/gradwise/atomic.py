"""Atomic file writes: a temporary file, fsync, rename. A reader sees the old version or the new one.

What the system refuses to write is raised as a `StorageError`, here at the place of writing: only here is it
certain which file and which disk are meant.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradwise.errors import StorageError
from gradwise.text import one_line

TEMPORARY = ".gradwise-tmp-"
"""How the names of temporary files begin; those of killed processes are deleted by the next one."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system reports for a disk that takes no more."""

RERUN_ADVICE = "run the same command again"


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`."""
    # File names that are not UTF-8 hold half surrogates; JSON reads the escapes back as such.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, values: object) -> None:
    """Replace the file at `path` by `values` as indented JSON."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content`; its folder is created if missing.

    Raises:
        StorageError: the file cannot be written; the old one is still there.
    """
    # In the same folder, since a rename is atomic only within one file system; the process's number keeps two
    # writers apart.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}"[:200])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        # A rename is an entry of the folder, which a loss of power can undo even though the file's content is
        # on disk.
        sync_folder(path.parent)


def write_parquet(path: Path, table: Any) -> None:
    """Replace the file at `path` by a `pyarrow.Table`."""
    write_bytes(path, parquet_bytes(table))


def parquet_bytes(table: Any) -> bytes:
    """A `pyarrow.Table` as the content of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a failure of the system to write `path` as one StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception, advice: str = RERUN_ADVICE) -> StorageError:
    """What to raise for a file or folder that could not be written.

    Args:
        path: the file or folder.
        error: what the system or a library said.
        advice: what to do once there is room.
    """
    reason = getattr(error, "strerror", None) or one_line(error, 200)
    match = re.search(r"os error (\d+)", reason)  # as libraries written in Rust word it
    number = int(match[1]) if match else getattr(error, "errno", None)
    if number is not None and number not in NO_ROOM:
        return StorageError(f"{path} could not be written: {reason}.")
    return StorageError(
        f"{path} could not be written: {reason} ({size_text(free_bytes(path))} free). Make room and {advice}."
    )


def free_bytes(path: Path) -> int:
    """Free space of the disk that `path` lies on, or would lie on."""
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path.cwd())
    return shutil.disk_usage(existing).free


def size_text(size: float) -> str:
    """A number of bytes as people read it.

    >>> size_text(100), size_text(52_000), size_text(3.5e9)
    ('100 bytes', '50.8 KiB', '3.3 GiB')
    """
    if size < 1024:
        return f"{size:.0f} bytes"
    power = next((power for power in (1, 2) if size < 1024 ** (power + 1)), 3)
    return f"{size / 1024**power:,.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a loss of power; a no-op where folders cannot be opened (Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


Digests = dict[str, list[Any]]
"""Size in bytes and SHA-256 of every file of a folder, by relative path."""


def sync_files(folder: Path) -> Digests:
    """Force every file below `folder` to disk and return their digests."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(sha256, paths)
        return {
            path.relative_to(folder).as_posix(): [path.stat().st_size, digest]
            for path, digest in zip(paths, hashes, strict=True)
        }


def difference(folder: Path, digests: Digests, *, contents: bool = True) -> str | None:
    """The first way in which files differ from their digests, as the end of a sentence; None where none does.

    Args:
        folder: what the paths are relative to.
        digests: as `sync_files` returned them.
        contents: compare what the files hold; otherwise only their sizes.
    """
    for name, (size, _) in digests.items():
        path = folder / name
        actual_size = path.stat().st_size if path.is_file() else None
        # Sizes first, which need no reading: most damage is a file that was cut short.
        if actual_size != size:
            return (
                f"{name} is missing"
                if actual_size is None
                else f"{name} has {actual_size} bytes instead of {size}"
            )
    if not contents:
        return None
    with ThreadPoolExecutor() as pool:
        try:
            hashes = list(pool.map(lambda name: sha256(folder / name), digests))
        except OSError as error:
            return f"{error.filename} cannot be read: {error.strerror}"
    for (name, (_, expected)), actual_hash in zip(digests.items(), hashes, strict=True):
        if actual_hash != expected:
            return f"the content of {name} has changed since it was written"
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
