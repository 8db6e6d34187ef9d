"""The signals of a trainer's data set that its recipe's decisions need, and no others."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import DataError, RecipeError
from gradwise.signals import Signals, collect_losses


def pool_signals(trainer: Any, needs: frozenset[str], batch_tokens: int) -> Signals:
    """Collect what is needed of a trainer's data; columns `domain` and `weight` count where they exist.

    Raises:
        RecipeError: when a decision needs domains and the data have no such column, or losses of a model that
            is not whole in this process.
        DataError: when a weight is negative or not a number.
    """
    dataset: Any = trainer.train_dataset
    samples, collate = trainer._training_samples()
    domain = _column(dataset, "domain")
    if "domain" in needs and domain is None:
        raise RecipeError("order: interleave needs a `domain` column in the training data.")
    loss = tokens = ok = None
    if "loss" in needs:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise RecipeError("select and order cannot measure losses of a sharded model yet; use others.")
        measured = collect_losses(
            trainer.model, samples, collate, batch_tokens=batch_tokens, progress=not trainer.args.disable_tqdm
        )
        loss, tokens, ok = measured.loss, measured.num_tokens, measured.ok
    elif "num_tokens" in needs:
        tokens = _label_tokens(samples, collate)
    return Signals(
        len(dataset),
        num_tokens=tokens,
        domain=None if domain is None else domain.astype(str),
        weight=_weights(dataset),
        loss=loss,
        ok=ok,
    )


def _column(dataset: Any, name: str) -> NDArray[Any] | None:
    if name not in (getattr(dataset, "column_names", None) or ()):
        return None
    return np.array(dataset[name])


def _weights(dataset: Any) -> NDArray[np.float64] | None:
    values = _column(dataset, "weight")
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


def _label_tokens(samples: Any, collate: Any) -> NDArray[np.int32]:
    """Counted from the labels, or through the collator where that is what makes them (TRL's)."""
    if "labels" in (getattr(samples, "column_names", None) or ()):
        counts = [sum(label != -100 for label in labels[1:]) for labels in samples["labels"]]
    else:
        counts = [int((collate([samples[i]])["labels"][..., 1:] != -100).sum()) for i in range(len(samples))]
    return np.array(counts, dtype=np.int32)
