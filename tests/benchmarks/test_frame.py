"""The benchmarks' common frame: statistics against slow and obvious ways, a result file that was stopped."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

frame: Any = importlib.import_module("frame")


def test_paired_test_equals_scipys() -> None:
    a, b = np.array([1.0, 1.2, 0.9, 1.4, 1.1]), np.array([0.9, 1.15, 0.85, 1.2, 1.05])
    found = frame.compare({"a": dict(enumerate(a)), "b": dict(enumerate(b))}, "a")[0]
    theirs = stats.ttest_rel(b, a)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.verdict == frame.BETTER


def test_only_seeds_that_both_have_are_paired() -> None:
    values = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {1: 2.5, 2: 3.5, 7: 100.0}, "c": {9: 1.0}}
    found = frame.compare(values, "a")
    assert [(one.arm, one.seeds, one.difference) for one in found] == [("b", 2, 0.5)]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.1, -0.11, -0.09], "better"),
        ([0.1, 0.11, 0.09], "worse"),
        ([-0.1, 0.1, 0.02], "no difference seen"),
        ([0.0, 0.0], "no difference seen"),
        ([-5.0], "too few seeds"),
    ],
)
def test_verdicts(differences: list[float], verdict: str) -> None:
    values = {
        "a": dict.fromkeys(range(len(differences)), 1.0),
        "b": dict(enumerate(1 + np.array(differences))),
    }
    assert frame.compare(values, "a")[0].verdict == verdict


def test_correction_can_take_a_verdict_back() -> None:
    reference = dict.fromkeys(range(5), 0.0)
    close = dict(enumerate([-1.0, -2.0, -0.2, -1.5, -0.9]))  # p = 0.02 alone
    noise = {f"n{k}": dict(enumerate([1.0, -1.0, 0.5, -0.4, 0.1 * k])) for k in range(4)}
    assert frame.compare({"r": reference, "c": close}, "r")[0].verdict == frame.BETTER
    assert frame.compare({"r": reference, "c": close, **noise}, "r")[0].verdict == frame.UNSEEN


def test_holm_against_the_definition() -> None:
    p = {"a": 0.02, "b": 0.005, "c": 0.6, "d": 0.02}
    ranked = sorted(p.values())
    adjusted = [max(min(1.0, (4 - j) * ranked[j]) for j in range(k + 1)) for k in range(4)]
    assert sorted(frame.holm(p).values()) == pytest.approx(adjusted)


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
