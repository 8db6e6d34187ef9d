"""A file is the old one or the new one, whatever goes wrong in between."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.atomic import difference, sync_files, sync_folder, write_bytes, write_json, write_text
from gradwise.errors import StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_content_is_replaced(tmp_path_factory: pytest.TempPathFactory, before: bytes, after: bytes):
    path = tmp_path_factory.mktemp("atomic") / "file"
    for content in (before, after):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["file"]


def test_folders_are_made(tmp_path: Path):
    write_text(tmp_path / "a" / "b" / "file.txt", "ü\n")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes() == "ü\n".encode()


def test_json_stays_readable(tmp_path: Path):
    values = {"name": "Düsseldorf", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "file.json", values)
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == values
    assert "Düsseldorf" in text
    assert text.endswith("}\n")


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path):
    write_json(tmp_path / "file.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"new": object()})
    assert json.loads((tmp_path / "file.json").read_text()) == {"old": 1}
    assert names(tmp_path) == ["file.json"]


def test_a_failure_while_writing_leaves_the_old_file_and_no_temporary(tmp_path: Path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_target_that_cannot_be_replaced_leaves_no_temporary(tmp_path: Path):
    (tmp_path / "target" / "inside").mkdir(parents=True)
    with pytest.raises(StorageError, match="target could not be written: Is a directory"):
        write_text(tmp_path / "target", "new")
    assert names(tmp_path) == ["target"]
    assert names(tmp_path / "target") == ["inside"]


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path: Path):
    """With a limit on file sizes in a process of its own, as a full disk or quota would have it."""
    write_text(tmp_path / "file", "old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from gradwise.atomic import write_bytes\n"
        "from gradwise import GradwiseError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_bytes(Path(sys.argv[1]), bytes(5000))\n"
        "except GradwiseError as error: print(error)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file"], capture_output=True, text=True, check=True
    )
    assert re.search(
        r"file could not be written: File too large \(.*GiB free\). Make room and run the same", output.stdout
    )
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_readers_see_the_old_or_the_new_file_only(tmp_path: Path):
    path = tmp_path / "file"
    contents = [bytes([number]) * 200_000 for number in (1, 2)]
    write_bytes(path, contents[0])
    with path.open("rb") as opened_before:
        write_bytes(path, contents[1])
        assert opened_before.read() == contents[0]
    assert path.read_bytes() == contents[1]


def test_sync_files_lists_every_file_with_its_size_and_content(tmp_path: Path):
    (tmp_path / "sub" / "empty").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "sub" / "b").write_bytes(b"")
    digests = sync_files(tmp_path)
    assert {name: size for name, (size, _) in digests.items()} == {"a": 3, "sub/b": 0}
    assert difference(tmp_path, digests) is None
    (tmp_path / "a").write_bytes(b"124")
    assert difference(tmp_path, digests, contents=False) is None
    assert difference(tmp_path, digests) == "the content of a has changed since it was written"
    (tmp_path / "a").write_bytes(b"12")
    assert difference(tmp_path, digests) == "a has 2 bytes instead of 3"
    (tmp_path / "a").unlink()
    assert difference(tmp_path, digests) == "a is missing"


def test_sync_folder_leaves_no_open_file(tmp_path: Path):
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    for _ in range(5):
        sync_folder(tmp_path)
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    assert before == after
