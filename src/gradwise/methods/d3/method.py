"""D3: an order that the influence of units on one another dictates."""

import warnings
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.cluster.vq import kmeans2

from gradwise.errors import RecipeError, SignalError
from gradwise.methods.d3.graph import InfluenceGraph
from gradwise.methods.d3.schedule import Windows
from gradwise.methods.d3.units import Units
from gradwise.methods.decision import Order, entries_of
from gradwise.numerics import herd, interleaved, knn_graph
from gradwise.numerics.balance import imbalance
from gradwise.probing.answers import Bends
from gradwise.settings import Settings, default_of
from gradwise.signals import Signals

SIZE = 16
"""Samples of a unit where no run says how large its batches are, at most."""

CLUSTERS = 8
"""Groups of alike gradients, where nothing says how many."""

PARTS = 4
"""Sets that a node's probe samples are split into, to tell noise by."""

BLOCK = 4096
"""Entries that are balanced at a time: time goes with the pool's size times this."""

STREAM = 0xD3
"""Keeps what is drawn here apart from the other random streams of a seed."""


class Arranged(NamedTuple):
    """Units in order."""

    order: NDArray[np.int64]
    """(whole units,)"""

    told: dict[str, Any]
    """Plain values about it."""

    value: float | None
    """Value of the objective."""


@dataclass(frozen=True)
class D3(Settings):
    """Units of samples in an order that a directed graph of their influence constrains.

    Every stretch of the run stays balanced; within a window the units go in the order that is worth most, and
    those before others whose influence on them stands out of the noise (arXiv 2605.31164; edges, windows and
    balance are ours, see docs/log.md).
    """

    method: Literal["d3"] = "d3"
    """By the influence of units on one another."""

    units: Literal["domains", "clusters", "batches", "samples"] | Annotated[int, Field(ge=2)] | None = None
    """What is put in order by its influence: pieces of a domain, pieces of a cluster of alike gradients (a
    number says how many clusters), batches as they come, or single samples. Unless given, no influence is
    measured, and the order is balanced: every stretch of a pass has the label tokens of the whole."""

    size: Annotated[int, Field(ge=1)] | None = None
    """Samples of a unit; the run's batch size unless given, 1 for `samples`."""

    edges: Literal["lookahead", "curvature", "first_order", "orders"] | None = None
    """How influence is measured: by trial steps, by Hessian-vector products, by gradients alone, or by going
    both ways round, `trial_steps` on one node and then on the other, which alone shows what has to be learned
    before what, and costs most. Unless given, by curvature where a model can be asked, as in a run, and to
    first order from the signals otherwise."""

    trial_steps: Annotated[int, Field(ge=1)] = 20
    """Steps on a node where both orders are tried; there are nodes times nodes times so many of them."""

    target: Literal["pool", "validation"] = "pool"
    """Whose loss is to fall: of the samples that are put in order, or of the validation data."""

    window: Annotated[int, Field(ge=2)] | None = 8
    """Units looked at together; None for all of a pass."""

    commit: Annotated[int, Field(ge=1)] = 4
    """How many of them are settled before the next are looked at."""

    balance: Annotated[float, Field(ge=0)] | None = 1.0
    """How far prefixes may stray from the whole, 1 being what a random order has at its middle; None for as
    far as they like."""

    threshold: Annotated[float, Field(ge=0)] = 2.0
    """Standard errors by which an influence must exceed the one in return to bind the order."""

    early: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of influence on the target had early, against what the order itself is worth. The authors put
    the most influential first; by curvature what helps the target most is better had last."""

    probes: Annotated[int, Field(ge=1)] = 4
    """Samples measured of each node."""

    target_samples: Annotated[int, Field(ge=1)] = 16
    """Samples of the target that are measured."""

    neighbours: Annotated[int, Field(ge=1)] = 8
    """Nodes whose losses are looked at after a trial step: the nearest by their gradients."""

    overhead: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Share of the training's passes that measuring may cost, which decides how often it is done."""

    keep: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Weight of old influences when new ones are measured."""

    def check(self) -> None:
        if self.units is None and (given := self._given()):
            raise RecipeError(
                f"order.{given[0]} is about the influence of units on one another, and d3 only balances the "
                "order where no units are named; give order.units, such as domains."
            )
        for name, used in _USED_BY.items():
            edges = self.edges or "curvature"
            if edges not in used and getattr(self, name) != default_of(D3, name):
                raise RecipeError(
                    f"order.{name} is about edges: {' or '.join(used)}, and these are {edges}; leave it out."
                )
        if self.window is not None and self.commit > self.window:
            raise RecipeError(f"order.commit is {self.commit}, more than the window of {self.window}.")
        if self.units == "samples" and self.size not in (None, 1):
            raise RecipeError(f"order.units: samples are units of one; found size {self.size}.")

    def _given(self) -> list[str]:
        """Settings that are not as they would be by default."""
        return [each.name for each in fields(self) if getattr(self, each.name) != default_of(D3, each.name)]

    @property
    def _kinds(self) -> str:
        """What units are made from, as messages name it; a number stands for so many clusters."""
        return self.units if isinstance(self.units, str) else "clusters"

    @property
    def grouped(self) -> bool:
        """Whether units are pieces of groups that last."""
        return self.units not in ("batches", "samples", None)

    @property
    def needs(self) -> frozenset[str]:
        """What a pass has to know of every sample."""
        if self.units == "domains":
            return frozenset({"domain"})
        return frozenset({"grad"} if self.grouped else ())

    collected: ClassVar[frozenset[str]] = frozenset({"grad", "loss"})
    """What `order` goes by where it has no probe."""

    def order(
        self,
        signals: Signals,
        entries: NDArray[np.int64] | None = None,
        *,
        target: Signals | None = None,
        probe: Any = None,
        epoch: int = 0,
        seed: int = 0,
    ) -> Order:
        """An order over a pass, by influences measured now.

        Args:
            signals: of the pool; gradients, where no probe is given.
            entries: places in the pool, one for each time a sample is to be seen; each once unless given.
            target: signals of the samples whose loss is to fall; the entries' own unless given. With a probe,
                give it the target.
            probe: a `gradwise.Probe` of the model; see `edges`.
            epoch, seed: decide what is left to chance.

        Raises:
            SignalError: when a needed signal is missing.
            RecipeError: when there is a single group, or edges need a probe and none is given.

        Example:
            order = D3(units=8).order(signals)
            order.indices, order.graph.weight, order.told["imbalance"]
        """
        entries = entries_of(signals, entries, self.method, seed=seed, epoch=epoch)
        rng = np.random.default_rng([seed, STREAM, epoch])
        if probe is not None and not hasattr(probe, "bends"):
            raise RecipeError(f"order: d3 asks a gradwise.Probe; found {type(probe).__name__}.")
        edges = self.edges or ("first_order" if probe is None else "curvature")
        if edges != "first_order" and probe is None:
            raise RecipeError(f"order.edges: {edges} asks a model; give a gradwise.Probe.")
        group = self.groups(signals, seed=seed) if self.grouped else None
        features = self.features(signals)
        groups = 1 if group is None else len(np.unique(group[entries]))
        size = max(1, min(SIZE, len(entries) // (2 * groups)))  # room for two units of each, on average
        units = self.units_of(self.balanced(entries, features[entries], rng), group, size)
        if group is not None:
            self._check_several(len(units.names))
        graph = None
        if self.units is not None and len(units.nodes) > 1:
            graph = (
                self.from_signals(signals, units, target)
                if probe is None
                else self.measured(probe, units, edges=edges, rng=rng)
            )
        if said := self.unmeasured(units, graph):
            warnings.warn(said, stacklevel=2)
        found = self.arranged(units, graph, features, rng, seed=seed)
        place = np.repeat(found.order, units.size)
        rest = len(units.entries) - len(place)
        return Order(
            units.arranged(found.order),
            why=(self.why(graph),),
            objective=found.value,
            units=np.concatenate([place, np.full(rest, units.whole)]),
            graph=graph,
            told=found.told,
        )

    # ---- the steps of it, as a run takes them --------------------------------------------------------------

    @staticmethod
    def features(signals: Signals) -> NDArray[Any]:
        """(N, d) whose sums over a stretch are to be in proportion: sketched label tokens, or else projected
        gradients, or else domains."""
        if signals.words is not None:
            return signals.words
        if signals.grad is not None:
            return _directions(signals.grad)
        if signals.domain is None:
            raise SignalError("d3 balances label tokens, gradients or domains, and none of them is known.")
        return np.eye(len(np.unique(signals.domain)))[np.unique(signals.domain, return_inverse=True)[1]]

    @staticmethod
    def balanced(
        entries: NDArray[np.int64], features: NDArray[Any], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Entries in a random order in which every stretch has nearly the features (n, d) of the whole."""
        mixed = rng.permutation(len(entries))
        order = mixed[herd(features[mixed], BLOCK)]
        # Turned and begun elsewhere its prefixes stray at most twice as far, and no pass is like another.
        order = np.roll(order[:: rng.choice([-1, 1])], rng.integers(max(1, len(order))))
        return entries[order]

    def groups(self, signals: Signals, *, seed: int) -> NDArray[Any]:
        """(N,) the group of every sample; raises RecipeError where all are of one."""
        found = signals.require("domain", "d3") if self.units == "domains" else self._clusters(signals, seed)
        self._check_several(len(np.unique(found)))
        return found

    def _clusters(self, signals: Signals, seed: int) -> NDArray[Any]:
        """(N,) by gradients without their lengths."""
        rows = _directions(signals.require("grad", "d3")).astype(np.float64)
        count = self.units if isinstance(self.units, int) else CLUSTERS
        rng = np.random.default_rng([seed, STREAM])
        return kmeans2(rows, min(count, len(rows)), minit="++", rng=rng, missing="warn")[1]

    def _check_several(self, groups: int) -> None:
        if groups < 2:
            raise RecipeError(
                f"order: d3 found only one of the {self._kinds}, and there is nothing to put in order; "
                "give the data a `domain` column, or order.units: clusters, batches or samples."
            )

    def size_of(self, batch_size: int) -> int:
        """Samples of a unit in a run with batches so large."""
        return 1 if self.units in ("samples", None) else self.size or batch_size

    @property
    def steps(self) -> int:
        """On a node, where both orders are tried; one that does not last has samples for a single one."""
        return self.trial_steps if self.grouped else 1

    def units_of(
        self, entries: NDArray[np.int64], group: NDArray[Any] | None, batch_size: int = SIZE
    ) -> Units:
        """Entries cut into units; those of a group keep their order."""
        size = self.size_of(batch_size)
        if group is None:
            return Units.of_batches(entries, size)
        return Units.by_group(entries, group, size)

    def measured(
        self, probe: Any, units: Units, *, edges: str, rng: np.random.Generator, probes: int | None = None
    ) -> InfluenceGraph:
        """Influences at a model's present weights, of a few samples of every node.

        Args:
            probe: `gradwise.Probe`.
            units: whose nodes are measured.
            edges: as in the settings.
            rng: draws the samples.
            probes: samples of each node, at most so many; `probes` unless given.
        """
        nodes = units.nodes
        names = tuple(units.names[node] for node in nodes)
        if edges == "orders":
            return replace(self._both_ways(probe, names, units, rng), rate=probe.rate)
        drawn = [self._drawn(units, node, probes or self.probes, rng) for node in nodes]
        target = self._aims(probe, units, drawn, rng)
        if edges == "lookahead":
            return replace(self._looked_ahead(probe, names, drawn, target), rate=probe.rate)
        parts = min(PARTS, min(len(own) for own in drawn))
        split = [own[part::parts] for own in drawn for part in range(parts)]
        bends = probe.bends(split, target, hessian=edges == "curvature")
        found = InfluenceGraph.of_bends(names, np.repeat(np.arange(len(names)), parts), bends, edges)
        return replace(found, rate=probe.rate)

    def _aims(
        self, probe: Any, units: Units, drawn: list[Any], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Samples of the target; of the entries those that no step is tried on, as long as there are some."""
        found = probe.target
        if not len(found):
            others = np.setdiff1d(units.entries, np.concatenate(drawn)) if drawn else units.entries
            found = others if len(others) >= self.target_samples else units.entries
        return rng.permutation(found)[: self.target_samples]

    def from_signals(self, signals: Signals, units: Units, target: Signals | None) -> InfluenceGraph:
        """Influences to first order, from gradients that were measured; a step is of length one."""
        grad, loss = (signals.require(name, "d3 without a probe") for name in ("grad", "loss"))
        nodes = units.nodes
        rows = [units.of_node(node) for node in nodes]
        parts = min(PARTS, min(len(own) for own in rows))
        split = [own[part::parts] for own in rows for part in range(parts)]
        gradients = np.array([np.nanmean(grad[own].astype(np.float64), axis=0) for own in split])
        aim = signals if target is None else target
        own = units.entries if target is None else np.arange(len(target))
        way = np.nanmean(aim.require("grad", "d3's target")[own].astype(np.float64), axis=0)
        bends = Bends(
            along=None,
            gains=gradients @ gradients.T,
            towards=gradients @ way,
            losses=np.array([float(np.nanmean(loss[own])) for own in split]),
            target_loss=float(np.nanmean(aim.require("loss", "d3's target")[own])),
        )
        names = tuple(units.names[node] for node in nodes)
        return InfluenceGraph.of_bends(names, np.repeat(np.arange(len(names)), parts), bends, "first_order")

    def arranged(
        self,
        units: Units,
        graph: InfluenceGraph | None,
        features: NDArray[Any],
        rng: np.random.Generator,
        *,
        seed: int,
    ) -> Arranged:
        """Units in order, by a graph of their nodes or in balance alone.

        Args:
            units: to be put in order.
            graph: None for the balanced order.
            features: (N, d) of the entries' places, see `features`, which units that are no pieces of groups
                are balanced by.
            rng: for the order in which units come into the window.
            seed: of the search for the best order in it.
        """
        base = np.arange(units.whole)
        if not units.own:
            mixed = rng.permutation(units.whole)
            base = mixed[interleaved(units.node[mixed])]
        strays = units.summed(features) if units.own else units.one_hot()
        if graph is None or len(base) < 2:
            return Arranged(base, {"imbalance": _rounded(imbalance(strays, base))}, None)
        node, worth, before = self._by_unit(units, graph)
        windows = Windows(node, worth, before, self.window, self.commit, seed)
        order = windows.order(base, strays, self.balance)
        value = windows.value(order)
        told = {
            "imbalance": _rounded(imbalance(strays, order)),
            "objective": _rounded(value),
            "objective_of_base": _rounded(windows.value(base)),
            "nodes": len(graph),
            "precedences": int(before.sum()),
        }
        return Arranged(order, told, value)

    def unmeasured(self, units: Units, graph: InfluenceGraph | None) -> str | None:
        """What could not be measured of units, in a sentence, and what to do; None where all was.

        Args:
            units: to be put in order.
            graph: what was measured of them; None for nothing.
        """
        if self.units is None:
            return None
        if graph is None:
            return (
                f"order: d3 found {len(units.nodes)} {self._kinds} with at least {units.size} samples, a "
                "whole unit, and influence needs two; the order is only balanced. Give a smaller order.size, "
                "or other order.units."
            )
        if not np.isfinite(graph.noise[~np.eye(len(graph), dtype=bool)]).any():
            return (
                "order: d3 has a single sample of each node, or a single one of the target, so that the "
                "noise of influences is not known, and none of them binds the order; it goes by their values "
                "alone. Give more order.probes or target_samples, or larger units."
            )
        return None

    def why(self, graph: InfluenceGraph | None) -> str:
        """What to say of every entry."""
        return "balanced by d3" if graph is None else f"by the influence of {self.units} ({graph.edges})"

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

    def _drawn(self, units: Units, node: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.permutation(units.of_node(node))[:count]

    def _both_ways(
        self, probe: Any, names: tuple[str, ...], units: Units, rng: np.random.Generator
    ) -> InfluenceGraph:
        target = self._aims(probe, units, [], rng)
        steps = []
        for node in units.nodes:
            own = units.of_node(node)
            others = np.setdiff1d(own, target)
            drawn = rng.permutation(others if len(others) else own)[: self.trial_steps * units.size]
            steps.append([drawn[n : n + units.size] for n in range(0, len(drawn), units.size)])
        orders = probe.orders(steps, target)
        return InfluenceGraph.of_orders(names, orders, np.array([len(own) for own in steps]))

    def _looked_ahead(
        self, probe: Any, names: tuple[str, ...], drawn: list[NDArray[np.int64]], target: NDArray[np.int64]
    ) -> InfluenceGraph:
        owner = np.repeat(np.arange(len(names)), [len(own) for own in drawn])
        on = np.concatenate([*drawn, target])
        only = np.ones((len(names), len(on)), dtype=bool)
        if len(names) > self.neighbours + 1:
            near = knn_graph(probe.sketches(drawn), self.neighbours).ids
            for node, ids in enumerate(near):
                only[node, : len(owner)] = np.isin(owner, [node, *ids])
        ahead = probe.lookahead(drawn, on, only)
        owner = np.concatenate([owner, np.full(len(target), -1)])
        return InfluenceGraph.of_ahead(names, owner, ahead, np.arange(len(on) - len(target), len(on)))


_USED_BY = {
    "trial_steps": ("orders",),
    "neighbours": ("lookahead",),
    "probes": ("curvature", "lookahead", "first_order"),
}


def _directions(grad: NDArray[Any]) -> NDArray[np.float32]:
    """Gradients without their lengths; zeros where one is zero or not finite."""
    rows = np.nan_to_num(np.asarray(grad, dtype=np.float32))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
