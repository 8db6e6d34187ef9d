"""The signals of a trainer's data set that its recipe's decisions need, and no others."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import RecipeError
from gradwise.signals import Signals, collect_losses


def pool_signals(trainer: Any, needs: frozenset[str], batch_tokens: int) -> Signals:
    """Collect what is needed of `trainer.train_dataset`; columns `domain` and `weight` are used where they
    exist.

    Raises:
        RecipeError: when a decision needs domains and the data have no such column.
    """
    dataset: Any = trainer.train_dataset
    samples, collate = trainer._training_samples()
    domain, weight = _column(dataset, "domain"), _column(dataset, "weight")
    if "domain" in needs and domain is None:
        raise RecipeError("order: interleave needs a `domain` column in the training data.")
    loss = tokens = ok = None
    if "loss" in needs:
        measured = collect_losses(
            trainer.model,
            samples,
            collate,
            batch_tokens=batch_tokens,
            progress=not trainer.args.disable_tqdm,
        )
        loss, tokens, ok = measured.loss, measured.num_tokens, measured.ok
    elif "num_tokens" in needs:
        tokens = _label_tokens(samples, collate)
    return Signals(
        len(dataset),
        num_tokens=tokens,
        domain=None if domain is None else domain.astype(str),
        weight=None if weight is None else weight.astype(np.float64),
        loss=loss,
        ok=ok,
    )


def _column(dataset: Any, name: str) -> NDArray[Any] | None:
    if name not in (getattr(dataset, "column_names", None) or ()):
        return None
    return np.array(dataset[name])


def _label_tokens(samples: Any, collate: Any) -> NDArray[np.int32]:
    """Counted through the collator, which may be what makes the labels (TRL's does)."""
    counts = [int((collate([samples[i]])["labels"][..., 1:] != -100).sum()) for i in range(len(samples))]
    return np.array(counts, dtype=np.int32)
