"""Lets several selections train for a few steps each where the pool holds little that resembles the target,
and follows the one that did best.

No way of selecting towards a target is best on every target, and where the pool has little like it some are
worse than random samples (docs/results/grace-targets.md). There a few real steps tell more than any score.
One half of the target samples chooses for the trial, the other half judges it; the winner then selects by all
of them.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.methods.baselines.select import FullData, RandomSubset
from gradwise.methods.baselines.targeted import Dsir, Nearest, Tsds
from gradwise.methods.decision import Selection
from gradwise.methods.grace import Grace
from gradwise.methods.interfaces import Places, Selector, TextMatch
from gradwise.methods.targeting import MIN_CLOSENESS, AlwaysTargeted
from gradwise.methods.trial.contenders import check_contenders, only_in_a_run
from gradwise.signals import Signals
from gradwise.signals.request import QUANTITIES

Contender = Literal["grace", "dsir", "nearest", "tsds", "random", "full"]


@dataclass(frozen=True)
class SelectTrial(AlwaysTargeted):
    """The first of several selections, or where the pool has little like the target, the one after which a
    few steps lower the loss on target samples beyond noise.

    >>> SelectTrial(contenders=["dsir", "full"], count=8, winner="dsir").resolved().count
    8
    """

    method: Literal["trial"] = "trial"
    """A short trial of other methods towards a target."""

    contenders: tuple[Contender, ...] = ("grace", "full")
    """Methods to try, with their defaults; each selects once, `fraction` or `count` samples. The one named
    first is replaced only by one whose loss is lower by more than a standard error of the difference."""

    max_closeness: Annotated[float, Field(ge=0, le=1)] | None = MIN_CLOSENESS
    """Closeness of the pool to the target up to which a trial is held; above it the contender named first
    selects without one. Where it is null, or the closeness is not known, a trial is always held."""

    steps: Annotated[int, Field(ge=1)] = 15
    """Optimizer steps per contender, at a learning rate that falls to zero. The model is restored
    afterwards."""

    judges: Annotated[int, Field(ge=1)] | None = 256
    """Largest number of samples that judge, from the half that does not choose; null for all of that half.
    With a single one no standard error is known, and the lowest loss wins."""

    winner: Contender | None = None
    """The contender that selects. If unset, a run finds it before its first step, and writes it into its
    recipe before it is used."""

    left_to_run: ClassVar[tuple[str, ...]] = ("winner",)
    found_in_data: ClassVar[tuple[str, ...]] = ("winner",)

    def check(self) -> None:
        super().check()
        check_contenders("select", self.contenders, self.winner)

    @property
    def contender_methods(self) -> dict[str, Selector]:
        size: dict[str, Any] = {"fraction": self.fraction, "count": self.count}
        aimed: dict[str, Any] = {**size, "target": self.target or "target"}
        selectors: dict[str, Selector] = {
            # Without refreshes: the trial judges what was selected once, before the run trains.
            "grace": Grace(**aimed, refresh_every=0),
            "dsir": Dsir(**aimed),
            "nearest": Nearest(**aimed),
            "tsds": Tsds(**aimed),
            "random": RandomSubset(**size),
            "full": FullData(),
        }
        return {name: selectors[name] for name in self.contenders}

    def resolved(self) -> Selector | None:
        return None if self.winner is None else self.contender_methods[self.winner]

    def without_trial(self, closeness: float | None) -> Self | None:
        """The same method with the first contender as the winner, where a pool is so close to the target that
        none is tried; None otherwise."""
        if self.max_closeness is None or closeness is None or closeness <= self.max_closeness:
            return None
        return replace(self, winner=self.contenders[0])

    def advice(self, selection: Selection) -> str | None:
        winner = self.resolved()
        return None if winner is None else winner.advice(selection)

    @property
    def _remaining(self) -> list[Selector]:
        """The contenders that still matter."""
        chosen = self.resolved()
        return list(self.contender_methods.values()) if chosen is None else [chosen]

    @property
    def needs(self) -> frozenset[str]:
        """The signals that one of the contenders decides by."""
        return frozenset().union(*(method.needs for method in self._remaining))

    def match_texts(self, signals: Signals, target: Signals) -> TextMatch | None:
        stages = (method.match_texts(signals, target) for method in self._remaining)
        return next((stage for stage in stages if stage is not None), None)

    def rows_to_score(
        self, pool: int, domain: NDArray[np.str_] | None, seed: int, match: object = None
    ) -> Places | None:
        """The samples that the one contender scores that asks a model; all where there are several."""
        measuring = [method for method in self._remaining if method.needs & set(QUANTITIES)]
        return measuring[0].rows_to_score(pool, domain, seed, match) if len(measuring) == 1 else None

    def select(self, signals: Signals, *, target: Signals | None = None, seed: int = 0) -> Selection:
        """What the winner selects.

        Raises:
            RecipeError: there is no winner yet, since only a run can hold a trial.
        """
        winner = self.resolved()
        if winner is None:
            raise only_in_a_run("select")
        select: Any = winner.select
        return select(signals, seed=seed, **({"target": target} if winner.uses_target else {}))
