"""What GRACE remembers between two selections: plain arrays and numbers, which a checkpoint can hold."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics import KnnGraph

STORED_NAMES = {"scored_rows": "looked"}
"""Fields whose arrays have another name in checkpoints, which earlier versions wrote."""


@dataclass(frozen=True, eq=False)
class State:
    """Shapes: n usable candidates, m nodes (samples that differ), h numbers in an embedding."""

    pool: int
    """Samples of the whole pool."""
    scored_rows: NDArray[np.int64]
    """(c,) the candidates: samples of the pool that are scored, ascending."""
    rows: NDArray[np.int64]
    """(n,) those of them that can be used, ascending."""
    node: NDArray[np.int32]
    """(n,) the node each of them belongs to."""
    sample: NDArray[np.int64]
    """(m,) the sample of the pool that stands for a node."""
    centre: NDArray[np.float32]
    """(h,) that embeddings are taken around."""
    placed: NDArray[np.float32]
    """(m, h) unit rows that the graph is built of."""
    embedding: NDArray[np.float32]
    """(m, h) current estimates."""
    importance: NDArray[np.float64]
    """(m,) current estimates."""
    measured_at: NDArray[np.int64]
    """(m,) the step at which a node was last measured."""
    graph: KnnGraph
    """k-NN graph of the nodes at their current positions."""
    share: float
    """Share of the nodes that the next refresh measures."""
    target: NDArray[np.float64] | None = None
    """(k,) mean direction of the nodes' gradients, where importance is alignment with it."""
    mean_tokens: float | None = None
    """Label tokens of a node on average, where importance is scaled by length."""
    bounds: NDArray[np.float64] | None = None
    """(T,) cosines taken off so that each subtask of a target gets its share, where gradients count."""
    shares: NDArray[np.float64] | None = None
    """(T,) of the picks, by subtask of a target; None without a target."""
    size: int = 0
    """Samples of a selection towards a target."""
    subtask: NDArray[np.int64] | None = None
    """(m,) the subtask that each node is picked for; T for garbled samples."""
    by_words: NDArray[np.float64] | None = None
    """(m,) rank of each node by n-grams, where a target is given and texts are known."""
    ranked: NDArray[np.int64] | None = None
    """(n,) samples of the pool in the order of their n-grams, as many as may have to fill the budget."""
    closeness: float | None = None
    """How close the pool's best samples are to the target, by n-grams: 0 as random ones, 1 as its own."""
    middle: bool = False
    """Whether embeddings are middle ones."""
    every: int = 0
    """Steps from one selection to the next; 0 where there is only one."""
    allowance: int | None = None
    """Samples that may still be measured; None for no limit."""
    planned: int = 0
    """Refreshes of the whole run, as they were forecast; 0 where that is not known."""
    least_share: float = 0.02
    """Below which the share of the nodes that a refresh measures does not fall."""
    refreshes: int = 0
    """Refreshes so far."""
    seed: int = 0
    """Seed of the anchors that are drawn at random."""

    @property
    def has_target(self) -> bool:
        return self.shares is not None

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(m,) samples that a node stands for."""
        return np.bincount(self.node, minlength=len(self.sample))

    def changed(self, **values: object) -> "State":
        """The same with some values replaced."""
        return replace(self, **values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, by name."""
        # Not `asdict`, which would copy a million embeddings for each checkpoint.
        values = {
            STORED_NAMES.get(field.name, field.name): getattr(self, field.name)
            for field in fields(self)
            if field.name != "graph"
        }
        graph = {f"graph.{field.name}": getattr(self.graph, field.name) for field in fields(KnnGraph)}
        present = {name: value for name, value in {**values, **graph}.items() if value is not None}
        return {name: np.asarray(value) for name, value in present.items()}

    @staticmethod
    def of_arrays(arrays: dict[str, NDArray[Any]]) -> "State":
        """What `arrays` was made of."""
        values: dict[str, Any] = {
            name: array if array.ndim else array.item() for name, array in arrays.items()
        }
        prefix = "graph."
        graph = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
        rest = {name: value for name, value in values.items() if not name.startswith(prefix)}
        for name, stored_name in STORED_NAMES.items():
            rest[name] = rest.pop(stored_name)
        return State(**rest, graph=KnnGraph(**graph))
