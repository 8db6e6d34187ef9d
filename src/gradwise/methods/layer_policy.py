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
from gradwise.settings import Settings

Scores = NDArray[np.float64]
"""(L,) importance of each layer: mean over a window of ||g|| / sqrt(number of parameters), nats per unit
weight."""


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
    memory and stream it for each update, or `drop` that of layers that go frozen."""

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

    probe: Annotated[int, Field(ge=1)] = 4
    """Forward and backward passes before the first step that measure all layers; nothing is updated."""

    probes: ClassVar[bool] = True


@dataclass(frozen=True)
class DrawnByScore(ProbedPolicy):
    """Layers drawn without replacement from a softmax over their scores."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Temperature of the softmax over scores divided by their mean. Lower prefers large scores more."""

    floor: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Smallest probability of any layer, so that every layer keeps being seen; at most 1 / layers."""

    def probabilities(self, scores: Scores) -> Scores | None:
        """(L,) floor + (1 - L floor) softmax(m / mean(m) / temperature)."""
        return np.exp(log_softmax_with_floor(scores, self.temperature, self.floor))

    def draw(self, scores: Scores, number: int, seed: int) -> NDArray[np.int64]:
        """Successive draws without replacement from `probabilities`."""
        log_p = log_softmax_with_floor(scores, self.temperature, self.floor)
        return np.sort(successive_draw(log_p, self.active, draw_rng(seed, number), logs=True))

    def check_layers(self, layers: int) -> None:
        super().check_layers(layers)
        if self.floor * layers > 1:
            raise RecipeError(
                f"layers.floor is {self.floor}, but {layers} layers cannot each have that probability; "
                f"give at most {np.floor(1000 / layers) / 1000:g}."
            )


@dataclass(frozen=True)
class AdaptingPolicy(ProbedPolicy):
    """A policy whose scores follow the training, as far as the active layers show it."""

    smoothing: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight alpha of a new measurement against the old score; 1 forgets the old one."""

    measures: ClassVar[bool] = True

    def adapt(self, scores: Scores, measured: Scores) -> Scores:
        """Exponential smoothing of what was measured; frozen layers (NaN) keep their score."""
        smoothed = self.smoothing * measured + (1 - self.smoothing) * scores
        return np.where(np.isfinite(measured), smoothed, scores)


def log_softmax_with_floor(scores: Scores, temperature: float, floor: float) -> Scores:
    """Logarithms of probabilities proportional to exp(m / mean(m) / temperature), none below `floor`, summing
    to 1.

    In logarithms, because at a low temperature without a floor all layers but the highest come out as zero,
    and there would be no second layer to draw. Scores that are all zero (a model whose gradient vanishes)
    give the uniform distribution.
    """
    layers = len(scores)
    mean = scores.mean()
    relative = scores / mean if mean > 0 else np.ones(layers)
    with np.errstate(over="ignore", divide="ignore"):
        logits = np.maximum((relative - relative.max()) / temperature, -1e300)
        log_softmax = logits - np.log(np.exp(logits).sum())
        return np.logaddexp(np.log(floor), np.log(max(0.0, 1 - layers * floor)) + log_softmax)


def draw_rng(seed: int, number: int) -> np.random.Generator:
    """The generator of draw `number`: a function of both, so that a resumed run needs no generator state."""
    return stream(seed, "layers", number)
