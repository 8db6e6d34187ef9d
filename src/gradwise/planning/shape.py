"""What the forecast of time uses of a run's model and data: the share of the head, lengths, padding."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gradwise.data import token_lengths
from gradwise.methods.cost_counts import CACHED, Shape
from gradwise.numerics.sampling import evenly
from gradwise.planning.context import RunContext, Samples
from gradwise.planning.scoring import mean_label_tokens
from gradwise.signals.request import middle_blocks
from gradwise.structure import block_list, head_and_width
from gradwise.training.layout import Layout, Schedule

STEPS = 64
"""Steps of a plan whose padding is counted."""

ENDS = 0.02
"""Quantile of the lengths that stands for the shortest samples."""


def shape_of(context: RunContext, schedule: Schedule | None) -> Shape:
    """The shape of a run; where something cannot be known without reading the data, the default.

    Args:
        context: of the run.
        schedule: the plan in steps; None before there is one, when no sample is taken to be padded.
    """
    shape = Shape() if context.model is None else model_shape(context.model)
    counts_updates = context.model is not None and beyond_caches(context.model)
    lengths = _lengths(context.annealing.train)
    pool_lengths = None if lengths is None else lengths[: len(context.train)]
    if lengths is None or pool_lengths is None or not pool_lengths.sum():
        return shape
    mean = float(pool_lengths.mean())
    # A quantile for the shortest: a few samples of two tokens say nothing about the batches.
    shortest, longest = (np.quantile(pool_lengths, (ENDS, 1.0)) / mean).tolist()
    trained = mean if schedule is None else _trained(lengths, schedule, context.in_run)
    return replace(
        shape,
        padding=trained / mean,
        step_tokens=trained * context.in_run.batch_size if counts_updates else math.inf,
        labelled=min(1.0, mean_label_tokens(context.train) / mean),
        shortest=shortest,
        longest=longest,
    )


def beyond_caches(model: nn.Module) -> bool:
    """Whether a model is so large that its update takes time beside its passes."""
    return sum(p.numel() for p in model.parameters()) >= CACHED


def model_shape(model: nn.Module) -> Shape:
    """What a model alone says."""
    dimensions = head_and_width(model)
    if dimensions is None:
        return Shape()
    blocks = len(block_list(model)[1])
    return Shape(head=dimensions[0], width=dimensions[1], middle=middle_blocks(blocks) / blocks)


def _lengths(samples: Samples) -> NDArray[np.int64] | None:
    columns = getattr(samples.dataset, "column_names", None) or ()
    return token_lengths(samples.dataset) if {"input_ids", "labels"} <= set(columns) else None


def _trained(lengths: NDArray[np.int64], schedule: Schedule, layout: Layout) -> float:
    """Tokens that training computes on for an entry of its plan, over steps from all over it."""
    batches = schedule.batches
    steps = evenly(min(schedule.steps, batches.steps), STEPS)
    tokens = 0
    for step in steps.tolist():
        step_lengths = lengths[batches.samples(step)]
        # Packed rows are full: what is computed on is what the samples hold.
        if layout.pack is not None:
            tokens += int(step_lengths.sum())
            continue
        # A micro-batch is padded to its longest sample, and padding is computed on like anything else.
        rows = np.split(step_lengths, range(layout.micro_batch, len(step_lengths), layout.micro_batch))
        tokens += sum(len(each) * int(each.max()) for each in rows if len(each))
    return tokens / (len(steps) * layout.batch_size)
