"""What an optimizer makes of a gradient in the long run, and room for many such vectors."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.numerics import fold_with_signs

EXACT_BYTES = 2 << 30
"""Room within which vectors are kept whole."""

SKETCH = 1 << 16
"""Numbers of a vector's sketch where they do not fit: inner products err by 1/256 of the lengths' product."""


class Preconditioned:
    """Turns gradients into the way that the weights go once momentum has run out: for Adam lr g / (sqrt(v) +
    eps), for SGD with momentum mu lr g / (1 - mu). Weight decay and clipping, which are the same for all, are
    left out."""

    def __init__(self, scales: list[Tensor | float]) -> None:
        self.scales = scales

    @classmethod
    def of(cls, optimizer: Any, weights: Sequence[nn.Parameter]) -> "Preconditioned":
        """By an optimizer's present moments; one that is not of Adam's kind counts as SGD."""
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        scales: list[Tensor | float] = []
        for parameter in weights:
            group, state = groups[id(parameter)], optimizer.state.get(parameter, {})
            if "exp_avg_sq" not in state:
                scales.append(_rate(group) / (1 - float(group.get("momentum", 0.0))))
                continue
            second = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state.get("step", 1)))
            scales.append(_rate(group) / (second.sqrt() + group.get("eps", 1e-8)))
        return cls(scales)

    @classmethod
    def of_gradients(
        cls, optimizer: Any, weights: Sequence[nn.Parameter], gradients: Iterable[list[Tensor]]
    ) -> "Preconditioned":
        """For an optimizer of Adam's kind before its first step: the second moments that these gradients
        would give it."""
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        second, count = [torch.zeros_like(p) for p in weights], 0
        for gradient in gradients:  # one at a time: many whole gradients could be too large
            for total, each in zip(second, gradient, strict=True):
                total.addcmul_(each, each)
            count += 1
        scales: list[Tensor | float] = []
        for parameter, total in zip(weights, second, strict=True):
            group = groups[id(parameter)]
            scales.append(_rate(group) / ((total / count).sqrt() + group.get("eps", 1e-8)))
        return cls(scales)

    def __call__(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """The way, for each parameter."""
        return [each * scale for each, scale in zip(gradient, self.scales, strict=True)]


class Vectors:
    """Makes one row of numbers of a tensor for each parameter: all of them, or a sketch.

    Args:
        weights: the parameters.
        count: rows that are held at a time.
    """

    def __init__(self, weights: Sequence[nn.Parameter], count: int) -> None:
        self.whole = 4 * count * sum(p.numel() for p in weights) <= EXACT_BYTES

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """(d,) whole, or (SKETCH,)."""
        if self.whole:
            return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        return sketch(tensors)


def sketch(tensors: Sequence[Tensor]) -> Tensor:
    """(SKETCH,) of a tensor for each parameter; linear, see `gradwise.numerics.fold_with_signs`."""
    total, offset = torch.zeros(SKETCH, device=tensors[0].device), 0
    for place, tensor in enumerate(tensors):
        total += fold_with_signs(tensor.detach(), SKETCH, seed=place, offset=offset)
        offset = (offset + tensor.numel()) % SKETCH
    return total


def _rate(group: dict[str, Any]) -> float:
    """The learning rate, or the peak's while it is still zero at the very start of a warm-up."""
    return float(group["lr"]) or float(group.get("initial_lr", 0.0))
