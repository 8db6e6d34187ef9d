"""The baselines that every method is compared with."""

from gradwise.methods.baselines.anneal import CosineTop, FullAnneal, Herding, LossAnneal, RandomAnneal
from gradwise.methods.baselines.layers import (
    AllLayers,
    RoundRobinLayers,
    StaticLayers,
    TopLayers,
    UniformLayers,
)
from gradwise.methods.baselines.order import (
    Balanced,
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
    "Balanced",
    "CosineTop",
    "EasyFirst",
    "FullAnneal",
    "FullData",
    "GivenOrder",
    "GradNormTop",
    "HerdedOrder",
    "Herding",
    "Interleave",
    "KCenter",
    "LengthTop",
    "LossAnneal",
    "LossTop",
    "MostUsefulFirst",
    "RandomAnneal",
    "RandomSubset",
    "RoundRobinLayers",
    "Shuffle",
    "StaticLayers",
    "TopLayers",
    "UniformLayers",
]
