"""D3: an order constrained by the influence of units of data on one another."""

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.cluster.vq import kmeans2

from gradwise.errors import RecipeError
from gradwise.methods.balance import balanced, directions, features_of
from gradwise.methods.d3.costs import timetable
from gradwise.methods.d3.graph import InfluenceGraph
from gradwise.methods.d3.measuring import from_signals, measure_graph
from gradwise.methods.d3.schedule import Windows
from gradwise.methods.d3.units import BATCH, UNITS_IN_BATCH, Units
from gradwise.methods.decision import Order, entries_of
from gradwise.methods.interfaces import InfluenceOrder, Timetable
from gradwise.numerics import interleaved
from gradwise.numerics.balance import imbalance
from gradwise.numerics.streams import stream
from gradwise.settings import default_of
from gradwise.signals import Signals

if TYPE_CHECKING:
    from gradwise.methods.d3.published import PublishedD3
    from gradwise.probing import Probe

CLUSTERS = 8
"""Clusters of similar gradients, if no number is given."""

MOST_BALANCED = 2**27
"""Groups times units of an epoch, each a number that the balance of groups is kept by: 1 GiB."""

MANY = 200
"""Nodes above which the cost is stated, which grows with their square."""


class Arrangement(NamedTuple):
    """Units in order."""

    order: NDArray[np.int64]
    """(whole units,)"""

    details: dict[str, Any]
    """Plain values about it."""

    value: float | None
    """Value of the objective."""


@dataclass(frozen=True)
class D3(InfluenceOrder):
    """Units of samples, ordered by their measured influence on one another.

    Every prefix stays balanced. Within a window D³ takes the best order that satisfies the precedences, which
    are influences above the noise (arXiv 2605.31164; edges, windows and balance are ours).
    """

    method: Literal["d3"] = "d3"
    """By the influence of units on one another."""

    units: Literal["domains", "clusters", "batches", "samples"] | Annotated[int, Field(ge=2)] = "domains"
    """Units that are put in order by their influence: pieces of a domain, pieces of a cluster of similar
    gradients (a number sets the number of clusters), batches as they come, or single samples."""

    size: Annotated[int, Field(ge=1)] | None = None
    """Samples of a unit. If unset, a quarter of the run's batch size, so that batches hold several domains or
    clusters; all of it for `batches` and for `edges: orders`, whose trial steps are whole batches; 1 for
    `samples`."""

    edges: Literal["lookahead", "curvature", "first_order", "orders"] | None = None
    """How influence is measured: by trial steps (`lookahead`), by Hessian-vector products (`curvature`), by
    gradients alone (`first_order`), or by trying both orders of every two nodes, `trial_steps` on one and
    then on the other (`orders`). Only trying both shows an effect that takes many steps; it costs most. If
    unset, `curvature` where a model can be asked, as in a run, otherwise `first_order` from the signals."""

    trial_steps: Annotated[int, Field(ge=1)] = 20
    """Trial steps per node for `edges: orders`; a measurement takes nodes² times this number."""

    target: Literal["pool", "validation"] = "pool"
    """Samples whose loss the order should lower: `pool` (those that are ordered) or `validation`."""

    window: Annotated[int, Field(ge=2)] | None = 8
    """Number of units that are ordered together; null for all of an epoch."""

    commit: Annotated[int, Field(ge=1)] = 4
    """Number of units of a window that are committed before the next ones are considered."""

    balance: Annotated[float, Field(ge=0)] | None = 1.0
    """Largest imbalance of any prefix, 1 being that of a random order at its middle; null for no limit."""

    threshold: Annotated[float, Field(ge=0)] = 2.0
    """Standard errors by which one influence must exceed the opposite one to become a precedence."""

    early: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of placing units that help the target early, relative to the worth of the order itself. The
    authors put the most influential first; by curvature, what helps the target most is better placed last."""

    probes: Annotated[int, Field(ge=1)] = 4
    """Number of samples of each node that are measured."""

    target_samples: Annotated[int, Field(ge=1)] = 16
    """Number of samples of the target that are measured."""

    neighbours: Annotated[int, Field(ge=1)] = 8
    """Number of nodes whose losses are evaluated after a trial step: the nearest by their gradients."""

    overhead: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Largest cost of measuring, as a fraction of the training's forward/backward passes. It decides how
    often influence is measured."""

    keep: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Weight of earlier influences when new ones are measured."""

    def check(self) -> None:
        for name, used in _USED_BY.items():
            edges = self.edges or "curvature"
            if edges not in used and getattr(self, name) != default_of(D3, name):
                raise RecipeError(
                    f"order.{name} is about edges: {' or '.join(used)}, and these are {edges}; leave it out."
                )
        if self.window is not None and self.commit > self.window:
            raise RecipeError(f"order.commit is {self.commit}, more than the window of {self.window}.")
        if self.window is None and self.commit != default_of(D3, "commit"):
            raise RecipeError(
                f"order.commit is {self.commit}, about the units of a window, and order.window: null commits "
                "all of an epoch; leave one of them out."
            )
        if not self.grouped and self.keep != default_of(D3, "keep"):
            raise RecipeError(
                f"order.keep is about groups that are measured again, and order.units: {self.units} are "
                "other units each time; leave it out."
            )
        if self.units == "samples" and self.size not in (None, 1):
            raise RecipeError(f"order.units: samples are units of one; found size {self.size}.")

    @staticmethod
    def published(**changes: Any) -> "PublishedD3":
        """The paper's Algorithm 1: chunks of 60 batches drawn at random, in the order of the printed
        estimate, lambda descending; `rule="trial"` takes Def. 3.1 literally, with gamma = 100 eta.

        Not published, and therefore ours: lambda is of whole gradients, the Hessian that of 16 samples.

        Args:
            changes: settings of `gradwise.methods.d3.PublishedD3` that differ.

        >>> D3.published(chunk=20).method
        'd3_published'
        """
        from gradwise.methods.d3.published import PublishedD3

        return PublishedD3(**changes)

    @property
    def _kinds(self) -> str:
        """What units are made from, for messages; a number stands for clusters."""
        return self.units if isinstance(self.units, str) else "clusters"

    @property
    def grouped(self) -> bool:
        """Whether units are pieces of groups that last."""
        return self.units not in ("batches", "samples")

    @property
    def needs(self) -> frozenset[str]:
        if self.units == "domains":
            return frozenset({"domain", "words"})
        return frozenset({"grad", "words"} if self.grouped else {"words"})

    @property
    def influence(self) -> "D3":
        return self

    @property
    def edges_in_run(self) -> str:
        return self.edges or "curvature"

    def for_batches(self, batch_size: int, *, packed: bool) -> "D3":
        """With units that follow from the batch size, where none is given."""
        if self.size is not None or self.units == "samples":
            return self
        if packed:
            raise RecipeError(
                "order: d3 puts batches in order, and with packing a batch has no fixed number of samples; "
                "give order.size, or packing: false."
            )
        return replace(self, size=self.size_of(batch_size))

    plots: ClassVar[str | None] = "graph"

    collected: ClassVar[frozenset[str]] = frozenset({"grad", "loss"})
    """Signals that `order` uses without a probe."""

    def order(
        self,
        signals: Signals,
        entries: NDArray[np.int64] | None = None,
        *,
        target: Signals | None = None,
        probe: "Probe | None" = None,
        epoch: int = 0,
        seed: int = 0,
    ) -> Order:
        """An order over an epoch, by influences measured now.

        Args:
            signals: of the pool; gradients, where no probe is given.
            entries: (n,) positions in the pool, one for each time a sample is to be seen. If unset, each
                once.
            target: signals of the samples whose loss is to fall. If unset, the entries' own. With a probe,
                give it the target instead.
            probe: a `gradwise.Probe` of the model; see `edges`.
            epoch, seed: decide what is left to chance.

        Raises:
            SignalError: when a needed signal is missing.
            RecipeError: when there is a single group, or edges need a probe and none is given.

        Example:
            order = D3(units=8).order(signals)
            order.indices, order.graph.weight, order.details["imbalance"]
        """
        entries = entries_of(signals, entries, self.method, seed=seed, epoch=epoch)
        rng = stream(seed, "d3 order", epoch)
        if probe is not None and not hasattr(probe, "bends"):
            raise RecipeError(f"order: d3 asks a gradwise.Probe; found {type(probe).__name__}.")
        edges = self.edges or ("first_order" if probe is None else "curvature")
        if edges != "first_order" and probe is None:
            raise RecipeError(f"order.edges: {edges} asks a model; give a gradwise.Probe.")
        group = self.groups(signals, seed=seed) if self.grouped else None
        features = features_of(signals)
        groups = 1 if group is None else len(np.unique(group[entries]))
        room = len(entries) // (2 * groups)  # for two units of each, on average
        size = self.size or max(1, min(self.size_of(BATCH), room))
        # Balance gained 0.030 to 0.037 nats and is free (docs/log.md); influence only rearranges the balanced
        # order.
        units = Units.of(balanced(entries, features[entries], rng), group, size)
        if group is not None:
            self._check_several(len(units.names))
            self.check_groups(len(units.names), units.whole)
        graph = None
        if len(units.nodes) > 1:
            graph = (
                from_signals(signals, units, target)
                if probe is None
                else self.measure(probe, units, edges=edges, rng=rng)
            )
        if warning := self.missing_note(units, graph):
            warnings.warn(warning, stacklevel=2)
        arrangement = self.arrange(units, graph, features, rng, seed=seed)
        place = np.repeat(arrangement.order, units.size)
        rest = len(units.entries) - len(place)
        return Order(
            units.in_order(arrangement.order),
            why=(f"by the influence of {self.units} ({graph.edges})" if graph else "balanced by d3",),
            objective=arrangement.value,
            units=np.concatenate([place, np.full(rest, units.whole)]),
            graph=graph,
            details=arrangement.details,
        )

    # ---- in a run ------------------------------------------------------------------------------------------

    def initial_order(
        self,
        signals: Signals,
        entries: NDArray[np.int64],
        *,
        group: NDArray[Any] | None,
        batch_size: int,
        epoch: int,
        seed: int,
    ) -> Order:
        """The balanced order of an epoch, before influence is measured."""
        features, rng = features_of(signals), stream(seed, "d3 order", epoch)
        units = self.units_of(balanced(entries, features[entries], rng), group, batch_size)
        arrangement = self.arrange(units, None, features, rng, seed=seed)
        why = (f"by d3 over {self.units}",)
        return Order(units.in_order(arrangement.order), why=why, details=arrangement.details)

    def timetable(self, steps: int, batch_size: int, nodes: int) -> Timetable:
        return timetable(self, steps, batch_size, nodes)

    def measurement_details(self, timetable: Timetable) -> dict[str, Any]:
        return {"trial_steps": self.steps} if self.edges_in_run == "orders" else {"probes": timetable.probes}

    def standalone_cost(self, signals: Signals, entries: NDArray[np.int64], *, seed: int) -> str | None:
        nodes = len(entries) // (self.size or 1)
        if self.edges == "orders":
            nodes = len(np.unique(self.groups(signals, seed=seed)[entries])) if self.grouped else nodes
            return (
                f"order.edges: orders tries both orders of {nodes:,} nodes, {nodes**2 * self.steps:,} trial "
                "steps in total; fewer trial_steps or nodes take less."
            )
        if self.grouped or nodes <= MANY:
            return None
        return (
            f"order.units: {self.units} makes {nodes:,} nodes, and all their influences on one another are "
            "measured here, at a cost that grows with their square; domains or clusters cost far less."
        )

    def groups(self, signals: Signals, *, seed: int) -> NDArray[Any]:
        """(N,) the group of every sample; raises RecipeError where all are of one."""
        group = signals.require("domain", "d3") if self.units == "domains" else self._clusters(signals, seed)
        self._check_several(len(np.unique(group)))
        return group

    def _clusters(self, signals: Signals, seed: int) -> NDArray[Any]:
        """(N,) by gradients without their lengths."""
        rows = directions(signals.require("grad", "d3")).astype(np.float64)
        count = self.units if isinstance(self.units, int) else CLUSTERS
        rng = stream(seed, "d3 clusters")
        return kmeans2(rows, min(count, len(rows)), minit="++", rng=rng, missing="warn")[1]

    def check_in_run(self, batch_size: int) -> None:
        size = self.size_of(batch_size)
        if not self.grouped and self.window is not None and self.window * size <= batch_size:
            raise RecipeError(
                f"order.window: {self.window} with order.units: {self.units} orders {self.window * size} "
                f"samples, all of one batch of {batch_size}, so that no batch would change; give a larger "
                "window, window: null, or order.units: domains or clusters."
            )

    def check_groups(self, groups: int, units: int) -> None:
        if groups * units > MOST_BALANCED:
            raise RecipeError(
                f"order: d3 found {groups:,} {self._kinds}, more than can be balanced over {units:,} units; "
                "join them into a few hundred, or give order.units: 8, a number of clusters."
            )

    def _check_several(self, groups: int) -> None:
        if groups < 2:
            raise RecipeError(
                f"order: d3 found only one of the {self._kinds}, and there is nothing to put in order; "
                "give the data a `domain` column, or order.units: clusters, batches or samples."
            )

    def size_of(self, batch_size: int) -> int:
        """Samples of a unit in a run with this batch size."""
        if self.units == "samples":
            return 1
        whole = self.units == "batches" or self.edges == "orders"
        return self.size or (batch_size if whole else -(-batch_size // UNITS_IN_BATCH))

    @property
    def steps(self) -> int:
        """Trial steps on a node for `edges: orders`; a node that is a single unit has samples for one
        step."""
        return self.trial_steps if self.grouped else 1

    def units_of(
        self, entries: NDArray[np.int64], group: NDArray[Any] | None, batch_size: int = BATCH
    ) -> Units:
        """Entries cut into units; those of a group keep their order."""
        return Units.of(entries, group, self.size_of(batch_size))

    def measure(
        self, probe: "Probe", units: Units, *, edges: str, rng: np.random.Generator, probes: int | None = None
    ) -> InfluenceGraph | None:
        """Influences at a model's present weights, of a few samples of every node; None where fewer than two
        nodes have samples with label tokens.

        Args:
            units: whose nodes are measured.
            edges: as in the settings.
            rng: draws the samples.
            probes: largest number of samples of each node. If unset, `probes` of the settings.
        """
        return measure_graph(self, probe, units, edges=edges, rng=rng, probes=probes)

    def arrange(
        self,
        units: Units,
        graph: InfluenceGraph | None,
        features: NDArray[Any],
        rng: np.random.Generator,
        *,
        seed: int,
        first: int | None = None,
    ) -> Arrangement:
        """Units in order, by a graph of their nodes or in balance alone.

        Args:
            units: to be put in order.
            graph: None for the balanced order.
            features: (N, d) of the entries' places, see `features`, which units that are no pieces of groups
                are balanced by.
            rng: for the order in which units come into the window.
            seed: of the search for the best order in it.
            first: entries that must be in the order of the graph; the units of the others follow in balance
                alone. If unset, all of them.
        """
        base = np.arange(units.whole)
        if not units.ungrouped:
            mixed = rng.permutation(units.whole)
            # Groups take turns: in their given order the data ended 0.54 nats above a shuffle (docs/log.md).
            base = mixed[interleaved(units.node[mixed])]
        if graph is None and units.whole * len(units.names) > MOST_BALANCED and not units.ungrouped:
            return Arrangement(base, {}, None)
        strays = units.summed(features) if units.ungrouped else units.one_hot()
        if graph is None or len(base) < 2:
            return Arrangement(base, {"imbalance": _rounded(imbalance(strays, base))}, None)
        node, worth, before = self._by_unit(units, graph)
        windows = Windows(node, worth, before, self.window, self.commit, seed)
        order = windows.order(base, strays, self.balance, None if first is None else -(-first // units.size))
        value = windows.value(order)
        details = {
            "imbalance": _rounded(imbalance(strays, order)),
            "objective": _rounded(value),
            "objective_of_base": _rounded(windows.value(base)),
            "nodes": len(graph),
            "precedences": int(before.sum()),
        }
        return Arrangement(order, details, value)

    def missing_note(self, units: Units, graph: InfluenceGraph | None) -> str | None:
        """What could not be measured of units, in a sentence, and what to do; None where all was.

        Args:
            units: to be put in order.
            graph: what was measured of them; None for nothing.
        """
        if graph is None:
            return (
                f"order: d3 found {len(units.nodes)} {self._kinds} with at least {units.size} samples, a "
                "whole unit, and influence needs two with label tokens; the order is only balanced. Give a "
                "smaller order.size, or other order.units."
            )
        if not np.isfinite(graph.noise[~np.eye(len(graph), dtype=bool)]).any():
            return (
                "order: d3 has a single sample of each node, or a single one of the target, so that the "
                "noise of influences is not known, and none of them binds the order; it uses their values "
                "alone. Give more order.probes or target_samples, or larger units."
            )
        return None

    def _by_unit(self, units: Units, graph: InfluenceGraph) -> tuple[Any, Any, Any]:
        """Nodes, worth and precedences in the units' numbering; nothing is known of nodes not measured."""
        n = len(units.names)
        where = {name: place for place, name in enumerate(units.names)}
        rows = [(where[name], place) for place, name in enumerate(graph.names) if name in where]
        worth, before = np.zeros((n, n)), np.zeros((n, n), dtype=bool)
        if rows:
            to, of = (np.array(each) for each in zip(*rows, strict=True))
            worth[np.ix_(to, to)] = graph.worth(self.early, units.whole)[np.ix_(of, of)]
            before[np.ix_(to, to)] = graph.precedences(self.threshold)[np.ix_(of, of)]
        return units.node[: units.whole], worth, before


_USED_BY = {
    "trial_steps": ("orders",),
    "neighbours": ("lookahead",),
    "probes": ("curvature", "lookahead", "first_order"),
}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
