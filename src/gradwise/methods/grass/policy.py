"""GRASS: sample layers by their gradient norm, and keep the norms up to date.

Source: "GRASS: Gradient-based Adaptive Layer-wise Importance Sampling for Memory-efficient LLM Fine-tuning",
arXiv 2604.07808. Importance m_l = (1/T) sum_t sqrt(||g_t^l||^2 / N_l) over a window of T steps; layers drawn
from softmax(m / temperature); the active layers' m becomes alpha * new + (1 - alpha) * old. The authors'
constants are not published; ours are in the field docstrings. One thing is ours: m is divided by its mean
before the softmax, because raw values (about 1e-5 on a 7B model) would make any temperature near 1 uniform.
"""

from dataclasses import dataclass
from typing import Literal

from gradwise.methods.layer_policy import AdaptingPolicy, DrawnByScore


@dataclass(frozen=True)
class Grass(DrawnByScore, AdaptingPolicy):
    """Layers drawn without replacement from a softmax over their gradient norms, which follow the training.

    >>> import numpy as np
    >>> Grass(active=1, temperature=0.5, floor=0.0).probabilities(np.array([1.0, 1.0, 4.0])).round(3)
    array([0.045, 0.045, 0.909])
    """

    method: Literal["grass"] = "grass"
    """Drawn by gradient norm, adapting."""
