"""A lock on a file that one process holds at a time, released by the system however the process ends."""

import errno
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

_Key = tuple[int, int]

_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
"""What the system reports for a file that somebody else has locked."""

POLL_SECONDS = 0.1
"""Seconds between two tries where the system cannot wait for a lock."""


class LockedError(Exception):
    """Somebody else holds the lock: another process, or another place in this one."""


class FileLock:
    """Holds a lock file from construction until `release`.

    POSIX record locks are used rather than `flock`: loader workers do not inherit them, so a killed run's
    workers, which outlive it by seconds, do not keep the next run out. A record lock belongs to the whole
    process, so each process also remembers which files it has locked.

    Args:
        path: the lock file; created if missing.
        wait: wait for the holder instead of raising.

    Raises:
        LockedError: another process or another place in this process holds it and `wait` is False.
        OSError: the file cannot be created, or its file system has no locks.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with FileLock(Path(folder.name) / "lock"):
    ...     FileLock(Path(folder.name) / "lock")
    Traceback (most recent call last):
    gradwise.locks.LockedError: this process holds it already
    """

    _held: dict[_Key, int] = {}  # noqa: RUF012
    """Device and inode of every file locked by this process, with the process's id: a fork holds none."""

    _changed = threading.Condition()
    """Guards `_held`, and wakes threads that wait for one of its files."""

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        self._handle = -1
        while not self._take(wait):
            pass

    def _take(self, wait: bool) -> bool:
        """Lock the file; False where it was replaced by another of the same name meanwhile."""
        with FileLock._changed:
            # Checked before the file is opened: closing any handle of a file releases a record lock on it.
            while self._held_here():
                if not wait:
                    raise LockedError("this process holds it already")
                FileLock._changed.wait()
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            self._key = _key(os.fstat(handle))
            # With the process's id, since a forked child has this table but not the lock.
            FileLock._held[self._key] = os.getpid()
        self._handle = handle
        try:
            _lock(handle, wait)
        except BaseException as error:
            self.release()
            if isinstance(error, OSError) and error.errno in _TAKEN:
                raise LockedError("another process holds it") from None
            raise
        # Whoever held it before may have deleted it; a lock on a deleted file would keep nobody out.
        if self.path.exists() and _key(self.path.stat()) == self._key:
            return True
        self.release()
        return False

    def _held_here(self) -> bool:
        return self.path.exists() and FileLock._held.get(_key(self.path.stat())) == os.getpid()

    def release(self) -> None:
        """Let the next one in; a second call does nothing."""
        if self._handle < 0:
            return
        with FileLock._changed:
            FileLock._held.pop(self._key, None)
            if fcntl is None and msvcrt is not None:
                # Windows releases the lock of a closed file, but says not when.
                with suppress(OSError):  # it was never locked
                    msvcrt.locking(self._handle, msvcrt.LK_UNLCK, 1)  # pyright: ignore
            os.close(self._handle)
            self._handle = -1
            FileLock._changed.notify_all()

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino


def _lock(handle: int, wait: bool) -> None:
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    if msvcrt is None:
        raise OSError(errno.ENOLCK, "this system has no file locks")
    while True:
        try:
            # Its own waiting mode gives up after ten seconds.
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore
            return
        except OSError as error:
            if not wait or error.errno not in _TAKEN:
                raise
        time.sleep(POLL_SECONDS)
