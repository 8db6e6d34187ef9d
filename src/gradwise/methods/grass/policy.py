"""GRASS: sample layers by their gradient norm, and keep the norms up to date.

Source: "GRASS: Gradient-based Adaptive Layer-wise Importance Sampling for Memory-efficient LLM Fine-tuning",
arXiv 2604.07808. Importance m_l = (1/T) sum_t sqrt(||g_t^l||^2 / N_l) over a window of T steps; layers drawn
from softmax(m / temperature); the active layers' m becomes alpha * new + (1 - alpha) * old. The authors'
constants are not published; ours are in the field docstrings. Two things are ours, and `Grass.published()`
leaves them out: m is divided by its mean before the softmax, because raw values (about 1e-5 on a 7B model)
would make any temperature near 1 uniform; and no probability falls below a floor.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

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

    least_probes: ClassVar[int] = 0

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """The paper's settings as far as they are known: a softmax over the raw norms, no floor, layers drawn
        every 25 steps (the authors found 25 to 50 best), optimizer state offloaded to host memory.

        The temperature, alpha, T_p, T_u, gamma and what happens to embeddings are not published; they have
        our defaults, and T_u equals T_s.

        Args:
            changes: settings that differ.

        >>> Grass.published(active=3).period
        25
        """
        stated: dict[str, Any] = {
            "period": 25,
            "adapt_every": 25,
            "normalise": False,
            "floor": 0.0,
            "probe": 4,
            "state": "offload",
        }
        return cls(**stated | changes)
