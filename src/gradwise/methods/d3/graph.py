"""The influence graph: what it is worth to train on one node before another."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics import break_cycles
from gradwise.probing.answers import Ahead, Bends


@dataclass(frozen=True, eq=False)
class InfluenceGraph:
    """Directed, with a weight and its noise on every arc that was looked at."""

    names: tuple[str, ...]
    """Of the n nodes."""

    weight: NDArray[np.float64]
    """(n, n) what it is worth to have i before j; NaN where not looked at."""

    noise: NDArray[np.float64]
    """(n, n) standard error of `weight`."""

    influence: NDArray[np.float64]
    """(n,) share of the target's loss that a step on i takes off."""

    edges: str
    """How it was measured, which says what a weight is: `first_order` and `lookahead` the share of j's loss
    that a step on i takes off, `curvature` the share of the target's loss that is gained by the order."""

    step: int = 0
    """Optimizer steps done when it was measured."""

    @classmethod
    def of_bends(
        cls, names: tuple[str, ...], owner: NDArray[np.int64], bends: Bends, edges: str
    ) -> "InfluenceGraph":
        """From products of gradients and Hessians over parts of the nodes' samples.

        Args:
            names: of the nodes.
            owner: (parts,) node of each part, as many parts for each node.
            bends: over all parts.
            edges: `curvature`, or `first_order` for the gradients' products alone.
        """
        n = len(names)
        parts = np.argsort(owner, kind="stable").reshape(n, -1)
        if edges == "curvature":
            assert bends.along is not None
            of_parts = bends.along / bends.target_loss
        else:
            of_parts = bends.gains.T / bends.losses  # [i, j]: a step on i, the loss of j
        blocks = of_parts[parts[:, None, :, None], parts[None, :, None, :]]
        return cls(
            names,
            weight=blocks.mean(axis=(2, 3)),
            noise=_two_way_error(blocks),
            influence=(bends.towards / bends.target_loss)[parts].mean(axis=1),
            edges=edges,
        )

    @classmethod
    def of_ahead(
        cls, names: tuple[str, ...], owner: NDArray[np.int64], ahead: Ahead, target: NDArray[np.int64]
    ) -> "InfluenceGraph":
        """From losses after trial steps.

        Args:
            names: of the nodes.
            owner: (m,) node of each sample whose loss was compared; -1 for those of the target alone.
            ahead: a unit for each node.
            target: places, among the m, of the target's samples.
        """
        n = len(names)
        taken = ahead.before - ahead.after
        weight, spread = np.full((n, n), np.nan), np.full((n, n), np.nan)
        for j in range(n):
            own = np.flatnonzero(owner == j)
            weight[:, j] = taken[:, own].mean(axis=1) / ahead.before[own].mean()
            error = taken[:, own].std(axis=1, ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.nan
            spread[:, j] = error / ahead.before[own].mean()
        # To first order the products are symmetric, so that other samples of i would move a weight as much
        # as other samples of j move the one in return.
        noise = np.sqrt(_smoothed(spread) ** 2 + _smoothed(spread).T ** 2)
        influence = taken[:, target].mean(axis=1) / ahead.before[target].mean()
        return cls(names, weight, noise, influence, edges="lookahead")

    def __len__(self) -> int:
        return len(self.names)

    def precedences(self, threshold: float) -> NDArray[np.bool_]:
        """(n, n) True at [i, j] where i must come before j: the difference of the two weights stands out of
        its noise, and what stands out closes no cycle, for which the least weight is given up.

        Args:
            threshold: how many standard errors stand out.
        """
        difference = self.weight - self.weight.T
        error = np.sqrt(self.noise**2 + self.noise.T**2)
        with np.errstate(invalid="ignore"):
            out = difference > np.maximum(threshold * error, 0.0)
        arcs = np.where(out, difference, 0.0)
        np.fill_diagonal(arcs, 0.0)
        return break_cycles(arcs).weights > 0

    def worth(self, early: float) -> NDArray[np.float64]:
        """(n, n) what the order is chosen by: the weights, and `early` times a node's influence for every
        place earlier, counted in shares of the whole."""
        worth = np.nan_to_num(self.weight) + early * self.influence[:, None] / max(1, len(self))
        np.fill_diagonal(worth, 0.0)
        return worth

    def followed_by(self, newer: "InfluenceGraph", keep: float) -> "InfluenceGraph":
        """The average of old values, weighted by `keep`, and new ones; nodes are matched by name."""
        where = {name: place for place, name in enumerate(self.names)}
        if self.edges != newer.edges or not all(name in where for name in newer.names):
            return newer
        rows = np.array([where[name] for name in newer.names], dtype=np.int64)
        old = self.weight[np.ix_(rows, rows)], self.noise[np.ix_(rows, rows)], self.influence[rows]
        new = newer.weight, newer.noise, newer.influence

        def mixed(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
            both = keep * a + (1 - keep) * b
            return np.where(np.isnan(a), b, np.where(np.isnan(b), a, both))

        noise = np.sqrt((keep * old[1]) ** 2 + ((1 - keep) * new[1]) ** 2)
        noise = np.where(np.isnan(old[1]), new[1], np.where(np.isnan(new[1]), old[1], noise))
        return replace(newer, weight=mixed(old[0], new[0]), noise=noise, influence=mixed(old[2], new[2]))

    def columns(self, threshold: float) -> dict[str, list[Any]]:
        """Its arcs as columns of a table."""
        i, j = np.nonzero(~np.isnan(self.weight) & ~np.eye(len(self), dtype=bool))
        kept = self.precedences(threshold)
        return {
            "step": [self.step] * len(i),
            "source": [self.names[each] for each in i],
            "target": [self.names[each] for each in j],
            "weight": self.weight[i, j].tolist(),
            "noise": self.noise[i, j].tolist(),
            "precedes": kept[i, j].tolist(),
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
            "step": np.array([self.step]),
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
            int(arrays["step"][0]),
        )


def _two_way_error(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, n) standard error of the means of blocks (n, n, p, p), whose rows and columns are parts drawn anew:
    the spread of row means and of column means, each as rarely drawn as there are parts."""
    p = blocks.shape[-1]
    if p < 2:
        return np.full(blocks.shape[:2], np.nan)
    rows, columns = (blocks.mean(axis=axis).var(axis=-1, ddof=1) / p for axis in (3, 2))
    return _smoothed(np.sqrt(rows + columns))


def _smoothed(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors from a handful of values err themselves, so each is averaged with that of all."""
    if not np.isfinite(errors).any():
        return errors
    return np.sqrt((errors**2 + np.nanmean(errors**2)) / 2)
