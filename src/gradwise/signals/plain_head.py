"""Losses, and what comes back from an output head that only multiplies, a few rows of logits at a time.

Logits are the largest tensor of a small model's forward pass, and three of their size meet in the backward
pass. Made, used and dropped in pieces that stay in a processor's cache, they cost their two products and
little else; on an accelerator the memory for all of them at once is never needed.

Shapes: B samples, n label tokens in all, V the vocabulary, h the width of the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwise.numerics.outer_products import squared_norms
from gradwise.numerics.projection import accumulator
from gradwise.signals.head import LabelPositions
from gradwise.signals.rows import wide

AT_ONCE, AT_ONCE_ON_ACCELERATORS = 2**20, 2**26
"""Logits in a piece, at most (at least one row, or one sample where norms are wanted). On a CPU 2**19 to
2**22 of them differ little; with 2**17 losses and gradients took 1.7 times as long, with 2**24 1.2 times
(4,080 rows, vocabulary 4,096, one core). An accelerator wants large products."""


@dataclass(frozen=True)
class AtHead:
    """What the rows of one batch give at the head."""

    losses_B: Tensor
    """Own-mean cross entropies, nats per label token."""

    gradient_nh: Tensor | None
    """That of the scaled sum of the losses, by hidden state."""

    squares_B: Tensor | None
    """Squared norm of each sample's own gradient (unscaled) of the head's weight."""


@torch.no_grad()
def at_head(
    head: nn.Linear,
    hidden_nh: Tensor,
    positions: LabelPositions,
    computed: torch.dtype | None,
    *,
    scale: float = 1.0,
    gradient: bool = False,
    norms: bool = False,
) -> AtHead:
    """Losses of a batch, and gradients if wanted, from the hidden states that predict its label tokens.

    Args:
        head: one that `Head.returns_product` found to only multiply, its weight in one piece.
        hidden_nh: (n, h), sample by sample.
        positions: where the label tokens are.
        computed: the type of the products under autocast; None for the weight's own.
        scale: factor of the gradient by hidden states, against underflow.
        gradient: whether that gradient is wanted.
        norms: whether norms of the head's own gradients are wanted.
    """
    # Autocast would round the sums as well as the products.
    with torch.autocast(hidden_nh.device.type, enabled=False):
        return _at_head(head, hidden_nh, positions, computed or head.weight.dtype, scale, gradient, norms)


def _at_head(
    head: nn.Linear,
    hidden_nh: Tensor,
    positions: LabelPositions,
    computed: torch.dtype,
    scale: float,
    gradient: bool,
    norms: bool,
) -> AtHead:
    weight, bias = head.weight.to(computed), None if head.bias is None else head.bias.to(computed)
    own_mean_n = positions.counts.to(accumulator(hidden_nh.dtype)).reciprocal()[positions.owner]
    losses, squares = [], []
    returned_nh = torch.empty_like(hidden_nh) if gradient else None
    for part, samples in _pieces(positions, len(weight), hidden_nh.device, whole_samples=norms):
        x, targets = hidden_nh[part].to(computed), positions.targets[part]
        logits = functional.linear(x, weight, bias)
        if not (gradient or norms):
            losses.append(functional.cross_entropy(wide(logits), targets, reduction="none"))
            continue
        loss_p, d_pV = _loss_and_gradient(wide(logits), targets)
        losses.append(loss_p)
        d_pV.mul_(own_mean_n[part, None])
        if norms:
            squares += [
                squared_norms(d[None], h[None])
                for d, h in zip(d_pV.split(samples), wide(x).split(samples), strict=True)
            ]
        if returned_nh is not None:
            returned_nh[part] = d_pV.mul_(scale).to(computed) @ weight
    losses_n = torch.cat(losses) if losses else own_mean_n
    sums_B = losses_n.new_zeros(positions.samples).index_add(0, positions.owner, losses_n)
    squares_B = torch.cat(squares) if norms else None
    return AtHead(sums_B / positions.counts, returned_nh, squares_B)


def _loss_and_gradient(logits_pV: Tensor, targets_p: Tensor) -> tuple[Tensor, Tensor]:
    """(p,) cross entropies and (p, V) their gradients, probabilities less one at the target."""
    at_target_p = logits_pV.gather(1, targets_p[:, None])[:, 0]
    highest_p = logits_pV.amax(dim=1)
    d_pV = torch.softmax(logits_pV, dim=1)
    # The largest probability is 1 / sum exp(l - highest), so the softmax's own exponentials give the
    # normaliser, and no second set of exponentials is needed. It is at least 1 / V, so the logarithm is exact
    # where that of the target's probability, which can underflow, would not be.
    losses_p = highest_p - d_pV.amax(dim=1).log() - at_target_p
    d_pV[torch.arange(len(targets_p), device=targets_p.device), targets_p] -= 1.0
    return losses_p, d_pV


def _pieces(
    positions: LabelPositions, vocabulary: int, device: torch.device, *, whole_samples: bool
) -> Iterator[tuple[slice, list[int]]]:
    """Stretches of the n rows, each with the numbers of rows of the samples in it."""
    rows = max(1, (AT_ONCE if device.type == "cpu" else AT_ONCE_ON_ACCELERATORS) // vocabulary)
    if not whole_samples:
        for start in range(0, len(positions.targets), rows):
            yield slice(start, start + rows), []
        return
    start, samples = 0, list[int]()
    for count in positions.counts.tolist():
        if samples and sum(samples) + count > rows:
            yield slice(start, start + sum(samples)), samples
            start, samples = start + sum(samples), []
        samples.append(count)
    if samples:
        yield slice(start, start + sum(samples)), samples
