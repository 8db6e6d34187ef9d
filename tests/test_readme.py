"""Commands and Python of the README and the guide run, and so does every recipe that ships."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from transformers import AutoTokenizer

import gradwise as gw
from gradwise.comparison.arms import presets
from gradwise.run import train
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("gradwise ")]


def test_the_python_lines_run(
    story_model, arguments, speeches, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = blocks("python")
    (training,) = [lines for lines in shown if "trainer.train()" in lines]
    (collecting,) = [lines for lines in shown if "gw.collect(" in lines]
    (optimizing,) = [lines for lines in shown if lines not in (training, collecting)]
    model = story_model()
    names: dict[str, Any] = {
        "model": model,
        "args": arguments(),
        "dataset": speeches,
        "tokenizer": AutoTokenizer.from_pretrained(stories),
    }
    exec(training, names)
    assert names["trainer"].state.global_step == 10
    assert len(names["trainer"].session.plan) == 40
    monkeypatch.chdir(tmp_path)
    exec(collecting, names)
    exec(optimizing, names)
    assert names["signals"].grad.shape == (len(speeches), 1024)


def run(command: str, out: Path, *more: str) -> str:
    """What a documented command prints, with its results in another folder."""
    words = next(line.split() for line in commands() if line.startswith(command))
    words[words.index("--out") + 1] = str(out)
    done = subprocess.run(
        [sys.executable, "-m", *words, *more], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.exhaustive
def test_training_runs(tmp_path: Path) -> None:
    assert "held-out loss after" in run("gradwise train", tmp_path / "out")
    shown = re.search(r"runs/plays/\n(.*?)```", TEXT, re.DOTALL)
    assert shown is not None
    for line in shown[1].splitlines():
        assert (tmp_path / "out" / line.split()[0]).exists(), line


@pytest.mark.exhaustive
def test_collecting_runs(tmp_path: Path) -> None:
    assert "400 of 400 samples measured" in run("gradwise collect", tmp_path / "signals")
    assert (tmp_path / "signals" / "signals.png").stat().st_size > 10_000
    assert len(gw.Signals.open(tmp_path / "signals")) == 400


@pytest.mark.exhaustive
def test_a_coreset_follows_the_training(tmp_path: Path) -> None:
    assert "held-out loss after" in run("gradwise train recipes/plays_grace", tmp_path / "out")
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    refreshed = [event["step"] for event in events if event["event"] == "refresh"]
    assert refreshed == [10, 20]
    assert {path.name for path in (tmp_path / "out" / "plan").glob("picks-*")} == {
        f"picks-{step}.parquet" for step in (0, 10, 20)
    }


@pytest.mark.exhaustive
def test_selecting_runs(tmp_path: Path) -> None:
    assert "80 samples picked by grace" in run("gradwise select", tmp_path / "picks")
    assert len((tmp_path / "picks" / "records.jsonl").read_text().splitlines()) == 80
    assert (tmp_path / "picks" / "pool.png").stat().st_size > 10_000


@pytest.mark.exhaustive
def test_the_annealing_phase_is_selected(tmp_path: Path) -> None:
    assert "held-out loss after" in run("gradwise train recipes/plays_direct", tmp_path / "out")
    command = "gradwise select recipes/plays_direct.yaml --anneal"
    assert "picked by direct" in run(command, tmp_path / "picks")


@pytest.mark.exhaustive
def test_an_order_follows_the_training(tmp_path: Path) -> None:
    shorter = ["--set", "train.max_steps=8", "--set", "order.overhead=2.5"]
    printed = run("gradwise train recipes/plays_d3", tmp_path / "out", *shorter)
    assert f"Drawn: {tmp_path / 'out' / 'graph.png'}" in printed
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "order"] == [0, 4]


@pytest.mark.exhaustive
def test_ordering_runs(tmp_path: Path) -> None:
    printed = run("gradwise order", tmp_path / "ordered")
    count = int(re.search(r"(\d+) samples ordered by d3", printed)[1])  # type: ignore[index]
    table = pyarrow.parquet.read_table(tmp_path / "ordered" / "ordered.parquet")
    assert len(set(table.column("index").to_pylist())) == count == len(table)
    assert (tmp_path / "ordered" / "graph.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.exhaustive
def test_comparing_runs(tmp_path: Path) -> None:
    # By steps: of two steps' time an arm that measures first would have none left.
    shorter = ["--seeds", "1", "--budget", "steps", "--set", "train.max_steps=2"]
    printed = run("gradwise compare", tmp_path / "out", *shorter)
    for arm in ("full", "random", "loss_top", "lisa", "grass"):
        assert arm in printed


def test_every_command_is_run_by_a_test() -> None:
    """Those that are not in this file are in tests/cli."""
    here = {"train", "collect", "select", "order", "compare"}
    assert {line.split()[1] for line in commands()} == here | {"demo", "report", "schema"}


def test_the_first_command_comes_within_25_lines() -> None:
    head = PAGES[0].read_text(encoding="utf-8").splitlines()[:25]
    assert any(line.startswith("gradwise ") for line in head)


def test_methods_listed_are_those_of_the_recipe() -> None:
    page = (ROOT / "docs" / "guide" / "recipe.md").read_text(encoding="utf-8")
    for section, method in _methods():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{section}` | `"))
        assert f"`{method}`" in row, (section, method)


def _methods() -> list[tuple[str, str]]:
    return [
        (section, method)
        for method, sections in presets().items()
        for section in sections
        if section != "adapter"
    ]


def test_the_method_of_the_contributing_guide_selects() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": __name__}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    signals = gw.Signals(4, num_tokens=np.array([5, 2, 9, 3], dtype=np.int32))
    assert names["LengthBottom"](count=2).select(signals).indices.tolist() == [1, 3]


def test_the_yaml_shown_is_a_recipe() -> None:
    recipes = [
        gw.Recipe.from_dict(yaml.safe_load(shown.replace("2e-4", "2.0e-4"))) for shown in blocks("yaml")
    ]
    assert any(each.layers == gw.Grass(active=2) for each in recipes)
    assert any(each.layers == gw.Grass(active=2, state="offload") for each in recipes)
    assert any(each.data is not None and each.data.template == "chat" for each in recipes)
    assert any(each.order == gw.D3(units="domains", edges="curvature") for each in recipes)
    assert any(each.data is not None and each.goal == "target" for each in recipes)


LONG = {
    "seven-billion",
    "anneal-checkpoint",
    "noisy-scrape",
    "plays_direct",
    "plays_grace",
    "chat_lora_mixed",
}
"""Recipes that take ten seconds and are much like others."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.exhaustive] if path.stem in LONG else [])
        for path in sorted((ROOT / "recipes").glob("*.yaml"))
    ],
)
def test_every_recipe_runs(path: Path, stories: Path, tmp_path: Path) -> None:
    """With the model and some of the data that are at hand in place of the hub's, and for three steps."""
    for name, count in (("gsm8k_train", 48), ("gsm8k_held_out", 8)):
        lines = (stories.parent / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]))
    source = {"path": str(tmp_path / "gsm8k_train.jsonl"), "domain": "local", "weight": 1.0}
    changes = [
        f"model={{name: {stories}}}",
        f"data.train={[source, {**source, 'domain': 'other'}]}",
        f"data.validation={tmp_path / 'gsm8k_held_out.jsonl'}",
        "data.max_length=384",
        "data.allow={cut: 1.0, duplicate: 1.0}",
        "data.template=plain",
        "train.max_steps=3",
        "train.batch_size=8",
        "train.bf16=false",
    ]
    data = gw.Recipe.load(path).data
    if data is not None and data.target is not None:
        changes.append(f"data.target={tmp_path / 'gsm8k_train.jsonl'}")
    outcome = train(gw.Recipe.load(path, changes), tmp_path / "out", tell=lambda _: None, progress=False)
    assert outcome.finished and outcome.steps == 3
    assert any("eval_loss" in line for line in outcome.run.metrics())
