"""The decisions: which samples, in which order, through which layers, and what finishes the run. One union
per question lists who answers it.

A new method is a frozen settings dataclass with a `method` literal of its own, added to one union below;
recipe, schema, command line and trainer follow from that.
"""

from typing import Annotated

from pydantic import Field

from gradwise.methods.baselines import (
    AllLayers,
    CosineTop,
    EasyFirst,
    FullData,
    FullFinish,
    GivenOrder,
    GradNormTop,
    HerdedOrder,
    Herding,
    Interleave,
    KCenter,
    LengthTop,
    LossFinish,
    LossTop,
    MostUsefulFirst,
    RandomFinish,
    RandomSubset,
    RoundRobinLayers,
    Shuffle,
    StaticLayers,
    TopLayers,
    UniformLayers,
)
from gradwise.methods.d3 import D3
from gradwise.methods.decision import Order, Selection
from gradwise.methods.direct import Direct
from gradwise.methods.grace import Grace
from gradwise.methods.grass import Grass

Select = Annotated[
    FullData | RandomSubset | LossTop | LengthTop | GradNormTop | KCenter | Grace,
    Field(discriminator="method"),
]
OrderBy = Annotated[
    Shuffle | GivenOrder | EasyFirst | Interleave | HerdedOrder | MostUsefulFirst | D3,
    Field(discriminator="method"),
]
Layers = Annotated[
    AllLayers | UniformLayers | StaticLayers | RoundRobinLayers | TopLayers | Grass,
    Field(discriminator="method"),
]
Anneal = Annotated[
    Direct | FullFinish | RandomFinish | LossFinish | CosineTop | Herding,
    Field(discriminator="method"),
]

__all__ = ["D3", "Anneal", "Direct", "Grace", "Grass", "Layers", "Order", "OrderBy", "Select", "Selection"]
