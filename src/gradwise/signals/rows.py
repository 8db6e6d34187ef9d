"""Which sample each row of an activation belongs to."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleRows:
    """The rows of an activation, by sample.

    Args:
        samples: B.
        owner: (n,) int64 sample of each row; None where the rows are B equal stretches in order.
    """

    samples: int
    owner: Tensor | None = None

    @cached_property
    def _places(self) -> tuple[Tensor, int]:
        """(n,) place of each row within its sample, and the most rows of a sample."""
        assert self.owner is not None
        counts = torch.bincount(self.owner, minlength=self.samples)
        order = torch.argsort(self.owner, stable=True)
        starts = torch.cumsum(counts, dim=0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - starts[self.owner[order]]
        return place, int(counts.max()) if len(order) else 0

    def grouped(self, rows: Tensor) -> Tensor:
        """(..., d) of n rows in all -> (B, T, d), padded with zero rows."""
        flat = rows.reshape(-1, rows.shape[-1])
        if self.owner is None:
            return flat.view(self.samples, -1, flat.shape[-1])
        place, longest = self._places
        grouped = flat.new_zeros(self.samples, longest, flat.shape[-1])
        grouped[self.owner, place] = flat
        return grouped

    def summed(self, rows: Tensor) -> Tensor:
        """(..., d) of n rows in all -> (B, d) sums over each sample's rows."""
        flat = rows.reshape(-1, rows.shape[-1])
        if self.owner is None:
            return flat.view(self.samples, -1, flat.shape[-1]).sum(dim=1)
        return flat.new_zeros(self.samples, flat.shape[-1]).index_add_(0, self.owner, flat)


def wide(values: Tensor) -> Tensor:
    """In the type in which gradients are summed: at least single precision."""
    return values if values.dtype == torch.float64 else values.float()
