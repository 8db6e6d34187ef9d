"""What scoring and measuring takes, in forward passes: the counts that every forecast uses. Reads no clock.

The unit is a forward pass of the whole model over the tokens of one sample of mean length. In training, the
gradient of activations counts 1 and that of weights 1, so ordinary training takes 3. The other counts were
measured on a Llama of 10 M parameters and on SmolLM2-135M, as multiples of an ordinary forward/backward
(docs/results/signals-cost.md, d3-cost.md, estimate-time.md).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gradwise.signals.request import MIDDLE, QUANTITIES

ORDINARY = 3.0
"""Ordinary training on a sample."""

PROJECTING, PROJECTING_WIDTH = 0.15, 80.0
"""Projecting a sample's gradient, above the forward pass and the gradient of activations, in the blocks: a
share, and what is divided by the width, since each matrix costs as much whatever its size. Loss, embedding
and gradient together took 0.77 and 0.78 of an ordinary forward/backward at widths 384 and 576, so 2.3."""

NORMS = 0.65
"""Exact norms of a sample's gradients, likewise: 0.99 and 1.02 of an ordinary forward/backward with
projections, 0.90 without."""

HEAD_NORMS = 0.4
"""Norms of the gradient of the head, over a forward pass of the head alone. With them, scoring took 0.34 of
an ordinary forward/backward where the head is 0.16 of the model, and 0.30 without."""

FORWARD, FIRST_ORDER, HESSIAN = 1 / 3, 2.0, 6.0
"""Cost per sample of a forward run, of a per-sample gradient and of a per-sample Hessian-vector product, in
forward/backward passes of a training step (docs/results/d3-cost.md; the two latter on a busy machine). They
decide how often influence is measured, so they must not be too low: a quiet machine had 1.4 and 3.9."""

STEP = 0.5
"""Approximate cost of a trial step's update and of taking it back, in the same unit."""

CHECK_FACTOR = 2.4
"""What trying the model takes over its count, where gradients are compared: single samples make small
products, and every parameter's norm is taken apart. It took 54 forward passes of a Llama of 10 M parameters
for 22 counted, and 61 of stories260K for 27."""

UPDATE, CACHED = 256.0, 5e7
"""What AdamW's update of all weights takes, in tokens of a forward pass, and the number of weights from which
it is counted. SmolLM2-135M took 1.15 times the forward pass of 256 tokens. Of a Llama of 10 M parameters
nothing was seen: weights and state mostly stay in caches (docs/results/estimate-time.md)."""

PROBE = 3.4
"""A step that measures all layers, by sample: ordinary training, and a sketch of every gradient. With 8
samples a Llama of 10 M parameters took 1.15 times as long as for a step, stories260K 1.9 times."""

ADAPTER, MOST_ADAPTER = 340.0, 2.0
"""What adapters on all linear layers add to training on a sample, times the width of the model; and the most
that they add. Their products are thin and wait for memory: LoRA took 0.89 of full training at width 576, 0.90
at 384, 1.33 at 64."""

GRADIENTS = {"grad", "grad_norm"}
"""Signals that need a backward pass through the blocks."""


@dataclass(frozen=True)
class Shape:
    """What is known of a model and its data that the counts depend on."""

    head: float = 0.15
    """Share of the output head in a forward pass. The default is that of a small model."""
    middle: float = MIDDLE
    """Share of the blocks that a middle embedding has passed."""
    labelled: float = 1.0
    """Label tokens over all tokens; a scoring run applies the head to the former only."""
    width: int = 512
    """Length of the hidden states."""
    padding: float = 1.0
    """Tokens that training computes on for an entry of its plan, padding included, over the tokens of a mean
    sample of the pool. Scoring sorts by length and pads next to nothing."""
    shortest: float = 1.0
    """Tokens of the shortest samples over the mean."""
    longest: float = 1.0
    """Tokens of the longest samples over the mean."""
    step_tokens: float = math.inf
    """Tokens that an optimizer step computes on; infinite where they are not known or the model is small, so
    that updates are not counted."""


def measured(needs: Iterable[str]) -> frozenset[str]:
    """The signals among a method's needs that come from a model."""
    return frozenset(needs) & set(QUANTITIES)


def per_sample(needs: Iterable[str], shape: Shape) -> float:
    """Forward passes that scoring a sample is worth; 0 where no model is needed.

    >>> round(per_sample({"loss"}, Shape()), 2), round(per_sample({"grad"}, Shape()), 2)
    (1.0, 2.26)
    """
    quantities = measured(needs)
    if not quantities:
        return 0.0
    blocks, head = 1 - shape.head, shape.head * shape.labelled
    if quantities == {"middle_embedding"}:
        return blocks * shape.middle  # the forward pass ends there
    passes = blocks + head
    if "head_norm" in quantities:
        passes += HEAD_NORMS * head
    if quantities & GRADIENTS:
        projecting = PROJECTING + PROJECTING_WIDTH / shape.width
        passes += blocks + head
        passes += projecting * blocks * ("grad" in quantities) + NORMS * blocks * ("grad_norm" in quantities)
    return passes


def engine_check(needs: Iterable[str], shape: Shape) -> float:
    """Forward passes with which a model's first scoring run begins, whatever its size: it is tried on a few
    samples before it is trusted (`gradwise.signals.engine_check`)."""
    quantities = measured(needs)
    if not quantities:
        return 0.0
    # Of the first and of the last batch, three samples are measured alone.
    passes = 3 * per_sample(quantities, shape) * (shape.shortest + shape.longest)
    if quantities & GRADIENTS:
        # Two short samples and the longest one are compared with autograd: norms, and the backward pass with
        # the gradients of a few weights.
        compared = per_sample({"grad_norm"}, shape) + 2.0
        passes += compared * (2 * shape.shortest + shape.longest)
        passes *= CHECK_FACTOR
    return passes


def scoring(needs: Iterable[str], samples: float, shape: Shape, *, again: bool = False) -> float:
    """Forward passes of a scoring run over some samples; `again` if the model was measured like this before,
    so that it need not be tried again."""
    if not samples:
        return 0.0
    return (0.0 if again else engine_check(needs, shape)) + samples * per_sample(needs, shape)


def training(
    *, trained: float = 1.0, reached: float = 1.0, recomputed: float = 0.0, head: float = 0.0
) -> float:
    """Forward passes that training on a sample is worth.

    Args:
        trained: share of the weights that get a gradient.
        reached: share of the blocks that the gradient of activations passes through.
        recomputed: forward passes that are made again for the backward pass, 0 or 1.
        head: share of the output head, which every gradient passes through.

    >>> training(), training(trained=0.0)
    (3.0, 2.0)
    """
    return 1 + head + (1 - head) * reached * (1 + recomputed) + trained


def updating(trained: float, shape: Shape) -> float:
    """Forward passes for each sample of a step that its update is worth.

    Args:
        trained: share of the weights that are updated.
        shape: of the model and its data.

    >>> updating(1.0, Shape(step_tokens=1024))
    0.25
    """
    return trained * UPDATE / shape.step_tokens


def adapting(width: int) -> float:
    """Forward passes that adapters on all linear layers add to training on a sample."""
    return min(MOST_ADAPTER, ADAPTER / width)
