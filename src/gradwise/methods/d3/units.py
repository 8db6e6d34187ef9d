"""What is put in order: units of samples that are trained on together. Each stands for a node of a graph."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 16
"""Batch size that is assumed outside of a run."""

UNITS_IN_BATCH = 4
"""Units of a group that make up a batch, if no size is given. Batches of a single domain ended 0.14 to 0.20
nats above mixed ones, which is more than any order gained (docs/log.md)."""

MIXED = "(mixed)"
"""The node of units that hold what is left of several groups."""


@dataclass(frozen=True, eq=False)
class Units:
    """Entries of an epoch cut into units of one size; the last one may be short.

    >>> units = Units.by_group(np.arange(6), np.array(["a", "b", "a", "b", "a", "a"]), size=2)
    >>> [unit.tolist() for unit in units.parts], units.node.tolist(), units.names
    ([[0, 2], [4, 5], [1, 3]], [0, 0, 1], ('a', 'b'))
    """

    entries: NDArray[np.int64]
    """(n,) places in the pool, unit after unit."""

    size: int
    """Entries of a unit."""

    node: NDArray[np.int64]
    """(units,) the node of the graph that each unit stands for."""

    names: tuple[str, ...]
    """Names of the nodes."""

    ungrouped: bool = False
    """Whether every unit is a node of its own."""

    def __len__(self) -> int:
        return len(self.node)

    @property
    def parts(self) -> list[NDArray[np.int64]]:
        """The entries of each unit."""
        return [self.entries[at : at + self.size] for at in range(0, len(self.entries), self.size)]

    @classmethod
    def of(cls, entries: NDArray[np.int64], group: NDArray[np.generic] | None, size: int) -> "Units":
        """By group, or as the entries come where there is none."""
        return cls.of_batches(entries, size) if group is None else cls.by_group(entries, group, size)

    @classmethod
    def of_batches(cls, entries: NDArray[np.int64], size: int, names: tuple[str, ...] = ()) -> "Units":
        """As the entries come, each unit a node of its own."""
        count = -(-len(entries) // size)
        return cls(
            entries, size, np.arange(count), names or tuple(str(n) for n in range(count)), ungrouped=True
        )

    @classmethod
    def by_group(cls, entries: NDArray[np.int64], group: NDArray[np.generic], size: int) -> "Units":
        """Units of one group each, in which entries keep their order; what is left of the groups at the end
        is put together in units that stand for none of them.

        Args:
            entries: (n,) places in the pool.
            group: (N,) of every sample of the pool.
            size: entries of a unit.
        """
        names, codes, sizes = np.unique(group[entries], return_inverse=True, return_counts=True)
        # In the order in which the entries come: the balance that they were put in holds within a group too.
        by_group = np.argsort(codes, kind="stable")
        place_in_group = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        in_unit = place_in_group < np.repeat(sizes // size * size, sizes)
        node = np.repeat(np.arange(len(names)), sizes // size)
        mixed = -(-np.count_nonzero(~in_unit) // size)
        return cls(
            entries[np.concatenate([by_group[in_unit], by_group[~in_unit]])],
            size,
            np.concatenate([node, np.full(mixed, len(names))]).astype(np.int64),
            (*(str(name) for name in names), *([MIXED] if mixed else [])),
        )

    @property
    def nodes(self) -> NDArray[np.int64]:
        """Nodes that have whole units of their own."""
        # A group with fewer samples than a unit has none of its own, and what is mixed of several groups says
        # nothing about any of them.
        nodes = np.unique(self.node[: self.whole])
        return nodes if self.ungrouped else nodes[[self.names[node] != MIXED for node in nodes]]

    @property
    def whole(self) -> int:
        """Units of full size: those that are put in order."""
        return len(self.entries) // self.size

    def in_order(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) all entries, given an order (whole,) of the whole units; a short one stays the last, so that
        no other is cut apart by the batches it is trained in."""
        end = self.whole * self.size
        whole_units = self.entries[:end].reshape(self.whole, self.size)
        return np.concatenate([whole_units[order].ravel(), self.entries[end:]])

    def of_node(self, node: int) -> NDArray[np.int64]:
        """The entries of all whole units of a node."""
        rows = self.entries[: self.whole * self.size].reshape(self.whole, self.size)
        return rows[self.node[: self.whole] == node].ravel()

    def summed(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """(whole, d) sums of the entries' features (N, d) over each unit."""
        rows = features[self.entries[: self.whole * self.size]].astype(np.float64)
        return rows.reshape(self.whole, self.size, -1).sum(axis=1)

    def one_hot(self) -> NDArray[np.float64]:
        """(whole, nodes) which node each unit stands for."""
        return np.eye(len(self.names))[self.node[: self.whole]]
