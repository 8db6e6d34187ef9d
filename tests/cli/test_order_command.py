"""`gradwise order` says what it did, draws it, and refuses in one sentence."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from gradwise.folders import LOCK, MARKER
from tests.cli.small_project import Project, Start


@pytest.fixture
def domains(project: Project) -> Project:
    """The project's 24 speeches in two domains."""
    lines = (project.folder / "train.jsonl").read_text().splitlines()
    records = [json.loads(line) | {"domain": "ab"[number % 2]} for number, line in enumerate(lines)]
    project.records("train.jsonl", records)
    project.recipe["layers"] = "all"
    project.recipe["train"] |= {"batch_size": 4, "max_steps": 2}
    project.recipe["order"] = {
        "method": "d3",
        "units": "domains",
        "probes": 2,
        "target_samples": 4,
        "overhead": 20.0,
    }
    return project


def test_orders_tells_and_draws(gradwise: Start, domains: Project) -> None:
    command = gradwise("order", domains.path, "--out", "ordered", "--plot", "--no-text")
    assert command.code == 0, command.stderr
    assert "24 samples ordered by d3: ordered/ordered.parquet" in command.stdout
    assert "imbalance: " in command.stdout
    assert command.stdout.splitlines()[-1] == "Drawn: ordered/graph.png"
    folder: Path = domains.folder / "ordered"
    assert {path.name for path in folder.iterdir()} - {LOCK, MARKER} == {
        "ordered.parquet",
        "order.json",
        "graph.parquet",
        "graph.png",
    }
    assert "text" not in pyarrow.parquet.read_schema(folder / "ordered.parquet").names


@pytest.mark.slow
def test_a_run_draws_its_graph_too(gradwise: Start, domains: Project) -> None:
    command = gradwise("train", domains.path, "--out", "run", "--plot")
    assert command.code == 0, command.stderr
    assert command.stdout.splitlines()[-1] == "Drawn: run/graph.png"
    assert (domains.folder / "run" / "graph.png").read_bytes().startswith(b"\x89PNG")


def test_goes_to_a_folder_of_the_recipes_name(gradwise: Start, project: Project) -> None:
    command = gradwise("order", project.path, "--set", "order=easy_first")
    assert command.code == 0, command.stderr
    found = pyarrow.parquet.read_table(project.folder / "orders" / "recipe" / "ordered.parquet")
    assert sorted(found.column("index").to_pylist()) == list(range(24))
    assert "text" in found.column_names


def test_only_influences_can_be_drawn(gradwise: Start, project: Project) -> None:
    for order in ("shuffle", "balanced"):
        command = gradwise("order", project.path, "--plot", "--set", f"order={order}")
        assert command.code == 2
        assert f"--plot draws the influences that d3 orders by, and order is {order}" in command.stderr
