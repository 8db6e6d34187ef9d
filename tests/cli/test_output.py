"""Whatever becomes of its output, a command does its work and leaves with its own exit code."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from gradwise import __version__
from gradwise.failures import sentence_on
from tests.cli.small_project import Project, Start

FULL = Path("/dev/full")


@pytest.fixture
def short(project: Project) -> Project:
    """One step, nothing decided."""
    project.recipe["train"] = {"max_steps": 1, "batch_size": 8}
    project.recipe["layers"] = "all"
    return project


class Reader:
    """`| head -1`: reads a line from a pipe and closes it."""

    def __init__(self, pipe: Path) -> None:
        os.mkfifo(pipe)
        self.lines: list[str] = []
        self.thread = threading.Thread(target=self._read, args=(pipe,))
        self.thread.start()

    def _read(self, pipe: Path) -> None:
        with pipe.open() as file:
            self.lines.append(file.readline())


@pytest.mark.parametrize(
    "streams", [{"err": None}, {"out": None, "err": None}, {"out": FULL, "err": FULL}], ids=str
)
def test_a_run_finishes_without_its_output(gradwise: Start, short: Project, streams: Any) -> None:
    assert gradwise("train", short.path, "--out", "run", **streams).code == 0
    assert (short.folder / "run" / "scores.json").exists()


def test_a_run_piped_into_head_finishes(gradwise: Start, short: Project) -> None:
    reader = Reader(short.folder / "pipe")
    command = gradwise("train", short.path, "--out", "run", out=short.folder / "pipe")
    reader.thread.join()
    assert command.code == 0
    assert not command.stderr
    assert reader.lines[0].startswith("24 records read")
    assert (short.folder / "run" / "model").is_dir()


@pytest.mark.parametrize("streams", [{"out": None, "err": None}, {"err": FULL}], ids=str)
def test_a_mistake_keeps_its_code(gradwise: Start, tmp_path: Path, streams: Any) -> None:
    assert gradwise("train", "missing.yaml", **streams).code == 2
    assert gradwise("trian", **streams).code == 2
    assert gradwise("train", "--help", **streams).code == 0


@pytest.mark.parametrize("words", [["schema"], ["--help"]], ids=str)
def test_what_libraries_print_to_a_full_disk_ends_no_command(gradwise: Start, words: list[str]) -> None:
    command = gradwise(*words, out=FULL)
    assert (command.code, command.stderr) == (0, "")


def test_nothing_steers_the_terminal(gradwise: Start, short: Project) -> None:
    escape = "\x1b[2J"
    (short.folder / f"a{escape}").mkdir()
    short.recipe["data"]["train"] = f"a{escape}/missing.jsonl"
    for arguments in (
        ["train", short.path, "--out", "run"],
        ["train", short.path, "--set", f"data.{escape}=1"],
        ["train", f"{escape}.yaml"],
        ["trian" + escape],
        ["train", os.fsdecode(b"\xff.yaml")],
    ):
        command = gradwise(*arguments)
        assert command.code == 2
        assert "\x1b[2J" not in command.stderr + command.stdout
        assert command.stderr.startswith("gradwise: ")


def test_secrets_reach_no_file(gradwise: Start, short: Project) -> None:
    command = gradwise("train", short.path, "--out", "run", "--set", "train.hub_token=hf_abcd")
    assert command.code == 2
    assert "train.hub_token is a secret" in command.stderr and "hf_abcd" not in command.stderr
    assert not (short.folder / "run").exists()
    # The command itself is recorded; a name can look like a secret, too.
    assert gradwise("train", short.path, "--out", "run", "--set", "train.run_name=api_key=abcd").code == 0
    recorded = json.loads((short.folder / "run" / "environment.json").read_text())["command"]
    assert recorded[-1] == "train.run_name=api_key=***"


def test_its_version(gradwise: Start) -> None:
    command = gradwise("--version")
    assert (command.code, command.stdout) == (0, f"gradwise {__version__}\n")


class OutOfMemoryError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "out of memory. Lower "),
        (OutOfMemoryError("CUDA out of memory"), "out of memory. Lower "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory. Lower "),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "a loader worker died"),
        (RecursionError(), "something is nested too deeply"),
        (
            ModuleNotFoundError("No module named 'trackio'", name="trackio"),
            "No module named 'trackio'; run: pip",
        ),
        (
            ImportError("cannot import name 'x' from 'y'", name="y"),
            "cannot import name 'x' from 'y'; upgrade",
        ),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "a.json: No such file or directory."),
        (OSError(28, "No space left on device", "b"), "b: No space left on device."),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (KeyError("labels"), None),
        (ImportError("cannot import name", name="gradwise.recipe"), None),
        (OSError("without a name"), None),
    ],
    ids=str,
)
def test_errors_of_known_causes_are_sentences(error: Exception, sentence: str | None) -> None:
    said = sentence_on(error)
    assert (said is None) == (sentence is None)
    assert said is None or said.startswith(sentence or "")
