"""Orders that cost little: shuffled, as given, easiest first, interleaved by domain."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.decision import Order
from gradwise.numerics import interleaved
from gradwise.settings import Settings
from gradwise.signals import Signals

Entries = NDArray[np.int64]
"""(n,) positions in the pool, one for each time a sample is to be seen in this pass; repeats are copies."""


@dataclass(frozen=True)
class Shuffle(Settings):
    """A new random order for every epoch."""

    method: Literal["shuffle"] = "shuffle"
    """A new random order each epoch."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def order(self, entries: Entries, signals: Signals, *, epoch: int = 0, seed: int = 0) -> Order:  # noqa: ARG002
        """A permutation of `entries` that depends on seed and epoch alone."""
        return Order(_shuffled(entries, epoch, seed), why=(f"shuffled in epoch {epoch}",))


@dataclass(frozen=True)
class GivenOrder(Settings):
    """The order of the data, or of the selection where one was made."""

    method: Literal["given"] = "given"
    """As the data, or the selection, have it."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def order(self, entries: Entries, signals: Signals, *, epoch: int = 0, seed: int = 0) -> Order:  # noqa: ARG002
        """`entries` as they are."""
        return Order(entries, why=("in the order given",))


@dataclass(frozen=True)
class EasyFirst(Settings):
    """From the lowest loss to the highest, at the weights the run starts from."""

    method: Literal["easy_first"] = "easy_first"
    """Lowest loss first."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def order(self, entries: Entries, signals: Signals, *, epoch: int = 0, seed: int = 0) -> Order:
        """Ascending loss, ties shuffled; a sample whose loss is not finite comes last."""
        loss = signals.require("loss", "easy_first")
        mixed = _shuffled(entries, epoch, seed)
        return Order(mixed[np.argsort(loss[mixed], kind="stable")], why=("easiest first, by loss",))


@dataclass(frozen=True)
class Interleave(Settings):
    """Every stretch of the run holds each domain in proportion; within a domain, shuffled anew each epoch."""

    method: Literal["interleave"] = "interleave"
    """Domains in proportion throughout."""

    needs: ClassVar[frozenset[str]] = frozenset({"domain"})

    def order(self, entries: Entries, signals: Signals, *, epoch: int = 0, seed: int = 0) -> Order:
        """Proportional interleaving of the domains' shuffled samples."""
        domain = signals.require("domain", "interleave")
        mixed = _shuffled(entries, epoch, seed)
        return Order(mixed[interleaved(domain[mixed])], why=("domains interleaved",))


_ORDER = 0x02DE2
"""Keeps these permutations' random stream apart from those of the selection and of the layers."""


def _shuffled(entries: Entries, epoch: int, seed: int) -> Entries:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(entries)
