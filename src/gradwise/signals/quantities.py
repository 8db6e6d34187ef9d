"""The per-sample quantities that decisions are made of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import SignalError


@dataclass(frozen=True)
class Signals:
    """Per-sample quantities of a pool of N samples, row i belonging to sample i.

    What was not asked for is None; whoever needs it says so through `require`.
    """

    size: int
    """N, the number of samples in the pool."""

    num_tokens: NDArray[np.int32] | None = None
    """(N,) label tokens: those whose prediction counts in the loss."""

    domain: NDArray[np.str_] | None = None
    """(N,) name of the source each sample came from."""

    weight: NDArray[np.float64] | None = None
    """(N,) how often each sample should be seen relative to the others, where the data say so."""

    loss: NDArray[np.float32] | None = None
    """(N,) own-mean cross entropy, nats per label token."""

    ok: NDArray[np.bool_] | None = None
    """(N,) False where a value was not finite; None where nothing was measured."""

    def __len__(self) -> int:
        return self.size

    def require(self, name: str, by: str) -> NDArray:
        """The quantity `name`, or a SignalError saying that the decision `by` cannot do without it."""
        values = getattr(self, name)
        if values is None:
            raise SignalError(f"{by} needs the signal {name!r}, which was not collected.")
        return values
