"""The interface of all layer policies: which layers are updated over the next `period` steps.

A policy is settings plus pure functions of the layers' scores and of the number of the draw; whoever drives
it (`gradwise.training.layers.LayerSwitch`) keeps the scores, measures, freezes and thaws. Layers are numbered
0..L-1 in the model's own order; with `embeddings: sampled` the embeddings, head and other parameters outside
the blocks stand as one further layer at the end.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import RecipeError
from gradwise.numerics import successive_draw
from gradwise.numerics.streams import stream
from gradwise.settings import Settings, default_of

Scores = NDArray[np.float64]
"""(L,) importance of each layer: mean over a window of ||g|| / sqrt(number of parameters), nats per unit
weight."""


Share = Annotated[float, Field(ge=0, le=1)]

USUAL_PROBES = 4
"""Steps that measure all layers before the first one, if the run is long enough."""

USUAL_FLOOR = 0.1
"""Smallest probability of a layer as a fraction of the uniform one, if `floor` is unset."""


def fill_unmeasured(scores: Scores) -> Scores:
    """(L,) scores in which layers that were never measured (NaN) have the mean of the others, or 1."""
    measured = scores[~np.isnan(scores)]
    # Neither preferred nor avoided until it is seen.
    return np.where(np.isnan(scores), measured.mean() if measured.size else 1.0, scores)


@dataclass(frozen=True)
class LayerChoice(Settings, ABC):
    """Which layers are updated: all of them, or those that a policy draws."""

    if TYPE_CHECKING:
        method: str

    @property
    def policy(self) -> "LayerPolicy | None":
        """The same settings if they freeze layers, otherwise None."""
        return None


@dataclass(frozen=True)
class LayerPolicy(LayerChoice, ABC):
    """What every policy that freezes layers has in common."""

    active: Annotated[int, Field(ge=1)] = 2
    """Layers updated at a time."""

    period: Annotated[int, Field(ge=1)] = 10
    """Optimizer steps from one draw to the next."""

    embeddings: Literal["never", "always", "sampled"] = "never"
    """Whether embeddings, head and final norm are updated: never, always, or drawn as one more layer."""

    state: Literal["keep", "offload", "drop"] = "keep"
    """Optimizer state: `keep` it on the device for a layer's next turn, `offload` all of it to pinned host
    memory and stream it for each update, or `drop` that of layers that become frozen."""

    measures: ClassVar[bool] = False
    """Whether gradient norms are measured between draws."""

    probes: ClassVar[bool] = False
    """Whether all layers are measured once before the first step."""

    @property
    def policy(self) -> "LayerPolicy":
        return self

    @abstractmethod
    def draw(self, scores: Scores, number: int, seed: int) -> NDArray[np.int64]:
        """The layers of draw `number` (from 0), ascending; the same for the same scores, number and seed."""

    def probabilities(self, scores: Scores) -> Scores | None:  # noqa: ARG002
        """(L,) chance of each layer to be the first one drawn, or None where nothing is drawn by chance."""
        return None

    @property
    def adapts_every(self) -> int:
        """Optimizer steps from one update of the scores to the next."""
        return self.period

    def probes_in(self, steps: int | None) -> int:  # noqa: ARG002
        """Steps that measure all layers before a run of `steps`; None if its length is not known."""
        return 0

    def adapt(self, scores: Scores, measured: Scores) -> Scores:  # noqa: ARG002
        """Scores after a window in which the active layers measured `measured` (NaN for frozen layers)."""
        return scores

    def check_layers(self, layers: int) -> None:
        """Raise RecipeError when a model of `layers` layers cannot be served."""
        if self.active > layers:
            raise RecipeError(
                f"layers.active is {self.active}, but the model has {layers} layers with trainable parameters"
                f"; give at most {layers}."
            )


@dataclass(frozen=True)
class ProbedPolicy(LayerPolicy):
    """A policy that needs every layer's gradient norm before its first draw."""

    probe: Annotated[int, Field(ge=1)] | None = None
    """Steps before the first one that measure all layers; nothing is updated. If unset, 4, or fewer where
    these would exceed `probe_share`."""

    probe_share: Share = 0.05
    """Largest share of the run's steps that an unset `probe` takes. Below one step, `grass` starts from
    equal scores, and others probe once."""

    probes: ClassVar[bool] = True

    least_probes: ClassVar[int] = 1
    """Fewest steps that measure all layers, however short the run."""

    def probes_in(self, steps: int | None) -> int:
        if self.probe is not None or steps is None:
            return self.probe or USUAL_PROBES
        return max(self.least_probes, min(USUAL_PROBES, int(self.probe_share * steps)))

    def check(self) -> None:
        if self.probe is not None and self.probe_share != default_of(type(self), "probe_share"):
            raise RecipeError(
                f"layers.probe is {self.probe}, so layers.probe_share has no effect; give one of them."
            )


@dataclass(frozen=True)
class DrawnByScore(ProbedPolicy):
    """Layers drawn without replacement from a softmax over their scores."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Temperature of the softmax over scores. Lower prefers large scores more."""

    normalise: bool = True
    """Divide scores by their mean before the softmax. Without it, as the authors state, the raw scores of a
    large model (about 1e-5) make any temperature near 1 uniform."""

    floor: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Smallest probability of any layer, so that every layer keeps being seen; at most 1 / layers. If unset,
    a tenth of that."""

    def probabilities(self, scores: Scores) -> Scores | None:
        """(L,) floor + (1 - L floor) softmax(m / mean(m) / temperature)."""
        return np.exp(self._log_probabilities(scores))

    def draw(self, scores: Scores, number: int, seed: int) -> NDArray[np.int64]:
        """Successive draws without replacement from `probabilities`."""
        log_p = self._log_probabilities(scores)
        return np.sort(successive_draw(log_p, self.active, draw_rng(seed, number), logs=True))

    def _log_probabilities(self, scores: Scores) -> Scores:
        floor = USUAL_FLOOR / len(scores) if self.floor is None else self.floor
        return log_softmax_with_floor(scores, self.temperature, floor, normalise=self.normalise)

    def check_layers(self, layers: int) -> None:
        super().check_layers(layers)
        if (self.floor or 0) * layers > 1:
            raise RecipeError(
                f"layers.floor is {self.floor}, but {layers} layers cannot each have that probability; "
                f"give at most {np.floor(1000 / layers) / 1000:g}."
            )


@dataclass(frozen=True)
class AdaptingPolicy(ProbedPolicy):
    """A policy whose scores follow the training, as far as the active layers show it."""

    smoothing: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight alpha of a new measurement against the old score; 1 forgets the old one."""

    adapt_every: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps from one update of the scores to the next, each from what was measured in between. If
    unset, `period`: scores are updated before each draw."""

    measures: ClassVar[bool] = True

    @property
    def adapts_every(self) -> int:
        return self.adapt_every or self.period

    def adapt(self, scores: Scores, measured: Scores) -> Scores:
        """Exponential smoothing of what was measured; frozen layers (NaN) keep their score, and layers that
        had none (NaN) take what was measured."""
        # A layer that was never measured takes the measurement as it is, since there is nothing to smooth it
        # with.
        old = np.where(np.isnan(scores), measured, scores)
        smoothed = self.smoothing * measured + (1 - self.smoothing) * old
        return np.where(np.isfinite(measured), smoothed, scores)


def log_softmax_with_floor(
    scores: Scores, temperature: float, floor: float, *, normalise: bool = True
) -> Scores:
    """Logarithms of probabilities proportional to exp(m / mean(m) / temperature), or exp(m / temperature)
    where scores are not normalised, none below `floor`, summing to 1.

    In logarithms, because at a low temperature without a floor all layers but the highest come out as zero,
    and there would be no second layer to draw. Scores that are all zero (a model whose gradient vanishes)
    give the uniform distribution.
    """
    layers = len(scores)
    mean = scores.mean()
    relative = scores if not normalise else scores / mean if mean > 0 else np.ones(layers)
    with np.errstate(over="ignore", divide="ignore"):
        logits = np.maximum((relative - relative.max()) / temperature, -1e300)
        log_softmax = logits - np.log(np.exp(logits).sum())
        # floor + (1 - L floor) softmax, in logarithms: each layer has the floor, and the softmax shares out
        # the rest.
        return np.logaddexp(np.log(floor), np.log(max(0.0, 1 - layers * floor)) + log_softmax)


def draw_rng(seed: int, number: int) -> np.random.Generator:
    """The generator of draw `number`: a function of both, so that a resumed run needs no generator state."""
    return stream(seed, "layers", number)
