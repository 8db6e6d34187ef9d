"""The simple things that every method here has to beat."""

from gradwise.methods.baselines.layers import (
    AllLayers,
    RoundRobinLayers,
    StaticLayers,
    TopLayers,
    UniformLayers,
)
from gradwise.methods.baselines.order import EasyFirst, GivenOrder, Interleave, Shuffle
from gradwise.methods.baselines.select import (
    FullData,
    GradNormTop,
    KCenter,
    LengthTop,
    LossTop,
    RandomSubset,
)

__all__ = [
    "AllLayers",
    "EasyFirst",
    "FullData",
    "GivenOrder",
    "GradNormTop",
    "Interleave",
    "KCenter",
    "LengthTop",
    "LossTop",
    "RandomSubset",
    "RoundRobinLayers",
    "Shuffle",
    "StaticLayers",
    "TopLayers",
    "UniformLayers",
]
