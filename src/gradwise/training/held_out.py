"""Held-out loss of an evaluation, every label token weighed alike.

The Trainer averages the means of batches, which depends on how samples fall into batches. What the Trainer
reports stays as it is, since checkpoints are chosen by it; this stands beside it in the run's record.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class HeldOutLoss:
    """Adds up an evaluation's batches.

    Args:
        device: where ranks exchange numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sum, self._tokens = 0.0, 0

    def add(self, loss: Any, labels: Any) -> None:
        """One batch: its mean loss over label tokens, and its labels (B, T)."""
        if not isinstance(loss, Tensor) or not isinstance(labels, Tensor) or labels.ndim != 2:
            return
        tokens = int((labels[:, 1:] != -100).sum())
        if tokens:  # or the batch has no mean
            self._sum += float(loss) * tokens
            self._tokens += tokens

    def taken(self) -> float | None:
        """Nats per label token over all ranks since the last call, None where nothing was added; a collective
        call."""
        total, tokens = self._sum, float(self._tokens)
        self._sum, self._tokens = 0.0, 0
        if dist.is_initialized() and dist.get_world_size() > 1:
            both = torch.tensor([total, tokens], dtype=torch.float64, device=self._device)
            dist.all_reduce(both)
            total, tokens = both.tolist()
        return total / tokens if tokens else None
