"""Order, layers, annealing samples, time: what a run's other decisions were made from, and their cost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwise.console import duration
from gradwise.errors import GradwiseError
from gradwise.report.influence import Graph
from gradwise.report.page.charts import (
    Axes,
    Bar,
    Grid,
    Line,
    Spot,
    bar_chart,
    both,
    heat_map,
    line_chart,
)
from gradwise.report.page.document import Block, Figure, Folded, Heading, Paragraph
from gradwise.report.page.files import RunFiles
from gradwise.report.page.memory import memory
from gradwise.report.reading import charged, expected_shares

NODES = 24
"""Nodes of a graph that are shown, those with the largest influence on the target."""

DRAWS = 60
"""Draws of layers that are shown singly; of more, means of stretches."""


# ---- the order ---------------------------------------------------------------------------------------------


def order(run: RunFiles) -> list[Block]:
    """Heat maps of the first and the last graph of influence."""
    steps = {event["graph"] for event in run.of("order") if event.get("graph") is not None}
    run.missing += [
        f"plan/graph-{step}.parquet is missing." for step in sorted(steps - run.steps_of("graph"))
    ]
    steps = sorted(steps | run.steps_of("graph"))
    shown = [steps[0], steps[-1]] if len(steps) > 1 else steps
    graphs = [
        graph for step in shown if (graph := run.take(f"plan/graph-{step}.parquet", _read, None)) is not None
    ]
    blocks: list[Block] = []
    # What a weight is a share of depends on how it was measured (`InfluenceGraph.edges`).
    on_target = any(event.get("edges") in ("curvature", "orders") for event in run.of("order"))
    if graphs:
        meaning = (
            "What it is worth for the target's loss to train on one unit (row) before another (column). "
            "Blue: that order is the better one; orange: the other one is."
            if on_target
            else "How training on one unit first (row) changes the loss of another (column). Blue: it helps; "
            "orange: it hurts."
        )
        blocks.append(
            Paragraph(
                f"{meaning} A dot marks an influence that is larger than its noise and that the order "
                "follows. The bars show how much of the target's loss a step on the unit takes off."
            )
        )
    for graph in graphs:
        subgraph = graph.of(graph.largest(NODES))
        grid = _grid(subgraph, on_target)
        cut = (
            f"{len(subgraph.names)} of {len(graph.names)} units, those with the largest influence"
            if len(graph.names) > NODES
            else f"{len(graph.names)} units"
        )
        title = (
            f"Measured before step {graph.step + 1:,}: {cut}, precedences: {int(subgraph.precedes.sum()):,}"
        )
        blocks += [
            Heading(title),
            Figure(both(lambda width, grid=grid: heat_map(grid, width))),
        ]
        if listed := _listed(subgraph):
            blocks.append(Folded("Precedences, the strongest first", "\n".join(listed)))
    return blocks


def _read(path: Any) -> Graph | None:
    try:
        return Graph.read(path)
    except GradwiseError as error:
        if "no arc" in str(error):
            return None
        raise


def _grid(graph: Graph, on_target: bool) -> Grid:
    finite = np.abs(graph.weight[np.isfinite(graph.weight)])
    reach = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    cells = [
        [
            Spot(
                float(graph.weight[row, column]) / reach,
                _arc(graph, row, column, "the target's" if on_target else "its"),
                bool(graph.precedes[row, column]),
            )
            for column in range(len(graph.names))
        ]
        for row in range(len(graph.names))
    ]
    return Grid(
        cells,
        graph.names,
        graph.names,
        f"influence of {len(graph.names)} units on one another",
        side=graph.influence.tolist(),
        side_label="share of the loss",
        bottom="trained on after",
        names_above=True,
    )


def _arc(graph: Graph, row: int, column: int, whose: str) -> str:
    source, target = graph.names[row], graph.names[column]
    if row == column:
        return source
    weight = graph.weight[row, column]
    if not math.isfinite(weight):
        return f"{source} before {target}: not measured"
    bound = ", a precedence" if graph.precedes[row, column] else ""
    return f"{source} before {target}: {weight:+.3g} of {whose} loss{bound}"


def _listed(graph: Graph) -> list[str]:
    rows, columns = np.nonzero(graph.precedes)
    precedences = sorted(zip(rows, columns, strict=True), key=lambda at: -graph.weight[at])
    return [
        f"{graph.names[row]} before {graph.names[column]} ({graph.weight[row, column]:+.3g})"
        for row, column in precedences[:60]
    ]


# ---- layers ------------------------------------------------------------------------------------------------


def layers(run: RunFiles) -> list[Block]:
    """Which layers were active in each draw, over how probable each was; and how often each was."""
    draws = [event for event in run.of("layers") if isinstance(event.get("active"), list)]
    count = max((len(event.get("scores") or event.get("probabilities") or []) for event in draws), default=0)
    # Draws without scores and probabilities show only the layers that were active at some time.
    count = max(count, max((max(event["active"], default=-1) + 1 for event in draws), default=0))
    if not draws or not count:
        return []
    active = np.zeros((len(draws), count))
    for number, event in enumerate(draws):
        active[number, [layer for layer in event["active"] if 0 <= layer < count]] = 1
    strength = _table(draws, "probabilities", count)
    scores = _table(draws, "scores", count)
    size = -(-len(draws) // DRAWS)
    columns = [slice(start, start + size) for start in range(0, len(draws), size)]
    top = np.nanmax(strength) if np.isfinite(strength).any() else 1.0
    rows = range(count - 1, -1, -1)
    cells = [
        [
            Spot(
                # A policy that records no probabilities gets one faint colour.
                _mean(strength[column, layer]) / top if np.isfinite(strength).any() else 0.06,
                _draw_tip(draws, column, layer, active, strength, scores),
                bool(active[column, layer].mean() >= 0.5),
            )
            for column in columns
        ]
        for layer in rows
    ]
    names = [f"layer {layer}" for layer in rows]
    grid = Grid(
        cells,
        names,
        [str(draws[column.start]["step"] + 1) for column in columns],
        "active layers over the run",
        side=[float(active[:, layer].mean()) for layer in rows],
        side_label="share active",
        bottom="first step of the draw",
    )
    caption = "Colour: the probability of being drawn. Dot: active. "
    caption += f"Each column stands for {size} draws." if size > 1 else "A column for each draw."
    return [Figure(both(lambda width: heat_map(grid, width)), caption)]


def _table(draws: Sequence[dict], key: str, count: int) -> np.ndarray:
    """(draws, layers) of a list that events carry; NaN where one has none."""
    table = np.full((len(draws), count), np.nan)
    for number, event in enumerate(draws):
        values = event.get(key) or []
        table[number, : len(values)] = [math.nan if value is None else value for value in values]
    return table


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _draw_tip(
    draws: Sequence[dict],
    column: slice,
    layer: int,
    active: np.ndarray,
    strength: np.ndarray,
    scores: np.ndarray,
) -> str:
    words = [f"layer {layer}, from step {draws[column.start]['step'] + 1:,}"]
    share = active[column, layer].mean()
    words.append("active" if share == 1 else "not active" if share == 0 else f"active in {share:.0%}")
    for name, values in (("probability", strength), ("score", scores)):
        if math.isfinite(value := _mean(values[column, layer])):
            words.append(f"{name} {value:.3g}")
    return ", ".join(words)


# ---- the annealing phase -----------------------------------------------------------------------------------


def spectrum(run: RunFiles) -> list[Block]:
    """The spectrum that samples of the annealing phase were chosen by."""
    steps = run.steps_of("spectrum")
    steps |= {event["step"] for event in run.of("anneal") if "stiff_directions" in event}
    blocks: list[Block] = []
    for step in sorted(steps):
        details = run.details(f"plan/spectrum-{step}.json")
        if details:
            blocks += run.take(
                f"plan/spectrum-{step}.json", lambda _, details=details: _spectrum(details), []
            )
    return blocks


def _spectrum(details: dict[str, Any]) -> list[Block]:
    spectrum, stiff = details["spectrum"], int(details["stiff_directions"])
    values = np.array(spectrum["values"], dtype=np.float64) / spectrum["trace"]
    number = list(range(1, len(values) + 1))
    pool, picks = (np.array(spectrum[name], dtype=np.float64) for name in ("pool_energy", "picks_energy"))
    elbow = (0.5, stiff + 0.5, f"{stiff} stiff directions")
    above = Axes("eigenvector, stiffest first", "share of the curvature", 230, log=True, shade=elbow)
    below = Axes(
        "eigenvector, stiffest first", "share of the gradients' squared length", 230, log=True, shade=elbow
    )
    curve = [Line("", number, values.tolist(), 0)]
    # Floored, since a logarithmic axis has no place for zero.
    energy = [
        Line("pool", number, np.maximum(pool, 1e-7).tolist(), 6),
        Line("picks", number, np.maximum(picks, 1e-7).tolist(), 1),
    ]
    inside = [float(part[:stiff].sum()) for part in (pool, picks)]
    sentence = (
        f"The loss is steep along {stiff} directions, which hold {values[:stiff].sum():.0%} of the curvature "
        f"that {details['validation_samples']:,} validation samples show, and nearly flat along all others. "
        f"Of the picks' gradients {inside[1]:.0%} lies in the steep directions, of the pool's "
        f"{inside[0]:.0%}. The objectives `curvature` and `paper` bound the movement in steep directions; "
        "`alignment` does not by default."
    )
    return [
        Paragraph(sentence),
        Figure(
            both(lambda width: line_chart(curve, above, width)),
            "The spectrum of the curvature; shaded up to its elbow.",
        ),
        Figure(
            both(lambda width: line_chart(energy, below, width)),
            "Where the gradients of the pool and of the picks point.",
            (("pool", "c6"), ("picks", "c1")),
        ),
    ]


# ---- time --------------------------------------------------------------------------------------------------


def time(run: RunFiles) -> list[Block]:
    """Seconds of training and of each decision, against the forecast."""
    total = run.finished.get("seconds") or (run.steps[-1].get("seconds") if run.steps else None)
    if not total or not run.events:
        return []
    spent = charged(run.events)
    training = max(0.0, total - sum(spent.values()))
    # The forecast is in shares of the training time, which is known by now.
    expected = {name: share * training for name, share in expected_shares(run.events).items()}
    seconds_by_part = {"training steps": training, **spent}
    bars = [
        Bar(
            _called(run, name),
            seconds,
            place,
            f"{duration(seconds, 1)} ({seconds / total:.0%})",
            expected.get(name),
        )
        for place, (name, seconds) in enumerate(seconds_by_part.items())
        if seconds > 0
    ]
    words = f"The run is charged {duration(total, 1)}; evaluation, checkpoints and loading are not counted."
    if expected and training > 0:
        took = sum(spent[name] for name in expected) / training
        forecast = sum(expected.values()) / training
        words += f" Deciding was forecast to take {forecast:.0%} of the training time and took {took:.0%}."
    caption = "Dark marks: the forecast." if any(bar.expected is not None for bar in bars) else ""
    blocks: list[Block] = [
        Paragraph(words),
        Figure(both(lambda width: bar_chart(bars, "seconds", width)), caption),
    ]
    if peak := run.finished.get("peak_memory"):
        blocks.append(
            Paragraph(
                f"The peak memory of the process or device was {peak / 2**30:.2f} GiB, with data and "
                "scoring; the command gradwise estimate predicts a recipe's memory."
            )
        )
    return [*blocks, *memory(run)]


def _called(run: RunFiles, name: str) -> str:
    method = run.section(name).get("method")
    return f"{name}: {method}" if method else name
