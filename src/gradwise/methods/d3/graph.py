"""The influence graph: what it is worth to train on one node before another."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics import break_cycles
from gradwise.probing.results import GradientProducts, LookaheadLosses, Orders


@dataclass(frozen=True, eq=False)
class InfluenceGraph:
    """Directed, with a weight and its noise on every arc that was measured."""

    names: tuple[str, ...]
    """Names of the n nodes."""

    weight: NDArray[np.float64]
    """(n, n) what it is worth to have i before j; NaN where not measured."""

    noise: NDArray[np.float64]
    """(n, n) standard error of weight[i, j] - weight[j, i], which decides whether a direction is significant;
    symmetric."""

    influence: NDArray[np.float64]
    """(n,) share of the target's loss that a step on i takes off."""

    edges: str
    """How it was measured, which says what a weight is: `first_order` and `lookahead` the share of j's loss
    that a step on i takes off; `curvature` and `orders` a share of the target's loss; the order
    of one step on each gains the difference of the two weights."""

    step: int = 0
    """Optimizer steps done when it was measured."""

    rate: float = 1.0
    """Learning rate that the weights are for."""

    @classmethod
    def from_products(
        cls, names: tuple[str, ...], owner: NDArray[np.int64], products: GradientProducts, edges: str
    ) -> "InfluenceGraph":
        """From products of gradients and Hessians over parts of the nodes' samples.

        Args:
            names: of the nodes.
            owner: (parts,) node of each part, as many parts for each node.
            products: over all parts.
            edges: `curvature`, or `first_order` for the gradients' products alone.
        """
        n = len(names)
        parts = np.argsort(owner, kind="stable").reshape(n, -1)
        if edges == "curvature":
            assert products.along is not None
            # <H_i P g_E, P g_j>: the second-order term that differs between the two orders of a step on i and
            # one on j.
            # With Adam's moments held constant its sign was right in 93 to 98 % of pairs at learning rates up
            # to 1e-4, and in half of them at 1e-3 (docs/results/d3-commutator.md).
            of_parts = products.along / products.target_loss
        else:
            # To first order both directions have the same product, and only the losses that divide it differ.
            # So it names the better of two orders no better than chance does, in 38 to 63 % of pairs
            # (docs/results/d3-commutator.md).
            of_parts = products.gains.T / products.losses  # [i, j]: a step on i, the loss of j
        blocks = of_parts[parts[:, None, :, None], parts[None, :, None, :]]
        return cls(
            names,
            weight=_mean(blocks, (2, 3)),
            noise=_two_way_error(blocks - blocks.transpose(1, 0, 3, 2)),
            influence=np.nan_to_num(_mean((products.towards / products.target_loss)[parts], (1,))),
            edges=edges,
        )

    @classmethod
    def from_lookahead(
        cls,
        names: tuple[str, ...],
        owner: NDArray[np.int64],
        losses: LookaheadLosses,
        target: NDArray[np.int64],
    ) -> "InfluenceGraph":
        """From losses after trial steps.

        Args:
            names: of the nodes.
            owner: (m,) node of each sample whose loss was compared; -1 for those of the target alone.
            losses: before and after a trial step for each node.
            target: places, among the m, of the target's samples.
        """
        n = len(names)
        # One step on each unit says little about their order: the difference of these weights was right in 32
        # to 60 % of pairs (docs/results/d3-commutator.md).
        decreases = losses.before - losses.after
        weight, spread = np.full((n, n), np.nan), np.full((n, n), np.nan)
        for j in range(n):
            members = np.flatnonzero((owner == j) & np.isfinite(losses.before))
            if not len(members):
                continue
            # A share of j's loss, the normaliser of the specification's edge.
            weight[:, j] = decreases[:, members].mean(axis=1) / losses.before[members].mean()
            error = (
                decreases[:, members].std(axis=1, ddof=1) / np.sqrt(len(members))
                if len(members) > 1
                else np.nan
            )
            spread[:, j] = error / losses.before[members].mean()
        variances = _smoothed(spread**2 + spread.T**2)
        influence = np.nan_to_num(_mean(decreases[:, target], (1,)) / np.nanmean(losses.before[target]))
        return cls(names, weight, np.sqrt(variances), influence, edges="lookahead")

    @classmethod
    def from_orders(
        cls, names: tuple[str, ...], orders: Orders, steps: NDArray[np.int64]
    ) -> "InfluenceGraph":
        """From the target's losses after both orders of every two nodes.

        Args:
            names: of the n nodes.
            orders: m samples of the target; the noise is that of drawing these.
            steps: (n,) of each node; their gains are given for one step on each.
        """
        # A trial that diverges tells nothing.
        before, alone, both = (
            np.where(np.isfinite(losses), losses, np.nan)
            for losses in (orders.before, orders.alone, orders.both)
        )
        # What j before i ends above i before j, at each target sample. Both orders have the same steps, so
        # that everything but the order cancels.
        gained = both.transpose(1, 0, 2) - both
        mean, count = _mean(gained, (2,)), np.isfinite(gained).sum(axis=2)
        squares = _mean((gained - mean[:, :, None]) ** 2, (2,))
        error = np.sqrt(np.divide(squares, count - 1, out=np.full_like(squares, np.nan), where=count > 1))
        scale = _mean(before, (0,)) * steps[:, None] * steps
        influence = _mean(before - alone, (1,)) / _mean(before, (0,)) / steps
        # Halved, because weight[i, j] - weight[j, i] counts the difference twice.
        return cls(names, mean / 2 / scale, error / scale, np.nan_to_num(influence), edges="orders")

    def __len__(self) -> int:
        return len(self.names)

    def precedences(self, threshold: float) -> NDArray[np.bool_]:
        """(n, n) True at [i, j] where i must come before j: the difference of the two weights stands out of
        its noise, and what stands out closes no cycle, for which the least weight is given up.

        Args:
            threshold: how many standard errors stand out.
        """
        difference = self.weight - self.weight.T
        # On the planted pool the direction was right in 18 of 20 starts. As a precedence, which has to stand
        # out of the noise, it was never wrong (docs/log.md).
        with np.errstate(invalid="ignore"):
            out = difference > np.maximum(threshold * self.noise, 0.0)
        arcs = np.where(out, difference, 0.0)
        np.fill_diagonal(arcs, 0.0)
        return break_cycles(arcs).weights > 0

    def worth(self, early: float, units: int) -> NDArray[np.float64]:
        """(n, n) what the order is chosen by: differences of weights that exceed their standard error, and
        `early` times a node's influence for every unit that comes after it, counted in shares of all.

        Args:
            early: weight of that.
            units: how many there are to put in order.
        """
        # Half the difference is worth as much as the weights; within its standard error it is noise.
        worth = np.nan_to_num(self.weight - self.weight.T) / 2
        # Left in, a difference far below its noise once put all of one domain first (docs/log.md).
        worth[np.abs(2 * worth) <= np.nan_to_num(self.noise)] = 0.0
        # `early` is 0 by default: the authors put the most influential first, while by curvature they belong
        # last, where what they taught is not forgotten (docs/log.md).
        worth += early * self.influence[:, None] / max(1, units)
        np.fill_diagonal(worth, 0.0)
        return worth

    def followed_by(self, newer: "InfluenceGraph", keep: float) -> "InfluenceGraph":
        """The average of old values, weighted by `keep` and brought to the new learning rate, and new ones;
        nodes are matched by name."""
        where = {name: place for place, name in enumerate(self.names)}
        if self.edges != newer.edges or not all(name in where for name in newer.names) or not self.rate:
            return newer
        rows = np.array([where[name] for name in newer.names], dtype=np.int64)
        ratio = newer.rate / self.rate
        # Second-order effects grow with the square of the learning rate, first-order ones with the rate
        # itself.
        grown = ratio**2 if self.edges in ("curvature", "orders") else ratio

        def mixed(old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
            both = keep * old + (1 - keep) * new
            return np.where(np.isnan(old), new, np.where(np.isnan(new), old, both))

        square = np.ix_(rows, rows)
        old, new = grown * self.noise[square], newer.noise
        # Two measurements err independently, so their errors add as squares.
        noise = np.hypot(keep * old, (1 - keep) * new)
        return replace(
            newer,
            weight=mixed(grown * self.weight[square], newer.weight),
            noise=np.where(np.isnan(old), new, np.where(np.isnan(new), old, noise)),
            influence=mixed(ratio * self.influence[rows], newer.influence),
        )

    def columns(self, threshold: float) -> dict[str, list[Any]]:
        """Its arcs as columns of a table."""
        i, j = np.nonzero(~np.isnan(self.weight) & ~np.eye(len(self), dtype=bool))
        precedes = self.precedences(threshold)
        return {
            "step": [self.step] * len(i),
            "source": [self.names[each] for each in i],
            "target": [self.names[each] for each in j],
            "weight": self.weight[i, j].tolist(),
            "noise": self.noise[i, j].tolist(),
            "precedes": precedes[i, j].tolist(),
            "source_influence": self.influence[i].tolist(),
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Itself in plain arrays."""
        return {
            "names": np.frombuffer(json.dumps(self.names).encode(), dtype=np.uint8),
            "edges": np.frombuffer(self.edges.encode(), dtype=np.uint8),
            "weight": self.weight,
            "noise": self.noise,
            "influence": self.influence,
            "when": np.array([self.step, self.rate]),
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "InfluenceGraph":
        """The graph that `arrays` came from."""
        return cls(
            tuple(json.loads(arrays["names"].tobytes())),
            arrays["weight"],
            arrays["noise"],
            arrays["influence"],
            arrays["edges"].tobytes().decode(),
            int(arrays["when"][0]),
            float(arrays["when"][1]),
        )


def _two_way_error(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, n) standard error of the means of blocks (n, n, p, p), whose rows and columns are independent
    draws: the spread of row means and of column means, each as rarely drawn as there are parts."""
    p = blocks.shape[-1]
    if p < 2:
        return np.full(blocks.shape[:2], np.nan)
    rows, columns = (np.nanvar(_mean(blocks, (axis,)), axis=-1, ddof=1) / p for axis in (3, 2))
    return np.sqrt(_smoothed(rows + columns))


def _smoothed(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared errors from a handful of values err themselves, so each is averaged with that of all pairs."""
    apart = squares[~np.eye(len(squares), dtype=bool)]
    apart = apart[np.isfinite(apart)]
    return (squares + apart.mean()) / 2 if apart.size else squares


def _mean(values: NDArray[np.float64], axis: tuple[int, ...]) -> NDArray[np.float64]:
    """Over what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    counts = finite.sum(axis=axis)
    sums = np.where(finite, values, 0.0).sum(axis=axis)
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
