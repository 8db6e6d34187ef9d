"""D³ as its authors publish it (arXiv 2605.31164): chunks of micro-batches drawn at random and put in order.

Algorithm 1 draws L micro-batches, estimates the influence I(i->j) of each on every other, and trains on them
one after another in the order that the advantages S_ij = I(j->i) - I(i->j) ask for; S_ij > 0 puts i before j.

- `rule: lambda` is the printed estimate, I(i->j) ~ -gamma g_j.g_i + gamma^2/2 lambda_j with
  lambda_j = g_j^T diag(h) g_j and Hutchinson's diagonal h. Its first term is the same in both directions, so
  S_ij = gamma^2/2 (lambda_i - lambda_j): the order is lambda descending, whatever gamma and the sketch are.
- `rule: trial` is Def. 3.1, I(i->j) = l_j(theta - gamma g_i) - l_j(theta), without an estimate: a plain
  gradient step of length gamma, not divided by l_j, no optimizer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import RecipeError
from gradwise.methods.cost_counts import FORWARD, HESSIAN
from gradwise.methods.d3.graph import InfluenceGraph
from gradwise.methods.d3.method import Arrangement
from gradwise.methods.d3.units import BATCH, Units
from gradwise.methods.decision import Order, entries_of
from gradwise.methods.interfaces import InfluenceOrder, Timetable
from gradwise.numerics import linear_order
from gradwise.numerics.streams import stream
from gradwise.settings import default_of
from gradwise.signals import Signals

if TYPE_CHECKING:
    from gradwise.probing import Probe


@dataclass(frozen=True)
class PublishedD3(InfluenceOrder):
    """Chunks of a shuffled epoch, each put in the published order; see `D3.published`."""

    method: Literal["d3_published"] = "d3_published"
    """The published D³: chunks of batches, each put in order by the influence of its batches."""

    rule: Literal["lambda", "trial"] = "lambda"
    """`lambda` is the printed estimate: curvature along a batch's own gradient, highest first. `trial` is the
    definition: losses after a plain gradient step on each batch."""

    chunk: Annotated[int, Field(ge=2)] = 60
    """Number of batches drawn and put in order together (L)."""

    hessian_probes: Annotated[int, Field(ge=1)] = 5
    """Number of random vectors for Hutchinson's diagonal (W), with `rule: lambda`."""

    hessian_samples: Annotated[int, Field(ge=1)] | None = 16
    """Number of the chunk's samples whose loss has that diagonal; null for all. The authors print the total
    loss, but the chunk's whole loss costs 30 times the training, and they report an increase of 89 %."""

    trial_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0
    """Length of the step whose influence is measured, in learning rates (gamma / eta)."""

    target: ClassVar[str] = "pool"  # type: ignore[misc]
    units: ClassVar[str] = "batches"  # type: ignore[misc]
    keep: ClassVar[float] = 0.0  # type: ignore[misc]
    threshold: ClassVar[float] = 0.0  # type: ignore[misc]
    plots: ClassVar[str | None] = "graph"
    grouped: ClassVar[bool] = False  # type: ignore[misc]

    def check(self) -> None:
        changed = [
            name
            for name in ("hessian_probes", "hessian_samples")
            if getattr(self, name) != default_of(PublishedD3, name)
        ]
        if self.rule == "trial" and changed:
            raise RecipeError(
                f"order.{changed[0]} is about rule: lambda, and rule: trial has no Hessian; leave it out."
            )

    @property
    def window(self) -> int:  # type: ignore[override]
        return self.chunk

    @property
    def influence(self) -> "PublishedD3":
        return self

    @property
    def edges_in_run(self) -> str:
        return self.rule

    def groups(self, signals: Signals, *, seed: int) -> NDArray[Any]:
        # Never asked, since units are batches and not pieces of groups.
        raise NotImplementedError

    def units_of(
        self,
        entries: NDArray[np.int64],
        group: NDArray[Any] | None,  # noqa: ARG002
        batch_size: int,
    ) -> Units:
        return Units.of_batches(entries, batch_size)

    def initial_order(
        self,
        signals: Signals,  # noqa: ARG002
        entries: NDArray[np.int64],
        *,
        group: NDArray[Any] | None,  # noqa: ARG002
        batch_size: int,  # noqa: ARG002
        epoch: int,
        seed: int,
    ) -> Order:
        """A shuffled epoch, whose stretches are the chunks drawn at random."""
        # The stream of `order: shuffle`, so that a comparison with it differs in the order within chunks
        # alone.
        mixed = stream(seed, "order of an epoch", epoch).permutation(entries)
        return Order(mixed, why=(f"drawn at random, in order within chunks of {self.chunk} batches",))

    def timetable(self, steps: int, batch_size: int, nodes: int) -> Timetable:  # noqa: ARG002
        """Every chunk is measured, whatever that costs."""
        samples = self.chunk * batch_size
        if self.rule == "lambda":
            measured = min(samples, self.hessian_samples or samples)
            cost = self.hessian_probes * measured * HESSIAN + samples  # a gradient of each batch
        else:
            cost = self.chunk * (batch_size + samples * FORWARD)
        return Timetable(self.chunk, batch_size, cost / samples, restarts=True)

    def measurement_details(self, timetable: Timetable) -> dict[str, Any]:  # noqa: ARG002
        return {"chunk": self.chunk}

    def standalone_cost(self, signals: Signals, entries: NDArray[np.int64], *, seed: int) -> str:  # noqa: ARG002
        return (
            "order: d3_published measures each chunk at the weights that training has reached there; here "
            "all are measured at the present ones."
        )

    def measure(
        self,
        probe: "Probe",
        units: Units,
        *,
        edges: str,  # noqa: ARG002
        rng: np.random.Generator,
        probes: int | None = None,  # noqa: ARG002
    ) -> InfluenceGraph:
        """What the units of a chunk do to one another; `weight` holds -I(i->j) up to what cancels in S, and
        `influence` each lambda, or what a trial step takes off the others' losses on average."""
        batches = [units.of_node(node) for node in units.nodes]
        names = tuple(units.names[node] for node in units.nodes)
        if self.rule == "lambda":
            some = rng.permutation(np.concatenate(batches))[: self.hessian_samples]
            influence = probe.diagonal_curvatures(batches, some, self.hessian_probes, rng)
            # gamma^2/2 lambda_j alone; -gamma g_j.g_i is the same in both directions and cancels in S_ij.
            curvature_terms = (self.trial_rate * probe.rate) ** 2 / 2 * influence
            weight = np.repeat(curvature_terms[:, None], len(names), axis=1)
        else:
            before, after = probe.plain_steps(batches, self.trial_rate * probe.rate)
            # -I(i->j): `weight` counts what a step takes off a loss, the paper counts what it adds.
            weight = before - after
            influence = weight.mean(axis=1)
        # The paper binds no pair by a threshold, so that no noise is estimated.
        noise = np.full(weight.shape, np.nan)
        return InfluenceGraph(names, weight, noise, influence, edges=self.rule, rate=probe.rate)

    def arrange(
        self,
        units: Units,
        graph: InfluenceGraph | None,
        features: NDArray[Any],  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
        *,
        seed: int,
        first: int | None = None,  # noqa: ARG002
    ) -> Arrangement:
        """Whole units in the order that has the least advantage placed the other way."""
        order = np.arange(units.whole)
        if graph is None or graph.names != tuple(units.names[node] for node in units.nodes):
            return Arrangement(order, {}, None)
        if self.rule == "lambda":
            # All S_ij have the sign of lambda_i - lambda_j: descending lambda loses no advantage at all, and
            # no search is needed.
            # On linear regression this rule named the better order of two samples in 4 % of pairs with inputs
            # of unit length and in 29 % with Gaussian ones, the definition in 100 and 74 %
            # (docs/results/d3-printed_rule.md).
            order = np.argsort(-graph.influence, kind="stable")
        else:
            order = linear_order(np.maximum(advantages(graph), 0.0), seed=seed)
        against = lost(graph, order)
        return Arrangement(order, {"advantage_lost": against, "nodes": len(graph)}, -against)

    def missing_note(self, units: Units, graph: InfluenceGraph | None) -> str | None:
        if graph is not None:
            return None
        return f"order: d3_published found {len(units.nodes)} whole batches in a chunk; it stays as drawn."

    def order(
        self,
        signals: Signals,
        entries: NDArray[np.int64] | None = None,
        *,
        target: Signals | None = None,  # noqa: ARG002
        probe: "Probe | None" = None,
        epoch: int = 0,
        seed: int = 0,
    ) -> Order:
        """An epoch in chunks of units of 16 samples, all measured at the present weights."""
        entries = entries_of(signals, entries, self.method, seed=seed, epoch=epoch)
        if probe is None:
            raise RecipeError("order: d3_published asks a model; give a gradwise.Probe.")
        rng = stream(seed, "d3 order", epoch)
        mixed = self.initial_order(
            signals, entries, group=None, batch_size=BATCH, epoch=epoch, seed=seed
        ).indices
        size = max(1, min(BATCH, len(mixed) // 2))
        parts: list[NDArray[np.int64]] = []
        graph = None
        for start in range(0, len(mixed), self.chunk * size):
            units = self.units_of(mixed[start : start + self.chunk * size], None, size)
            if len(units.nodes) > 1:
                graph = self.measure(probe, units, edges=self.rule, rng=rng)
                arrangement = self.arrange(units, graph, np.zeros(0), rng, seed=seed)
                parts.append(units.in_order(arrangement.order))
            else:
                parts.append(units.entries)
        why = (f"in published order within chunks of {self.chunk} batches ({self.rule})",)
        return Order(np.concatenate(parts), why=why, graph=graph)


def advantages(graph: InfluenceGraph) -> NDArray[np.float64]:
    """(n, n) S_ij = I(j->i) - I(i->j); 0 where a step of 100 learning rates left no finite loss."""
    # As in `InfluenceGraph.from_orders`, a trial that diverges says as little about which order is better as
    # none would.
    difference = graph.weight - graph.weight.T
    return np.where(np.isfinite(difference), difference, 0.0)


def lost(graph: InfluenceGraph, order: NDArray[np.int64]) -> float:
    """The paper's cost of an order: the sum of max(0, S_ij) over pairs with j placed before i."""
    later_first = np.tril(advantages(graph)[np.ix_(order, order)], -1)
    return float(np.maximum(later_first, 0.0).sum())
