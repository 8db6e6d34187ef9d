"""What a run's size and the speeds of its machine are called, for methods that decide within a budget."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from gradwise.settings import Settings

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Speeds(Settings):
    """How fast a machine trains and scores; a run measures it before its first step."""

    train: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Seconds per sample of training: forward and backward."""

    score: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Seconds per sample of a scoring run."""

    startup: _Seconds = 0.0
    """Seconds that the first scoring run takes whatever its size; the model is tried before it is trusted."""

    later_startup: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """Seconds that every later scoring run takes whatever its size. If unset, as the first."""

    compare: _Seconds = 0.0
    """Seconds per pair of samples whose embeddings are compared for the graph."""


@dataclass(frozen=True)
class RunSize:
    """How large a run is."""

    pool: int
    """Samples that can be selected."""
    steps: int
    """Optimizer steps during which the selection counts."""
    batch: int
    """Samples of a step."""
    picks: int = 0
    """Samples of the selection."""
    aside: int = 0
    """Target samples, which are scored besides."""
    choosing: int = 0
    """Samples by which an annealing selection chooses: the target's, or else the validation samples."""
    added: int = 0
    """Samples that only the annealing phase trains on."""
    scored: int | None = None
    """Samples of the pool that a trial of selections, or its winner, scores. If unset, all of them."""


@dataclass(frozen=True)
class SelectionForecast:
    """How often a selection is made, on how many samples, and what that is expected to cost."""

    candidates: int
    """Samples of the pool that are scored."""
    every: int
    """Steps from one selection to the next; 0 for a single selection."""
    anchors: float
    """Fraction of the candidates that the first refresh scores again."""
    least_anchors: float
    """Fraction below which later refreshes do not fall."""
    allowance: int | None
    """Samples that all refreshes together may score; None for no limit."""
    steps: int
    """Steps of the run."""
    training: float | None
    """Seconds of all of them; None where no speed was measured."""
    first: float = 0.0
    """Seconds of the first scoring run and its graph."""
    refreshes: float = 0.0
    """Seconds of all refreshes together."""

    @property
    def share(self) -> float | None:
        """Deciding time as a fraction of training time."""
        return None if self.training is None else (self.first + self.refreshes) / self.training

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the record."""
        if self.training is None or self.share is None:
            return asdict(self) | {"first": None, "share": None}
        seconds = {name: round(getattr(self, name), 3) for name in ("training", "first", "refreshes")}
        return asdict(self) | seconds | {"share": round(self.share, 4)}

    def __str__(self) -> str:
        again = f"again every {self.every} steps" if self.every else "once"
        scores = f"grace scores {self.candidates:,} samples and selects {again}"
        if self.share is None:
            return scores
        return (
            f"{scores}; that is expected to take "
            f"{self.first + self.refreshes:,.1f} s, {self.share:.0%} of {self.training:,.1f} s of training"
        )
