"""What measuring influence costs, and how often a run can afford it. Reads no clock."""

import math
from typing import TYPE_CHECKING

from gradwise.methods.cost_counts import FIRST_ORDER, FORWARD, HESSIAN, STEP
from gradwise.methods.interfaces import Timetable

if TYPE_CHECKING:
    from gradwise.methods.d3.method import D3

MIN_PROBES = 2
"""Probe samples of a node below which the noise cannot be estimated."""


def timetable(d3: "D3", steps: int, batch_size: int, nodes: int) -> Timetable:
    """How often influence is measured so that it costs at most `overhead` of the training, evenly spread.

    Args:
        d3: the settings.
        steps: optimizer steps of the run.
        batch_size: samples of a step.
        nodes: whose influence on one another is measured.
    """
    edges = d3.edges_in_run
    allowed = d3.overhead * steps * batch_size
    # A unit that is a node of its own has no more samples than its size.
    most = d3.probes if d3.grouped else min(d3.probes, d3.size_of(batch_size))
    fewest = min(MIN_PROBES, most)
    # The most probes for which one measurement fits; what is left decides how often it is repeated.
    squares = 0
    for probes in range(most, fewest - 1, -1):
        # Before its first step Adam has no second moments; they are taken from the gradients of all probes.
        squares = 0 if edges in ("lookahead", "orders") else nodes * probes * FIRST_ORDER
        left = allowed - squares
        if (cost := _cost(d3, nodes, probes, batch_size)) <= left:
            every = max(_commit_steps(d3, batch_size), math.ceil(steps / int(left / cost)))
            times = math.ceil(steps / every)
            return Timetable(every, probes, (times * cost + squares) / (steps * batch_size))
    fewer = "nodes or order.trial_steps" if edges == "orders" else "nodes"
    needed = _cost(d3, nodes, fewest, batch_size) + squares
    problem = (
        f"order: d3 would need {needed:,.0f} forward/backward passes of a sample to measure the influence of "
        f"{nodes} nodes once, and order.overhead allows {allowed:,.0f} in this run; the order is only "
        f"balanced. Give more overhead, or fewer {fewer}."
    )
    return Timetable(0, 0, problem=problem)


def _commit_steps(d3: "D3", batch_size: int) -> int:
    """Steps that the units committed at a time last, where every unit is its own node."""
    if d3.grouped:
        return 1
    return max(1, d3.commit * d3.size_of(batch_size) // batch_size)


def _cost(d3: "D3", nodes: int, probes: int, batch_size: int) -> float:
    """Cost of one measurement, in forward/backward passes of one sample."""
    edges, target = d3.edges_in_run, d3.target_samples
    if edges == "orders":
        trials = nodes**2 * d3.steps * (d3.size_of(batch_size) + STEP)
        return trials + (nodes**2 + 1) * target * FORWARD
    if edges != "lookahead":
        return nodes * probes * (HESSIAN if edges == "curvature" else FIRST_ORDER) + target
    near = min(nodes, d3.neighbours + 1)
    sketches = nodes * probes if nodes > near else 0
    evaluated = (nodes * probes + target) + nodes * (near * probes + target)
    return sketches + nodes * (probes + STEP) + evaluated * FORWARD
