"""Output never steers a terminal and never ends a run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradwise import console
from gradwise.console import Lines, Progress, TolerantStream, duration, on_terminal, say
from gradwise.text import clean

STEERING = [chr(code) for code in (*range(9), *range(11, 32), 127, 0x9B, 0x202E, 0x2066, 0x2028, 0xD800)]


@pytest.mark.parametrize("character", STEERING, ids=repr)
def test_control_characters_are_spelled_out(character: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"a{character}b\tc\nd é 日本")
    printed = capsys.readouterr().out
    assert character not in printed
    assert printed.startswith("a\\") and printed.endswith("b\tc\nd é 日本\n")
    assert clean("plain") == "plain"


def test_secrets_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    say("Cannot read https://me:pw@host/x with api_key=abc", error=True)
    assert capsys.readouterr().err == "Cannot read https://***@host/x with api_key=***\n"


class TestStreamsThatFail:
    """In this process, where they can be examined; whole commands are in tests/cli."""

    def test_a_full_disk_loses_what_was_written_and_nothing_else(self, tmp_path: Path) -> None:
        with Path("/dev/full").open("w") as full:
            stream = TolerantStream(full)
            for _ in range(3):
                print("lost", file=stream, flush=True)
            stream.writelines(["lost\n", "too\n"])
            stream.flush()
        # Closing would have raised, had anything been left to write.

    def test_closed_gone_and_of_another_encoding(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = (tmp_path / "closed").open("w")
        closed.close()
        for stream in (closed, None, TolerantStream(closed)):
            monkeypatch.setattr(sys, "stdout", stream)
            monkeypatch.setattr(sys, "stderr", stream)
            say("nobody hears this")
            assert not on_terminal()
            with Progress("signals", 2, "samples") as progress:
                progress.update()
        with (tmp_path / "ascii").open("w", encoding="ascii") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            say("n\xf6")
        assert (tmp_path / "ascii").read_text() == "n\\xf6\n"

    @pytest.mark.parametrize(
        "redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| true"]
    )
    def test_a_process_leaves_with_its_own_code(self, tmp_path: Path, redirection: str) -> None:
        """Also the files that it opens are its own, whatever numbers the missing streams left free."""
        program = (
            "import sys; from gradwise.console import guard_streams, say; guard_streams();"
            f"file = open(r'{tmp_path}/file', 'w'); say('x' * 99_999); print('y' * 99_999, file=sys.stderr);"
            "file.write('mine'); file.close(); sys.exit(7)"
        )
        command = f'{sys.executable} -c "{program}" {redirection}'
        done = subprocess.run(
            ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
        )
        assert done.returncode == 7
        assert "Traceback" not in done.stderr and "ignored" not in done.stderr
        assert (tmp_path / "file").read_text() == "mine"


class TestProgress:
    @pytest.fixture
    def clock(self) -> list[float]:
        return [0.0]

    def lines(self, capsys: pytest.CaptureFixture[str]) -> list[str]:
        return capsys.readouterr().err.splitlines()

    def test_a_line_now_and_then(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        lines = Lines("training", 1000, "steps", done=100, clock=lambda: clock[0])
        for clock[0], done in ((9, 110), (10, 150), (11, 160), (69, 400), (70, 450), (71, 460), (130, 1000)):
            lines.update(done, lambda: "loss 1.5")
        assert self.lines(capsys) == [
            "training: 150 of 1,000 steps (15%), loss 1.5, 2 min 50 s left",
            "training: 450 of 1,000 steps (45%), loss 1.5, 1 min 50 s left",
            "training: 1,000 of 1,000 steps (100%), loss 1.5, 0 s left",
        ]

    def test_of_an_unknown_amount(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        lines = Lines("train data", None, "records", clock=lambda: clock[0])
        clock[0] = 3600
        lines.update(12345)
        assert self.lines(capsys) == ["train data: 12,345 records"]

    def test_off_a_terminal_and_on_one(self, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(console, "FIRST_LINE", 0)
        with Progress("signals", 2, "samples") as progress:
            progress.update()
        assert self.lines(capsys)[0].startswith("signals: 1 of 2 samples (50%), ")
        with Progress("signals", 2, "samples", shown=False) as progress:
            progress.update()
        assert not self.lines(capsys)
        monkeypatch.setattr(console, "on_terminal", lambda: True)
        with Progress("signals", 2, "samples") as progress:
            assert progress._bar is not None
            progress.update(2)
            assert progress._bar.n == 2

    def test_durations(self) -> None:
        assert [duration(seconds) for seconds in (-1, 0.4, 59.4, 60, 3599, 90_000)] == [
            "0 s", "0 s", "59 s", "1 min 0 s", "59 min 59 s", "25 h 0 min",
        ]  # fmt: skip
