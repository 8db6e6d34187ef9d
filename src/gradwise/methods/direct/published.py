"""DiReCT's settings as its authors publish them (arXiv 2605.31175), as far as they are known."""

from typing import Any, Self


class PublishedDirect:
    """Gives `Direct` its preset."""

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """The paper's settings: the longest flat movement, 80 % of the annealing pool, an absolute bound on
        the stiff cost (Eq. 2), gradients as they are, stiff directions with 94.5 % of the trace.

        The paper's tau is 0.1. Whether it can be met depends on the scale of the gradients, so it is raised
        as far as necessary unless it is given, and the record says how far. `variant="weights"` is the
        reweighting variant (Algorithm 1), `rounding="random"` the randomised rounding.

        Not published, and therefore ours: the number of starts, and the share of the run that anneals.

        Args:
            changes: settings that differ.

        >>> from gradwise import Direct
        >>> Direct.published(count=100).tau_relative
        False
        """
        stated: dict[str, Any] = {
            "objective": "paper",
            "tau_relative": False,
            "normalise": "none",
            "outliers": "keep",
            "held_out_check": False,
            "copies": None,
            "validation_samples": None,
        }
        if not {"fraction", "count", "tokens"} & changes.keys():
            stated["fraction"] = 0.8
        return cls(**stated | changes)
