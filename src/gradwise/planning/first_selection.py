"""What is selected before the first step, in a run or outside of one."""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.costs import SelectionForecast
from gradwise.methods.decision import Selection
from gradwise.methods.interfaces import SelectionState, Selector, TextMatch
from gradwise.methods.targeting import Subtasks, closeness_of
from gradwise.numerics.ngrams import compile_kernels
from gradwise.planning.context import RunContext
from gradwise.planning.scoring import PoolSignals, mean_label_tokens
from gradwise.ranks import on_first
from gradwise.signals import Signals
from gradwise.training.arguments import decay_steps
from gradwise.training.layout import Packer

OFTEN = 4
"""Epochs over picks towards a target from which on a run says that more of them may serve better: 6 epochs
over 5 % and 4 over 7.5 % of a pool mostly ended above 2 over 15 % (docs/log.md)."""


class FirstSelection(NamedTuple):
    """A selection before the first step."""

    selection: Selection
    state: SelectionState | None
    """What the method remembers."""
    order_signals: Signals
    """Signals of the whole pool, by which the selection is put in order."""


def first_selection(
    method: Selector,
    context: RunContext,
    scored: PoolSignals,
    *,
    order_needs: frozenset[str] = frozenset(),
    forecast: SelectionForecast | None = None,
    took: dict[str, float] | None = None,
    match: TextMatch | None = None,
) -> FirstSelection:
    """What a method selects before the first step, in a run or outside of one.

    Args:
        method: that selects.
        context: the samples and the seed.
        scored: signals of the samples that were scored.
        order_needs: signals by which the selection is put in order.
        forecast: how often the selection is refreshed.
        took: gets the seconds of its parts.
        match: how the texts of the pool compare with the target's, where the method asks that.
    """
    target = scored.target
    state = method.begin(
        scored.signals,
        scored_rows=scored.rows,
        pool=len(context.train),
        seed=context.seed,
        device=context.device,
        took=took,
        forecast=forecast,
        target=target,
        match=match,
    )
    order_signals = scored.signals
    if scored.rows is not None:
        order_signals = context.train.described(order_needs | method.needs | {"num_tokens"})
    selection = method.pick(state, order_signals, target=target, seed=context.seed).without(scored.bad)
    selection = selection.weighing(context.recipe.weights)
    return FirstSelection(selection, state, order_signals if scored.for_order is None else scored.for_order)


class PoolTexts(NamedTuple):
    """How texts compare, before a model is asked."""

    match: TextMatch | None
    target: int = 0
    """Samples of the target."""
    seconds: float = 0.0

    def recorded(self, context: RunContext, rows: NDArray[np.int64] | None) -> TextMatch | None:
        """The match, once the record has it; `rows` are the samples that a model scores, None for all."""
        if self.match is not None:
            context.record.event(
                "ngrams",
                0,
                self.seconds,
                samples=len(context.train),
                kept=len(context.train) if rows is None else len(rows),
                target=self.target,
                garbled=int(self.match.garbled.sum()),
                copies=int(self.match.copies.sum()),
                closeness=self.match.closeness,
            )
            if advice := self.match.advice():
                context.say(advice)
        return self.match


def match_pool_texts(method: Selector, context: RunContext) -> PoolTexts:
    """What the texts of the pool and of the target say before a model is asked."""
    if context.target is None or not method.uses_target:
        return PoolTexts(None)
    compile_kernels()
    start = time.perf_counter()
    pool = context.train.described(method.needs & {"texts", "num_tokens"})
    samples = context.target
    target = Signals(len(samples), domain=samples.domain, subtask=samples.subtask, texts=samples.texts)
    learnt = np.flatnonzero(samples.label_tokens)
    if len(learnt) < len(target) and learnt.size:
        target = target.take(learnt)  # as where the model measures them
    match = method.match_texts(pool, target)
    return PoolTexts(match, len(target), time.perf_counter() - start)


def repetition_advice(method: Selector, picked: int, pool: int, epochs: int) -> str | None:
    """A sentence where a run repeats picks towards a target so often that more picks would serve better;
    None otherwise."""
    if not method.uses_target or picked >= pool or epochs < OFTEN:
        return None
    return (
        f"select: the run sees each of its {picked:,} picks {epochs:,} times. In our measurements more "
        "picks, seen twice each, served most targets better; consider selecting more, or fewer steps."
    )


def sized_for_run(
    context: RunContext, *, steps: int, rows: int, last: float | None, pack: Packer | None
) -> RunContext:
    """The context with the number of picks in its recipe, where that follows from the length of the run; says
    so.

    Args:
        context: of the run, or of a selection outside of one.
        steps: of the run; 0 where epochs decide its length, which then follows from the picks.
        rows: of a step.
        last: fraction of the steps in the annealing phase, if there is one.
        pack: packs samples into rows; None for a row per sample.
    """
    method, pool = context.recipe.select, len(context.train)
    trained = None
    if steps:
        counted = steps - (0 if last is None else decay_steps(last, steps))
        per_row = 1.0 if pack is None else pool / (len(pack(np.arange(pool))) - 1)
        trained = counted * rows * per_row
    sized: Any = method.for_run(pool, trained)
    if trained is None or sized == method:
        return context
    usual, picks = (
        each.size_in_run(pool, lambda: mean_label_tokens(context.train)) for each in (method, sized)
    )
    if method.resolved() is None and sized.resolved() is not None:
        context.record.event("select_trial", 0, 0.0, winner=sized.winner, closeness=None, steps=0)
        picks = pool
    number = f"all {pool:,}" if picks == pool else f"{picks:,}"
    context.say(
        f"select: {number} samples are selected instead of {usual:,}, which the run would see "
        f"{trained / usual:.3g} times each (select.max_epochs)."
    )
    return replace(context, recipe=replace(context.recipe, select=sized))


def settled_by_closeness(context: RunContext, match: TextMatch | None) -> RunContext | None:
    """The context with the winner in its recipe, where the pool is so close to the target that no trial is to
    be held; None otherwise. Says so and records it."""
    trial: Any = context.recipe.select
    if trial.max_closeness is None:
        return None
    # The first rank's: one that differs in the last bit could make a rank hold a trial alone.
    closeness = on_first(lambda: pool_closeness(trial, context, match))
    settled = trial.without_trial(closeness)
    if settled is None:
        return None
    context.record.event("select_trial", 0, 0.0, winner=settled.winner, closeness=closeness, steps=0)
    context.say(
        f"select: {settled.winner} selects without a trial, since the pool is close to the target "
        f"(closeness {closeness:.2f}, and select.max_closeness is {trial.max_closeness:g})."
    )
    return replace(context, recipe=replace(context.recipe, select=settled))


def pool_closeness(method: Selector, context: RunContext, match: TextMatch | None) -> float | None:
    """How close the pool is to the target by its words, also where the method does not compare words itself;
    None where that is not known."""
    if match is not None:
        return match.closeness
    assert context.target is not None
    pool, target = context.train.described(frozenset({"texts", "num_tokens"})), context.target
    if pool.texts is None or target.texts is None:
        return None
    aimed = Signals(len(target), domain=target.domain, subtask=target.subtask)
    size = method.size_in_run(len(pool), lambda: mean_label_tokens(context.train))
    return closeness_of(pool.texts, target.texts, Subtasks.of_target(aimed), size, context.seed)
