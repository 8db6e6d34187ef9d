"""What an optimizer makes of a gradient in the long run, and room for many such vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradwise.numerics import fold_with_signs
from gradwise.signals.model_state import wait_for_state

EXACT_BYTES = 2 << 30
"""Room within which vectors are kept whole."""

SKETCH = 1 << 16
"""Numbers of a vector's sketch where they do not fit: inner products err by 1/256 of the lengths' product."""

STRETCH = 1 << 16
"""Numbers of each vector that are multiplied at a time."""


class Preconditioned:
    """Turns gradients into the way that the weights go once momentum has run out: for Adam lr g / (sqrt(v) +
    eps), for SGD with momentum mu lr g / (1 - mu). Weight decay and clipping, which are the same for all, are
    left out.

    As in a step of Adam, a gradient has come into v before it is divided. Without, weights that had none so
    far, such as rows of rare tokens, would go lr / eps times as far as their gradient is large.
    """

    def __init__(self, scales: list["_Scale"]) -> None:
        self.scales = scales

    @classmethod
    def of(
        cls,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[nn.Parameter],
        gradients: Iterable[list[Tensor]] = (),
    ) -> "Preconditioned":
        """By an optimizer's present moments; one that is not of Adam's kind counts as SGD.

        Args:
            optimizer: of the training.
            weights: the parameters that move.
            gradients: give weights that have no moments yet those that these would give them.
        """
        wait_for_state(optimizer)
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in weights if not _has_moments(optimizer, groups[id(p)], p)]
        second = dict(zip(missing, _mean_squares(weights, missing, gradients), strict=True))
        scales = []
        for parameter in weights:
            group, state = groups[id(parameter)], optimizer.state.get(parameter, {})
            if "betas" not in group:
                # A gradient moves the weights by lr (1 + mu + mu^2 + ...) in total: momentum has then run
                # out.
                scales.append(_Scale(rate_of(group) / (1 - float(group.get("momentum", 0.0)))))
            elif parameter in second:
                scales.append(_Scale(rate_of(group), second[parameter], 0.0, group.get("eps", 1e-8)))
            else:
                beta, steps = float(group["betas"][1]), float(state.get("step", 1))
                mean = state["exp_avg_sq"].to(parameter.device) / (1 - beta**steps)
                # The bias-corrected weight that the next squared gradient will have among all so far.
                share = (1 - beta) / (1 - beta ** (steps + 1))
                scales.append(_Scale(rate_of(group), mean, share, group.get("eps", 1e-8)))
        return cls(scales)

    @staticmethod
    def has_moments(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> bool:
        """Whether the present moments are enough."""
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        return all(_has_moments(optimizer, groups[id(p)], p) for p in weights)

    def __call__(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """The way, for each parameter."""
        return [scale.of(each) for each, scale in zip(gradient, self.scales, strict=True)]


@dataclass(frozen=True)
class _Scale:
    """The preconditioner of one parameter."""

    rate: float
    second: Tensor | None = None
    """Mean square of its gradients so far."""
    share: float = 0.0
    """Weight of the next square among them."""
    eps: float = 0.0

    def of(self, gradient: Tensor) -> Tensor:
        if self.second is None:
            return gradient * self.rate
        second = (1 - self.share) * self.second + self.share * gradient.square()
        return gradient * self.rate / (second.sqrt() + self.eps)


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


def _has_moments(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> bool:
    """Whether nothing more is needed of a parameter."""
    return "betas" not in group or "exp_avg_sq" in optimizer.state.get(parameter, {})


def _mean_squares(
    weights: Sequence[nn.Parameter], unmeasured: Sequence[nn.Parameter], gradients: Iterable[list[Tensor]]
) -> list[Tensor]:
    """Mean squared gradients of the unmeasured weights. One gradient is held at a time, to save memory."""
    if not unmeasured:
        return []
    places = {id(p): place for place, p in enumerate(weights)}
    sums, count = [torch.zeros_like(p) for p in unmeasured], 0
    for gradient in gradients:
        for total, parameter in zip(sums, unmeasured, strict=True):
            each = gradient[places[id(parameter)]]
            total.addcmul_(each, each)
        count += 1
    return [total / max(1, count) for total in sums]


def rate_of(group: dict[str, Any]) -> float:
    """The learning rate, or the peak's while it is still zero at the very start of a warm-up."""
    return float(group["lr"]) or float(group.get("initial_lr", 0.0))


def _at_least_single(rows: list[Tensor]) -> Tensor:
    """Rows as a matrix in float32 or more: bfloat16 would leave its products 8 bits."""
    return torch.stack(rows).to(torch.promote_types(rows[0].dtype, torch.float32))


def products(a: list[Tensor], b: list[Tensor]) -> NDArray[np.float64]:
    """(n, m), a stretch of the vectors at a time, summed in double precision: whole copies could be too
    large, and long sums in single precision would err."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a[0].device)
    for start in range(0, len(a[0]), STRETCH):
        x, y = (_at_least_single([row[start : start + STRETCH] for row in rows]) for rows in (a, b))
        total += (x @ y.T).double()
    return total.cpu().numpy()
