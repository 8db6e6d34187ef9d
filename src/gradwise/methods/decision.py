"""What the data methods hand on: a selection of samples, and an order over them."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradwise.errors import PlanError, RecipeError, SignalError
from gradwise.places import check_rows, places
from gradwise.signals import Signals
from gradwise.text import shown


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
    """(n,) how often each should be seen relative to the others, or what its loss is multiplied by; None
    means equally."""

    scores: NDArray[np.float64] | None = None
    """(n,) what the method ranked by; NaN for picks that it did not score."""

    objective: float | None = None
    """Value of the method's own objective for this selection."""

    summary: str | None = None
    """What to say of every sample in a plan, where `why` says too much for that."""

    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    """(n,) each: what more there is to know of every pick, by name; masked where it is not known."""

    details: dict[str, Any] = field(default_factory=dict)
    """Plain values about the selection as a whole, for the record."""

    in_loss: bool = False
    """Whether weights multiply losses instead of deciding how often a sample is seen."""

    def __post_init__(self) -> None:
        count = _checked(self, "A selection", self.indices, self.why)
        for name in ("weights", "scores"):
            values = getattr(self, name)
            if values is not None:
                check_rows(values, count, f"A selection's {name}", least=0.0 if name == "weights" else None)
        if self.weights is not None and count and not np.any(self.weights):
            raise PlanError("A selection's weights are all zero, so that nothing would be trained on.")
        for name, values in self.columns.items():
            check_rows(values, count, f"A selection's column {name}")

    def weighing(self, weights: str) -> "Selection":
        """The same as a recipe's `weights` asks: with `loss`, weights of mean 1 that multiply losses, and no
        sample of weight 0.

        >>> Selection(np.array([3, 1, 4]), ("given",), np.array([1.0, 3.0, 0.0])).weighing("loss").weights
        array([0.5, 1.5])
        """
        if weights != "loss" or self.weights is None:
            return self
        # A loss that is multiplied by 0 would cost a forward and a backward and teach nothing.
        nonzero = self.without(self.indices[self.weights == 0])
        assert nonzero.weights is not None
        # Exactly 1 where all are equal: dividing by the mean could leave a last bit that changes every loss.
        equal = np.all(nonzero.weights == nonzero.weights[0])
        return replace(
            nonzero,
            weights=np.ones(len(nonzero.weights)) if equal else nonzero.weights / nonzero.weights.mean(),
            in_loss=True,
        )

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
            parts["why"] = tuple(why for why, is_kept in zip(self.why, keep, strict=True) if is_kept)
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
    """The graph that constrains the order, if there is one."""

    details: dict[str, Any] = field(default_factory=dict)
    """Plain values about the order as a whole, for the record."""

    def __post_init__(self) -> None:
        count = _checked(self, "An order", self.indices, self.why)
        if self.units is not None:
            check_rows(self.units, count, "An order's units")


def reasons(decided: Selection | Order) -> tuple[str, ...]:
    """(n,) a sentence for each position, also where a single one holds for all."""
    count = len(decided.indices)
    return decided.why if len(decided.why) == count else decided.why * count


def _checked(decided: Any, subject: str, indices: Any, why: Any) -> int:
    """Bring a decision's indices to their type and check its reasons; returns how many indices there are."""
    positions = places(indices, subject)
    object.__setattr__(decided, "indices", positions)
    if isinstance(why, str) or len(why) not in (1, len(positions)):
        raise PlanError(
            f"{subject} needs a tuple of reasons, a single one or one for each of {len(positions)} samples; "
            f"found {shown(why)}."
        )
    return len(positions)


def check_signals(signals: Any, method: str, subject: str = "signals", **numbers: Any) -> None:
    """Raise SignalError for what is no `Signals`, or has no sample.

    Args:
        signals: what the method was given.
        method: its name.
        subject: what the signals are, for messages.
        numbers: `seed` and other numbers that select a random stream, by name.

    Raises:
        PlanError: when a number is negative, or none.
    """
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer) or number < 0:
            raise PlanError(f"{method} needs {name} to be a whole number from 0; found {shown(number)}.")
    if not isinstance(signals, Signals):
        raise SignalError(
            f"{method} needs {subject} as gradwise.collect returns them; found {type(signals).__name__}."
        )
    if not len(signals):
        raise SignalError(f"{method} was given {subject} of no sample; there is nothing to choose from.")


def entries_of(signals: Any, entries: Any, method: str, **numbers: Any) -> NDArray[np.int64]:
    """(n,) the entries of an epoch: the given ones, or each sample once.

    Raises:
        SignalError: the signals are none, or of no sample.
        PlanError: the entries are no positions in the pool, or empty; a number is negative.
    """
    check_signals(signals, method, **numbers)
    if entries is None:
        return np.arange(len(signals))
    positions = places(entries, f"What {method} puts in order", len(signals))
    if not len(positions):
        raise PlanError(f"{method} was given no entries; there is nothing to put in order.")
    return positions


def domain_mix(domain: NDArray[np.str_] | None, indices: NDArray[np.int64]) -> dict[str, Any]:
    """How many of each domain were picked, and of how many; nothing where domains are not known.

    >>> domain_mix(np.array(["a", "b", "b"]), np.array([2]))
    {'domains': {'a': [0, 1], 'b': [1, 2]}}
    """
    if domain is None:
        return {}
    names, counts = np.unique(domain, return_counts=True)
    picked = dict(zip(*np.unique(domain[indices], return_counts=True), strict=True))
    totals = zip(names, counts, strict=True)
    return {"domains": {str(name): [int(picked.get(name, 0)), int(count)] for name, count in totals}}


def share_of(fraction: float, pool: int, section: str) -> int:
    """How many of `pool` samples a fraction is; raises RecipeError where it is none."""
    # Rounding to no sample is refused rather than turned into one, which would be another fraction.
    if fraction * pool < 0.5:
        raise RecipeError(
            f"{section}.fraction is {fraction:g}, which is none of {pool} samples; give a larger fraction, "
            "or a count."
        )
    return max(1, round(fraction * pool))  # half of a single sample is one
