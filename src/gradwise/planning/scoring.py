"""Signals that the decisions of a run need, and no others; and how fast they can be had."""

import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradwise.errors import DataError, RecipeError
from gradwise.methods.costs import Speeds
from gradwise.methods.interfaces import Arrays, Method, Selector, WarmUp
from gradwise.numerics.sampling import evenly
from gradwise.numerics.streams import stream, stream_seed
from gradwise.planning.context import RunContext, Samples, Scorer
from gradwise.planning.shared import key_of, measure_or_read
from gradwise.probing import Probe
from gradwise.signals import Signals, collect
from gradwise.signals.model_cache import clear_cache
from gradwise.signals.request import QUANTITIES
from gradwise.signals.samples import rows_of
from gradwise.signals.vocabulary import check_tokens

TARGET = "target"
"""Folder of the target's signals, beside those of the pool, where signals are kept."""

GRADIENT_SETTINGS = ("parameters", "grad_dim", "grad_dtype")
"""Settings that gradients depend on, besides the seed."""

FEW, MORE = 4, 20
"""Samples of the two scoring runs whose difference is the time per sample. On an accelerator the smaller one
has a full batch, and the larger one as many times that."""

COUNTED = 200
"""Samples whose label tokens are counted to estimate their mean."""

WIDTH = 2048
"""Rows of the matrix product that is timed."""

DIGITS = 4
"""Significant digits of a measured speed in the recipe, which people read; more would be noise."""


class PoolSignals(NamedTuple):
    """Signals of the samples that are scored before the first step."""

    signals: Signals
    rows: NDArray[np.int64] | None
    """Their positions in the pool, ascending; None for all of it."""
    seconds: float = 0.0
    """What computing them cost."""
    shared: bool = False
    """Whether another run computed them."""
    target: Signals | None = None
    """Signals of the target samples, where the selection aims at some."""
    for_order: Signals | None = None
    """Signals of the pool at the present weights, where the selection is made by others."""

    @property
    def bad(self) -> NDArray[np.int64]:
        """Positions in the pool of samples that could not be measured."""
        places = (
            np.flatnonzero(~self.signals.ok) if self.signals.ok is not None else np.zeros(0, dtype=np.int64)
        )
        return places if self.rows is None else self.rows[places]


def check_samples(context: RunContext, methods: dict[str, Method]) -> None:
    """Raise RecipeError where a decision scores samples that are no token sequences with labels, such as
    pairs of a chosen and a rejected answer.

    Args:
        context: of the run.
        methods: those that decide, by the name of their section.
    """
    reading = [f"{section}: {method.method}" for section, method in methods.items() if _reads_tokens(method)]
    samples = context.train.inputs
    if not reading or not len(samples):
        return
    sample = samples[0]
    if "input_ids" in sample and "labels" in context.train.collate([sample]):
        return
    missing = "labels" if "input_ids" in sample else "input_ids"
    raise RecipeError(
        f"{reading[0]} scores single sequences of input_ids with labels, and the training data have no "
        f"{missing} (found {', '.join(sample)}); with such data take select: full or random, order: shuffle "
        "or given, and leave anneal out."
    )


def check_proxy(context: RunContext) -> None:
    """Refuse samples of a proxy that are not those of the run, sample by sample.

    Raises:
        RecipeError: the proxy's tokens are not those of the training data, and the target is given in these
            only.
        DataError: there is another number of training or target samples in the proxy's tokens, or a token of
            the target that the proxy does not know.
    """
    method, target = context.recipe.select, context.target
    if not context.proxied or not (method.needs | context.recipe.order.needs) & set(QUANTITIES):
        return
    scorer = context.scorer()
    if len(scorer.samples) != len(context.train):
        raise DataError(
            f"The second part of `proxy` has {len(scorer.samples)} samples, and the training data "
            f"{len(context.train)}; give the training samples in the same order."
        )
    if target is None or not method.uses_target or not method.needs & set(QUANTITIES):
        return
    if scorer.target is None and not _same_tokens(scorer.samples, context.train.inputs):
        raise RecipeError(
            "The proxy's samples have other tokens than the training data, and the target is given in the "
            "tokens of these; give it in the proxy's tokens too, as the fourth part of `proxy`."
        )
    samples = target.inputs if scorer.target is None else scorer.target
    if len(samples) != len(target):
        raise DataError(
            f"The fourth part of `proxy` has {len(samples)} samples, and the target {len(target)}; give the "
            "samples of the target in the same order."
        )
    check_tokens(scorer.model, samples, scorer.collate)


def _same_tokens(samples: Any, others: Any) -> bool:
    """Whether two data sets seem to hold the same token ids; some of their samples are compared."""
    if len(samples) != len(others):
        return False
    # Two tokenizers agree on hardly any sample, so that some of them show it.
    rows = evenly(len(samples), COUNTED).tolist()
    return all(np.array_equal(samples[row]["input_ids"], others[row]["input_ids"]) for row in rows)


def _reads_tokens(method: Method) -> bool:
    needs = method.needs | getattr(method, "validation_needs", frozenset())
    return bool(needs & {*QUANTITIES, "num_tokens", "words"})


def pool_signals(
    context: RunContext, needs: frozenset[str], rows: NDArray[np.int64] | None = None
) -> PoolSignals:
    """The signals that are needed of the training samples, with their domains and weights.

    Args:
        context: of the run; its record is charged.
        needs: names of signals.
        rows: positions of the samples to score, ascending. If unset, all of them.

    Raises:
        RecipeError: domains are needed and the data have no such column, or the model is sharded in a way in
            which it cannot be measured.
        DataError: a weight is negative or no number.
    """
    signals = context.train.described(needs & {"words", "texts"})
    if "domain" in needs and signals.domain is None:
        raise RecipeError(
            "order: interleave, order.units: domains and select.domain_minimum need a `domain` column in the "
            "training data; add it, or choose another setting."
        )
    if rows is not None:
        signals = signals.take(rows)
    quantities = sorted(needs & set(QUANTITIES))
    if not quantities and "num_tokens" not in needs:
        return PoolSignals(signals, rows)

    stored_seconds = 0.0

    def measure() -> Arrays:
        nonlocal stored_seconds
        if not quantities:
            return {"num_tokens": context.train.label_tokens_of(rows)}
        measured = _collect(context, context.scorer(), rows, quantities)
        stored_seconds = measured.seconds
        arrays = {name: measured.require(name, "the plan") for name in [*quantities, "num_tokens", "ok"]}
        # A proxy's tokens are not those that will be trained on.
        return arrays | {"num_tokens": context.train.label_tokens_of(rows)} if context.proxied else arrays

    if context.shared is None:
        start = time.perf_counter()
        arrays = measure()
        # A store that was complete or resumed has cost more than this call took.
        seconds = time.perf_counter() - start if context.store is None else stored_seconds
        return PoolSignals(replace(signals, **arrays), rows, seconds)  # type: ignore[arg-type]
    if context.layout is not None and context.layout.ranks > 1:
        raise RecipeError("shared_signals is for runs of one process each; leave it out under torchrun.")
    with context.record.uncharged():
        scorer, settings = context.scorer(), context.recipe.signals
        options: dict[str, Any] = {}
        if {"grad", "grad_norm"} & set(quantities):
            options = {name: getattr(settings, name) for name in GRADIENT_SETTINGS} | {"seed": context.seed}
        key = key_of(
            scorer.model,
            rows_of(scorer.samples, rows),
            quantities=quantities or ["num_tokens"],
            batch_tokens=settings.batch_tokens,
            collator=repr(scorer.collate),
            autocast=str(context.autocast),
            **options,
        )
    done = measure_or_read(context.shared, key, measure, context.record)
    return PoolSignals(replace(signals, **done.arrays), rows, done.seconds, done.shared)  # type: ignore[arg-type]


def selection_signals(
    context: RunContext,
    needs: frozenset[str],
    rows: NDArray[np.int64] | None = None,
    *,
    order_needs: frozenset[str] = frozenset(),
) -> PoolSignals:
    """What the first selection of a run is made from: signals of the pool, and of a target if there is one.

    Args:
        context, needs, rows: as of `pool_signals`.
        order_needs: signals by which the selection is put in order.
    """
    method = context.recipe.select
    if method.warm_up_training is not None:
        return _after_warm_up(context, method.warm_up_training, needs, order_needs)
    scored = pool_signals(context, needs | order_needs, rows)
    if not method.uses_target:
        return scored
    start = time.perf_counter()
    target = target_signals(context, method.needs)
    return scored._replace(target=target, seconds=scored.seconds + time.perf_counter() - start)


def _after_warm_up(
    context: RunContext, warm_up: WarmUp, needs: frozenset[str], order_needs: frozenset[str]
) -> PoolSignals:
    """Gradients at the checkpoints of a warm-up, side by side: the pool's divided by the root of Adam's
    second moments, the target's as they are."""
    # The order is one for the weights that train, which the warm-up leaves behind.
    ordered = None
    if order_needs & set(QUANTITIES):
        ordered = pool_signals(context, order_needs | {"num_tokens"})
    start, scorer, pool = time.perf_counter(), context.scorer(), len(context.train)
    batch = context.recipe.train.batch_size if context.layout is None else context.layout.batch_size
    mixed = stream(context.seed, "warm-up").permutation(pool)
    # Those without a label token have no gradient to take a step by.
    mixed = mixed[context.train.label_tokens[mixed] > 0]
    chosen = mixed[: max(1, round(warm_up.fraction * pool))]
    optimizer = adamw(scorer.model, context.learning_rate)
    probe = Probe(
        scorer.model,
        optimizer,
        scorer.samples,
        scorer.collate,
        clip=context.max_grad_norm,
        batch_tokens=context.recipe.signals.batch_tokens,
        autocast=context.autocast,
        seed=stream_seed(context.seed, "warm-up dropout"),
    )
    per_epoch = -(-len(chosen) // batch)
    steps, done = per_epoch * warm_up.epochs, 0
    checkpoint_signals, targets = [], []
    # Where scoring could resume, it would be at other weights.
    moved = replace(context, optimizer=optimizer, store=None, shared=None)
    with probe.training() as step:
        for epoch in range(warm_up.epochs):
            order = stream(context.seed, "warm-up order", epoch).permutation(chosen)
            for samples in np.array_split(order, per_epoch):
                step(samples, context.learning_rate * (1 - done / steps))
                done += 1
            quantities = sorted(needs & set(QUANTITIES))
            checkpoint_signals.append(_collect(moved, scorer, None, quantities, use_optimizer=True))
            targets.append(target_signals(moved, needs))
    grads = np.concatenate([np.asarray(each.grad) for each in checkpoint_signals], axis=1)
    sound = [each.ok for each in checkpoint_signals] + ([] if ordered is None else [ordered.signals.ok])
    signals = replace(
        context.train.described(needs | order_needs | {"num_tokens"}),
        grad=grads,
        ok=np.logical_and.reduce(sound),
    )
    target = replace(targets[0], grad=np.concatenate([np.asarray(each.grad) for each in targets], axis=1))
    seconds = time.perf_counter() - start
    if ordered is None:
        return PoolSignals(signals, None, seconds, target=target)
    return PoolSignals(signals, None, seconds + ordered.seconds, target=target, for_order=ordered.signals)


def adamw(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW without weight decay over what a model trains, as before the first step."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)


def signals_now(
    context: RunContext, rows: NDArray[np.int64], needs: frozenset[str], *, use_optimizer: bool = False
) -> Signals:
    """Signals of some training samples at the model's present weights, in the order of `rows`, with their
    domains, weights and label tokens.

    Args:
        context: of the run.
        rows: positions of the samples.
        needs: names of signals; nothing is measured if none of them is a quantity.
        use_optimizer: divide gradients by the root of the optimizer's second moments.
    """
    samples, quantities = context.train, sorted(needs & set(QUANTITIES))
    domain = None if samples.domain is None else samples.domain[rows]
    weight = None if samples.weight is None else samples.weight[rows]
    if not quantities:
        tokens = samples.label_tokens_of(rows)
        return Signals(len(rows), num_tokens=tokens, domain=domain, weight=weight)
    measured = _collect(context, context.scorer(), rows, quantities, use_optimizer=use_optimizer)
    return replace(measured, domain=domain, weight=weight)


def validation_signals(
    context: RunContext, needs: frozenset[str], most: int | None, *, use_optimizer: bool = False
) -> Signals:
    """Signals of `most` validation samples, evenly spread over them, or of all."""
    assert context.validation is not None and context.model is not None
    scorer = Scorer(context.model, spread_over(context.validation, most), context.validation.collate)
    return _collect(context, scorer, None, sorted(needs & set(QUANTITIES)), use_optimizer=use_optimizer)


def target_signals(context: RunContext, needs: frozenset[str]) -> Signals:
    """Signals of the target samples at the present weights, with their domains and texts.

    Args:
        context: of the run.
        needs: names of signals.
    """
    samples = context.target
    assert samples is not None
    quantities = sorted(needs & set(QUANTITIES))
    signals = Signals(len(samples))
    if quantities:
        aside = replace(context, store=None if context.store is None else context.store.parent / TARGET)
        scorer = context.scorer()
        inputs = samples.inputs if scorer.target is None else scorer.target
        target_scorer = Scorer(scorer.model, inputs, scorer.collate)
        signals = _collect(aside, target_scorer, None, quantities)
    tokens = samples.label_tokens if "num_tokens" in needs else signals.num_tokens
    return replace(
        signals, domain=samples.domain, subtask=samples.subtask, texts=samples.texts, num_tokens=tokens
    )


def spread_over(samples: Samples, most: int | None) -> Any:
    """The inputs of `most` samples, evenly spread over all of them; all where there are no more."""
    count = len(samples)
    return rows_of(samples.inputs, None if most is None or most >= count else evenly(count, most))


def in_pool(context: RunContext, signals: Signals, rows: NDArray[np.int64], needs: frozenset[str]) -> Signals:
    """Signals of some samples as those of the pool, NaN for the others; only the quantities that are
    needed."""
    values: dict[str, Any] = {}
    for name in needs & set(QUANTITIES):
        measured = signals.require(name, "the order")
        values[name] = np.full((len(context.train), *measured.shape[1:]), np.nan, dtype=measured.dtype)
        values[name][rows] = measured
    return replace(context.train.described(needs & {"words"}), **values)


def _collect(
    context: RunContext,
    scorer: Scorer,
    rows: NDArray[np.int64] | None,
    quantities: list[str],
    *,
    use_optimizer: bool = False,
) -> Signals:
    if not context.measurable and not context.proxied:
        raise RecipeError(
            f"select, order and anneal cannot measure the {quantities[0]} of a model sharded by DeepSpeed or "
            "FSDP1; shard it by FSDP2, use others, or for the first two name a smaller model under "
            "signals.model."
        )
    settings = context.recipe.signals
    return collect(
        scorer.model,
        rows_of(scorer.samples, rows),
        scorer.collate,
        want=quantities,  # type: ignore[arg-type]
        parameters=settings.parameters,
        grad_dim=settings.grad_dim,
        grad_dtype=settings.grad_dtype,
        precondition=context.optimizer if use_optimizer else None,
        batch_tokens=settings.batch_tokens,
        store=context.store,
        seed=context.seed,
        progress=context.progress,
        autocast=context.autocast,
        tell=context.warn,
    )


# ---- speeds ------------------------------------------------------------------------------------------------


class ScoringSpeed(NamedTuple):
    """Seconds of a scoring run."""

    startup: float
    """Seconds that the first run takes whatever its size."""
    later_startup: float
    """Seconds that every later run takes whatever its size; the model is not tried again."""
    per_sample: float
    """More than 0."""


def samples_timed(context: RunContext) -> int:
    """How many samples the larger of two scoring runs has that are timed."""
    count = len(context.train)
    if context.device == "cpu" or not count:
        return MORE
    # Less than a full batch takes as long as one on an accelerator: launching its kernels takes longest.
    lengths = [len(context.train.inputs[int(row)]["input_ids"]) for row in evenly(count, COUNTED)]
    batch = context.recipe.signals.batch_tokens / max(1.0, float(np.mean(lengths)))
    return max(MORE, math.ceil(batch * MORE / FEW))


def scoring_speed(context: RunContext, rows: NDArray[np.int64], needs: frozenset[str]) -> ScoringSpeed:
    """The speed at the model's present weights, from scoring all of `rows` and a few of them.

    Args:
        context: of the run.
        rows: positions of `samples_timed` samples, or of all where there are fewer.
        needs: names of signals.
    """

    def seconds_of(chosen: NDArray[np.int64]) -> float:
        start = time.perf_counter()
        signals_now(context, chosen, needs)
        return time.perf_counter() - start

    fewer = max(FEW, len(rows) * FEW // MORE)
    samples = context.scorer().samples
    by_length = rows[np.argsort([len(samples[int(row)]["input_ids"]) for row in rows], kind="stable")]
    # The longest is among the few, or the larger run would try the model for it, which would count as time
    # per sample.
    few = by_length[evenly(len(rows), fewer)]
    clear_cache()
    seconds_of(few)  # allocates, compiles
    small, large = seconds_of(few), seconds_of(rows)
    clear_cache()
    trying = max(0.0, seconds_of(few) - small)
    # Noise can suggest that more samples take no longer; they take some time all the same.
    each = max((large - small) / max(1, len(rows) - len(few)), 1e-3 * large / len(rows))
    later = max(0.0, small - len(few) * each)
    return ScoringSpeed(later + trying, later, each)


def measured_speeds(context: RunContext, method: Selector) -> Speeds:
    """Speeds of this machine, on samples from all over the pool; a collective call."""
    assert context.time_training is not None and context.model is not None
    method.compile_kernels()
    timed = samples_timed(context)
    places = evenly(len(context.train), max(COUNTED, 2 * timed))
    learnt = places[context.train.label_tokens_of(places) > 0]
    rows = learnt[evenly(len(learnt), timed)] if learnt.size else places[:timed]
    scoring = scoring_speed(context, rows, method.needs)
    seconds = {
        "train": context.time_training(rows),
        "score": scoring.per_sample,
        "startup": scoring.startup,
        "later_startup": scoring.later_startup,
        "compare": _seconds_per_pair(
            getattr(context.model.config, "hidden_size", 512), torch.device(context.device)
        ),
    }
    return Speeds(**{name: float(f"{value:.{DIGITS}g}") for name, value in seconds.items()})


def mean_label_tokens(samples: Samples) -> float:
    """Label tokens of a sample on average, estimated from some of them."""
    return float(samples.label_tokens_of(evenly(len(samples), COUNTED)).mean())


def _seconds_per_pair(width: int, device: torch.device) -> float:
    """Seconds per pair of rows whose product is computed; each pair is computed once in the graph."""
    x = torch.ones(WIDTH, width, device=device)

    def product() -> float:
        start = time.perf_counter()
        _ = x @ x.T
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    product()  # allocates, and chooses a kernel
    return product() / WIDTH**2 / 2
