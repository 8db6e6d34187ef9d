"""The per-sample quantities that decisions are made of."""

from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradwise.data.texts import Texts
from gradwise.errors import SignalError
from gradwise.places import places
from gradwise.signals.request import QUANTITIES
from gradwise.signals.store import read
from gradwise.text import shown


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

    subtask: NDArray[np.str_] | None = None
    """(N,) part of a target that each sample belongs to. If None, it follows from `domain`."""

    weight: NDArray[np.float64] | None = None
    """(N,) how often each sample should be seen relative to the others, where the data say so."""

    words: NDArray[np.float32] | None = None
    """(N, d) sketch of the label tokens (`gradwise.data.label_words`), known without a model."""

    texts: Texts | None = None
    """The texts of the N samples, read from the data when n-grams are counted."""

    loss: NDArray[np.float32] | None = None
    """(N,) mean loss of the sample's label tokens, nats per label token."""

    embedding: NDArray[np.float32] | None = None
    """(N, h) mean hidden state."""

    middle_embedding: NDArray[np.float32] | None = None
    """(N, h) mean hidden state after the first half of the blocks, rounded up; of a model whose blocks are
    not found, the last one. Measured alone it takes about half of a forward pass."""

    grad_norm: NDArray[np.float32] | None = None
    """(N,) exact 2-norm of the gradient of that mean loss, nats per unit weight."""

    grad: NDArray[np.floating] | None = None
    """(N, k) random projection of that gradient; inner products are kept in expectation."""

    head_norm: NDArray[np.float32] | None = None
    """(N,) exact 2-norm of the loss's gradient with respect to the output head's weight."""

    ok: NDArray[np.bool_] | None = None
    """(N,) False where a value was not finite or could not be had; None where nothing was measured."""

    problems: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Samples that are not `ok`, by what is wrong with them."""

    seconds: float = 0.0
    """What measuring cost, over all ranks' wall-clock and all interruptions."""

    def __post_init__(self) -> None:
        if not isinstance(self.size, int | np.integer) or self.size < 0:
            raise SignalError(f"Signals are of a number of samples; found {shown(self.size)}.")
        for each in fields(self):
            values = getattr(self, each.name)
            if isinstance(values, Texts) and len(values) != self.size:
                raise SignalError(f"Signals of {self.size} samples need as many texts; found {len(values)}.")
            if isinstance(values, np.ndarray) and (not values.ndim or len(values) != self.size):
                raise SignalError(
                    f"Signals of {self.size} samples need as many rows of {each.name}; found shape "
                    f"{values.shape}."
                )

    def __len__(self) -> int:
        return self.size

    @property
    def any_embedding(self) -> NDArray[np.float32] | None:
        """(N, h) for pictures: the embedding, or else the middle one."""
        return self.middle_embedding if self.embedding is None else self.embedding

    @staticmethod
    def open(path: str | Path) -> "Signals":
        """Signals on disk, memory-mapped and read-only.

        Raises:
            SignalError: there is no store, its scoring run is incomplete, or it is damaged.
        """
        if not isinstance(path, str | PathLike):
            raise SignalError(f"Signals are opened by the path of their folder; found {shown(path)}.")
        return Signals(**read(Path(path).expanduser()))

    def take(self, rows: NDArray[np.integer]) -> "Signals":
        """The same of some samples, in the order given; what measuring all of them cost stays.

        Raises:
            PlanError: there is no such sample.
        """
        rows = places(rows, "What signals are taken of", self.size)
        values = {
            each.name: getattr(self, each.name)[rows]
            for each in fields(self)
            if isinstance(getattr(self, each.name), np.ndarray)
        }
        place = {int(row): number for number, row in enumerate(rows)}
        problems = {
            kind: np.array([place[int(row)] for row in affected if int(row) in place], dtype=np.int64)
            for kind, affected in self.problems.items()
        }
        nonempty = {kind: affected for kind, affected in problems.items() if affected.size}
        texts = None if self.texts is None else self.texts.take(rows)
        return Signals(len(rows), **values, texts=texts, problems=nonempty, seconds=self.seconds)

    def require(self, name: str, by: str) -> NDArray:
        """The quantity `name`, or a SignalError saying that the decision `by` cannot do without it."""
        values = getattr(self, name, None)
        if not isinstance(values, np.ndarray):
            advice = (
                f"ask gradwise.collect for it, with {name!r} among `want` or with the method itself as `want`"
                if name in QUANTITIES
                else f"set it with dataclasses.replace(signals, {name}=...)"
            )
            raise SignalError(f"{by} needs the signal {name!r}, which was not collected; {advice}.")
        return values

    def report(self) -> str:
        """One line on samples set aside, the first few by number; empty if all were measured."""
        parts = [
            f"{len(indices):,} {kind} (first: {', '.join(map(str, indices[:5].tolist()))})"
            for kind, indices in self.problems.items()
        ]
        count = len(set().union(*(indices.tolist() for indices in self.problems.values())))
        return f"{count:,} of {self.size:,} samples set aside: {'; '.join(parts)}" if parts else ""
