"""GRACE's settings as its authors publish them (arXiv 2604.11810), as far as they are known."""

from typing import Any, Self


class PublishedGrace:
    """Gives `Grace` its preset."""

    @classmethod
    def published(cls, **changes: object) -> Self:
        """The paper's settings as far as they are known: importance from gradients, anchors by priority
        alone, values propagated by Eq. 21 (beta = 1/2), all samples scored, budgets matched in steps.

        Not published, and therefore ours: the norm as importance, the weights of importance (0.5) and of
        staleness (0.5), k = 16, the fraction (0.1), a refresh every 50 steps, 10 % anchors, the drift that
        is repaired.

        Args:
            changes: settings that differ.

        >>> from gradwise import Grace
        >>> Grace.published(count=100).random_anchors
        0.0
        """
        stated: dict[str, Any] = {
            "importance": "norm",
            "by_length": False,
            "trade_off": 0.5,
            "candidates": "all",
            "refresh_every": 50,
            "anchors": 0.1,
            "random_anchors": 0.0,
            "min_agreement": None,
            "propagate": "value",
        }
        if not {"fraction", "count", "tokens"} & changes.keys():
            stated["fraction"] = 0.1
        return cls(**stated | changes)
