"""The simple things that every method here has to beat."""

from gradwise.methods.baselines.finish import CosineTop, FullFinish, Herding, LossFinish, RandomFinish
from gradwise.methods.baselines.layers import (
    AllLayers,
    RoundRobinLayers,
    StaticLayers,
    TopLayers,
    UniformLayers,
)
from gradwise.methods.baselines.order import (
    EasyFirst,
    GivenOrder,
    HerdedOrder,
    Interleave,
    MostUsefulFirst,
    Shuffle,
)
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
    "CosineTop",
    "EasyFirst",
    "FullData",
    "FullFinish",
    "GivenOrder",
    "GradNormTop",
    "HerdedOrder",
    "Herding",
    "Interleave",
    "KCenter",
    "LengthTop",
    "LossFinish",
    "LossTop",
    "MostUsefulFirst",
    "RandomFinish",
    "RandomSubset",
    "RoundRobinLayers",
    "Shuffle",
    "StaticLayers",
    "TopLayers",
    "UniformLayers",
]
