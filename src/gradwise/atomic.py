"""Atomic file writes: a temporary file, fsync, rename. A reader sees the old version or the new one."""

import json
import os
from pathlib import Path
from typing import Any

TEMPORARY = ".gradwise-tmp-"
"""How the names of temporary files begin; what a killed process left of them, the next one deletes."""


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Replace the file at `path` by `values` as indented JSON."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content`; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_parquet(path: Path, table: Any) -> None:
    """Replace the file at `path` by a `pyarrow.Table`."""
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a loss of power; a no-op where folders cannot be opened (Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> dict[str, int]:
    """Force every file below `folder` to disk; returns sizes in bytes by relative path."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    sync_folder(folder)
    return sizes
