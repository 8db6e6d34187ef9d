"""Lets several annealing selections train for a few steps each, and follows the one that did best.

What a selection is worth can be predicted only roughly, and a few real steps cost little beside the gradients
of a pool. The contenders choose by one half of the validation samples; the other half, which chose nothing,
judges them.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gradwise.methods.annealer import Annealer
from gradwise.methods.baselines.anneal import CosineTop, FullAnneal, Herding, RandomAnneal
from gradwise.methods.decision import Selection
from gradwise.methods.direct import Direct
from gradwise.methods.trial.contenders import check_contenders, only_in_a_run
from gradwise.settings import default_of
from gradwise.signals import Signals

Contender = Literal["direct", "cosine_top", "herding", "random", "full"]

CLASSES: dict[str, type[Annealer]] = {
    "direct": Direct,
    "cosine_top": CosineTop,
    "herding": Herding,
    "random": RandomAnneal,
    "full": FullAnneal,
}


@dataclass(frozen=True)
class Trial(Annealer):
    """The selection after which a few steps lower the held-out loss most.

    >>> Trial(contenders=["direct", "random"], fraction=0.2).resolved() is None
    True
    >>> Trial(contenders=["direct", "random"], fraction=0.2, winner="random").resolved().fraction
    0.2
    """

    method: Literal["trial"] = "trial"
    """A short trial of other methods."""

    contenders: tuple[Contender, ...] = ("direct", "cosine_top", "random")
    """Methods to try, each with its defaults and the sizes set here. The one named first is replaced only by
    one whose loss is lower by more than a standard error of the difference."""

    steps: Annotated[int, Field(ge=1)] = 8
    """Optimizer steps per contender, at a learning rate that falls to zero. The model is restored
    afterwards."""

    judges: Annotated[int, Field(ge=1)] | None = 256
    """Largest number of samples that judge, from the half that does not choose; null for all of that half.
    With a single one no standard error is known, and the lowest loss wins."""

    winner: Contender | None = None
    """The contender that is used. If unset, a run finds it as the annealing phase begins, and writes it into
    its recipe before it is used."""

    left_to_run: ClassVar[tuple[str, ...]] = ("winner",)
    found_in_data: ClassVar[tuple[str, ...]] = ("winner",)

    def check(self) -> None:
        super().check()
        check_contenders("anneal", self.contenders, self.winner)

    # Of all contenders, also once the winner is known: a resumed run then measures what it did before.
    @property
    def needs(self) -> frozenset[str]:
        """The signals that one of the contenders decides by."""
        return frozenset().union(*(method.needs for method in self.contender_methods.values()))

    @property
    def validation_needs(self) -> frozenset[str]:
        """Signals of the validation samples that one of the contenders decides by."""
        return frozenset().union(*(method.validation_needs for method in self.contender_methods.values()))

    @property
    def contender_methods(self) -> dict[str, Annealer]:
        shared: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(Annealer)}
        # What a contender does not use it would refuse: all of the data have no size to be given.
        unused: dict[str, Any] = {"validation_samples": default_of(Annealer, "validation_samples")}
        whole = {**unused, **dict.fromkeys(("fraction", "count", "tokens"))}
        left_out = {"full": whole, "random": unused}
        return {name: CLASSES[name](**shared | left_out.get(name, {})) for name in self.contenders}

    def resolved(self) -> Annealer | None:
        return None if self.winner is None else self.contender_methods[self.winner]

    def select(
        self,
        signals: Signals,
        *,
        validation: Signals | None = None,
        room: int | None = None,
        seed: int = 0,
    ) -> Selection:
        """What the winner selects; see `Annealer.select`.

        Raises:
            RecipeError: there is no winner yet, since only a run can hold a trial.
        """
        winner = self.resolved()
        if winner is None:
            raise only_in_a_run("anneal")
        return winner.select(signals, validation=validation, room=room, seed=seed)
