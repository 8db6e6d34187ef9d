"""Orders that cost little: shuffled, as given, easiest first, interleaved by domain, balanced, herded, most
useful first."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.balance import balanced, features_of
from gradwise.methods.decision import Order, entries_of
from gradwise.methods.interfaces import Orderer
from gradwise.numerics import herd, interleaved
from gradwise.numerics.balance import imbalance
from gradwise.numerics.streams import stream
from gradwise.signals import Signals

Entries = NDArray[np.int64]
"""(n,) positions in the pool, one for each time a sample is to be seen in this epoch; repeats are copies."""


@dataclass(frozen=True)
class EpochOrder(Orderer):
    """An order that needs no model: it starts from the entries as given, or shuffled."""

    def order(
        self,
        signals: Signals,
        entries: Entries | None = None,
        *,
        target: Signals | None = None,
        probe: object = None,  # noqa: ARG002
        epoch: int = 0,
        seed: int = 0,
    ) -> Order:
        entries = entries_of(signals, entries, self.method, seed=seed, epoch=epoch)
        mixed = stream(seed, "order of an epoch", epoch).permutation(entries)
        return self._ordered(entries, mixed, signals, target, epoch)

    @abstractmethod
    def _ordered(
        self, base: Entries, mixed: Entries, signals: Signals, target: Signals | None, epoch: int
    ) -> Order:
        """The entries in order, from their first order (`base`) or a shuffled one."""


@dataclass(frozen=True)
class Shuffle(EpochOrder):
    """A new random order for every epoch."""

    method: Literal["shuffle"] = "shuffle"
    """A new random order each epoch."""

    def _ordered(self, base: Entries, mixed: Entries, signals: object, target: object, epoch: int) -> Order:  # noqa: ARG002
        return Order(mixed, why=(f"shuffled in epoch {epoch}",))


@dataclass(frozen=True)
class GivenOrder(EpochOrder):
    """The order of the data, or of the selection where one was made."""

    method: Literal["given"] = "given"
    """As the data, or the selection, have it."""

    def _ordered(self, base: Entries, mixed: Entries, signals: object, target: object, epoch: int) -> Order:  # noqa: ARG002
        # It ended 0.544 nats above a shuffle (five seeds, docs/results/compare-orders_tune.md).
        return Order(base, why=("in the order given",))


@dataclass(frozen=True)
class EasyFirst(EpochOrder):
    """From the lowest loss to the highest, at the weights the run starts from; ties shuffled, and a sample
    whose loss is not finite comes last."""

    method: Literal["easy_first"] = "easy_first"
    """Lowest loss first."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def _ordered(self, base: Entries, mixed: Entries, signals: Signals, target: object, epoch: int) -> Order:  # noqa: ARG002
        # Stable over a shuffled order, so that ties, such as copies, fall to chance and not to the order of
        # the data.
        # It ended 0.786 nats above a shuffle (five seeds, docs/results/compare-orders_tune.md).
        loss = signals.require("loss", "easy_first")
        return Order(mixed[np.argsort(loss[mixed], kind="stable")], why=("easiest first, by loss",))


@dataclass(frozen=True)
class Interleave(EpochOrder):
    """Every stretch of the run holds each domain in proportion; within a domain the samples are shuffled
    again each epoch."""

    method: Literal["interleave"] = "interleave"
    """Domains in proportion throughout."""

    needs: ClassVar[frozenset[str]] = frozenset({"domain"})

    def _ordered(self, base: Entries, mixed: Entries, signals: Signals, target: object, epoch: int) -> Order:  # noqa: ARG002
        domain = signals.require("domain", "interleave")
        return Order(mixed[interleaved(domain[mixed])], why=("domains interleaved",))


@dataclass(frozen=True)
class Balanced(Orderer):
    """Every stretch of an epoch has nearly the mix of label tokens that the whole has; each epoch has another
    order.

    It balances sketched label tokens; if they are not known projected gradients, and otherwise domains.
    """

    method: Literal["balanced"] = "balanced"
    """Label tokens in proportion throughout."""

    needs: ClassVar[frozenset[str]] = frozenset({"words"})

    def order(
        self,
        signals: Signals,
        entries: Entries | None = None,
        *,
        target: Signals | None = None,  # noqa: ARG002
        probe: object = None,  # noqa: ARG002
        epoch: int = 0,
        seed: int = 0,
    ) -> Order:
        entries = entries_of(signals, entries, self.method, seed=seed, epoch=epoch)
        features = features_of(signals)
        rng = stream(seed, "balanced order", epoch)
        ordered = balanced(entries, features[entries], rng)
        strays = imbalance(features[ordered].astype(np.float64), np.arange(len(ordered)))
        return Order(ordered, why=("balanced",), details={"imbalance": float(f"{strays:.6g}")})


@dataclass(frozen=True)
class HerdedOrder(EpochOrder):
    """Sums of the gradients seen so far stay as near as possible to their share of the whole (herding,
    Welling 2009), by gradients at the weights the run starts from; those that are not finite come last. Takes
    time in the square of the pool."""

    method: Literal["herding"] = "herding"
    """Prefix sums of gradients near the mean."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})

    def _ordered(self, base: Entries, mixed: Entries, signals: Signals, target: object, epoch: int) -> Order:  # noqa: ARG002
        rows = np.asarray(signals.require("grad", "herding")[mixed])
        # A NaN in the prefix sums would make every later choice one among NaNs.
        finite = np.isfinite(rows).all(axis=1)
        usable = mixed[finite]
        ordered = usable[herd(rows[finite])] if len(usable) else usable
        return Order(np.concatenate([ordered, mixed[~finite]]), why=("herded by gradients",))


@dataclass(frozen=True)
class MostUsefulFirst(EpochOrder):
    """From the sample whose gradient lowers the pool's own mean loss most to the one that lowers it least, at
    the weights the run starts from; samples whose gradient is not finite come last. `order` can be given the
    signals of other samples, whose loss counts instead; a run gives none."""

    method: Literal["influence"] = "influence"
    """Largest first-order influence on the pool's mean loss first."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})

    def _ordered(
        self,
        base: Entries,  # noqa: ARG002
        mixed: Entries,
        signals: Signals,
        target: Signals | None,
        epoch: int,  # noqa: ARG002
    ) -> Order:
        grad = signals.require("grad", "influence")
        # To first order a step along -g lowers the target's loss by g . mean(target gradient).
        # First what helps most: it ended 0.312 nats above a shuffle (five seeds,
        # docs/results/compare-orders_tune.md).
        targets = grad[np.unique(mixed)] if target is None else target.require("grad", "influence's target")
        influence = grad[mixed].astype(np.float64) @ np.nanmean(targets.astype(np.float64), axis=0)
        influence = np.where(np.isfinite(influence), influence, -np.inf)
        return Order(mixed[np.argsort(-influence, kind="stable")], why=("most useful first, by gradients",))
