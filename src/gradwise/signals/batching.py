"""Which samples of a pool meet in a batch, and their quantities, batch by batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradwise.errors import SignalError
from gradwise.signals.measure import Batch, Measurer
from gradwise.signals.samples import Inspection

CPU_TOKENS = 2048
"""Padded tokens that a CPU measures at once. More is slower where a tensor of them exceeds 32 MiB: from there
on the allocator maps new pages for each one, and the page faults cost 0.05 to 0.08 of a training step."""

Collate = Callable[[list[Any]], Batch]


@dataclass(frozen=True)
class Batcher:
    """Samples, and what makes batches of them."""

    samples: Any
    """Indexable."""

    collate: Collate
    inspection: Inspection

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Some samples, collated."""
        batch = self.collate([self.samples[int(row)] for row in rows])
        if not isinstance(batch, Mapping) or batch.get("labels") is None:
            raise SignalError(
                "The collator must return a mapping with input_ids and labels; found "
                f"{', '.join(batch) if isinstance(batch, Mapping) else type(batch).__name__}."
            )
        return batch  # type: ignore[return-value]

    def parts(self, rows: NDArray[np.int64], device: torch.device) -> list[NDArray[np.int64]]:
        """A block, longest sample first, cut into what is measured at once; no sample depends on the cut."""
        if device.type != "cpu":
            return [rows]
        together = max(1, CPU_TOKENS // int(self.inspection.lengths[rows].max()))
        return [rows[start : start + together] for start in range(0, len(rows), together)]

    def measure(self, measurer: Measurer, rows: NDArray[np.int64]) -> dict[str, NDArray]:
        """Quantities of a block, by name."""
        parts = [self._sound(measurer, part) for part in self.parts(rows, measurer.device)]
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}

    def _sound(self, measure: Measurer, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Quantities of one batch, measured one sample at a time if any of them is not finite.

        Kernels can carry NaN from a sample to its neighbours: bfloat16 `linear` on processors with AMX does
        so where its inner size is no multiple of eight.
        """
        together = measure(self.batch(rows)).values
        if len(rows) == 1 or all(bool(value.isfinite().all()) for value in together.values()):
            return together
        alone = [measure(self.batch(rows[i : i + 1])).values for i in range(len(rows))]
        return {name: torch.cat([values[name] for values in alone]) for name in together}


def with_copies(
    blocks: list[NDArray[np.int64]], order: NDArray[np.int64], first: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Blocks of distinct samples, each followed by their copies.

    Args:
        blocks: samples that are no copies of earlier ones.
        order: all samples.
        first: as in `Inspection`.
    """
    block_of = np.zeros(len(first), dtype=np.int64)
    for number, rows in enumerate(blocks):
        block_of[rows] = number
    # Copies go into the block of their first, where its values are at hand and are written without another
    # forward pass.
    copies = order[first[order] != order]
    theirs = block_of[first[copies]]
    copies = copies[np.argsort(theirs, kind="stable")]
    ends = np.cumsum(np.bincount(theirs, minlength=len(blocks)))
    parts = np.split(copies, ends[:-1]) if len(copies) else [copies] * len(blocks)
    return [np.concatenate(both) for both in zip(blocks, parts, strict=True)]


def batches(
    order: NDArray[np.int64], lengths: NDArray[np.int32], batch_tokens: int
) -> list[NDArray[np.int64]]:
    """Cut samples, longest first, into batches of at most `batch_tokens` padded tokens, at least one sample
    each."""
    cut, start = [], 0
    while start < len(order):
        # The first row of a batch is its longest, so that its length times the number of rows is what padding
        # makes of it.
        rows = max(1, batch_tokens // int(lengths[order[start]]))
        cut.append(order[start : start + rows])
        start += rows
    return cut
