"""The size of a selection that keeps a part of the pool."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from gradwise.errors import RecipeError
from gradwise.methods.decision import share_of
from gradwise.methods.interfaces import Selector


@dataclass(frozen=True)
class Subset(Selector):
    """A part of the pool, its size given as a fraction or as a number."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the pool to keep, above 0 and at most 1."""

    count: Annotated[int, Field(ge=1)] | None = None
    """Number of samples to keep."""

    def check(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise RecipeError(
                f"select: give either fraction or count; found fraction={self.fraction}, count={self.count}."
            )

    def size_in_run(self, pool: int, mean_tokens: Callable[[], float]) -> int:  # noqa: ARG002
        return self.size(pool)

    def size(self, pool: int) -> int:
        """How many of `pool` samples to keep; raises RecipeError if that is none, or more than there are."""
        if self.count is not None:
            if self.count > pool:
                raise RecipeError(
                    f"select.count is {self.count}, but only {pool} samples can be chosen from; lower it."
                )
            return self.count
        assert self.fraction is not None
        return share_of(self.fraction, pool, "select")
