"""The layer benchmark on the tiny model: what it writes, and relations that hold exactly."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.layers import page, run

ARMS = ("full", "grass", "grass-drop")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


def in_this_process(function: str, *arguments: Any, environment: Any = None) -> Any:
    """As `in_own_process`, without the seconds that a process takes to import everything."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*json.loads(json.dumps(arguments)))


def benchmark(path: Path) -> dict[str, Any]:
    small = "--steps 4 --period 2 --rounds 2 --threads 1 --held-out 8 --seeds 0 --model stories"
    arguments = ["--arms", ",".join(ARMS), "--parts", "quality,timing", "--out", str(path)]
    options = run.SCRIPT.parse_args([*small.split(), *arguments])
    run.Benchmark(options).run()
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A result file: four steps, layers drawn again every second one."""
    path = tmp_path_factory.mktemp("results") / "layers-stories.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "in_own_process", in_this_process)
        first = benchmark(path)
        assert benchmark(path)["entries"] == first["entries"], "finished measurements are not repeated"
    return first


def entry(content: dict[str, Any], arm: str) -> dict[str, Any]:
    return content["entries"][f"quality/{arm}/0"]


@pytest.mark.exhaustive
def test_every_measurement_is_there(content: dict[str, Any]) -> None:
    by_arm = [f"quality/{arm}/0" for arm in ARMS]
    assert set(content["entries"]) == {"untrained/held_out", "timing/steps", *by_arm}
    for arm in ARMS:
        assert entry(content, arm)["steps"] == 4
        assert entry(content, arm)["loss"] < content["entries"]["untrained/held_out"]["loss"]
    text = "\n".join(page.page(content).sections)
    assert f"{entry(content, 'grass')['loss']:.4f}" in text and "too few seeds" in text


@pytest.mark.parametrize("arm", ARMS)
def test_measured_gradients_and_state_equal_the_arithmetic(content: dict[str, Any], arm: str) -> None:
    one = entry(content, arm)
    assert {name: one["memory"][name] for name in ("gradients", "state")} == one["arithmetic"]
    assert one["memory"]["gradients"] == 4 * one["trainable_at_once"]


def test_frozen_layers_and_dropped_state_save_memory(content: dict[str, Any]) -> None:
    full, keep, drop = (entry(content, arm) for arm in ARMS)
    assert len(keep["draws"]) == len(drop["draws"]) == 2
    assert keep["draws"][0] != keep["draws"][1], "the seed must draw other layers the second time"
    assert drop["memory"]["state"] < keep["memory"]["state"] < full["memory"]["state"]
    assert 0 < keep["memory"]["activations"] < full["memory"]["activations"]
    probe = keep["memory"]["probe_activations"]
    assert full["memory"]["probe_activations"] == 0 < probe <= full["memory"]["activations"]


def test_every_arm_is_timed_in_every_round(content: dict[str, Any]) -> None:
    timing = content["entries"]["timing/steps"]
    assert {arm: len(steps) for arm, steps in timing["rounds"].items()} == dict.fromkeys(ARMS, 2)
    assert set(timing["probes"]) == {"grass", "grass-drop"}
    assert all(len(step["active"]) == 2 for step in timing["rounds"]["grass"])
