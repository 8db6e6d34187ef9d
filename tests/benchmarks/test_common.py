"""What benchmarks share: result files, folders, command lines, processes, tables."""

import json
from pathlib import Path

import pytest

from benchmarks.common import clocks, command_line, folders, own_process, result_file, tables


def test_result_file_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    first = result_file.ResultFile(path, "layers", {"steps": 4, "grid": (1, 2)})
    first.once("quality/full/0", lambda: {"loss": 1.0})
    second = result_file.ResultFile(path, "layers", {"steps": 4, "grid": (1, 2)})
    assert "quality/full/0" in second and "quality/full/1" not in second
    second.once("quality/full/0", lambda: {"loss": 9.0})
    second.once("quality/full/1", lambda: {"loss": 2.0})
    content = json.loads(path.read_text())
    assert {key: (one["session"], one["loss"]) for key, one in content["entries"].items()} == {
        "quality/full/0": (0, 1.0),
        "quality/full/1": (1, 2.0),
    }
    fields = {"command", "date", "revision", "machine", "versions", "source_digest"}
    assert fields <= set(content["sessions"][0])


def test_result_file_with_other_settings_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result_file.ResultFile(path, "layers", {"steps": 4}).save()
    with pytest.raises(SystemExit, match="steps was 4"):
        result_file.ResultFile(path, "layers", {"steps": 5})
    with pytest.raises(SystemExit, match="belongs to layers"):
        result_file.ResultFile(path, "grace", {"steps": 4})


def test_a_folder_is_complete_or_absent(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "first").write_text("half")
        raise RuntimeError("stopped")

    def fill(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "second").write_text("whole")

    target = tmp_path / "built"
    with pytest.raises(RuntimeError):
        folders.build_folder(target, fail)
    assert not target.exists()
    for write in (fill, fail):
        assert folders.build_folder(target, write) == target
    assert [path.name for path in target.iterdir()] == ["second"]


def test_unknown_names_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_line.Script("What for.", "grace-speed")
    parser.add_argument("--pools", type=command_line.names_among(("clean", "dirty")))
    assert parser.parse_args(["--pools", "dirty"]).pools == ["dirty"]
    assert parser.parse_args([]).out == folders.RESULTS / "grace-speed.json"
    with pytest.raises(SystemExit):
        parser.parse_args(["--pools", "clean,dusty"])
    assert "unknown: dusty; known: clean, dirty" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_function_runs_in_its_own_process() -> None:
    result = own_process.in_own_process("os:getenv", "GRADWISE_BENCH", environment={"GRADWISE_BENCH": "here"})
    assert result == "here"


def test_arms_are_timed_in_turn() -> None:
    calls: list[tuple[str, int]] = []
    arms = {name: (lambda number, name=name: calls.append((name, number))) for name in "ab"}
    seconds = clocks.in_turn(arms, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 2, "b": 2}


def test_two_references_are_compared_once_and_claims_agree_with_the_tables() -> None:
    losses = {
        "random": dict(enumerate([1.00, 1.10, 0.90, 1.05, 0.95])),
        "full": dict(enumerate([0.90, 1.01, 0.80, 0.94, 0.86])),
        "lora": dict(enumerate([1.01, 1.10, 0.89, 1.06, 0.94])),
        "loss_top": dict(enumerate([1.30, 1.42, 1.19, 1.36, 1.24])),
    }
    against_random, against_full = tables.comparisons(losses, ["random", "full"])
    assert "| `full` | 5 | -0.0980 |" in against_random and "| `random` |" not in against_full
    rows = (against_random + against_full).splitlines()
    verdicts = [row.split("|")[-2].strip() for row in rows if row.startswith("| `")]
    assert verdicts == ["better", "no difference seen", "worse", "worse", "worse"]
    claims = [("It does not pay", "loss_top", "full"), ("Missing", "grace", "full")]
    (claim,) = tables.compared_claims(losses, ["random", "full"], claims)
    assert (claim.text, claim.seeds, claim.verdict) == ("It does not pay", "5", "worse")
    assert claim.number.startswith("+0.400 (")


def test_runs_without_a_finite_loss_are_left_out() -> None:
    entries = {
        "steps/random/0": {"loss": 1.0},
        "steps/random/1": {"loss": None},
        "time/random/2": {"loss": 1.0},
    }
    assert tables.by_arm({"entries": entries}, "steps") == {"random": {0: {"loss": 1.0}}}
