"""Updates each layer within the backward pass, as soon as its gradient is complete, and frees the gradient.

So at most one layer's gradient exists at a time. That is an ordinary step only where nothing has to be known
of the other layers first: one backward pass per step, no norm over all layers, no loss scaling, one process.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwise.errors import RecipeError
from gradwise.training.offload import StateStream
from gradwise.training.offload.arena import check_served, step_on


class UpdateInBackward:
    """Hooks on an optimizer's parameters; `optimizer.step()` then updates what the hooks left.

    Args:
        optimizer: one of torch's that updates each parameter on its own.
        layers: its parameters by layer.
        max_norm: largest norm of a layer's gradient, which is scaled down to it; None for no clipping.
        measure: called with the number of a layer whose gradient is complete and not yet clipped.

    Raises:
        RecipeError: the optimizer is another one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Sequence[Sequence[nn.Parameter]],
        *,
        max_norm: float | None = None,
        measure: Callable[[int], object] | None = None,
    ) -> None:
        check_served(optimizer)
        self.optimizer, self.layers = optimizer, layers
        self.max_norm, self.measure = max_norm, measure
        self.paused = False
        """Whether gradients are left alone, as while layers are measured without an update."""
        self.updated: set[int] = set()
        """Layers that were updated since the last `optimizer.step()`."""
        self._number = {p: number for number, layer in enumerate(layers) for p in layer}
        self._missing: dict[int, int] = {}
        self._handles: list[Any] = [
            *(p.register_post_accumulate_grad_hook(self._gradient_came) for p in self._number),
            optimizer.register_step_post_hook(lambda *_: self.updated.clear()),
        ]
        self._stream: StateStream | None = getattr(optimizer, "offloaded_state", None)
        if self._stream is None:
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._finish()))
        else:
            # A hook of the optimizer would come after the stream's, which updates whatever has a gradient:
            # without the layer's clipping.
            self._stream.before_update = self._finish

    def unhook(self) -> None:
        """Let `optimizer.step()` make the whole update again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._stream is not None:
            self._stream.before_update = None

    def begin_again(self) -> None:
        """Forget a backward pass that did not end, after which another begins."""
        if self.updated:
            warnings.warn(
                f"A backward pass that did not end has updated {len(self.updated)} of {len(self.layers)} "
                "layers; the step that now begins updates them again.",
                stacklevel=3,
            )
        self._missing.clear()
        self.updated.clear()

    def _gradient_came(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        number = self._number[parameter]
        if self.paused:
            return
        # Accumulation, or a layer used twice by two backward passes: its first gradient is applied and gone,
        # so that no step over both can be made.
        if number in self.updated:
            raise RecipeError(
                "A second gradient came for a layer that was updated within the backward pass already; "
                "call optimizer.step() after every backward pass, or update at the step."
            )
        layer = self.layers[number]
        # Parameters of a layer finish in any order; its norm and its update need all of them.
        missing = self._missing.get(number, sum(1 for p in layer if p.requires_grad)) - 1
        self._missing[number] = missing
        if not missing:
            self._update(number)

    @torch.no_grad()
    def _update(self, number: int) -> None:
        learned = [p for p in self.layers[number] if p.grad is not None]
        if self.measure is not None:
            self.measure(number)
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(learned, self.max_norm)
        if self._stream is not None:
            self._stream.update(learned)
        else:
            step_on(self.optimizer, learned)
        # Freed at once: at most one layer's gradient exists at a time, which is what this mode is for.
        for parameter in learned:
            parameter.grad = None
        self.updated.add(number)
        self._missing.pop(number, None)

    def _finish(self) -> None:
        """Update layers with parameters that the loss did not use."""
        # A parameter that the loss did not use never reports, and its layer would wait for it.
        for number in list(self._missing):
            if any(p.grad is not None for p in self.layers[number]):
                self._update(number)
        self._missing.clear()


def check_update_in_backward(*, scaled: bool = False, ranks: int = 1) -> None:
    """Raise RecipeError where an update within the backward pass is not the step that was asked for.

    Args:
        scaled: whether the loss is scaled.
        ranks: processes that average gradients.
    """
    reasons = {
        "loss scaling decides on an update once all gradients are there; use bfloat16": scaled,
        f"{ranks} ranks average gradients after the backward pass": ranks > 1,
    }
    for reason, applies in reasons.items():
        if applies:
            raise RecipeError(f"Layers cannot be updated within the backward pass: {reason}.")
