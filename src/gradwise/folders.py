"""Folders that belong to gradwise: a marker file says so, a lock says who writes there now.

A folder is gradwise's if and only if it holds `MARKER`, which only this module writes. Commands write into a
folder that is empty, missing, or marked as theirs, and hold its lock meanwhile. In a marked folder they
overwrite and delete only what the marker names. Everything else belongs to the user.
"""

import fnmatch
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradwise.atomic import TEMPORARY, write_json
from gradwise.errors import GradwiseError, RecipeError
from gradwise.locks import FileLock, LockedError

MARKER = ".gradwise.json"
LOCK = ".gradwise.lock"

FORMAT = 2
"""Version of all that gradwise writes: run directories, stores, plans, checkpoints, recipes. Format 1 had no
marker files."""

_DESCRIPTIONS = {
    "run": "a training run",
    "selection": "a selection",
    "order": "an ordered data set",
    "signals": "per-sample signals",
    "comparison": "a comparison",
    "checkpoint": "a checkpoint",
}


class OwnedFolder:
    """A folder that this process has claimed; made by `claimed`.

    Attributes:
        path: the folder.
        created: whether the folder was claimed for the first time.
    """

    def __init__(self, path: Path, kind: str, files: set[str], created: bool) -> None:
        self.path, self.kind, self.created = path, kind, created
        self._files = files

    def owns(self, name: str) -> bool:
        """Whether the marker names this entry of the folder, by itself or through a pattern."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._files)

    def reserve(self, *names: str) -> None:
        """Record in the marker that these entries are gradwise's, before they are written.

        Raises:
            RecipeError: one exists and the marker does not name it, so somebody else put it there.
        """
        foreign = [name for name in names if not self.owns(name) and _exists(self.path / name)]
        if foreign:
            raise RecipeError(
                f"{self.path / foreign[0]} was not written by gradwise and would be overwritten; move it, or "
                "give another folder."
            )
        missing = [name for name in names if not self.owns(name)]
        if missing:
            self._files.update(missing)
            self._write()

    def remove(self, name: str) -> None:
        """Delete an entry if it exists and the marker names it; anything else stays."""
        path = self.path / name
        if not self.owns(name):
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        contents = {
            "format": FORMAT,
            "kind": self.kind,
            "gradwise": version("gradwise"),
            "files": sorted(self._files),
        }
        write_json(self.path / MARKER, contents)


@contextmanager
def claimed(
    path: Path,
    kind: str,
    files: Iterable[str] = (),
    *,
    shared: bool = False,
    error: type[GradwiseError] = RecipeError,
) -> Iterator[OwnedFolder]:
    """Claim a folder for writing: check that it is ours or empty, lock it, mark it.

    Nothing is created or changed in a folder that is refused. Temporary files that killed processes left are
    deleted.

    Args:
        path: the folder; created if missing.
        kind: what it holds: "run", "selection", "order", "signals", "comparison" or "checkpoint".
        files: names or patterns of the entries that will be written there; more can be added with `reserve`.
        shared: whether the user's own files may lie there as well. Then only entries that match `files` keep
            an unmarked folder from being claimed.
        error: the class of what is raised.

    Raises:
        GradwiseError: the folder holds something else, is of another kind or a newer format, is being written
            by another process, or cannot be written.
    """
    patterns = set(files)
    _check_claimable(path, kind, patterns, shared, error)
    lock = _locked(path, error)
    try:
        # Again, now that nobody else can change it.
        _check_claimable(path, kind, patterns, shared, error)
        before = read_marker(path, error)
        known = set(before["files"]) if before else set()
        folder = OwnedFolder(path, kind, known | patterns, created=before is None)
        if before is None or not patterns <= known:
            folder._write()
        remove_temporary_files(path, folder)
        yield folder
    finally:
        lock.release()


def read_marker(path: Path, error: type[GradwiseError] = RecipeError) -> dict[str, Any] | None:
    """The contents of a folder's marker, or None if it has none.

    Raises:
        GradwiseError: the marker is damaged, or of a newer format.
    """
    try:
        contents = json.loads((path / MARKER).read_text(encoding="utf-8"))
        found, _, _ = contents["format"], contents["kind"], list(contents["files"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise error(
            f"{path / MARKER}, which marks a folder as gradwise's, cannot be read ({problem}); give another "
            "folder."
        ) from None
    check_format(found, str(path), error)
    return contents


def check_format(found: Any, what: str, error: type[GradwiseError]) -> None:
    """Refuse what a newer or an unknown version of gradwise wrote.

    Args:
        found: the format number that was read.
        what: what has it, as the sentence's subject.
        error: the class of what is raised.
    """
    if found == FORMAT:
        return
    if isinstance(found, int) and found > FORMAT:
        raise error(
            f"{what} was written by a newer gradwise (format {found}; this version reads {FORMAT}); upgrade "
            "gradwise: pip install -U gradwise."
        )
    raise error(
        f"{what} was written by an older gradwise (format {found!r}; this version reads {FORMAT}) and cannot "
        "be continued; start again in a new folder, or finish it with the version that wrote it."
    )


def remove_temporary_files(path: Path, folder: OwnedFolder | None = None) -> None:
    """Delete the temporary files that killed processes left in a locked folder and its owned subfolders."""
    for entry in path.iterdir():
        if entry.name.startswith(TEMPORARY) and entry.is_file():
            entry.unlink(missing_ok=True)
        elif entry.is_dir() and not entry.is_symlink() and (folder is None or folder.owns(entry.name)):
            remove_temporary_files(entry)


def _check_claimable(
    path: Path, kind: str, patterns: set[str], shared: bool, error: type[GradwiseError]
) -> None:
    if not path.is_dir():
        if _exists(path):
            found = "a broken link" if path.is_symlink() and not path.exists() else "a file"
            raise error(f"{path} is {found}, not a folder; give another one.")
        return
    marker = read_marker(path, error)
    if marker is not None and marker["kind"] != kind:
        found = _DESCRIPTIONS.get(marker["kind"], marker["kind"])
        raise error(f"{path} holds {found}, not {_DESCRIPTIONS[kind]}; give another folder.")
    if marker is not None:
        return
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as problem:
        raise error(f"Cannot read {path}: {problem.strerror}; give another folder.") from None
    # A process killed between locking and marking leaves the lock and perhaps a temporary file.
    foreign = [name for name in names if name != LOCK and not name.startswith(TEMPORARY)]
    if shared:
        foreign = [name for name in foreign if any(fnmatch.fnmatchcase(name, each) for each in patterns)]
    if foreign:
        found = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise error(
            f"{path} holds files that gradwise did not write ({found}); give a new folder, or an empty one."
        )


def _locked(path: Path, error: type[GradwiseError]) -> FileLock:
    try:
        path.mkdir(parents=True, exist_ok=True)
        return FileLock(path / LOCK)
    except LockedError:
        raise error(
            f"Another process is writing to {path}; wait for it to end, or give another folder."
        ) from None
    except OSError as problem:
        raise error(f"Cannot write to {path}: {problem.strerror}; give another folder.") from None


def _exists(path: Path) -> bool:
    """Whether there is an entry of that name, a dangling link among them."""
    return path.is_symlink() or path.exists()
