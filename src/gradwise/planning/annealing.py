"""Selects what the annealing phase of a run trains on, as the learning rate begins to decay."""

import math
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.atomic import write_json
from gradwise.errors import CheckpointError, RecipeError
from gradwise.methods.decision import Selection
from gradwise.methods.interfaces import Annealer
from gradwise.numerics.sampling import evenly, stratified_sample
from gradwise.numerics.streams import stream_seed
from gradwise.planning.context import RunContext, Samples
from gradwise.planning.decider import Cost, Decider, rounded, served
from gradwise.planning.epochs import epoch_length, epochs_from, laid_out, part_of, repeated
from gradwise.planning.ordering import Ordering
from gradwise.planning.picks import keep_picks
from gradwise.planning.race import halves, race
from gradwise.planning.scoring import MORE, in_pool, scoring_speed, signals_now, validation_signals
from gradwise.planning.selecting import Selecting
from gradwise.ranks import on_first
from gradwise.signals import Signals
from gradwise.signals.wanted import QUANTITIES
from gradwise.training.arguments import decay_steps
from gradwise.training.layout import Schedule
from gradwise.training.plan import Plan, Segment

FIRST_ORDER = 10_000_000
"""Number of the first order of a selection, far from those before it, so that no two orders are the same."""


def rounds(last: float, times: int, steps: int) -> tuple[int, ...]:
    """The steps before which a selection is made, in a run of `steps`; fewer if the decay has fewer steps.

    >>> rounds(0.5, 3, 30), rounds(0.1, 3, 20)
    ((15, 20, 25), (18, 19))
    """
    length = decay_steps(last, steps)
    within = [math.ceil(length * number / times) for number in range(times)]
    return tuple(dict.fromkeys(steps - length + each for each in within if each < length))


class Annealing(Decider):
    """The decision of `anneal`.

    Args:
        method: that selects.
        selecting: the decision of `select`, from whose picks the method may choose.
        ordering: puts what is selected in order.
        freezes_layers: whether only some layers are updated at a time.
    """

    name = "anneal"

    def __init__(
        self, method: Annealer, selecting: Selecting, ordering: Ordering, *, freezes_layers: bool
    ) -> None:
        self.method, self._selecting, self._ordering = method, selecting, ordering
        self._freezes_layers = freezes_layers

    # ---- before the first step -----------------------------------------------------------------------------

    def check(self, context: RunContext) -> None:
        method, name = self.method, self.method.method
        measures = (method.needs | method.validation_needs) & set(QUANTITIES)
        if context.proxied and measures:
            raise RecipeError(
                f"anneal: {name} measures the model as it is when the learning rate begins to decay, and "
                "signals.model measures with one that does not learn; leave one of them out."
            )
        if measures and context.sharded:
            raise RecipeError(f"anneal: {name} cannot measure a sharded model yet; take random or full.")
        pool = len(context.train)
        if method.pool == "all" and (method.count or 0) > pool:
            raise RecipeError(
                f"anneal.count is {method.count}, but only {pool} samples can be chosen from; lower it."
            )
        if method.uses_optimizer and (not context.adam or self._freezes_layers):
            raise RecipeError(
                "anneal.precondition divides by Adam's second moments of every parameter; it needs an "
                "Adam-like optimizer and layers: all."
            )
        if context.in_run.pack is not None:
            raise RecipeError("anneal cannot go with packing yet; set packing: false.")
        if method.validation_needs:
            self._check_validation(context)

    def _check_validation(self, context: RunContext) -> None:
        """Refuse validation data that cannot be scored; warn where they would mislead."""
        name, held_out = self.method.method, context.validation
        if not context.validation_sets:
            raise RecipeError(
                f"anneal: {name} selects by the gradients of validation data, and none are given; give "
                "data.validation (or an eval_dataset)."
            )
        if context.validation_sets > 1:
            raise RecipeError(
                f"anneal: {name} needs one eval_dataset to select by; found {context.validation_sets} of "
                "them."
            )
        assert held_out is not None
        if not hasattr(held_out.dataset, "__len__"):
            raise RecipeError(f"anneal: {name} needs an eval_dataset that can be indexed.")
        if self.method.tried:
            halves(held_out)
        if shared := _in_common(context.train, held_out):
            sentence = (
                f"{shared} of {len(held_out)} validation samples also occur in the training data: {name} "
                "will rank them highest, and the validation loss will flatter the run. Remove them from one."
            )
            context.say(f"Warning: {sentence}")
            warnings.warn(sentence, stacklevel=2)

    def planned(self, context: RunContext, plan: Plan) -> dict[str, Any]:
        self._ordering.annealing_at(self.onsets(context.in_run.schedule(plan)))
        return {}

    def forecast(self, context: RunContext) -> Cost:
        """What the selections will take, estimated from a few samples at the present weights."""
        needs = (self.method.needs | self._ordering.needs) & set(QUANTITIES)
        if not needs:
            return Cost()
        pool = len(context.train)
        speed = scoring_speed(context, evenly(pool, MORE), needs)
        scored = min(pool, self.method.candidates or pool)
        if self.method.validation_needs:
            assert context.validation is not None
            held_out = len(context.validation)
            scored += min(held_out, self.method.validation_samples or held_out)
        return Cost(
            seconds=self.method.times * (speed.startup + scored * speed.per_sample)
            + self._race_seconds(context)
        )

    def _race_seconds(self, context: RunContext) -> float:
        method: Any = self.method
        if not method.tried or method.winner is not None or context.time_training is None:
            return 0.0
        each = context.time_training(evenly(len(context.train), MORE))
        return len(method.tried) * method.steps * context.in_run.batch_size * each

    # ---- when ----------------------------------------------------------------------------------------------

    @property
    def recurs(self) -> bool:
        return True

    def onsets(self, schedule: Schedule) -> tuple[int, ...]:
        """The steps before which a selection is made, the first being that at which the decay begins."""
        return rounds(self.method.last, self.method.times, schedule.steps)

    def due(self, step: int, schedule: Schedule) -> bool:
        return step in self.onsets(schedule)

    def check_resumed(self, context: RunContext, plan: Plan, step: int) -> None:
        """Raise CheckpointError if a resumed run has another length than it was planned for, so that its
        annealing phase would begin within a segment."""
        schedule = context.in_run.schedule(plan)
        batches = schedule.batches
        self._ordering.annealing_at(self.onsets(schedule))
        for due in self.onsets(schedule):
            later = plan.until is not None and due >= batches.steps
            if due < step or later:
                continue
            if due >= batches.steps or batches.first_step(batches.segment(due)) != due:
                raise CheckpointError(
                    f"The annealing phase of a run of {schedule.steps} steps begins before step {due + 1}, "
                    "and the run was planned with another number of steps; resume with the same, or start a "
                    "new run."
                )

    # ---- selecting -----------------------------------------------------------------------------------------

    def decide(self, context: RunContext, plan: Plan, step: int) -> Plan:
        start, method = time.perf_counter(), self.method
        schedule = context.in_run.schedule(plan)
        batches, onsets = schedule.batches, self.onsets(schedule)
        number = onsets.index(step)
        room = batches.entries_between(step, (*onsets, schedule.steps)[number + 1])
        pool = np.arange(len(context.train)) if method.pool == "all" else self._selecting.picked(context)
        rows = candidates(method, context.train, np.unique(pool), context.seed, number)
        needs, optimizer = method.needs | self._ordering.needs, method.uses_optimizer
        signals = signals_now(context, rows, needs, use_optimizer=optimizer)
        validation, judges, choosing = None, None, context
        if method.tried:
            assert context.validation is not None
            chooses, judges = halves(context.validation)
            choosing = replace(context, validation=chooses)
        if method.validation_needs:
            validation = validation_signals(
                choosing, method.validation_needs, method.validation_samples, use_optimizer=optimizer
            )
        took = {"signals": time.perf_counter() - start}
        seed = context.seed if not number else stream_seed(context.seed, "annealing round", number)
        if judges is not None:
            method, raced = self._settled(
                context, judges, signals, validation, rows, room=room, seed=seed, step=step
            )
            start += raced  # charged by the trial's own event
        picked = method.select(signals, validation=validation, room=room, seed=seed)
        if "fallback" in picked.details:
            context.say(f"Warning: {picked.details['fallback']}")
        reason = picked.why[0] if picked.summary is None else picked.summary
        selection = replace(picked, indices=rows[picked.indices], summary=f"in the annealing phase: {reason}")
        selection = selection.weighing(context.recipe.weights)
        known = in_pool(context, signals, rows, self._ordering.needs)
        after = self._following(context, schedule, plan, selection, known, step, FIRST_ORDER * (number + 1))
        took["selection"] = time.perf_counter() - start - sum(took.values())
        _write_spectrum(context, selection, step)
        keep_picks(context, selection, step=step)
        context.record.event(
            "anneal",
            step,
            time.perf_counter() - start,
            method=self.method.method,
            round=number + 1,
            looked_at=len(rows),
            room=room,
            selected=len(np.unique(selection.indices)),
            parts=rounded(took),
            digest=after.digest,
            **{name: value for name, value in selection.details.items() if name != "spectrum"},
        )
        return after

    def _settled(
        self,
        context: RunContext,
        judges: Samples,
        signals: Signals,
        validation: Signals | None,
        rows: NDArray[np.int64],
        *,
        room: int,
        seed: int,
        step: int,
    ) -> tuple[Annealer, float]:
        """The contender that won, now or earlier, and the seconds of the race. The winner is written into
        the recipe before it is used."""
        method: Any = context.recipe.anneal
        seconds = 0.0
        if method.winner is None:
            picks = {}
            for name, each in method.tried.items():
                picked = each.select(signals, validation=validation, room=room, seed=seed)
                picks[name] = replace(picked, indices=rows[picked.indices])
            won, seconds = race(context, picks, judges, steps=method.steps, most=method.judges, step=step)
            method = replace(method, winner=won)
            context.save_recipe(replace(context.recipe, anneal=method))
        self.method = method
        return method.chosen(), seconds

    def _following(
        self,
        context: RunContext,
        schedule: Schedule,
        plan: Plan,
        selection: Selection,
        known: Signals,
        step: int,
        first_order: int,
    ) -> Plan:
        """The plan with repetitions of the selection from `step` on, across epochs, so that every pick is
        served once before any is served again."""
        steps = schedule.batches.steps_per_epoch
        epochs, length = epochs_from(plan, step // steps), epoch_length(plan)
        lengths = [length] * len(epochs)
        lengths[0] -= step % steps * context.in_run.batch_size
        served_entries = repeated(
            selection,
            self._ordering,
            known,
            first=first_order,
            length=sum(lengths),
            epoch=0,
            seed=context.seed,
        )
        ends = np.cumsum(lengths)
        segments: list[Segment] = [
            replace(part_of(served_entries, int(end - length), int(end)), epoch=epoch)
            for epoch, length, end in zip(epochs, lengths, ends, strict=True)
        ]
        return laid_out(plan, segments, served(schedule, step), epochs)


def candidates(
    method: Annealer, samples: Samples, pool: NDArray[np.int64], seed: int, number: int = 0
) -> NDArray[np.int64]:
    """The samples that are scored, ascending: all of a pool, or some that are drawn for one round."""
    if method.candidates is None or method.candidates >= len(pool):
        return pool
    domain = None if samples.domain is None else samples.domain[pool]
    drawn = stream_seed(seed, "annealing candidates", number)
    return pool[stratified_sample(len(pool), method.candidates, domain, drawn)]


def _write_spectrum(context: RunContext, selection: Selection, step: int) -> None:
    if selection.details.get("spectrum") is not None:
        path = context.folder / "plan" / f"spectrum-{step}.json"
        on_first(lambda: write_json(path, selection.details))


def _in_common(train: Samples, held_out: Samples) -> int:
    """Validation samples that also occur in the training data, where both have token ids."""
    from gradwise.data.pool import common_samples

    both = (train.dataset, held_out.dataset)
    columns = [getattr(dataset, "column_names", None) or () for dataset in both]
    return common_samples(*both) if all("input_ids" in names for names in columns) else 0
