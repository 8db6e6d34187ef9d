"""What every way of finishing a run has in common: when the last phase begins, and what it chooses from."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from gradwise.errors import RecipeError
from gradwise.methods.subset import share_of
from gradwise.settings import Settings


@dataclass(frozen=True)
class Phase(Settings):
    """The last phase of a run, in which the learning rate decays: how long it is, and what it trains on."""

    last: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the run's steps over which the learning rate decays, and for which is selected."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of what is chosen from to keep."""

    count: Annotated[int, Field(ge=1)] | None = None
    """Number of samples to keep. Where nothing says how many, as many as the phase has room for, so that each
    is seen once."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    """Budget in label tokens, instead of a share or a number of samples."""

    times: Annotated[int, Field(ge=1)] = 1
    """How often the selection is made: once as the phase begins, or again at even distances within it."""

    pool: Literal["all", "selection"] = "all"
    """What is chosen from: all of the training data, or what `select` had picked by then."""

    candidates: Annotated[int, Field(ge=2)] | None = None
    """Samples that are looked at, drawn at random with every domain in proportion; all unless given."""

    validation_samples: Annotated[int, Field(ge=1)] | None = 256
    """Samples of the validation data that are measured, evenly spread over them; None for all."""

    def check(self) -> None:
        given = [name for name in ("fraction", "count", "tokens") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(f"anneal: give one of fraction, count and tokens; found {' and '.join(given)}.")
        if self.count is not None and self.candidates is not None and self.count > self.candidates:
            raise RecipeError(
                f"anneal.count is {self.count}, and anneal.candidates looks at {self.candidates} samples "
                "only; look at more."
            )

    def budget(self, pool: int, room: int | None = None) -> int:
        """How many of `pool` samples to keep, where no number of tokens says so.

        Args:
            pool: samples that can be chosen from.
            room: samples that the phase trains on; None where there is no run.

        Raises:
            RecipeError: when there are fewer, or nothing says how many.
        """
        if self.fraction is not None:
            return share_of(self.fraction, pool, "anneal")
        if self.count is None and room is None:
            raise RecipeError(
                "anneal: give fraction, count or tokens, since there is no run to tell how many."
            )
        if self.count is None:
            assert room is not None
            return min(pool, room)
        if self.count > pool:
            raise RecipeError(
                f"anneal.count is {self.count}, but only {pool} samples can be chosen from; lower it."
            )
        return self.count
