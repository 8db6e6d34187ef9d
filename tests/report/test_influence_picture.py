"""The picture of who helps whom, from the files of a graph alone."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest

import gradwise as gw
from gradwise.atomic import write_parquet
from gradwise.methods.d3 import InfluenceGraph
from gradwise.report.influence import MAX_NODES, Graph, draw_graph, graph_files, graph_picture


def graph(n: int = 5, step: int = 0, seed: int = 0, sparse: bool = False) -> InfluenceGraph:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((n, n))
    if sparse:
        weight[0, 1:] = np.nan  # nothing is known of what the first does to others
    names = tuple(f"node {number}" for number in range(n))
    return InfluenceGraph(names, weight, np.full((n, n), 0.3), rng.standard_normal(n), "lookahead", step)


def written(path: Path, made: InfluenceGraph, threshold: float = 2.0) -> Path:
    write_parquet(path, pyarrow.table(made.columns(threshold)))
    return path


def test_reads_what_was_written(tmp_path: Path) -> None:
    made = graph(step=7)
    read = Graph.read(written(tmp_path / "graph.parquet", made))
    order = np.argsort(-made.influence)
    assert read.names == tuple(made.names[node] for node in order) and read.step == 7
    np.testing.assert_array_equal(read.influence, made.influence[order])
    own = ~np.eye(5, dtype=bool)
    square = np.ix_(order, order)
    np.testing.assert_array_equal(read.weight[own], made.weight[square][own])
    np.testing.assert_array_equal(read.precedes, made.precedences(2.0)[square])
    assert read.precedes.any() and np.isnan(np.diag(read.weight)).all()


def test_a_node_without_outgoing_arcs(tmp_path: Path) -> None:
    read = Graph.read(written(tmp_path / "graph.parquet", graph(sparse=True)))
    assert read.names[-1] == "node 0" and np.isnan(read.influence[-1])
    assert graph_picture([read]).startswith(b"\x89PNG")


def test_the_first_and_the_last_of_a_run_are_shown(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    for step in (100, 0, 20):
        written(tmp_path / "plan" / f"graph-{step}.parquet", graph(step=step, seed=step))
    files = graph_files(tmp_path)
    assert [path.name for path in files] == ["graph-0.parquet", "graph-100.parquet"]
    drawn = draw_graph(tmp_path, tmp_path / "graph.png").read_bytes()
    first, last = (Graph.read(path) for path in files)
    assert drawn == graph_picture([first, last]) != graph_picture([first, first])
    assert graph_files(files[0]) == [files[0]]


def test_of_many_nodes_the_most_influential_are_shown(tmp_path: Path) -> None:
    made = graph(MAX_NODES + 6)
    read = Graph.read(written(tmp_path / "graph.parquet", made, threshold=100.0))
    largest = read.largest(MAX_NODES)
    least = np.argsort(np.abs(made.influence))[:6]
    assert set(made.names) - set(largest) == {made.names[node] for node in least}
    assert list(largest) == [name for name in read.names if name in largest]
    shown = read.of(largest)
    assert shown.weight[2, 5] == read.weight[read.names.index(largest[2]), read.names.index(largest[5])]
    assert graph_picture([read]) != graph_picture([shown])  # the title says what is missing


def test_precedences_show(tmp_path: Path) -> None:
    read = Graph.read(written(tmp_path / "graph.parquet", graph()))
    free = Graph(read.step, read.names, read.influence, read.weight, np.zeros_like(read.precedes))
    assert graph_picture([read]) == graph_picture([read]) != graph_picture([free])


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(gw.RecipeError, match="only `order: d3` measures influence"):
        draw_graph(tmp_path, tmp_path / "graph.png")
    single = written(tmp_path / "graph.parquet", graph(1))
    with pytest.raises(gw.RecipeError, match="nothing to draw of a single node"):
        draw_graph(single, tmp_path / "graph.png")
