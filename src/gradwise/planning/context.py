"""What a decision may use: the model, the data, how a plan becomes steps, the record. Nothing here is a
trainer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from gradwise.data import label_words
from gradwise.data.pool import label_counts
from gradwise.data.subtasks import COLUMN, subtask_names
from gradwise.data.texts import Texts
from gradwise.data.tokenise import NO_LOSS
from gradwise.errors import DataError
from gradwise.recipe import Recipe
from gradwise.signals import Signals
from gradwise.signals.samples import rows_of
from gradwise.training.layout import Layout
from gradwise.training.record import RunRecord

Collate = Callable[[list[Any]], dict[str, Any]]


class Scorer(NamedTuple):
    """What computes signals: a model, and samples in its tokens."""

    model: nn.Module
    samples: Any
    """Sample i is sample i of the training data."""
    collate: Collate
    target: Any = None
    """The target samples in the model's tokens, where those are not the trained model's."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Training or validation samples, and what is known of them without a model."""

    dataset: Any
    """As given, with columns such as `domain` and `weight`."""
    inputs: Any
    """The same without the columns that the model does not take."""
    collate: Collate
    settled: NDArray[np.str_] | None = None
    """(N,) `subtask`, where these are a part of a target."""

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def domain(self) -> NDArray[np.str_] | None:
        """(N,) the domain of each sample, if the data have such a column."""
        values = self._column("domain")
        return None if values is None else values.astype(str)

    @cached_property
    def subtask(self) -> NDArray[np.str_] | None:
        """(N,) the subtask of each target sample, as it was before the target was divided."""
        if self.settled is not None:
            return self.settled
        values = self._column(COLUMN)
        if values is not None:
            return values.astype(str)
        return None if self.domain is None else subtask_names(self.domain)

    @cached_property
    def weight(self) -> NDArray[np.float64] | None:
        """(N,) how often each sample should be seen, if the data have such a column.

        Raises:
            DataError: a weight is negative or no number.
        """
        values = self._column("weight")
        if values is None:
            return None
        try:
            weights = values.astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(f"The column `weight` must hold numbers; found {values[0]!r}.") from None
        wrong = np.flatnonzero(~(weights >= 0) | ~np.isfinite(weights))
        if wrong.size:
            raise DataError(
                f"The column `weight` must hold numbers >= 0; sample {wrong[0]} has {values[wrong[0]]!r}. "
                "Rename the column if it means something else."
            )
        return weights

    @cached_property
    def words(self) -> NDArray[np.float32]:
        """(N, d) sketch of the label tokens of each sample."""
        return label_words(self.inputs)

    @cached_property
    def label_tokens(self) -> NDArray[np.int32]:
        """(N,) label tokens of each sample."""
        return self.label_tokens_of(None)

    def label_tokens_of(self, rows: NDArray[np.int64] | None) -> NDArray[np.int32]:
        """(n,) label tokens of some samples, or of all; counted through the collator where it makes the
        labels (TRL's)."""
        samples = rows_of(self.inputs, rows)
        # TRL's collators make the labels, so that nothing but a collated sample says how many there are.
        if "labels" in (getattr(samples, "column_names", None) or ()):
            return label_counts(samples)
        batches = (self.collate([samples[i]]) for i in range(len(samples)))
        counts = [int((batch["labels"][..., 1:] != NO_LOSS).sum()) for batch in batches]
        return np.array(counts, dtype=np.int32)

    def batches(self, rows: NDArray[np.int64], size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Batches of `size` samples from `rows`, again and again; with the number of samples."""
        # Again and again, since what is timed may need more samples than a small pool has.
        turn = cycle(rows.tolist())
        while True:
            yield size, self.collate([self.inputs[next(turn)] for _ in range(size)])

    def described(self, needs: frozenset[str] = frozenset()) -> Signals:
        """What is known of all samples without a model: domain and weight, and `num_tokens` and `words` if
        they are needed."""
        return Signals(
            len(self),
            domain=self.domain,
            weight=self.weight,
            num_tokens=self.label_tokens if "num_tokens" in needs else None,
            words=self.words if "words" in needs else None,
            texts=self.texts if "texts" in needs else None,
        )

    @property
    def texts(self) -> Texts:
        """The texts of all samples; read when they are asked for."""
        return Texts(self.inputs, getattr(self.collate, "tokenizer", None))

    def _column(self, name: str) -> NDArray[Any] | None:
        if name not in (getattr(self.dataset, "column_names", None) or ()):
            return None
        return np.array(self.dataset[name])


@dataclass(frozen=True, eq=False)
class RunContext:
    """What decisions may use. The Trainer builds one for each decision; so do the commands without a run."""

    recipe: Recipe
    """With what was measured on this machine."""
    train: Samples
    scorer: Callable[[], Scorer]
    """Gives what computes signals of the training samples; loads it if need be."""
    record: RunRecord
    folder: Path
    """The run's folder; decisions are written below it."""
    planned: Samples | None = None
    """What a plan points into, if it is more than the training samples: behind them those of the annealing
    phase only."""
    model: nn.Module | None = None
    """The model that trains; None in a command that loads none."""
    proxied: bool = False
    """Whether another model than the one that trains computes the signals."""
    optimizer: Optimizer | None = None
    validation: Samples | None = None
    target: Samples | None = None
    """Examples of what the model should become good at, which measure nothing."""
    validation_sets: int = 0
    """Sets of validation data that were given."""
    layout: Layout | None = None
    """How a plan becomes steps; None outside of a run."""
    tokenizer: Any = None
    autocast: torch.dtype | None = None
    """What training computes in; None for the weights' own type."""
    device: str = "cpu"
    max_grad_norm: float = 0.0
    learning_rate: float = 0.0
    """Highest rate of the run."""
    adam: bool = True
    """Whether the optimizer keeps second moments of gradients."""
    sharded: bool = False
    """Whether no process holds the whole model."""
    measurable: bool = True
    """Whether samples can be measured with the model as it is placed: whole, or sharded by FSDP2."""
    shared: Path | None = None
    """Folder in which several runs keep the signals that they have in common."""
    store: Path | None = None
    """Folder in which signals are kept, so that interrupted scoring resumes; None for memory."""
    progress: bool = False
    say: Callable[[str], object] = print
    """Gets sentences for the user, on the first rank."""
    warn: Callable[[str], None] | None = None
    """Gets sentences on samples that are set aside. If None, they are Python warnings."""
    save_recipe: Callable[[Recipe], object] = lambda _: None
    """Writes the recipe with what was measured, before anything depends on it; a collective call."""
    time_training: Callable[[NDArray[np.int64]], float] | None = None
    """Measures the seconds per sample of a training step, over some samples."""
    make_optimizer: Callable[[], Optimizer] | None = None
    """Makes an optimizer such as the run's, for steps that are tried before it exists."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.recipe.seed

    @property
    def added(self) -> int:
        """Number of samples that only the annealing phase trains on."""
        return 0 if self.planned is None else len(self.planned) - len(self.train)

    @property
    def annealing(self) -> "RunContext":
        """The same in the annealing phase, whose own samples come behind the training samples."""
        planned = self.planned
        if planned is None or not self.added:
            return self

        def scorer() -> Scorer:
            assert self.model is not None
            # The model that trains, even where a proxy scored the pool: the phase asks for it as it is now.
            return Scorer(self.model, planned.inputs, planned.collate)

        return replace(self, train=planned, scorer=scorer)

    @property
    def in_run(self) -> Layout:
        """How a plan becomes steps, in a run."""
        assert self.layout is not None
        return self.layout
