"""Lets several selections train for a few steps each where the pool holds little that resembles the target,
and follows the one that did best.

No way of selecting towards a target is best on every target, and where the pool has little like it some are
worse than random samples (docs/results/grace-targets.md). There a few real steps tell more than any score.
One half of the target samples chooses for the trial, the other half judges it; the winner then selects by all
of them.

How many are selected matters more than who selects: picks seen six times ended far above three times as many
picks seen twice (docs/log.md). So the length of the run bounds from below how many there are.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import RecipeError
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
    """Methods to try, with their defaults; each selects once, `fraction` or `count` samples or as many as
    follow from `max_epochs`. The one named first is replaced only by one whose loss is lower by more than a
    standard error of the difference."""

    max_closeness: Annotated[float, Field(ge=0, le=1)] | None = MIN_CLOSENESS
    """Closeness of the pool to the target up to which a trial is held; above it the contender named first
    selects without one. Where it is null, or the closeness is not known, a trial is always held."""

    steps: Annotated[int, Field(ge=1)] = 15
    """Optimizer steps per contender, at a learning rate that falls to zero. The model is restored
    afterwards."""

    judges: Annotated[int, Field(ge=1)] | None = 256
    """Largest number of samples that judge, from the half that does not choose; null for all of that half.
    With a single one no standard error is known, and the lowest loss wins."""

    max_epochs: Annotated[float, Field(ge=1)] | None = 2
    """Epochs over the selection in a run of `train.max_steps`, at most: where it would see the samples of
    `fraction` or `count` more often, more are selected, and all of the data where it would see these as
    often. With null, the sizes are kept."""

    picks: Annotated[int, Field(ge=1)] | None = None
    """Number of samples that follows from `max_epochs`, in place of `fraction` or `count`. If unset, a run
    finds it, and writes it into its recipe before it is used."""

    winner: Contender | None = None
    """The contender that selects. If unset, a run finds it before its first step, and writes it into its
    recipe before it is used."""

    left_to_run: ClassVar[tuple[str, ...]] = ("picks", "winner")
    found_in_data: ClassVar[tuple[str, ...]] = ("picks", "winner")

    def check(self) -> None:
        super().check()
        check_contenders("select", self.contenders, self.winner)
        if self.picks is not None and self.max_epochs is None:
            raise RecipeError(
                f"select.picks is {self.picks} and follows from max_epochs, which is null; give count "
                "instead."
            )

    def size(self, pool: int) -> int:
        if self.picks is None:
            return super().size(pool)
        if self.picks > pool:
            raise RecipeError(
                f"select.picks is {self.picks}, but only {pool} samples can be chosen from; leave it out."
            )
        return self.picks

    def for_run(self, pool: int, trained: float | None) -> Self:
        size = self.size(pool)  # also refuses what cannot be picked
        if self.max_epochs is None or self.picks is not None or trained is None:
            return self
        needed = math.ceil(trained / self.max_epochs)
        if size < pool <= needed and self.winner is None and "full" in self.contenders:
            return replace(self, winner="full")  # whoever selects, selects all
        return replace(self, picks=min(pool, needed)) if size < min(pool, needed) else self

    @property
    def contender_methods(self) -> dict[str, Selector]:
        size: dict[str, Any] = {"fraction": self.fraction, "count": self.count}
        if self.picks is not None:
            size = {"fraction": None, "count": self.picks}
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
