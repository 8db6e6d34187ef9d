"""Folders in the system's temporary folder (TMPDIR), which the next process deletes when this one is killed.

Each holds a lock file that its process keeps locked, so that those of living processes are distinguished from
what killed ones left, whatever process ids were used again.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from gradwise.atomic import writing
from gradwise.errors import StorageError
from gradwise.locks import FileLock, LockedError

PREFIX = "gradwise-"
"""How the names of all of them begin."""

_LOCK = ".gradwise.lock"


class TemporaryFolder:
    """A folder that exists until `delete`, at the latest until the process ends.

    Args:
        purpose: becomes part of its name.

    Raises:
        StorageError: it cannot be created.
    """

    def __init__(self, purpose: str) -> None:
        try:
            root = Path(tempfile.gettempdir())
        except FileNotFoundError as error:
            raise StorageError(f"{error.strerror}; make room, or set TMPDIR to another folder.") from None
        _delete_abandoned(root, purpose)
        with writing(root):
            # Locked under another name first: nobody may see it unlocked under its own.
            made = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}{purpose}-", dir=root))
            self._lock = FileLock(made / _LOCK)
            self.path = made.rename(made.with_name(made.name.removeprefix("new-")))
        self._process = os.getpid()
        atexit.register(self.delete)

    def delete(self) -> None:
        """Delete it and all that it holds; does nothing in a fork of its process."""
        if os.getpid() != self._process:
            return
        atexit.unregister(self.delete)
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.delete()


def _delete_abandoned(root: Path, purpose: str) -> None:
    for folder in root.glob(f"{PREFIX}{purpose}-*"):
        try:
            if not (folder / _LOCK).is_file():
                continue
            with FileLock(folder / _LOCK):
                shutil.rmtree(folder, ignore_errors=True)
        except (LockedError, OSError):  # somebody lives there, or it is another user's
            continue
