"""What every selection that keeps a part of the pool has in common: how large that part is."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from gradwise.errors import RecipeError
from gradwise.settings import Settings


@dataclass(frozen=True)
class Subset(Settings):
    """A part of the pool, its size given as a share or as a number."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the pool to keep, above 0 and at most 1."""

    count: Annotated[int, Field(ge=1)] | None = None
    """Number of samples to keep."""

    def check(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise RecipeError(
                f"select: give either fraction or count; found fraction={self.fraction}, count={self.count}."
            )

    def size(self, pool: int) -> int:
        """How many of `pool` samples to keep; raises RecipeError where that is none, or more than there "
        "are."""
        if self.count is not None:
            if self.count > pool:
                raise RecipeError(
                    f"select.count is {self.count}, but only {pool} samples can be chosen from; lower it."
                )
            return self.count
        assert self.fraction is not None
        return share_of(self.fraction, pool, "select")


def share_of(fraction: float, pool: int, section: str) -> int:
    """How many of `pool` samples a fraction is; raises RecipeError where it is none."""
    if fraction * pool < 0.5:
        raise RecipeError(
            f"{section}.fraction is {fraction:g}, which is none of {pool} samples; give a larger fraction, "
            "or a count."
        )
    return max(1, round(fraction * pool))  # half of a single sample is one
