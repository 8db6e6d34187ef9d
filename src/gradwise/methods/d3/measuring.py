"""What D3 measures of its nodes: a few samples of each, at a model's present weights or from signals."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import SignalError
from gradwise.methods.d3.graph import InfluenceGraph
from gradwise.methods.d3.units import Units
from gradwise.numerics import knn_graph
from gradwise.probing.results import GradientProducts
from gradwise.signals import Signals

if TYPE_CHECKING:
    from gradwise.methods.d3.method import D3
    from gradwise.probing import Probe

PARTS = 4
"""Number of splits of a node's probe samples; their spread estimates the noise."""


def measure_graph(
    d3: "D3", probe: "Probe", units: Units, *, edges: str, rng: np.random.Generator, probes: int | None
) -> InfluenceGraph | None:
    """As `D3.measure`."""
    if edges == "orders":
        return _order_graph(d3, probe, units, rng)
    most = probes or d3.probes
    mixed = [rng.permutation(units.of_node(node)) for node in units.nodes]
    drawn, names = _with_samples([probe.labelled(samples, most) for samples in mixed], units)
    if len(names) < 2:
        return None
    target = _target(d3, probe, units, drawn, rng)
    if edges == "lookahead":
        return replace(_lookahead_graph(d3, probe, names, drawn, target), rate=probe.rate)
    parts = min(PARTS, min(len(samples) for samples in drawn))
    split = [samples[part::parts] for samples in drawn for part in range(parts)]
    products = probe.bends(split, target, hessian=edges == "curvature")
    graph = InfluenceGraph.from_products(names, np.repeat(np.arange(len(names)), parts), products, edges)
    return replace(graph, rate=probe.rate)


def from_signals(signals: Signals, units: Units, target: Signals | None) -> InfluenceGraph:
    """Influences to first order, from gradients that were measured; a step is of length one."""
    grad, loss = (signals.require(name, "d3 without a probe") for name in ("grad", "loss"))
    nodes = units.nodes
    rows = [units.of_node(node) for node in nodes]
    parts = min(PARTS, min(len(samples) for samples in rows))
    split = [samples[part::parts] for samples in rows for part in range(parts)]
    gradients = np.array([np.nanmean(grad[samples].astype(np.float64), axis=0) for samples in split])
    aim = signals if target is None else target
    aim_rows = units.entries if target is None else np.arange(len(target))
    way = np.nanmean(aim.require("grad", "d3's target")[aim_rows].astype(np.float64), axis=0)
    products = GradientProducts(
        along=None,
        gains=gradients @ gradients.T,
        towards=gradients @ way,
        losses=np.array([float(np.nanmean(loss[samples])) for samples in split]),
        target_loss=float(np.nanmean(aim.require("loss", "d3's target")[aim_rows])),
    )
    names = tuple(units.names[node] for node in nodes)
    return InfluenceGraph.from_products(
        names, np.repeat(np.arange(len(names)), parts), products, "first_order"
    )


def _with_samples(drawn: list[Any], units: Units) -> tuple[list[Any], tuple[str, ...]]:
    """What was drawn of the nodes that have samples with label tokens, and the names of these nodes."""
    # Nothing is known of the other nodes: their samples change no weight.
    kept = [number for number, samples in enumerate(drawn) if len(samples)]
    nodes = units.nodes[kept]
    return [drawn[number] for number in kept], tuple(units.names[node] for node in nodes)


def _target(
    d3: "D3", probe: "Probe", units: Units, drawn: list[Any], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Samples of the target; of the entries those that no step is tried on, as long as there are some."""
    candidates = probe.target
    if not len(candidates):
        others = np.setdiff1d(units.entries, np.concatenate(drawn)) if drawn else units.entries
        candidates = others if len(others) >= d3.target_samples else units.entries
    target = probe.labelled(rng.permutation(candidates), d3.target_samples)
    if not len(target):
        raise SignalError(
            "order: d3 measures the loss of its target, whose samples have no label tokens; give others, or "
            "order.target: pool."
        )
    return target


def _order_graph(d3: "D3", probe: "Probe", units: Units, rng: np.random.Generator) -> InfluenceGraph | None:
    target = _target(d3, probe, units, [], rng)
    mixed = []
    for node in units.nodes:
        entries = units.of_node(node)
        others = np.setdiff1d(entries, target)
        mixed.append(rng.permutation(others if len(others) else entries))
    # A prerequisite is a third-order effect: one step shows nothing, twenty always did (docs/log.md).
    most = d3.trial_steps * units.size
    drawn, names = _with_samples([probe.labelled(samples, most) for samples in mixed], units)
    if len(names) < 2:
        return None
    size = units.size
    steps = [[samples[n : n + size] for n in range(0, len(samples), size)] for samples in drawn]
    orders = probe.orders(steps, target)
    graph = InfluenceGraph.from_orders(names, orders, np.array([len(batches) for batches in steps]))
    return replace(graph, rate=probe.rate)


def _lookahead_graph(
    d3: "D3", probe: "Probe", names: tuple[str, ...], drawn: list[Any], target: NDArray[np.int64]
) -> InfluenceGraph:
    owner = np.repeat(np.arange(len(names)), [len(samples) for samples in drawn])
    on = np.concatenate([*drawn, target])
    only = np.ones((len(names), len(on)), dtype=bool)
    if len(names) > d3.neighbours + 1:
        near = knn_graph(probe.sketches(drawn), d3.neighbours).ids
        for node, ids in enumerate(near):
            only[node, : len(owner)] = np.isin(owner, [node, *ids])
    losses = probe.lookahead(drawn, on, only)
    owner = np.concatenate([owner, np.full(len(target), -1)])
    return InfluenceGraph.from_lookahead(names, owner, losses, np.arange(len(on) - len(target), len(on)))
