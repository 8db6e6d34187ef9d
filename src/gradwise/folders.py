"""Folders that belong to gradwise: a marker file says so, a lock says who writes there now.

A folder is gradwise's if and only if it holds `MARKER`, which only this module writes. Commands write into a
folder that is empty, missing, or marked as theirs, and hold its lock meanwhile. In a marked folder they
overwrite and delete only what the marker names. Everything else belongs to the user.
"""

import fnmatch
import glob
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradwise import __version__
from gradwise.atomic import TEMPORARY, write_bytes, write_json
from gradwise.errors import GradwiseError, RecipeError
from gradwise.locks import FileLock, LockedError
from gradwise.ranks import on_first
from gradwise.text import shown

MARKER = ".gradwise.json"
LOCK = ".gradwise.lock"

FORMAT = 2
"""Version of all that gradwise writes: run directories, stores, plans, checkpoints, recipes. To be raised
with every change that an older version would misread, added settings among them. Format 1 had no markers."""

OLDEST = 2
"""The oldest format that this version reads. What a later one added has its default there."""

DESCRIPTIONS = {
    "run": "a training run",
    "trainer": "a run of gradwise.Trainer",
    "selection": "a selection",
    "order": "an ordered data set",
    "signals": "per-sample signals",
    "shared": "signals that runs share",
    "comparison": "a comparison",
    "checkpoint": "a checkpoint",
}

_FORMAT_1 = (
    {"events.jsonl", "metrics.jsonl", "plan"},
    {"done", "manifest.json"},
    {"comparison.yaml", "runs"},
)
"""What folders of format 1 are recognised by."""

Error = type[GradwiseError]
Marker = dict[str, Any]


@dataclass
class OwnedFolder:
    """A folder that this process has claimed, made by `claimed`.

    On ranks other than the first, which write nothing, its methods do nothing.
    """

    path: Path
    kind: str
    files: set[str] = field(default_factory=set)
    """Names and patterns of the entries that are gradwise's."""
    digests: dict[str, Any] = field(default_factory=dict)
    """Digests of the files that are checked before use, by path."""
    created: bool = False
    """Whether it was marked by this claim."""
    before: frozenset[str] = frozenset()
    """Names of its entries before this claim."""
    made: tuple[Path, ...] = ()
    """The folders that this claim made: this one, where it did not exist, and missing ones above it."""
    writes: bool = True
    error: Error = RecipeError

    def owns(self, name: str) -> bool:
        """Whether the marker names this entry of the folder, by itself or through a pattern."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.files)

    def reserve(self, *names: str) -> None:
        """Record in the marker, before they are written, that entries of these names or patterns are ours.

        Raises:
            GradwiseError: one exists and the marker does not name it, so somebody else put it there.
        """
        new = set(names) - self.files
        if not self.writes or not new:
            return
        for entry in sorted(self.path.iterdir()):
            if not self.owns(entry.name) and any(fnmatch.fnmatchcase(entry.name, name) for name in new):
                raise self.error(
                    f"{entry} was not written by gradwise and would be overwritten; move it, or give another "
                    "folder."
                )
        # Named before it is written, so that a kill in between leaves no file without an owner.
        self.files |= new
        self.write_marker()

    def remove(self, *names: str) -> None:
        """Delete entries that exist and that the marker names; anything else stays."""
        for name in names:
            if self.writes and self.owns(name):
                _delete(self.path / name)

    def clear(self) -> None:
        """Delete every entry that the marker names."""
        self.remove(*({entry.name for entry in self.path.iterdir()} - {MARKER, LOCK}))

    def write_marker(self) -> None:
        """Write down what the folder holds."""
        if self.writes:
            mark(self.path, self.kind, files=sorted(self.files), digests=self.digests)


@contextmanager
def claimed(
    path: Path,
    kind: str,
    files: Iterable[str] = (),
    *,
    shared: bool = False,
    wait: bool = False,
    error: Error = RecipeError,
) -> Iterator[OwnedFolder]:
    """Claim a folder for writing: check that it is ours or empty, lock it, mark it; a collective call.

    Nothing is created or changed in a folder that is refused. Temporary files that killed processes left are
    deleted. A folder that was claimed for the first time, and in which nothing was written in the end, is
    left as it was found.

    Args:
        path: the folder; created if missing.
        kind: what it holds, a key of `DESCRIPTIONS`.
        files: names or patterns of the entries that will be written there; `reserve` adds more.
        shared: whether the user's own files may lie there as well, under other names than `files`.
        wait: wait for another process that holds the folder, instead of refusing.
        error: the class of what is raised.

    Raises:
        GradwiseError: the folder holds something else, is of another kind or format, is being written by
            another process, or cannot be written.
    """
    lock: FileLock | None = None

    def claim() -> OwnedFolder:
        nonlocal lock
        owned, lock = _claim(path, kind, set(files), shared, wait, error)
        return owned

    owned = on_first(claim)
    # The others have the same object by value.
    owned.writes = lock is not None
    try:
        yield owned
    finally:
        if lock is not None:
            _leave(owned, lock)


def check_claimable(path: Path, kind: str) -> None:
    """Raise what `claimed` would raise; leaves nothing behind."""
    _leave(*_claim(path, kind, set(), False, False, RecipeError))


def add_file(path: Path, content: bytes) -> None:
    """Write a file into a folder of gradwise's that nobody else is writing to, or into any other folder.

    Raises:
        GradwiseError: there is a file of that name that gradwise did not write.
    """
    folder = path.parent
    marker = read_marker(folder)
    if marker is None:
        if _exists(path):
            raise RecipeError(f"{path} was not written by gradwise and would be overwritten; move it.")
        write_bytes(path, content)
        return
    owned, lock = _claim(folder, marker["kind"], set(), False, False, RecipeError)
    with lock:
        # A name, whatever it holds: as a pattern it would own other files, or not the one it names.
        owned.reserve(glob.escape(path.name))
        write_bytes(path, content)


def mark(path: Path, kind: str, **contents: object) -> None:
    """Write a folder's marker; `claimed` does, and who writes folders within a claimed one."""
    marker = {"format": FORMAT, "kind": kind, "gradwise": __version__, **contents}
    write_json(path / MARKER, {**marker, "sha256": _digest(marker)})


def read_marker(path: Path, error: Error = RecipeError) -> Marker | None:
    """The contents of a folder's marker, or None if it has none.

    Raises:
        GradwiseError: the marker is damaged, or of a format that this version does not read.
    """
    try:
        contents = json.loads((path / MARKER).read_text(encoding="utf-8"))
        format_number, _ = contents["format"], contents["kind"]
        # A marker decides what may be deleted. A damaged one must not name other files than were written.
        if contents.pop("sha256") != _digest(contents):
            raise ValueError("its content does not match its digest")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise error(
            f"{path / MARKER}, which marks a folder as gradwise's, is damaged ({problem}); give another "
            "folder."
        ) from None
    check_format(format_number, str(path), error)
    return contents


def check_format(format_number: Any, what: str, error: Error) -> None:
    """Refuse what was written in a format that this version does not read.

    Args:
        format_number: the format number that was read.
        what: what has it, as the sentence's subject.
        error: the class of what is raised.
    """
    number = isinstance(format_number, int) and not isinstance(format_number, bool)
    if number and OLDEST <= format_number <= FORMAT:
        return
    if number and format_number > FORMAT:
        raise error(
            f"{what} was written by a newer gradwise (format {format_number}; this version reads {FORMAT}); "
            "upgrade gradwise: pip install -U gradwise."
        )
    raise error(
        f"{what} was written by an older gradwise (format {shown(format_number)}; the oldest that "
        f"this version reads is {OLDEST}) and cannot be continued; start again in a new folder, or finish it "
        "with the version that wrote it."
    )


def _claim(
    path: Path, kind: str, patterns: set[str], shared: bool, wait: bool, error: Error
) -> tuple[OwnedFolder, FileLock]:
    with _refused(path, error):
        # Before anything is created: a folder that is refused stays as it was.
        _checked(path, kind, patterns, shared, error)
        made = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        before = frozenset() if made else frozenset(entry.name for entry in path.iterdir())
        path.mkdir(parents=True, exist_ok=True)
        owned = OwnedFolder(path, kind, set(patterns), before=before, made=made, error=error)
        try:
            lock = FileLock(path / LOCK, wait=wait)
        except OSError:  # no rights, or no locks
            with suppress(OSError):
                if LOCK not in before:
                    (path / LOCK).unlink(missing_ok=True)
                for folder in made:
                    folder.rmdir()
            raise
        try:
            # Again, now that nobody else can change it.
            _take(owned, _checked(path, kind, patterns, shared, error), patterns)
            remove_temporary_files(path, owned)
        except BaseException:
            _leave(owned, lock)
            raise
    return owned, lock


def _take(owned: OwnedFolder, marker: Marker | None, patterns: set[str]) -> None:
    """Mark a folder as claimed, or use the marker that it has."""
    if marker is None:
        owned.created = True
        owned.write_marker()
        return
    owned.files, owned.digests = set(marker["files"]), marker["digests"]
    owned.reserve(*patterns)
    # What is added from now on would be misread by the version that wrote the old marker.
    if marker["format"] != FORMAT:
        owned.write_marker()


def _leave(owned: OwnedFolder, lock: FileLock) -> None:
    """Give a claim back, and with it what it made where nothing came of it."""
    with suppress(OSError):
        if owned.created or owned.made:
            remove_temporary_files(owned.path, owned)
            if {entry.name for entry in owned.path.iterdir()} - {MARKER, LOCK} <= owned.before:
                # While the lock is held: who has opened it meanwhile sees that it is gone, and begins again.
                (owned.path / MARKER).unlink(missing_ok=True)
                (owned.path / LOCK).unlink(missing_ok=True)
                for folder in owned.made:
                    folder.rmdir()
    lock.release()


def remove_temporary_files(path: Path, owned: OwnedFolder | None = None) -> None:
    """Delete what killed processes left of their writing in a locked folder and in its own subfolders.

    Subfolders with a lock are left out: somebody else may be writing there.
    """
    for entry in path.iterdir():
        ours = entry.is_dir() and not entry.is_symlink() and (owned is None or owned.owns(entry.name))
        if entry.name.startswith(TEMPORARY):
            _delete(entry)
        elif ours and not (entry / LOCK).exists():
            remove_temporary_files(entry)


def _checked(path: Path, kind: str, patterns: set[str], shared: bool, error: Error) -> Marker | None:
    """The folder's marker, if it has one; raises what stands against claiming it."""
    if not path.is_dir():
        if _exists(path):
            description = "a broken link" if path.is_symlink() and not path.exists() else "a file"
            raise error(f"{path} is {description}, not a folder; give another one.")
        return None
    marker = read_marker(path, error)
    if marker is not None:
        if marker["kind"] != kind:
            description = DESCRIPTIONS.get(marker["kind"], marker["kind"])
            raise error(f"{path} holds {description}, not {DESCRIPTIONS[kind]}; give another folder.")
        return marker
    names = sorted(entry.name for entry in path.iterdir())
    # A process killed between locking and marking leaves the lock and perhaps a temporary file.
    foreign = [name for name in names if name != LOCK and not name.startswith(TEMPORARY)]
    if shared:
        foreign = [name for name in foreign if any(fnmatch.fnmatchcase(name, each) for each in patterns)]
    if any(each <= set(names) for each in _FORMAT_1):
        check_format(1, str(path), error)
    if foreign:
        examples = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise error(
            f"{path} holds files that gradwise did not write ({examples}); give a new folder, or an "
            "empty one."
        )
    return None


@contextmanager
def _refused(path: Path, error: Error) -> Iterator[None]:
    try:
        yield
    except LockedError:
        raise error(
            f"Another process is writing to {path}; wait for it to end, or give another folder."
        ) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"Cannot write to {path}: {reason}; give another folder.") from None


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exists(path: Path) -> bool:
    """Whether there is an entry of that name, a dangling link among them."""
    return path.is_symlink() or path.exists()


def _digest(marker: Marker) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()
