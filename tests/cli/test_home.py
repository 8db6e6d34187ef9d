"""`--out=~/x`, which no shell expands, is a folder at home: in what is written and in what is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradwise.cli import steps
from tests.cli.small_project import Project


@pytest.mark.parametrize(
    ("step", "options", "said"),
    [
        (steps.collect, {"want": "loss", "plot": True}, "Drawn: {}/"),
        (steps.select, {}, "records: {}/records.jsonl"),
        (steps.order, {}, "by shuffle: {}/ordered.parquet"),
    ],
    ids=["collect", "select", "order"],
)
def test_out_may_begin_with_a_tilde(
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: Callable[..., None],
    options: dict[str, Any],
    said: str,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    project.recipe |= {"select": {"method": "random", "count": 16}}
    step(project.path, Path("~/out"), **options)
    output = capsys.readouterr().out
    assert said.format(home / "out") in output
    assert "~" not in output and not (tmp_path / "~").exists()
