"""Folders in TMPDIR: gone with their process, at the latest when the next one starts."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from gradwise import GradwiseError
from gradwise.temporary import TemporaryFolder

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_exists_until_it_is_left(root: Path):
    with TemporaryFolder("data") as folder:
        assert folder.name.startswith("gradwise-data-")
        (folder / "a").write_text("1")
        assert names(root) == [folder.name]
    assert names(root) == []


def test_what_a_killed_process_left_is_deleted_and_what_a_living_one_has_is_not(root: Path):
    def hold(pipe: object) -> None:
        folder = TemporaryFolder("data")
        (folder.path / "a.arrow").write_text("1")
        pipe.send(folder.path.name)  # type: ignore[attr-defined]
        threading.Event().wait()

    processes, found = [], []
    for _ in range(2):
        ours, theirs = FORK.Pipe(duplex=False)
        processes.append(FORK.Process(target=hold, args=(theirs,)))
        processes[-1].start()
        found.append(ours.recv())
    processes[0].kill()
    processes[0].join()
    # Folders of other programs, and of versions that had no lock, stay.
    (root / "gradwise-data-mine").mkdir()
    (root / "gradwise-order-other").mkdir()
    with TemporaryFolder("data") as folder:
        expected = [folder.name, found[1], "gradwise-data-mine", "gradwise-order-other"]
        assert names(root) == sorted(expected)
        assert (root / found[1] / "a.arrow").exists()
    processes[1].kill()
    processes[1].join()


def test_a_fork_does_not_delete_it(root: Path):
    with TemporaryFolder("data") as folder:
        process = FORK.Process(target=lambda: os._exit(0))
        process.start()
        process.join()
        assert folder.exists()


def test_nowhere_to_write_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/a']")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    with pytest.raises(GradwiseError, match=r"No usable temporary directory.*set TMPDIR"):
        TemporaryFolder("data")
