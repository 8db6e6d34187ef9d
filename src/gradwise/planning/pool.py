"""The signals of a trainer's data set that its recipe's decisions need, and no others."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset

from gradwise.errors import DataError, RecipeError
from gradwise.methods.d3 import D3
from gradwise.numerics.sampling import evenly
from gradwise.planning.shared import Arrays, Measured, key_of, measured_once
from gradwise.precision import autocast_of
from gradwise.recipe import Recipe, SignalSettings
from gradwise.signals import Signals, collect
from gradwise.signals.wanted import QUANTITIES
from gradwise.training.record import Record

GRADIENTS_BY = ("parameters", "grad_dim", "grad_dtype")
"""Settings that gradients depend on, besides the seed."""


def check_samples(trainer: Any, recipe: Recipe) -> None:
    """Raise RecipeError where a decision scores samples that are no token sequences with labels, such as
    pairs of a chosen and a rejected answer."""
    scoring = [
        f"{section}: {part.method}"
        for section in ("select", "order", "anneal")
        if (part := getattr(recipe, section)) is not None and (_reads(part) or isinstance(part, D3))
    ]
    samples, collate = trainer._training_samples()
    if not scoring or not len(samples):
        return
    sample = samples[0]
    if "input_ids" in sample and "labels" in collate([sample]):
        return
    missing = "labels" if "input_ids" in sample else "input_ids"
    raise RecipeError(
        f"{scoring[0]} scores single sequences of input_ids with labels, and the training data have no "
        f"{missing} (found {', '.join(sample)}); with such data take select: full or random, order: shuffle "
        "or given, and leave anneal out."
    )


def _reads(part: Any) -> bool:
    """Whether a method goes by what the samples hold."""
    needs = part.needs | getattr(part, "validation_needs", frozenset())
    return bool(needs & {*QUANTITIES, "num_tokens"})


class PoolSignals(NamedTuple):
    """Signals of a pool, and what they cost."""

    signals: Signals
    seconds: float
    shared: bool
    """Whether another run has measured them; `seconds` is what it took there."""


def pool_signals(
    trainer: Any,
    needs: frozenset[str],
    settings: SignalSettings,
    record: Record,
    *,
    seed: int = 0,
    shared: Path | None = None,
    rows: NDArray[np.int64] | None = None,
) -> PoolSignals:
    """Collect what is needed of a trainer's data; columns `domain` and `weight` count where they exist.

    Args:
        trainer: its model measures, its data are measured; or the model and data it was given as proxy.
        needs: names of quantities.
        settings: the recipe's `signals`.
        record: of the run, charged for what is measured.
        seed: of the projection of gradients.
        shared: where several runs keep what they measure; see `gradwise.planning.shared`.
        rows: samples to measure, ascending; the signals are then theirs alone. All of them unless given.

    Raises:
        RecipeError: when a decision needs domains and the data have no such column, or quantities of a model
            that is not whole in this process.
        DataError: when a weight is negative or not a number.
    """
    dataset: Any = trainer.train_dataset
    domain, weight = domains(dataset), _weights(dataset)
    if "domain" in needs and domain is None:
        raise RecipeError(
            "order: interleave and select.domain_minimum need a `domain` column in the training data."
        )
    size = len(dataset)
    if rows is not None:
        size = len(rows)
        domain, weight = (None if each is None else each[rows] for each in (domain, weight))
    measured = _measured(trainer, needs, settings, seed, record, shared, rows)
    known: dict[str, Any] = {"domain": domain, "weight": weight, **measured.arrays}
    signals = Signals(size, **known)
    return PoolSignals(signals, measured.seconds, measured.shared)


def signals_of(
    trainer: Any,
    rows: NDArray[np.int64],
    needs: frozenset[str],
    settings: SignalSettings,
    *,
    seed: int,
    optimizer: Any = None,
) -> Signals:
    """Signals of some samples of a trainer's data at the model's present weights, in the order of `rows`;
    gradients are divided by the root of an optimizer's second moments where one is given."""
    source = _source(trainer, rows)
    return _collect(trainer, *source, sorted(needs & set(QUANTITIES)), settings, seed, optimizer)


def described_signals_of(
    trainer: Any, rows: NDArray[np.int64], needs: frozenset[str], settings: SignalSettings, **how: Any
) -> Signals:
    """The same with label tokens, domains and weights; nothing is measured where no quantity is needed."""
    measured = Signals(len(rows))
    if needs & set(QUANTITIES):
        measured = signals_of(trainer, rows, needs, settings, **how)
    own = (domains(trainer.train_dataset), _weights(trainer.train_dataset))
    domain, weight = (None if each is None else each[rows] for each in own)
    tokens = label_tokens_of(trainer, rows) if measured.num_tokens is None else measured.num_tokens
    return replace(measured, num_tokens=tokens, domain=domain, weight=weight)


def spread_out(trainer: Any, signals: Signals, rows: NDArray[np.int64], needs: frozenset[str]) -> Signals:
    """Signals of some samples in rows as long as the pool, where nothing is known of the others."""
    dataset = trainer.train_dataset
    values: dict[str, Any] = {"domain": domains(dataset), "weight": _weights(dataset)}
    for name in needs & set(QUANTITIES):
        found = signals.require(name, "the order")
        values[name] = np.full((len(dataset), *found.shape[1:]), np.nan, dtype=found.dtype)
        values[name][rows] = found
    return Signals(len(dataset), **values)


def validation_signals(
    trainer: Any,
    needs: frozenset[str],
    settings: SignalSettings,
    *,
    seed: int,
    most: int | None,
    optimizer: Any,
) -> Signals:
    """Signals of a trainer's validation data, of `most` samples evenly spread over them."""
    samples, collate = trainer._validation_samples()
    samples = spread_over(samples, most)
    return _collect(
        trainer, trainer.model, samples, collate, sorted(needs & set(QUANTITIES)), settings, seed, optimizer
    )


def label_tokens_of(trainer: Any, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """(n,) label tokens of some samples of a trainer's data."""
    samples, collate = trainer._training_samples()
    return _label_tokens(_chosen(samples, rows), collate)


def spread_over(samples: Any, most: int | None) -> Any:
    """`most` samples, evenly spread over all of them; all where there are no more."""
    if most is None or most >= len(samples):
        return samples
    return _chosen(samples, evenly(len(samples), most))


def _measured(
    trainer: Any,
    needs: frozenset[str],
    settings: SignalSettings,
    seed: int,
    record: Record,
    shared: Path | None,
    rows: NDArray[np.int64] | None,
) -> Measured:
    """What has to be computed, by name of the signal."""
    quantities = sorted(needs & set(QUANTITIES))
    if not quantities and "num_tokens" not in needs:
        return Measured({}, 0.0)

    def measure() -> Arrays:
        if not quantities:
            return _counted(trainer, rows)
        return _collected(trainer, quantities, settings, seed, rows)

    if shared is None:
        start = time.perf_counter()
        return Measured(measure(), time.perf_counter() - start)
    if trainer.args.world_size > 1:
        raise RecipeError("shared_signals is for runs of one process each; leave it out under torchrun.")
    model, samples, collate = _source(trainer, rows)
    options: dict[str, Any] = {}
    if {"grad", "grad_norm"} & set(quantities):
        options = {name: getattr(settings, name) for name in GRADIENTS_BY} | {"seed": seed}
    with record.uncharged():
        key = key_of(
            model,
            samples,
            quantities=quantities or ["num_tokens"],
            batch_tokens=settings.batch_tokens,
            collator=repr(collate),
            autocast=str(autocast_of(trainer.args)),
            **options,
        )
    return measured_once(shared, key, measure, record)


def _source(trainer: Any, rows: NDArray[np.int64] | None = None) -> tuple[Any, Any, Any]:
    """What measures, what is measured, and what makes batches of it."""
    model, samples, collate = trainer.proxy or (trainer.model, *trainer._training_samples())
    return model, _chosen(samples, rows), collate


def _chosen(samples: Any, rows: NDArray[np.int64] | None) -> Any:
    if rows is None:
        return samples
    return samples.select(rows) if hasattr(samples, "select") else Subset(samples, rows.tolist())


def _collected(
    trainer: Any,
    quantities: list[str],
    settings: SignalSettings,
    seed: int,
    rows: NDArray[np.int64] | None,
) -> Arrays:
    model, samples, collate = _source(trainer, rows)
    found = _collect(trainer, model, samples, collate, quantities, settings, seed)
    arrays: Arrays = {name: found.require(name, "the plan") for name in [*quantities, "num_tokens", "ok"]}
    # A proxy's tokens are not those that will be trained on.
    return arrays if trainer.proxy is None else arrays | _counted(trainer, rows)


def _collect(
    trainer: Any,
    model: Any,
    samples: Any,
    collate: Any,
    quantities: list[str],
    settings: SignalSettings,
    seed: int,
    optimizer: Any = None,
) -> Signals:
    if trainer.proxy is None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise RecipeError(
            f"select, order and anneal cannot measure the {quantities[0]} of a sharded model yet; use "
            "others, or for the first two name a smaller model under signals.model."
        )
    return collect(
        model,
        samples,
        collate,
        want=quantities,  # type: ignore[arg-type]
        parameters=settings.parameters,
        grad_dim=settings.grad_dim,
        grad_dtype=settings.grad_dtype,
        precondition=optimizer,
        batch_tokens=settings.batch_tokens,
        seed=seed,
        progress=not trainer.args.disable_tqdm,
        autocast=autocast_of(trainer.args),
    )


def _counted(trainer: Any, rows: NDArray[np.int64] | None) -> Arrays:
    samples, collate = trainer._training_samples()
    return {"num_tokens": _label_tokens(_chosen(samples, rows), collate)}


def domains(dataset: Any) -> NDArray[np.str_] | None:
    """(N,) the domain of each sample, where the data say so."""
    found = _column(dataset, "domain")
    return None if found is None else found.astype(str)


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
    if "labels" not in (getattr(samples, "column_names", None) or ()):
        counts = [int((collate([samples[i]])["labels"][..., 1:] != -100).sum()) for i in range(len(samples))]
    elif hasattr(samples, "with_format"):
        tables = samples.select_columns("labels").with_format("arrow").iter(batch_size=10_000)
        counts = [count for table in tables for chunk in table["labels"].chunks for count in _counts(chunk)]
    else:
        counts = [sum(label != -100 for label in labels[1:]) for labels in samples["labels"]]
    return np.array(counts, dtype=np.int32)


def _counts(labels: Any) -> NDArray[np.int64]:
    """Label tokens in each list of an Arrow array; the first token of a sample is never predicted."""
    ends = np.cumsum(labels.value_lengths().to_numpy())
    before = np.concatenate([[0], np.cumsum(labels.flatten().to_numpy() != -100)])
    firsts = np.concatenate([[0], ends])[:-1] + 1
    return before[ends] - before[np.minimum(firsts, ends)]
