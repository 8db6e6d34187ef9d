"""What the data methods hand on: a selection of samples, and an order over them."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Selection:
    """Samples that are worth training on.

    >>> Selection(np.array([3, 1]), why=("rank 1", "rank 2")).indices.tolist()
    [3, 1]
    """

    indices: NDArray[np.int64]
    """(n,) positions in the pool, in the order picked."""

    why: tuple[str, ...]
    """One sentence for each sample, or a single one that holds for all."""

    weights: NDArray[np.float64] | None = None
    """(n,) how often each should be seen relative to the others; None means equally."""

    scores: NDArray[np.float64] | None = None
    """(n,) what the method ranked by."""

    objective: float | None = None
    """Value of the method's own objective for this selection."""

    summary: str | None = None
    """What to say of every sample in a plan, where `why` says too much for that."""

    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    """(n,) each: what more there is to know of every pick, by name."""

    told: dict[str, Any] = field(default_factory=dict)
    """Plain values about the selection as a whole, for the record."""

    def without(self, samples: ArrayLike) -> "Selection":
        """The same without some samples of the pool, such as those whose values are not finite.

        >>> Selection(np.array([3, 1]), why=("rank 1", "rank 2")).without([3]).why
        ('rank 2',)
        """
        keep = ~np.isin(self.indices, samples)
        if keep.all():
            return self
        parts: dict[str, Any] = {"indices": self.indices[keep]}
        for name in ("weights", "scores"):
            values = getattr(self, name)
            parts[name] = None if values is None else values[keep]
        if len(self.why) > 1:
            parts["why"] = tuple(why for why, kept in zip(self.why, keep, strict=True) if kept)
        parts["columns"] = {name: values[keep] for name, values in self.columns.items()}
        return replace(self, **parts)


@dataclass(frozen=True)
class Order:
    """An order over the entries of a selection, for one pass."""

    indices: NDArray[np.int64]
    """(n,) positions in the pool, in the order to be trained on."""

    why: tuple[str, ...] = field(default=("given",))
    """One sentence for each position, or a single one that holds for all."""

    objective: float | None = None
    """Value of the method's own objective for this order."""

    units: NDArray[np.int64] | None = None
    """(n,) the unit that each position belongs to, where units were put in order."""

    graph: Any = None
    """The graph that the order goes by, where there is one."""

    told: dict[str, Any] = field(default_factory=dict)
    """Plain values about the order as a whole, for the record."""


def domain_mix(domain: NDArray[np.str_] | None, indices: NDArray[np.int64]) -> dict[str, Any]:
    """How many of each domain were picked, and of how many; nothing where domains are not known.

    >>> domain_mix(np.array(["a", "b", "b"]), np.array([2]))
    {'domains': {'a': [0, 1], 'b': [1, 2]}}
    """
    if domain is None:
        return {}
    names, counts = np.unique(domain, return_counts=True)
    picked = dict(zip(*np.unique(domain[indices], return_counts=True), strict=True))
    found = zip(names, counts, strict=True)
    return {"domains": {str(name): [int(picked.get(name, 0)), int(count)] for name, count in found}}
