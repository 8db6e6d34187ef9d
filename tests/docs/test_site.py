"""The documentation: its examples run, its lists are those of the code, and the site builds."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

import gradwise as gw
from gradwise.run import train
from tests.conftest import ROOT

DOCS = ROOT / "docs"
SECTIONS = re.split(r"^## ", (DOCS / "trainers.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.splitlines()[0])
def test_each_way_to_train_runs(
    section: str, story_model: Callable[[], Any], tokenizer: Any, arguments: Any, speeches: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "import lightning" in section:
        pytest.importorskip("lightning")
    if "import trl" in section:
        pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    rows = [{key: row[key] for key in ("input_ids", "labels")} for row in speeches.select(range(16))]
    for shown in blocks(section, "python"):
        model = story_model()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        exec(shown, {"model": model, "tokenizer": tokenizer, "args": arguments(max_steps=6), "dataset": rows})
        changed = [not old.equal(new) for old, new in zip(before, model.parameters(), strict=True)]
        assert any(changed), "it trains nothing"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_first_steps_run(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As a newcomer would take them, with a smaller model and a shorter comparison."""
    text = (DOCS / "start.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    make, divide, use = blocks(text, "python")
    exec(make)
    exec(divide)
    (recipe,) = blocks(text, "yaml")
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}</s>{% endfor %}"
    shown = yaml.safe_load(recipe.replace("2e-4", "2.0e-4"))
    shown["model"]["name"] = str(stories)
    shown["data"]["chat_template"] = template
    Path("first.yaml").write_text(yaml.safe_dump(shown))
    commands = re.findall(r"^\$ gradwise (.+)$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["estimate", "train", "compare"]
    printed = ""
    for command in commands:
        words = [*command.split(), *(SHORTER if "compare" in command else [])]
        done = subprocess.run(
            [sys.executable, "-m", "gradwise", *words], capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    exec(use)
    assert (tmp_path / "pays").is_dir()
    assert "held-out loss" in printed


def test_the_settings_are_those_of_the_schema() -> None:
    spec = importlib.util.spec_from_file_location("settings_page", DOCS / "settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/settings.py"


SHORTER = ["--set", "train.max_steps=2"]
RECIPES = {
    "grace": {"select": {"method": "grace", "fraction": 0.2, "candidates": "all", "refresh_every": 3}},
    "target": {"select": {"method": "grace", "fraction": 0.2, "target": "validation"}},
    "direct": {"anneal": {"method": "direct", "last": 0.5}, "train": {"schedule": "wsd"}},
    "d3": {"order": {"method": "d3", "units": "batches", "edges": "first_order"}},
    "grass": {"layers": {"method": "grass", "active": 2}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_column_of_a_run_is_named(name: str, stories: Path, tmp_path: Path) -> None:
    for part, count in (("train", 32), ("held_out", 16)):
        lines = (stories.parent / f"plays_{part}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{part}.jsonl").write_text("".join(lines[:count]))
    settings: dict[str, Any] = {
        "model": {"name": str(stories)},
        "data": {
            "train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "held_out.jsonl"),
            "max_length": 64, "allow": {"cut": 1.0},
        },
        **RECIPES[name],
    }  # fmt: skip
    settings["train"] = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-3, **settings.get("train", {})}
    outcome = train(gw.Recipe.from_dict(settings), tmp_path / "out", tell=lambda _: None, progress=False)
    page = (DOCS / "reference" / "run-directory.md").read_text(encoding="utf-8")
    metrics, events, picks = (_named(part) for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:4])
    assert {key for line in outcome.run.metrics() for key in line} <= metrics
    written = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert {event["event"] for event in written} | {key for event in written for key in event} <= events
    for file in (tmp_path / "out" / "plan").glob("picks-*.parquet"):
        assert set(pyarrow.parquet.read_schema(file).names) <= picks


def _named(section: str) -> set[str]:
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} | {"event", "step", "seconds"}


@pytest.mark.parametrize("name", ["Grace", "D3", "Grass", "Direct"])
def test_help_is_readable(name: str) -> None:
    text = getattr(gw, name).__doc__
    assert text and not text.startswith(f"{name}(")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "site" / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "least_anchors" not in settings and "trade_off" in settings
