"""A lock on a file that one process holds at a time, released by the system however the process ends."""

import os
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class LockedError(Exception):
    """Somebody else holds the lock: another process, or another place in this one."""


class FileLock:
    """Holds a lock file from construction until `release`.

    POSIX record locks are used rather than `flock`: loader workers do not inherit them, so a killed run's
    workers, which outlive it by seconds, do not keep the next run out. A record lock belongs to the whole
    process, so each process also remembers which files it has locked.

    Args:
        path: the lock file; created if missing and never deleted, since deleting it would let two processes
            lock different files of one name.
        wait: wait for the holder instead of raising.

    Raises:
        LockedError: another process or another place in this process holds it and `wait` is False.
        OSError: the file cannot be created.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with FileLock(Path(folder.name) / "lock"):
    ...     FileLock(Path(folder.name) / "lock")
    Traceback (most recent call last):
    gradwise.locks.LockedError: this process holds it already
    """

    _held: dict[tuple[int, int], int] = {}  # noqa: RUF012
    """Device and inode of every file locked by this process, with the process's id."""

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        # Looked up before the file is opened: closing any handle of a file releases a record lock on it.
        if path.exists() and FileLock._held.get(_key(path.stat())) == os.getpid():
            raise LockedError("this process holds it already")
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._key = _key(os.fstat(self._handle))
        try:
            _lock(self._handle, wait)
        except OSError:
            os.close(self._handle)
            raise LockedError("another process holds it") from None
        FileLock._held[self._key] = os.getpid()

    def release(self) -> None:
        """Let the next one in; a second call does nothing."""
        if self._handle >= 0:
            FileLock._held.pop(self._key, None)
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _lock(handle: int, wait: bool) -> None:
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    import msvcrt  # pyright: ignore

    mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK  # pyright: ignore
    msvcrt.locking(handle, mode, 1)  # pyright: ignore
