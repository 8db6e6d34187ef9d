"""`benchmarks/layers.py` on the tiny model: what it writes, and relations that hold exactly."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ARMS = ("full", "grass", "grass-drop")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result file: four steps, layers redrawn every second one."""
    path = tmp_path_factory.mktemp("results") / "layers-stories.json"
    done = run("layers.py", *_arguments(path))
    assert done.returncode == 0, done.stderr
    return path


def _arguments(path: Path) -> list[str]:
    small = ["--steps", "4", "--period", "2", "--rounds", "2", "--threads", "1", "--held-out", "8"]
    asked = [
        "--model",
        "stories",
        "--seeds",
        "0",
        "--arms",
        ",".join(ARMS),
        "--parts",
        "quality,timing,memory",
    ]
    return [*asked, *small, "--out", str(path)]


@pytest.fixture(scope="module")
def content(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())


def entry(content: dict[str, Any], arm: str) -> dict[str, Any]:
    return content["entries"][f"quality/{arm}/0"]


def test_every_piece_is_there(content: dict[str, Any]) -> None:
    by_arm = [f"quality/{arm}/0" for arm in ARMS] + [f"memory/{arm}" for arm in ARMS]
    assert set(content["entries"]) == {"untrained/held_out", "timing/steps", *by_arm}
    assert content["sessions"][0]["machine"]["threads"] == 1
    for arm in ARMS:
        assert entry(content, arm)["steps"] == 4
        assert entry(content, arm)["loss"] < content["entries"]["untrained/held_out"]["loss"]


@pytest.mark.parametrize("arm", ARMS)
def test_measured_gradients_and_state_equal_the_arithmetic(content: dict[str, Any], arm: str) -> None:
    found = entry(content, arm)
    assert {name: found["memory"][name] for name in ("gradients", "state")} == found["arithmetic"]


@pytest.mark.parametrize("arm", ARMS)
def test_four_bytes_of_gradient_per_active_parameter(content: dict[str, Any], arm: str) -> None:
    found = entry(content, arm)
    assert found["memory"]["gradients"] == 4 * found["trainable_at_once"]


def test_dropping_state_saves_memory(content: dict[str, Any]) -> None:
    keep, drop = entry(content, "grass"), entry(content, "grass-drop")
    assert len(keep["draws"]) == len(drop["draws"]) == 2
    assert keep["draws"][0] != keep["draws"][1], "the seed must draw other layers the second time"
    assert drop["memory"]["state"] < keep["memory"]["state"] < entry(content, "full")["memory"]["state"]


def test_activations_are_fewer_where_layers_are_frozen(content: dict[str, Any]) -> None:
    full, grass = (entry(content, arm)["memory"] for arm in ("full", "grass"))
    assert 0 < grass["activations"] < full["activations"]
    assert full["probe_activations"] == 0 < grass["probe_activations"] <= full["activations"]


def test_every_arm_is_timed_in_every_round(content: dict[str, Any]) -> None:
    timing = content["entries"]["timing/steps"]
    assert {arm: len(steps) for arm, steps in timing["rounds"].items()} == dict.fromkeys(ARMS, 2)
    assert set(timing["probes"]) == {"grass", "grass-drop"}
    assert all(len(step["active"]) == 2 for step in timing["rounds"]["grass"])


def test_what_is_done_is_not_done_again(out: Path, content: dict[str, Any]) -> None:
    done = run("layers.py", *_arguments(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["entries"] == content["entries"]


def test_page_from_result_files(out: Path, content: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    done = run("results.py", "--results", str(out.parent), "--page", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert content["sessions"][0]["command"] in text
    assert f"{entry(content, 'grass')['loss']:.4f}" in text
    assert "too few seeds" in text
    assert run("results.py", "--check", "--results", str(out.parent), "--page", str(page)).returncode == 0
    page.write_text(text + "by hand")
    assert run("results.py", "--check", "--results", str(out.parent), "--page", str(page)).returncode == 1
