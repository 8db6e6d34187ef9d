"""What planning asks of an annealing selection, and the settings that all of them share."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from gradwise.data.settings import Sources
from gradwise.errors import RecipeError
from gradwise.methods.decision import Selection, share_of
from gradwise.methods.interfaces import Method
from gradwise.settings import default_of
from gradwise.signals import Signals


@dataclass(frozen=True)
class Annealer(Method):
    """Chooses what the annealing phase trains on, in which the learning rate decays."""

    last: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the run's steps in the annealing phase, over which the learning rate decays."""

    data: Sources = None
    """Sources of records that only the annealing phase trains on: one or a list; a bare string is a path.
    They are read as those of `data.train` are. If unset, the phase trains on the training data."""

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the phase's samples that come from `anneal.data`; the others come from the training data. The
    method chooses among each part on its own, and `count`, `tokens` and `candidates` are divided between them
    by their shares. If unset, all samples come from `anneal.data`."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the candidates to keep."""

    count: Annotated[int, Field(ge=1)] | None = None
    """Number of samples to keep. If fraction, count and tokens are unset, as many as the phase trains on, so
    that each is seen once."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    """Budget in label tokens, instead of a fraction or a number of samples."""

    times: Annotated[int, Field(ge=1)] = 1
    """Number of selections: one as the phase begins, further ones at even distances within it."""

    pool: Literal["all", "selection"] = "all"
    """Samples to choose from: all of the training data, or what `select` had picked by then."""

    candidates: Annotated[int, Field(ge=2)] | None = None
    """Number of samples that are scored, drawn at random with every domain in proportion. If unset, all."""

    validation_samples: Annotated[int, Field(ge=1)] | None = 256
    """Number of validation samples that are scored, evenly spread over them; null for all."""

    validation_needs: ClassVar[frozenset[str]] = frozenset()
    """Signals of the validation samples that it decides by."""

    @abstractmethod
    def select(
        self,
        signals: Signals,
        *,
        validation: Signals | None = None,
        room: int | None = None,
        seed: int = 0,
    ) -> Selection:
        """The samples to keep.

        Args:
            signals: of the candidates.
            validation: of the validation samples, where the method uses them.
            room: samples that the phase trains on; None outside of a run.
            seed: of what is left to chance.
        """

    @property
    def contender_methods(self) -> "dict[str, Annealer]":
        """Methods that a run tries for `steps` steps each; empty for none."""
        return {}

    def resolved(self) -> "Annealer | None":
        """The method that selects; None until a trial was held."""
        return self

    @property
    def uses_validation(self) -> bool:
        """Whether validation samples decide: by their signals, or as judges of what was tried."""
        return bool(self.validation_needs or self.contender_methods)

    @property
    def uses_optimizer(self) -> bool:
        """Whether gradients are divided by the root of the optimizer's second moments."""
        return False

    def part(self, share: float) -> Self:
        """These settings for a part of the phase's samples: sizes in samples or tokens are its share of them.

        Args:
            share: of the phase's samples, from 0 to 1.
        """
        least = {"count": 1, "tokens": 1, "candidates": 2}
        sizes = {name: getattr(self, name) for name in least if getattr(self, name) is not None}
        part_sizes = {name: max(least[name], round(share * size)) for name, size in sizes.items()}
        return replace(self, data=None, share=None, **part_sizes)

    def check_data(self, has_data: bool) -> None:
        """Raise RecipeError for settings that contradict whether the phase has data of its own."""
        if self.share is not None and not has_data:
            raise RecipeError(
                f"anneal.share is {self.share:g}, the share of the samples that come from anneal.data, which "
                "is not given; give it (with a Trainer: an anneal_dataset), or leave share out."
            )
        if has_data and self.share in (None, 1) and self.pool == "selection":
            raise RecipeError(
                "anneal.pool: selection chooses from the training data, and all samples of the phase come "
                "from anneal.data; leave pool out, or give a share below 1."
            )

    def check(self) -> None:
        sizes = [name for name in ("fraction", "count", "tokens") if getattr(self, name) is not None]
        if len(sizes) > 1:
            raise RecipeError(f"anneal: give one of fraction, count and tokens; found {' and '.join(sizes)}.")
        if self.count is not None and self.candidates is not None and self.count > self.candidates:
            raise RecipeError(
                f"anneal.count is {self.count}, and anneal.candidates scores only {self.candidates} samples; "
                "score more."
            )
        usual = default_of(Annealer, "validation_samples")
        if self.validation_samples != usual and not self.uses_validation:
            raise RecipeError(
                "anneal.validation_samples is about selections by validation samples, and "
                f"{self.method} uses none; leave it out."
            )

    def budget(self, pool: int, room: int | None = None) -> int:
        """How many of `pool` samples to keep, if no number of tokens decides that.

        Args:
            pool: samples to choose from.
            room: samples that the phase trains on; None outside of a run.

        Raises:
            RecipeError: there are fewer, or no setting says how many.
        """
        if self.fraction is not None:
            return share_of(self.fraction, pool, "anneal")
        if self.count is None and room is None:
            raise RecipeError("anneal: give fraction, count or tokens, since no run says how many.")
        if self.count is None:
            assert room is not None
            return min(pool, room)
        if self.count > pool:
            raise RecipeError(
                f"anneal.count is {self.count}, but only {pool} samples can be chosen from; lower it."
            )
        return self.count
