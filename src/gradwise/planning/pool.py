"""The signals of a trainer's data set that its recipe's decisions need, and no others."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import DataError, RecipeError
from gradwise.planning.shared import Arrays, Measured, key_of, measured_once
from gradwise.signals import Signals, collect_losses
from gradwise.training.record import Record


class PoolSignals(NamedTuple):
    """Signals of a pool, and what they cost."""

    signals: Signals
    seconds: float
    shared: bool
    """Whether another run has measured them; `seconds` is what it took there."""


def pool_signals(
    trainer: Any, needs: frozenset[str], batch_tokens: int, record: Record, shared: Path | None = None
) -> PoolSignals:
    """Collect what is needed of a trainer's data; columns `domain` and `weight` count where they exist.

    Args:
        trainer: its model measures, its data are measured.
        needs: names of quantities.
        batch_tokens: padded tokens in one batch of a measuring pass.
        record: of the run, charged for what is measured.
        shared: where several runs keep what they measure; see `gradwise.planning.shared`.

    Raises:
        RecipeError: when a decision needs domains and the data have no such column, or losses of a model that
            is not whole in this process.
        DataError: when a weight is negative or not a number.
    """
    dataset: Any = trainer.train_dataset
    domain = _column(dataset, "domain")
    if "domain" in needs and domain is None:
        raise RecipeError("order: interleave needs a `domain` column in the training data.")
    measured = _measured(trainer, needs, batch_tokens, record, shared)
    signals = Signals(
        len(dataset),
        domain=None if domain is None else domain.astype(str),
        weight=_weights(dataset),
        num_tokens=measured.arrays.get("num_tokens"),
        loss=measured.arrays.get("loss"),
        ok=measured.arrays.get("ok"),
    )
    return PoolSignals(signals, measured.seconds, measured.shared)


def _measured(
    trainer: Any, needs: frozenset[str], batch_tokens: int, record: Record, shared: Path | None
) -> Measured:
    """What has to be computed, by name of the signal."""
    quantity = "loss" if "loss" in needs else "num_tokens"
    if not needs & {"loss", "num_tokens"}:
        return Measured({}, 0.0)

    def measure() -> Arrays:
        return _losses(trainer, batch_tokens) if quantity == "loss" else _counted(trainer)

    if shared is None:
        start = time.perf_counter()
        return Measured(measure(), time.perf_counter() - start)
    if trainer.args.world_size > 1:
        raise RecipeError("shared_signals is for runs of one process each; leave it out under torchrun.")
    samples, collate = trainer._training_samples()
    with record.uncharged():
        key = key_of(
            trainer.model, samples, quantity=quantity, batch_tokens=batch_tokens, collator=repr(collate)
        )
    return measured_once(shared, key, measure, record)


def _losses(trainer: Any, batch_tokens: int) -> Arrays:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise RecipeError("select and order cannot measure losses of a sharded model yet; use others.")
    samples, collate = trainer._training_samples()
    found = collect_losses(
        trainer.model, samples, collate, batch_tokens=batch_tokens, progress=not trainer.args.disable_tqdm
    )
    assert found.loss is not None and found.num_tokens is not None and found.ok is not None
    return {"loss": found.loss, "num_tokens": found.num_tokens, "ok": found.ok}


def _counted(trainer: Any) -> Arrays:
    return {"num_tokens": _label_tokens(*trainer._training_samples())}


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
