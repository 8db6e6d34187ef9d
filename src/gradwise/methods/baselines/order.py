"""Orders that cost little: shuffled, as given, easiest first, interleaved by domain, herded, most useful
first."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.decision import Order, entries_of
from gradwise.numerics import herd, interleaved
from gradwise.settings import Settings
from gradwise.signals import Signals

Entries = NDArray[np.int64]
"""(n,) positions in the pool, one for each time a sample is to be seen in this pass; repeats are copies."""


@dataclass(frozen=True)
class PassOrder(Settings):
    """An order over the entries of one pass."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def order(
        self,
        signals: Signals,
        entries: Entries | None = None,
        *,
        target: Signals | None = None,
        probe: Any = None,  # noqa: ARG002
        epoch: int = 0,
        seed: int = 0,
    ) -> Order:
        """A permutation of the entries.

        Args:
            signals: of the pool.
            entries: places in the pool, one for each time a sample is to be seen; each once unless given.
            target: signals of the samples whose loss is to fall, for orders that go by one; the pool's own
                unless given.
            probe: not asked here.
            epoch, seed: decide what is left to chance.

        Raises:
            SignalError: when a needed signal is missing.
            PlanError: when entries are no places of the pool.
        """
        entries = entries_of(signals, entries, self.method, seed=seed, epoch=epoch)  # type: ignore[attr-defined]
        mixed = np.random.default_rng([seed, _ORDER, epoch]).permutation(entries)
        return self._ordered(entries, mixed, signals, target, epoch)

    @abstractmethod
    def _ordered(
        self, given: Entries, mixed: Entries, signals: Signals, target: Signals | None, epoch: int
    ) -> Order:
        """The entries as given and shuffled, in order."""


_ORDER = 0x02DE2
"""Keeps these permutations' random stream apart from those of the selection and of the layers."""


@dataclass(frozen=True)
class Shuffle(PassOrder):
    """A new random order for every epoch."""

    method: Literal["shuffle"] = "shuffle"
    """A new random order each epoch."""

    def _ordered(self, given: Entries, mixed: Entries, signals: Any, target: Any, epoch: int) -> Order:  # noqa: ARG002
        return Order(mixed, why=(f"shuffled in epoch {epoch}",))


@dataclass(frozen=True)
class GivenOrder(PassOrder):
    """The order of the data, or of the selection where one was made."""

    method: Literal["given"] = "given"
    """As the data, or the selection, have it."""

    def _ordered(self, given: Entries, mixed: Entries, signals: Any, target: Any, epoch: int) -> Order:  # noqa: ARG002
        return Order(given, why=("in the order given",))


@dataclass(frozen=True)
class EasyFirst(PassOrder):
    """From the lowest loss to the highest, at the weights the run starts from; ties shuffled, and a sample
    whose loss is not finite comes last."""

    method: Literal["easy_first"] = "easy_first"
    """Lowest loss first."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def _ordered(self, given: Entries, mixed: Entries, signals: Signals, target: Any, epoch: int) -> Order:  # noqa: ARG002
        loss = signals.require("loss", "easy_first")
        return Order(mixed[np.argsort(loss[mixed], kind="stable")], why=("easiest first, by loss",))


@dataclass(frozen=True)
class Interleave(PassOrder):
    """Every stretch of the run holds each domain in proportion; within a domain, shuffled anew each epoch."""

    method: Literal["interleave"] = "interleave"
    """Domains in proportion throughout."""

    needs: ClassVar[frozenset[str]] = frozenset({"domain"})

    def _ordered(self, given: Entries, mixed: Entries, signals: Signals, target: Any, epoch: int) -> Order:  # noqa: ARG002
        domain = signals.require("domain", "interleave")
        return Order(mixed[interleaved(domain[mixed])], why=("domains interleaved",))


@dataclass(frozen=True)
class HerdedOrder(PassOrder):
    """Sums of the gradients seen so far stay as near as possible to their share of the whole (herding,
    Welling 2009), by gradients at the weights the run starts from; those that are not finite come last. Takes
    time in the square of the pool."""

    method: Literal["herding"] = "herding"
    """Prefix sums of gradients near the mean."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})

    def _ordered(self, given: Entries, mixed: Entries, signals: Signals, target: Any, epoch: int) -> Order:  # noqa: ARG002
        rows = np.asarray(signals.require("grad", "herding")[mixed])
        known = np.isfinite(rows).all(axis=1)
        usable = mixed[known]
        ordered = usable[herd(rows[known])] if len(usable) else usable
        return Order(np.concatenate([ordered, mixed[~known]]), why=("herded by gradients",))


@dataclass(frozen=True)
class MostUsefulFirst(PassOrder):
    """From the sample whose gradient does most for the target's loss to the one that does least, at the
    weights the run starts from; those that are not finite come last."""

    method: Literal["influence"] = "influence"
    """Largest first-order influence on the target first."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})

    def _ordered(
        self,
        given: Entries,  # noqa: ARG002
        mixed: Entries,
        signals: Signals,
        target: Signals | None,
        epoch: int,  # noqa: ARG002
    ) -> Order:
        grad = signals.require("grad", "influence")
        aims = grad[np.unique(mixed)] if target is None else target.require("grad", "influence's target")
        influence = grad[mixed].astype(np.float64) @ np.nanmean(aims.astype(np.float64), axis=0)
        influence = np.where(np.isfinite(influence), influence, -np.inf)
        return Order(mixed[np.argsort(-influence, kind="stable")], why=("most useful first, by gradients",))
