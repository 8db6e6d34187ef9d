"""A lock file has one holder at a time, over processes and threads, and outlives none of them."""

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradwise.locks import FileLock, LockedError

FORK = multiprocessing.get_context("fork")


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a fork of this process."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: theirs.send(work(*arguments)))
    process.start()
    result = ours.recv()
    process.join()
    return result


def is_free(path: Path) -> bool:
    try:
        FileLock(path).release()
    except LockedError:
        return False
    return True


def test_one_holder_at_a_time(tmp_path: Path):
    path = tmp_path / "lock"
    with FileLock(path):
        assert not is_free(path)
        assert not in_process(is_free, path)
        # A failed try, which opens and closes the file, must not have released the lock.
        assert not in_process(is_free, path)
    assert is_free(path)
    assert in_process(is_free, path)


def test_a_second_release_does_nothing(tmp_path: Path):
    lock = FileLock(tmp_path / "lock")
    lock.release()
    with FileLock(tmp_path / "lock"):
        lock.release()
        assert not in_process(is_free, tmp_path / "lock")


def test_another_name_of_the_same_file_is_the_same_lock(tmp_path: Path):
    (tmp_path / "lock").touch()
    (tmp_path / "link").symlink_to("lock")
    with FileLock(tmp_path / "lock"):
        assert not is_free(tmp_path / "link")


def test_a_fork_neither_holds_nor_releases_it(tmp_path: Path):
    lock = FileLock(tmp_path / "lock")

    def child() -> bool:
        free = is_free(tmp_path / "lock")
        lock.release()
        return free

    assert in_process(child) is False
    assert not in_process(is_free, tmp_path / "lock")
    lock.release()


def test_a_killed_holder_lets_go(tmp_path: Path):
    ours, theirs = FORK.Pipe(duplex=False)

    def hold() -> None:
        held = FileLock(tmp_path / "lock")
        theirs.send(held.path.exists())
        threading.Event().wait()

    process = FORK.Process(target=hold)
    process.start()
    assert ours.recv()
    assert not is_free(tmp_path / "lock")
    process.kill()
    process.join()
    assert is_free(tmp_path / "lock")


def test_a_file_that_was_replaced_meanwhile_is_locked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who leaves may delete the file; a lock on the deleted file would keep nobody out."""
    from gradwise import locks

    path, inner, tries = tmp_path / "lock", locks._lock, []

    def replacing(handle: int, wait: bool) -> None:
        inner(handle, wait)
        tries.append(handle)
        if len(tries) == 1:
            path.unlink()

    monkeypatch.setattr(locks, "_lock", replacing)
    with FileLock(path):
        assert len(tries) == 2
        assert path.exists()
        monkeypatch.undo()
        assert not in_process(is_free, path)


def test_threads_wait_for_each_other(tmp_path: Path):
    inside, most = 0, []

    def work() -> None:
        nonlocal inside
        with FileLock(tmp_path / "lock", wait=True):
            inside += 1
            most.append(inside)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_folder_that_cannot_hold_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "nowhere" / "lock")


class TestWithoutFcntl:
    """Systems without POSIX locks, in a process that has no `fcntl`."""

    WINDOWS = """
import errno, fcntl, sys, types

def locking(handle, mode, size):
    kinds = {"lock": fcntl.LOCK_EX | fcntl.LOCK_NB, "unlock": fcntl.LOCK_UN}
    fcntl.lockf(handle, kinds[mode], size)

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK="lock", LK_UNLCK="unlock")
"""
    """The calls of Windows, done by this system's locks."""

    def run(self, code: str, path: Path, before: str = "") -> str:
        script = f"{before}\nimport sys\nsys.modules['fcntl'] = None\nfrom pathlib import Path\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def test_a_folder_is_refused_where_there_are_no_locks_at_all(self, tmp_path: Path):
        code = """
from gradwise.folders import claimed
try:
    with claimed(Path(sys.argv[1]), "run"): print("written")
except Exception as error: print(error)
"""
        assert self.run(code, tmp_path / "run") == (
            f"Cannot write to {tmp_path / 'run'}: this system has no file locks; give another folder."
        )
        assert not (tmp_path / "run").exists()

    def test_windows_locks_are_used(self, tmp_path: Path):
        take = """
from gradwise.locks import FileLock, LockedError
try:
    with FileLock(Path(sys.argv[1])): print("taken")
    with FileLock(Path(sys.argv[1])): print("taken again")
except LockedError as error: print(error)
"""
        path = tmp_path / "lock"
        assert self.run(take, path, self.WINDOWS) == "taken\ntaken again"
        with FileLock(path):
            assert self.run(take, path, self.WINDOWS) == "another process holds it"

    def test_who_waits_gets_it(self, tmp_path: Path):
        wait = """
from gradwise.locks import FileLock
print("waiting", flush=True)
with FileLock(Path(sys.argv[1]), wait=True): print("taken")
"""
        path = tmp_path / "lock"
        script = f"{self.WINDOWS}\nsys.modules['fcntl'] = None\nfrom pathlib import Path\n{wait}"
        with FileLock(path):
            waiting = subprocess.Popen(
                [sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True
            )
            assert waiting.stdout
            assert waiting.stdout.readline() == "waiting\n"
            assert waiting.poll() is None
        assert waiting.communicate(timeout=300)[0] == "taken\n"
