"""The methods: which samples, in which order, through which layers, and which samples in the annealing phase.

A new method is a frozen settings dataclass with its own `method` literal that derives from one of the classes
in `gradwise.methods.interfaces` (or from `Annealer` or `LayerPolicy`), added to one union below. Recipe,
schema, command line and trainer follow from that.
"""

from typing import Annotated

from pydantic import Field

from gradwise.methods.baselines import (
    AllLayers,
    Balanced,
    CosineTop,
    Dsir,
    EasyFirst,
    FullAnneal,
    FullData,
    GivenOrder,
    GradNormAnneal,
    GradNormTop,
    HerdedOrder,
    Herding,
    InfoBatch,
    Interleave,
    KCenter,
    LengthTop,
    Less,
    LossAnneal,
    LossTop,
    MostUsefulFirst,
    Nearest,
    PerplexityAnneal,
    RandomAnneal,
    RandomSubset,
    RoundRobinLayers,
    Shuffle,
    StaticLayers,
    TopLayers,
    Tsds,
    UniformLayers,
)
from gradwise.methods.d3 import D3, PublishedD3
from gradwise.methods.decision import Order, Selection
from gradwise.methods.direct import Direct
from gradwise.methods.grace import Grace
from gradwise.methods.grass import Grass
from gradwise.methods.trial import SelectTrial, Trial

Select = Annotated[
    FullData
    | RandomSubset
    | LossTop
    | LengthTop
    | GradNormTop
    | KCenter
    | Dsir
    | Nearest
    | Less
    | Tsds
    | Grace
    | SelectTrial,
    Field(discriminator="method"),
]
OrderBy = Annotated[
    Shuffle
    | GivenOrder
    | EasyFirst
    | Interleave
    | Balanced
    | HerdedOrder
    | MostUsefulFirst
    | D3
    | PublishedD3,
    Field(discriminator="method"),
]
Layers = Annotated[
    AllLayers | UniformLayers | StaticLayers | RoundRobinLayers | TopLayers | Grass,
    Field(discriminator="method"),
]
Anneal = Annotated[
    Direct
    | FullAnneal
    | RandomAnneal
    | LossAnneal
    | PerplexityAnneal
    | GradNormAnneal
    | InfoBatch
    | CosineTop
    | Herding
    | Trial,
    Field(discriminator="method"),
]

__all__ = [
    "D3",
    "Anneal",
    "Direct",
    "Grace",
    "Grass",
    "Layers",
    "Order",
    "OrderBy",
    "Select",
    "SelectTrial",
    "Selection",
    "Trial",
]
