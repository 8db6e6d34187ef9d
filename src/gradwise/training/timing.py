"""How long training takes, measured without changing anything of the run."""

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TIMED_STEPS = 3
"""Forward/backward runs that are timed, after one that is not."""


def time_forward_backward(
    model: nn.Module,
    loss_of: Callable[[dict[str, Any]], Tensor],
    batches: Iterable[tuple[int, dict[str, Any]]],
    *,
    device: torch.device,
) -> float:
    """Seconds per sample of a forward/backward run; gradients, mode and random state are given back.

    Args:
        model: that trains.
        loss_of: the training loss of a batch.
        batches: of training samples, with the number of samples in each.
        device: of the model.
    """
    training, taken = model.training, []
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    model.train()
    try:
        with torch.random.fork_rng(cuda):
            for count, batch in islice(batches, TIMED_STEPS + 1):
                start = time.perf_counter()
                loss_of(batch).backward()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                taken.append((time.perf_counter() - start) / count)
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
    # The first run warms up. The median, since other work can make single runs two to four times as long
    # (docs/log.md, 2026-11-21).
    return float(np.median(taken[1:]))
