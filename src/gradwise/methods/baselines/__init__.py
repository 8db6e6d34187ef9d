"""The baselines that every method is compared with."""

from gradwise.methods.baselines.anneal import (
    CosineTop,
    FullAnneal,
    GradNormAnneal,
    Herding,
    InfoBatch,
    LossAnneal,
    PerplexityAnneal,
    RandomAnneal,
)
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
from gradwise.methods.baselines.targeted import Dsir, Less, Nearest, Tsds

__all__ = [
    "AllLayers",
    "Balanced",
    "CosineTop",
    "Dsir",
    "EasyFirst",
    "FullAnneal",
    "FullData",
    "GivenOrder",
    "GradNormAnneal",
    "GradNormTop",
    "HerdedOrder",
    "Herding",
    "InfoBatch",
    "Interleave",
    "KCenter",
    "LengthTop",
    "Less",
    "LossAnneal",
    "LossTop",
    "MostUsefulFirst",
    "Nearest",
    "PerplexityAnneal",
    "RandomAnneal",
    "RandomSubset",
    "RoundRobinLayers",
    "Shuffle",
    "StaticLayers",
    "TopLayers",
    "Tsds",
    "UniformLayers",
]
