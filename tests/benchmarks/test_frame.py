"""The benchmarks' common frame: whose statistics it uses, a result file that was stopped."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from gradwise.report import statistics

frame: Any = importlib.import_module("frame")


def test_verdicts_are_those_of_gradwise_compare() -> None:
    assert frame.compare is statistics.compare
    assert frame.holm is statistics.holm
    values = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 0.5, 1: 1.49, 2: 2.51}}
    assert [one.verdict for one in frame.compare(values, "a")] == [frame.BETTER]


def test_result_file_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    first = frame.ResultFile(path, "layers", {"steps": 4, "grid": (1, 2)}, threads=1)
    first.add("quality/full/0", {"loss": 1.0})
    second = frame.ResultFile(path, "layers", {"steps": 4, "grid": (1, 2)}, threads=1)
    assert "quality/full/0" in second and "quality/full/1" not in second
    second.add("quality/full/1", {"loss": 2.0})
    content = json.loads(path.read_text())
    assert [content["entries"][f"quality/full/{seed}"]["session"] for seed in (0, 1)] == [0, 1]
    assert {"command", "date", "revision", "machine", "versions", "source_digest"} <= set(
        content["sessions"][0]
    )


def test_result_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    frame.ResultFile(path, "layers", {"steps": 4}, threads=1).save()
    with pytest.raises(SystemExit, match="steps was 4"):
        frame.ResultFile(path, "layers", {"steps": 5}, threads=1)


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def halfway(folder: Path) -> None:
        (folder / "first").write_text("half")
        raise RuntimeError("stopped")

    def whole(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "second").write_text("whole")

    target = tmp_path / "made"
    with pytest.raises(RuntimeError):
        frame.made_whole(target, halfway)
    assert not target.exists()
    for make in (whole, halfway):
        assert frame.made_whole(target, make) == target
    assert [path.name for path in target.iterdir()] == ["second"]


def test_parts_are_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    parser = frame.parts_parser("What for.", ("speed", "size"))
    assert parser.parse_args([]).parts == ["speed", "size"]
    assert parser.parse_args(["--parts", "size"]).parts == ["size"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--parts", "size,sped"])
    assert "unknown sped; there are speed, size" in capsys.readouterr().err
