"""A folder is gradwise's only through its marker; what is not named there is the user's and stays."""

import json
import multiprocessing
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise import GradwiseError, RecipeError, SignalError
from gradwise.atomic import TEMPORARY, write_json
from gradwise.folders import (
    FORMAT,
    LOCK,
    MARKER,
    OwnedFolder,
    add_file,
    check_claimable,
    claimed,
    mark,
    read_marker,
)

FORK = multiprocessing.get_context("fork")

NOBODY = 65534
"""A user without any rights."""


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, by path; None for folders and broken links."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refusal(folder: Path, kind: str = "run", **how: Any) -> str:
    """Why a folder is refused, while all of it stays as it is."""
    watched = folder if folder.is_dir() else folder.parent
    before = contents(watched) if watched.is_dir() else None
    with pytest.raises(GradwiseError) as caught, claimed(folder, kind, ("a", "b-*"), **how):
        pass
    if not how:
        with pytest.raises(GradwiseError) as earlier:
            check_claimable(folder, kind)
        assert str(earlier.value) == str(caught.value)
    assert before is None or contents(watched) == before
    return str(caught.value)


class TestClaimed:
    def test_a_new_folder_is_marked_and_locked(self, tmp_path: Path):
        folder = tmp_path / "below" / "run"
        with claimed(folder, "run", ("a", "b-*")) as owned:
            assert owned.created
            (folder / "a").write_text("1")
            assert "Another process is writing to" in refusal(folder)
        marker = read_marker(folder)
        assert marker is not None
        assert (marker["format"], marker["kind"], marker["files"]) == (FORMAT, "run", ["a", "b-*"])
        with claimed(folder, "run", ("a", "b-*")) as owned:
            assert not owned.created
            assert (folder / "a").read_text() == "1"

    @pytest.mark.parametrize("existed", [True, False])
    def test_where_nothing_came_of_it_nothing_is_left(self, tmp_path: Path, existed: bool):
        folder = tmp_path / "run"
        if existed:
            folder.mkdir()
        with pytest.raises(ZeroDivisionError), claimed(folder, "run"):
            raise ZeroDivisionError
        assert list(tmp_path.rglob("*")) == ([folder] if existed else [])

    @pytest.mark.parametrize("name", ["recipe.yaml", ".hidden", "a", "metrics.jsonl", "sub/file"])
    @pytest.mark.parametrize("kind", ["run", "selection", "order", "signals", "comparison"])
    def test_a_folder_with_other_files_is_refused_without_a_trace(self, tmp_path: Path, kind: str, name: str):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        message = refusal(tmp_path / "mine", kind)
        assert f"holds files that gradwise did not write ({name.split('/')[0]})" in message

    def test_many_names_are_cut_short(self, tmp_path: Path):
        for name in "dcba":
            (tmp_path / name).touch()
        assert "(a, b, c, ...); give a new folder" in refusal(tmp_path)

    def test_the_users_own_files_are_no_hindrance_where_they_may_be(self, tmp_path: Path):
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / "README.md").write_text("mine")
        with claimed(folder, "trainer", ("a", "b-*"), shared=True):
            (folder / "a").write_text("ours")
        (folder / "c").write_text("mine")
        with claimed(folder, "trainer", ("a", "b-*"), shared=True) as owned:
            owned.clear()
        assert {path.name for path in folder.iterdir()} == {"README.md", "c", MARKER, LOCK}

    @pytest.mark.parametrize("name", ["a", "b-1"])
    def test_but_not_under_our_names(self, tmp_path: Path, name: str):
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / name).write_text("mine")
        assert f"({name})" in refusal(folder, "trainer", shared=True)

    def test_a_kind_for_a_kind(self, tmp_path: Path):
        with claimed(tmp_path / "x", "run", ("a",)):
            (tmp_path / "x" / "a").touch()
        message = refusal(tmp_path / "x", "selection")
        assert message == f"{tmp_path / 'x'} holds a training run, not a selection; give another folder."

    def test_the_class_of_the_error_is_the_callers(self, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(SignalError), claimed(tmp_path, "signals", error=SignalError):
            pass

    def test_files_that_a_killed_process_left_are_deleted(self, tmp_path: Path):
        folder = tmp_path / "run"
        with claimed(folder, "run", ("a", "plan", "signals")):
            for below in ("plan", "signals", "mine"):
                (folder / below).mkdir()
            (folder / "signals" / LOCK).touch()  # somebody else may be writing there
        for place in (".", "plan", "signals", "mine"):
            (folder / place / f"{TEMPORARY}1-a").write_text("half")
        (folder / f"{TEMPORARY}model").mkdir()
        (folder / f"{TEMPORARY}model" / "weights").write_text("half")
        with claimed(folder, "run"):
            left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"{TEMPORARY}*"))
        assert left == [f"mine/{TEMPORARY}1-a", f"signals/{TEMPORARY}1-a"]

    @pytest.mark.parametrize("left", [[], [LOCK], [LOCK, f"{TEMPORARY}1-{MARKER}"]])
    def test_killed_at_its_very_beginning(self, tmp_path: Path, left: list[str]):
        for name in left:
            (tmp_path / name).touch()
        with claimed(tmp_path, "run", ("a",)) as owned:
            assert owned.created
            assert {path.name for path in tmp_path.iterdir()} == {LOCK, MARKER}

    def test_another_process_is_kept_out_until_this_one_is_killed(self, tmp_path: Path):
        ours, theirs = FORK.Pipe(duplex=False)

        def hold() -> None:
            with claimed(tmp_path / "x", "run", ("a",)):
                (tmp_path / "x" / "a").touch()
                theirs.send(True)
                threading.Event().wait()

        process = FORK.Process(target=hold)
        process.start()
        ours.recv()
        assert "Another process is writing to" in refusal(tmp_path / "x")
        process.kill()
        process.join()
        with claimed(tmp_path / "x", "run"):
            pass

    def test_one_that_waits_is_let_in(self, tmp_path: Path):
        entered = threading.Event()

        def wait() -> None:
            with claimed(tmp_path / "x", "shared", ("a",), wait=True):
                entered.set()

        thread = threading.Thread(target=wait)
        with claimed(tmp_path / "x", "shared", ("a",), wait=True):
            (tmp_path / "x" / "a").touch()
            thread.start()
            assert not entered.wait(0.05)
        thread.join()
        assert entered.is_set()


class TestPlaces:
    """What `--out` can be besides a folder."""

    def test_a_file_and_below_a_file(self, tmp_path: Path):
        (tmp_path / "file").write_text("mine")
        assert refusal(tmp_path / "file").endswith("file is a file, not a folder; give another one.")
        assert "Cannot write to" in refusal(tmp_path / "file" / "below")

    def test_a_dangling_link_and_a_link_to_itself(self, tmp_path: Path):
        (tmp_path / "dangling").symlink_to("nowhere")
        (tmp_path / "loop").symlink_to("loop")
        for name in ("dangling", "loop"):
            assert "a broken link, not a folder" in refusal(tmp_path / name)
        assert not (tmp_path / "nowhere").exists()

    def test_a_link_to_a_folder_is_that_folder(self, tmp_path: Path):
        (tmp_path / "there").mkdir()
        (tmp_path / "link").symlink_to("there")
        with claimed(tmp_path / "link", "run", ("a",)):
            (tmp_path / "link" / "a").touch()
            assert "Another process" in refusal(tmp_path / "there")
        assert (tmp_path / "there" / MARKER).is_file()

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/proc/nowhere/x", "/sys/x", "/dev/null"])
    def test_names_that_the_system_refuses(self, tmp_path: Path, name: str):
        with pytest.raises(RecipeError, match=r"give another (folder|one)"), claimed(tmp_path / name, "run"):
            pass
        with pytest.raises(RecipeError, match=r"give another (folder|one)"):
            check_claimable(tmp_path / name, "run")
        check_claimable(tmp_path / "new" / "one", "run")
        assert not (tmp_path / "new").exists()

    @pytest.fixture
    def read_only(self, tmp_path: Path) -> Iterator[Path]:
        """A read-only mount, which root cannot write to either."""
        folder = tmp_path / "mount"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("mounting is not permitted here")
        yield folder
        subprocess.run(["umount", folder], check=True)

    def test_a_read_only_disk(self, read_only: Path):
        for folder in (read_only, read_only / "run"):
            assert refusal(folder).endswith("Read-only file system; give another folder.")

    def test_a_folder_of_somebody_elses(self):
        """Root may write everywhere, so a process tries that has given root's rights up."""
        with tempfile.TemporaryDirectory() as parent:  # pytest's own folders let nobody else in
            Path(parent).chmod(0o755)
            shut = Path(parent) / "shut"
            shut.mkdir(mode=0o500)
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_refused_as_nobody, args=(shut / "run", theirs))
            process.start()
            said = ours.recv()
            process.join()
            assert said == f"Cannot write to {shut / 'run'}: Permission denied; give another folder."
            assert not list(shut.iterdir())


def _refused_as_nobody(folder: Path, answers: Connection) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        with claimed(folder, "run"):
            answers.send("written")
    except GradwiseError as error:
        answers.send(str(error))


class TestManifest:
    def test_files_that_appear_later_are_the_users(self, tmp_path: Path):
        with claimed(tmp_path / "x", "run", ("a",)):
            (tmp_path / "x" / "a").touch()
        (tmp_path / "x" / "graph.png").write_text("mine")
        with claimed(tmp_path / "x", "run") as owned:
            with pytest.raises(RecipeError, match=r"graph.png was not written by gradwise and would be over"):
                owned.reserve("graph.png")
            owned.remove("graph.png", "nothing")
            assert (tmp_path / "x" / "graph.png").read_text() == "mine"
            owned.reserve("other.png")
            (tmp_path / "x" / "other.png").touch()
        with claimed(tmp_path / "x", "run") as owned:
            assert owned.owns("other.png") and not owned.owns("graph.png")
            owned.remove("other.png")
            assert not (tmp_path / "x" / "other.png").exists()

    def test_a_link_is_removed_and_not_what_it_leads_to(self, tmp_path: Path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "file").touch()
        with claimed(tmp_path / "x", "run", ("plan",)) as owned:
            (tmp_path / "x" / "plan").symlink_to("../elsewhere")
            owned.remove("plan")
        assert (tmp_path / "elsewhere" / "file").exists()

    def test_adding_a_file(self, tmp_path: Path):
        folder = tmp_path / "x"
        with claimed(folder, "run", ("a",)):
            (folder / "a").touch()
            with pytest.raises(RecipeError, match="Another process"):
                add_file(folder / "b.png", b"1")
        for content in (b"1", b"2"):
            add_file(folder / "b.png", content)
            assert (folder / "b.png").read_bytes() == content
        (folder / "c.png").write_text("mine")
        (tmp_path / "d.png").write_text("mine")
        for path in (folder / "c.png", tmp_path / "d.png"):
            with pytest.raises(RecipeError, match="was not written by gradwise"):
                add_file(path, b"1")
            assert path.read_text() == "mine"
        add_file(tmp_path / "new.png", b"1")

    def test_a_name_is_no_pattern(self, tmp_path: Path):
        folder = tmp_path / "x"
        with claimed(folder, "run", ("a",)):
            (folder / "a").touch()
        mine = folder / "notes[1].html"
        mine.write_text("mine")
        with pytest.raises(RecipeError, match="was not written by gradwise"):
            add_file(mine, b"1")
        assert mine.read_text() == "mine"
        for _ in range(2):
            add_file(folder / "*.html", b"1")
        (folder / "later.html").write_text("mine")
        with claimed(folder, "run") as owned:
            assert owned.owns("*.html") and not owned.owns("later.html")
            owned.clear()
        assert sorted(path.name for path in folder.glob("*.html")) == ["later.html", "notes[1].html"]


class TestMarker:
    @given(st.data())
    def test_no_flipped_bit_goes_unnoticed(self, tmp_path_factory: pytest.TempPathFactory, data: Any):
        folder = tmp_path_factory.mktemp("marker")
        mark(folder, "run", files=["a"], digests={"model": {"weights": [3, "0" * 64]}})
        content = bytearray((folder / MARKER).read_bytes())
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        (folder / MARKER).write_bytes(bytes(content))
        with pytest.raises(RecipeError, match=r"is damaged|was written by"):
            read_marker(folder)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"{}",
            b"\xff\xfe",
            b'{"format": 2}',
            b"[" * 3000,
            b'{"format": 2, "kind": 3}',
        ],
        ids=lambda content: content[:20],
    )
    def test_garbage_is_one_sentence(self, tmp_path: Path, content: bytes):
        (tmp_path / MARKER).write_bytes(content)
        assert "which marks a folder as gradwise's, is damaged" in refusal(tmp_path)

    def test_a_folder_in_its_place(self, tmp_path: Path):
        (tmp_path / MARKER).mkdir()
        assert "is damaged" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("number", "said"),
        [
            (
                FORMAT + 1,
                f"written by a newer gradwise (format {FORMAT + 1}; this version reads {FORMAT}); up",
            ),
            (1, f"written by an older gradwise (format 1; this version reads {FORMAT})"),
            ("2", "written by an older gradwise (format '2'"),
            (None, "written by an older gradwise"),
            (True, "written by an older gradwise"),
        ],
    )
    def test_another_format(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: Any, said: str):
        monkeypatch.setattr("gradwise.folders.FORMAT", number)
        mark(tmp_path, "run", files=[], digests={})
        monkeypatch.undo()
        assert said in refusal(tmp_path)


def test_an_owned_folder_that_does_not_write(tmp_path: Path):
    """As other ranks than the first have it."""
    (tmp_path / "a").touch()
    owned = OwnedFolder(tmp_path, "run", {"a"}, writes=False)
    owned.remove("a")
    owned.reserve("b")
    owned.clear()
    assert contents(tmp_path) == {"a": b""}


def test_fcntl_is_used_in_one_place():
    source = Path(__file__).parents[1] / "src" / "gradwise"
    found = [path.name for path in source.rglob("*.py") if "fcntl" in path.read_text(encoding="utf-8")]
    assert found == ["locks.py"]


def test_json_of_names_that_are_not_text_can_be_read_back(tmp_path: Path):
    write_json(tmp_path / "a.json", {"path": os.fsdecode(b"/tmp/\xff")})
    assert os.fsencode(json.loads((tmp_path / "a.json").read_text())["path"]) == b"/tmp/\xff"
