"""What D3 ordered by: who helps whom, early and late in training. From the graph's files alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from gradwise.errors import RecipeError
from gradwise.folders import add_file
from gradwise.report.figures import BLUE, ORANGE, png
from gradwise.stored import damaged

MAX_NODES = 24
"""Nodes that are shown, those whose influence on the target is largest."""

NOT_MEASURED = "#DDDDDD"

NAME_LENGTH = 18
"""Characters of a node's name that are shown."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph as its file has it."""

    step: int
    names: tuple[str, ...]
    """By influence on the target, the largest first."""
    influence: NDArray[np.float64]
    """(n,) share of the target's loss that a step on each node takes off; NaN where not known."""
    weight: NDArray[np.float64]
    """(n, n) of the arc from row to column; NaN where it was not measured."""
    precedes: NDArray[np.bool_]
    """(n, n) whether the order is bound by it."""

    @classmethod
    def read(cls, path: Path) -> "Graph":
        """A file of columns `step`, `source`, `target`, `weight`, `precedes`, `source_influence`; raises
        RecipeError where it holds no arc."""
        with damaged(path, RecipeError):
            return cls._of(path, pyarrow.parquet.read_table(path).to_pydict())

    @classmethod
    def _of(cls, path: Path, table: dict[str, Any]) -> "Graph":
        if not table["source"]:
            raise RecipeError(f"{path} holds no arc; there is nothing to draw of a single node.")
        influence_by_name = dict(zip(table["source"], table["source_influence"], strict=True))
        nodes = dict.fromkeys([*table["source"], *table["target"]])
        names = sorted(nodes, key=lambda name: -influence_by_name.get(name, -np.inf))
        place = {name: number for number, name in enumerate(names)}
        weight = np.full((len(names), len(names)), np.nan)
        precedes = np.zeros(weight.shape, dtype=bool)
        rows, columns = ([place[name] for name in table[end]] for end in ("source", "target"))
        weight[rows, columns] = table["weight"]
        precedes[rows, columns] = table["precedes"]
        influence = np.array([influence_by_name.get(name, np.nan) for name in names], dtype=np.float64)
        return cls(table["step"][0], tuple(names), influence, weight, precedes)

    def of(self, names: tuple[str, ...]) -> "Graph":
        """The same of some nodes, in the order given."""
        at = [self.names.index(name) for name in names]
        square = np.ix_(at, at)
        return Graph(self.step, names, self.influence[at], self.weight[square], self.precedes[square])

    def largest(self, most: int) -> tuple[str, ...]:
        """Names of the nodes whose influence is largest, for better or worse, in the graph's order."""
        rank = np.argsort(-np.nan_to_num(np.abs(self.influence)), kind="stable")
        return tuple(self.names[at] for at in np.sort(rank[:most]))


def draw_graph(source: Path, path: Path) -> Path:
    """Draw the influences of nodes on one another, and below those on the target; returns the picture's path.

    Args:
        source: a graph's file, or a run directory, whose first and last graph are shown.
        path: the picture, PNG.

    Raises:
        RecipeError: when there is no graph, or one of a single node.
    """
    files = graph_files(source)
    if not files:
        raise RecipeError(f"{source} has no graph to draw; only `order: d3` measures influence.")
    add_file(path, graph_picture([Graph.read(file) for file in files]))
    return path


def graph_files(source: Path) -> list[Path]:
    """The file itself, or the first and the last that a run directory has, if any."""
    if source.is_file():
        return [source]
    files = sorted(
        (source / "plan").glob("graph-*.parquet"), key=lambda path: int(path.stem.partition("-")[2])
    )
    return [files[0], files[-1]] if len(files) > 1 else files


def graph_picture(graphs: list[Graph]) -> bytes:
    """The figure as PNG; where all graphs have the same nodes, these stand at the same places in each."""
    from matplotlib.figure import Figure

    total = [len(graph.names) for graph in graphs]
    alike = all(set(graph.names) == set(graphs[0].names) for graph in graphs)
    shown = [graph.of((graphs[0] if alike else graph).largest(MAX_NODES)) for graph in graphs]
    reach = max(_reach(graph.weight) for graph in shown)
    figure = Figure(figsize=(6.2 * len(shown) + 0.8, 7.5), dpi=120, layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False, height_ratios=[3, 1], sharex="col")
    image: Any = None
    for graph, count, (above, below) in zip(shown, total, axes.T, strict=True):
        image = _heat(above, graph, reach)
        cut = f"; {len(graph.names)} of {count} nodes, the most influential" if count > MAX_NODES else ""
        above.set_title(f"before step {graph.step + 1}{cut}", fontsize=10)
        _bars(below, graph)
    axes[0, 0].set_ylabel("source, trained on first")
    axes[1, 0].set_ylabel("influence on the target,\nshare of its loss")
    bar = figure.colorbar(image, ax=list(axes[0]), shrink=0.8)
    bar.set_label("weight of source before target, share of a loss; dot: precedence", fontsize=9)
    return png(figure)


def _heat(axes: Any, graph: Graph, reach: float) -> Any:
    from matplotlib import colormaps

    image = axes.imshow(
        np.ma.masked_invalid(graph.weight),
        cmap=colormaps["RdBu_r"].with_extremes(bad=NOT_MEASURED),
        vmin=-reach,
        vmax=reach,
        aspect="auto",
        interpolation="nearest",
    )
    rows, columns = np.nonzero(graph.precedes)
    axes.scatter(columns, rows, s=12, c="black", linewidths=0)
    axes.set_yticks(range(len(graph.names)), [_short(name) for name in graph.names], fontsize=7)
    axes.tick_params(axis="x", labelbottom=False)
    return image


def _bars(axes: Any, graph: Graph) -> None:
    heights = np.nan_to_num(graph.influence)
    axes.bar(range(len(heights)), heights, color=[BLUE if value >= 0 else ORANGE for value in heights])
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(range(len(heights)), [_short(name) for name in graph.names], fontsize=7, rotation=90)
    axes.set_xlabel("target, trained on after; of the bars the node itself")
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    # A dollar sign would begin a formula.
    cut = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
    return cut.replace("$", r"\$")


def _reach(weight: NDArray[np.float64]) -> float:
    finite = np.abs(weight[np.isfinite(weight)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0
