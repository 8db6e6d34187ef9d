"""Selects what a run trains on: at its start, and again while it trains if the method refreshes its
selection."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import RecipeError
from gradwise.methods.cost_counts import ORDINARY
from gradwise.methods.costs import RunSize, SelectionForecast, Speeds
from gradwise.methods.decision import Selection
from gradwise.methods.interfaces import Arrays, SelectionState, Selector, TextMatch
from gradwise.planning.context import RunContext
from gradwise.planning.decider import Decider, DecisionCost, rounded, served
from gradwise.planning.epochs import (
    epoch_length,
    epochs_ahead,
    epochs_from,
    laid_out,
    make_plan,
    repeated,
)
from gradwise.planning.first_selection import (
    first_selection,
    match_pool_texts,
    repetition_advice,
    settled_by_closeness,
    sized_for_run,
)
from gradwise.planning.ordering import Ordering
from gradwise.planning.phase import Part
from gradwise.planning.picks import keep_picks, keep_pool
from gradwise.planning.scoring import (
    PoolSignals,
    mean_label_tokens,
    measured_speeds,
    signals_now,
    target_signals,
)
from gradwise.planning.trials import halves, hold_trial
from gradwise.ranks import on_first
from gradwise.signals import Signals
from gradwise.signals.request import QUANTITIES
from gradwise.training.arguments import decay_steps
from gradwise.training.layout import Schedule
from gradwise.training.plan import Plan

CHOSEN = "chosen"
"""Array in a checkpoint: samples selected for good, from which the annealing phase chooses."""


class Selecting(Decider):
    """The decision of `select`.

    Args:
        method: that selects.
        ordering: puts what is selected in order.
        until: steps from which on a refresh no longer counts, given a schedule; empty for never.
        last: fraction of the steps in the annealing phase, if there is one.
        keeps: whether the annealing phase will ask what was selected.
    """

    name = "select"

    def __init__(
        self,
        method: Selector,
        ordering: Ordering,
        *,
        until: Callable[[Schedule], tuple[int, ...]],
        last: float | None,
        keeps: bool,
    ) -> None:
        self._needs, self._ordering, self._until = method.needs, ordering, until
        self._last, self._keeps = last, keeps
        self._forecast: SelectionForecast | None = None
        self._steps = 0
        self._rows: NDArray[np.int64] | None = None
        self._match: TextMatch | None = None
        self._match_by_half: TextMatch | None = None
        self._scored: PoolSignals | None = None
        self._state: SelectionState | None = None
        self._picks: NDArray[np.int64] | None = None
        self._chosen: NDArray[np.int64] | None = None
        self._said_spent = False

    @property
    def needs(self) -> frozenset[str]:
        return self._needs

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """Positions of the samples to score before the first step; None for all."""
        return self._rows

    def scored(self, signals: PoolSignals) -> None:
        """Take the signals that the first decision is made from."""
        self._scored = signals

    # ---- before the first step -----------------------------------------------------------------------------

    def check(self, context: RunContext) -> None:
        method = context.recipe.select
        if method.warm_up_training is not None and context.sharded:
            raise RecipeError(
                f"select: {method.method} trains before it selects and takes the steps back, which a sharded "
                "model cannot do yet; take another selection."
            )

    def prepare(self, context: RunContext) -> RunContext:
        layout = context.in_run
        sized = sized_for_run(
            context, steps=layout.max_steps, rows=layout.batch_size, last=self._last, pack=layout.pack
        )
        if sized is not context:
            context = sized
            context.save_recipe(context.recipe)
            self._needs = context.recipe.select.needs
        # A method and an order that both need signals share one scoring run over all samples.
        method, scores_all = context.recipe.select, bool(self._ordering.needs & set(QUANTITIES))
        texts = match_pool_texts(method, context)
        self._match = texts.match
        start = time.perf_counter()
        size = partial(self._size, context)
        budgeted = method.budgeted(
            size, partial(_speeds, context, method), once=self._once(context), scores_all=scores_all
        )
        if budgeted is None:
            if method.resolved() is None:
                settled = settled_by_closeness(context, self._match)
                if settled is not None:
                    context, method = settled, settled.recipe.select
                    context.save_recipe(context.recipe)
                    self._needs = method.needs
            self._rows = self._rows_of(method, context, self._match)
            texts.recorded(context, self._rows)
            if method.resolved() is None:
                self._prepare_trial(method, context)
            return context
        filled = {name: getattr(budgeted.method, name) for name in method.left_to_run}
        # Written down before anything depends on it.
        recipe = replace(context.recipe, select=replace(method, **filled))
        context.save_recipe(recipe)
        self._forecast = budgeted.forecast
        context.record.event("forecast", 0, time.perf_counter() - start, **budgeted.forecast.as_dict())
        context.say(budgeted.sentence)
        candidates, pool = budgeted.forecast.candidates, len(context.train)
        if candidates < pool and scores_all:
            raise RecipeError(
                f"order: {self._ordering.method.method} needs signals of all samples, and select.candidates "
                f"scores {candidates:,} of {pool:,}; give candidates: all."
            )
        self._rows = budgeted.method.rows_to_score(pool, context.train.domain, context.seed, self._match)
        texts.recorded(context, self._rows)
        return replace(context, recipe=recipe)

    def _rows_of(
        self, method: Selector, context: RunContext, match: TextMatch | None
    ) -> NDArray[np.int64] | None:
        """The samples that a method without a budget scores; None for all of them."""
        if self._ordering.needs & set(QUANTITIES):
            return None
        return method.rows_to_score(len(context.train), context.train.domain, context.seed, match)

    def _prepare_trial(self, method: Selector, context: RunContext) -> None:
        """Compare the texts with the half of the target that chooses as well, and score what either calls
        for: contenders select by the half, the winner by all of it."""
        # Only now: a pool that is close to the target needs no trial, whatever would stand in its way.
        if context.sharded:
            raise RecipeError(
                "select: a trial trains a whole model, and this one is sharded; give select.winner, or take "
                "one of the contenders."
            )
        if "full" in method.contender_methods and not context.in_run.max_steps:
            raise RecipeError(
                "select: a trial compares all of the data with a part of them at equal steps, and the run is "
                "to take epochs, which are longer over all of them; give train.max_steps, or leave full out "
                "of select.contenders."
            )
        assert context.target is not None
        if sentence := halves(context.target, self.name, pool=context.train).sentence(self.name):
            context.say(sentence)
        # The judges must not have chosen: a contender that saw them would be judged by its own target.
        half = replace(context, target=halves(context.target, self.name).choosing)
        texts = match_pool_texts(method, half)
        rows = self._rows_of(method, half, texts.match)
        self._match_by_half = texts.recorded(context, rows)
        self._rows = None if rows is None or self._rows is None else np.union1d(rows, self._rows)

    def _scored_for(self, method: Selector, context: RunContext, match: TextMatch | None) -> PoolSignals:
        """The part of a trial's signals that a contender would have measured alone."""
        scored = self._scored
        assert scored is not None
        if self._ordering.needs & set(QUANTITIES):
            return scored
        if not method.needs & set(QUANTITIES):
            signals = context.train.described(method.needs | self._ordering.needs)
            return scored._replace(signals=signals, rows=None)
        rows = self._rows_of(method, context, match)
        if rows is None:
            return scored
        places = rows if scored.rows is None else np.searchsorted(scored.rows, rows)
        return scored._replace(signals=scored.signals.take(places), rows=rows)

    def size_of_trial(self, context: RunContext) -> RunSize | None:
        """Size of a run that is about to hold a trial, by which its cost is forecast; None for others."""
        if context.recipe.select.resolved() is not None:
            return None
        size = self._size(context)
        return replace(size, steps=self._steps, scored=None if self._rows is None else len(self._rows))

    def try_contenders(self, context: RunContext) -> RunContext:
        """The context with the winner of a trial in its recipe, where one is to be held: each contender
        selects by one half of the target samples, trains for some steps, and is judged by the other half."""
        trial: Any = context.recipe.select
        if trial.resolved() is not None:
            return context
        assert self._scored is not None and self._scored.target is not None and context.target is not None
        start, match = time.perf_counter(), self._match_by_half
        half = halves(context.target, self.name, pool=context.train)
        choosing_signals = self._scored.target.take(half.rows)
        choosing = replace(context, target=half.choosing)
        picks = {}
        for name, method in trial.contender_methods.items():
            scored = self._scored_for(method, choosing, match)._replace(target=choosing_signals)
            if method.needs & set(QUANTITIES):
                # How far the pool is from the target is said of the winner alone.
                scored = scored._replace(signals=replace(scored.signals, texts=None))
            picks[name] = [first_selection(method, choosing, scored, match=match).selection]
        winner, _ = hold_trial(
            context,
            picks,
            (Part(np.arange(len(context.train))),),
            half.judging,
            steps=trial.steps,
            most=trial.judges,
            section=self.name,
            spent=time.perf_counter() - start,
        )
        recipe = replace(context.recipe, select=replace(trial, winner=winner))
        context.save_recipe(recipe)
        context = replace(context, recipe=recipe)
        self._scored = self._scored_for(_method(context), context, self._match)
        return context

    def _size(self, context: RunContext) -> RunSize:
        """The run's size before anything is selected, without its annealing phase."""
        layout, pool = context.in_run, len(context.train)
        self._steps, picks = layout.max_steps, 0
        if not self._steps or context.target is not None:
            picks = context.recipe.select.size_in_run(pool, partial(mean_label_tokens, context.train))
        if not self._steps:
            self._steps = math.ceil(layout.epochs * math.ceil(picks / layout.batch_size))
        annealing = 0 if self._last is None else decay_steps(self._last, self._steps)
        aside = 0 if context.target is None else len(context.target)
        return RunSize(pool, self._steps - annealing, layout.batch_size, picks, aside)

    def _once(self, context: RunContext) -> str | None:
        """Why the selection cannot be refreshed, if so."""
        if context.proxied:
            return "signals.model scores with a model that does not learn"
        if self._ordering.needs & set(QUANTITIES):
            return f"order: {self._ordering.method.method} uses what was measured before the run"
        if context.in_run.pack is not None:
            return "packing cannot go with that yet"
        return None

    def first_plan(self, context: RunContext) -> tuple[Plan, dict[str, Any]]:
        """The plan of a run that begins, not yet cut; and plain values for the record."""
        assert self._scored is not None
        start, took = time.perf_counter(), {}
        method, seed, layout = _method(context), context.seed, context.in_run
        selection, state, order_signals = first_selection(
            method,
            context,
            self._scored,
            order_needs=self._ordering.needs,
            forecast=self._forecast,
            took=took,
            match=self._match,
        )
        took["selection"] = time.perf_counter() - start - sum(took.values())
        # Without refreshes nothing of the graph is asked again, and checkpoints need not carry it.
        self._state = state if state is not None and state.every else None
        one = make_plan(selection, self._ordering, order_signals, epochs=1, seed=seed)
        epochs = layout.epochs_needed(one)
        ahead = min(epochs, epochs_ahead(len(one)))
        plan = make_plan(selection, self._ordering, order_signals, epochs=ahead, seed=seed)
        if ahead < epochs and layout.pack is not None:
            raise RecipeError(
                f"A packed run lays out all of its epochs at once, and {epochs:,} are more than the "
                f"{plan.epochs:,} that a plan holds; train fewer epochs or steps, or set packing: false."
            )
        plan = replace(plan, until=epochs) if ahead < epochs else plan
        if self._state is None and self._keeps:
            self._chosen = np.unique(selection.indices)
        keep_pool(context, self._scored)
        self._picks, self._scored = selection.indices, None
        keep_picks(context, selection, step=0)
        distinct = len(np.unique(selection.indices))
        again = None
        if self._state is None:  # otherwise later epochs have other picks
            again = repetition_advice(method, distinct, len(context.train), epochs)
        for advice in filter(None, (method.advice(selection), again)):
            context.say(advice)
        return plan, {
            "select": context.recipe.select.method,
            "selected": distinct,
            "weighted": selection.weights is not None,
            "parts": rounded(took),
            **selection.details,
        }

    # ---- while the run trains ------------------------------------------------------------------------------

    def expected(self, steps: int, passes: float) -> float | None:
        """Cost of all selections over that of training, by measured speeds; None where none were.

        Args:
            steps: of the run, its annealing phase included.
            passes: forward passes that training on a sample is worth; speeds are measured where all weights
                get gradients.
        """
        forecast = self._forecast
        if forecast is None or forecast.training is None:
            return None
        training = forecast.training * steps / forecast.steps * passes / ORDINARY
        return (forecast.first + forecast.refreshes) / training

    def while_training(self, share: float) -> float:
        forecast = self._forecast
        if forecast is None or forecast.share is None:
            return share
        return share * forecast.refreshes / (forecast.first + forecast.refreshes)

    def forecast(self, context: RunContext) -> DecisionCost:  # noqa: ARG002
        if self._forecast is None:
            return DecisionCost()
        return DecisionCost(seconds_per_step=self._forecast.refreshes / self._steps)

    @property
    def recurs(self) -> bool:
        return self._state is not None

    def due(self, step: int, schedule: Schedule) -> bool:
        if self._state is None or step == 0 or step % self._state.every:
            return False
        until = self._until(schedule)
        return not (until and step >= until[0])

    def decide(self, context: RunContext, plan: Plan, step: int) -> Plan:
        method, state = _method(context), self._state
        assert state is not None
        start = time.perf_counter()
        anchors = method.anchors_at(state, step)
        if not anchors.size:
            if not self._said_spent:
                context.say(
                    f"select: {method.method} has scored as many samples again as its overhead allows, and "
                    f"from step {step} on selects no others; give more select.overhead, or a larger "
                    "refresh_every."
                )
            self._said_spent = True
            seconds = time.perf_counter() - start
            context.record.event("refresh", step, seconds, anchors=0, digest=plan.digest)
            return plan
        measured = signals_now(context, state.sample[anchors], method.needs)
        target = target_signals(context, method.needs) if method.uses_target else None
        took = {"signals": time.perf_counter() - start}
        done = method.refresh(state, anchors, measured, step, target=target, device=context.device)
        took["graph"] = done.graph_seconds
        took["propagation"] = time.perf_counter() - start - sum(took.values())
        before = self.picked(context)
        order_signals = self._order_signals(context)
        selection = method.pick(done.state, order_signals, seed=context.seed).weighing(context.recipe.weights)
        after = self._following(context, plan, selection, order_signals, step, done.state.refreshes)
        took["selection"] = time.perf_counter() - start - sum(took.values())
        self._state, self._picks = done.state, selection.indices
        keep_picks(context, selection, step=step)
        context.record.event(
            "refresh",
            step,
            time.perf_counter() - start,
            parts=rounded(took),
            anchors=len(anchors),
            set_aside=0 if measured.ok is None else int((~measured.ok).sum()),
            **done.details(),
            stayed=len(np.intersect1d(before, selection.indices)),
            selected=len(np.unique(selection.indices)),
            digest=after.digest,
            **selection.details,
        )
        return after

    def _following(
        self,
        context: RunContext,
        plan: Plan,
        selection: Selection,
        order_signals: Signals,
        step: int,
        refreshes: int,
    ) -> Plan:
        """The plan with epochs of a new selection from `step` on, each in a new order."""
        schedule = context.in_run.schedule(plan)
        steps = schedule.batches.steps_per_epoch
        epochs, length = epochs_from(plan, step // steps), epoch_length(plan)
        segments = [
            repeated(
                selection,
                self._ordering,
                order_signals,
                first=refreshes * (plan.epochs_of_run + 1) + epoch,
                length=length - (step % steps * context.in_run.batch_size if epoch == step // steps else 0),
                epoch=epoch,
                seed=context.seed,
            )
            for epoch in epochs
        ]
        return laid_out(plan, segments, served(schedule, step), epochs)

    def picked(self, context: RunContext) -> NDArray[np.int64]:
        """Positions of the samples that are selected now."""
        if self._chosen is not None:
            return self._chosen
        if self._picks is None:
            method = _method(context)
            picked = method.pick(self._state, self._order_signals(context), seed=context.seed)
            # As when it was made: samples of weight 0 are left out where weights multiply losses.
            self._picks = picked.weighing(context.recipe.weights).indices
        return self._picks

    def _order_signals(self, context: RunContext) -> Signals:
        """What does not change about the pool."""
        return context.train.described(self._ordering.needs | {"num_tokens"})

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self) -> Arrays:
        if self._chosen is not None:
            return {CHOSEN: self._chosen}
        return {} if self._state is None else self._state.arrays()

    def load_state_dict(self, arrays: Arrays, context: RunContext) -> None:
        self._chosen = arrays.get(CHOSEN)
        self._state = _method(context).restored(arrays) if arrays and self._chosen is None else None


def _method(context: RunContext) -> Selector:
    """The method that selects, with what was measured on this machine."""
    method = context.recipe.select.resolved()
    assert method is not None
    return method


def _speeds(context: RunContext, method: Selector) -> Speeds:
    # Every rank measures, since training steps are taken together; the first one's speeds count.
    mine = measured_speeds(context, method)
    return on_first(lambda: mine)
