"""A lock file has one holder at a time, over processes and threads, and outlives none of them."""

import multiprocessing
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
