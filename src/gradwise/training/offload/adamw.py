"""torch's AdamW with the choice of where its state lives."""

from typing import Any, Literal

import torch

from gradwise.errors import RecipeError
from gradwise.text import shown
from gradwise.training.offload.stream import offload_state


class AdamW(torch.optim.AdamW):
    """torch's AdamW whose state can live in pinned host memory and be streamed to the device for the update.

    The weights that it gives are those of torch's AdamW, bit for bit. It works in any training loop:

        optimizer = gw.AdamW(model.parameters(), lr=1e-4, offload="cpu")
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    Args:
        params: as torch's.
        *args: as torch's.
        offload: "cpu" for state in host memory; None for state beside the parameters.
        **settings: as torch's.

    Raises:
        RecipeError: `offload` is something else.
    """

    def __init__(
        self, params: Any, *args: Any, offload: Literal["cpu"] | None = None, **settings: Any
    ) -> None:
        if offload not in (None, "cpu"):
            raise RecipeError(f'AdamW: offload must be "cpu" or None; found {shown(offload)}.')
        super().__init__(params, *args, **settings)
        if offload:
            offload_state(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; state that came in for an update that was skipped leaves the device again."""
        super().zero_grad(set_to_none)
        if (stream := getattr(self, "offloaded_state", None)) is not None:
            stream.discard()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, before state is offloaded.

        Raises:
            RecipeError: it is.
        """
        if hasattr(self, "offloaded_state"):
            raise RecipeError("AdamW with offload takes all its parameters when it is made; make a new one.")
        super().add_param_group(param_group)
