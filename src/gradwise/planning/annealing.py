"""Selects what the annealing phase of a run trains on, as the learning rate begins to decay."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.atomic import write_json
from gradwise.errors import CheckpointError, RecipeError
from gradwise.methods.annealer import Annealer
from gradwise.methods.decision import Selection
from gradwise.methods.interfaces import Arrays
from gradwise.numerics.sampling import evenly
from gradwise.numerics.streams import stream_seed
from gradwise.planning.context import RunContext, Samples
from gradwise.planning.decider import Decider, DecisionCost, rounded, served
from gradwise.planning.epochs import (
    FAR_APART,
    epochs_from,
    joined,
    laid_out,
    part_of,
    rearranged,
    repeated,
)
from gradwise.planning.ordering import Ordering
from gradwise.planning.phase import (
    Part,
    Parts,
    counts,
    interleaving,
    joined_selections,
    parts_of,
    scored_parts,
    select_parts,
)
from gradwise.planning.picks import keep_picks
from gradwise.planning.scoring import (
    MORE,
    in_pool,
    samples_timed,
    scoring_speed,
    signals_now,
    validation_signals,
)
from gradwise.planning.selecting import Selecting
from gradwise.planning.trials import halves, hold_trial, occurring
from gradwise.probing import check_checkpoints
from gradwise.ranks import on_first
from gradwise.signals import Signals
from gradwise.signals.request import QUANTITIES
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
        self._added = 0

    # ---- before the first step -----------------------------------------------------------------------------

    def check(self, context: RunContext) -> None:
        method, name = self.method, self.method.method
        measures = (method.needs | method.validation_needs) & set(QUANTITIES)
        if context.proxied and measures:
            raise RecipeError(
                f"anneal: {name} measures the model as it is when the learning rate begins to decay, and "
                "signals.model measures with one that does not learn; leave one of them out."
            )
        if measures and not context.measurable:
            raise RecipeError(
                f"anneal: {name} cannot measure a model sharded by DeepSpeed or FSDP1; shard it by FSDP2, or "
                "take random or full."
            )
        if method.contender_methods and context.sharded:
            raise RecipeError(
                f"anneal: {name} trains on each contender's picks and takes the steps back, which a sharded "
                "model cannot do yet; take one of its contenders, such as direct."
            )
        if method.contender_methods and context.model is not None:
            check_checkpoints(context.model)
        self._added = context.added
        for part in self._parts(context):
            if method.pool != "all" and part.rows[0] == 0:
                continue  # its size is known when the phase begins
            of_part, there = method.part(part.share), len(part.rows)
            count = of_part.count or 0
            if count > there:
                whole = method.count
                of_them = f", {count} of them for a share of {part.share:g}" if count != whole else ""
                raise RecipeError(
                    f"anneal.count is {whole}{of_them}, but only {there} samples can be chosen from; "
                    "lower it."
                )
            if of_part.tokens is None:
                of_part.budget(
                    min(there, of_part.candidates or there), there
                )  # a fraction can be none of them
            elif of_part.tokens < (shortest := context.annealing.train.label_tokens_of(part.rows).min()):
                of_part_text = f", {of_part.tokens} of them for a share of {part.share:g}"
                raise RecipeError(
                    f"anneal.tokens is {method.tokens}{of_part_text if part.share < 1 else ''}, and the "
                    f"shortest of the samples to choose from has {shortest} label tokens; raise it."
                )
        # Layers that were frozen for long have second moments of long ago, or none.
        if method.uses_optimizer and (not context.adam or self._freezes_layers):
            raise RecipeError(
                "anneal.precondition divides by Adam's second moments of every parameter; it needs an "
                "Adam-like optimizer and layers: all."
            )
        if context.in_run.pack is not None:
            raise RecipeError("anneal cannot go with packing yet; set packing: false.")
        if method.uses_validation:
            self._check_validation(context)

    def _parts(self, context: RunContext, pool: NDArray[np.int64] | None = None) -> Parts:
        """What is chosen from; of the training samples those of `pool`, or all if it is unset."""
        count = len(context.train)
        return parts_of(self.method, np.arange(count) if pool is None else pool, count, context.added)

    def _check_validation(self, context: RunContext) -> None:
        """Refuse validation data that cannot be scored; warn where they would mislead."""
        name, held_out = self.method.method, context.validation
        if context.target is not None:
            if self.method.contender_methods:
                self._check_judges(context, context.target)
            return
        if not context.validation_sets:
            use = "is judged by" if self.method.contender_methods else "selects by the gradients of"
            raise RecipeError(
                f"anneal: {name} {use} validation data, and none are given; give data.validation (or an "
                "eval_dataset), or data.target."
            )
        if context.validation_sets > 1:
            raise RecipeError(
                f"anneal: {name} needs one eval_dataset to select by; found {context.validation_sets} of "
                "them."
            )
        assert held_out is not None
        if not hasattr(held_out.dataset, "__len__"):
            raise RecipeError(f"anneal: {name} needs an eval_dataset that can be indexed.")
        if self.method.contender_methods:
            self._check_judges(context, held_out)
        if shared := int(occurring(held_out, context.annealing.train).sum()):
            sentence = (
                f"{shared} of {len(held_out)} validation samples also occur in the training data: {name} "
                "will rank them highest, and the validation loss will flatter the run. Remove them from one."
            )
            context.say(f"Warning: {sentence}")
            warnings.warn(sentence, stacklevel=2)

    def _check_judges(self, context: RunContext, samples: Samples) -> None:
        of_target = context.target is not None
        if sentence := halves(samples, of_target=of_target, pool=context.annealing.train).sentence(self.name):
            context.say(sentence)

    def planned(self, context: RunContext, plan: Plan) -> dict[str, Any]:
        schedule, parts = context.in_run.schedule(plan), self._parts(context)
        onsets = self.onsets(schedule)
        self._ordering.annealing_at(onsets)
        for start, stop in pairwise((*onsets, schedule.steps)):
            # As when the phase begins: the last batch of an epoch may be short.
            room = schedule.batches.entries_between(start, stop)
            if not all(counts(parts, room)):
                raise RecipeError(
                    f"anneal.share is {self.method.share}, of {room} samples from step {start} on: one of "
                    "the two kinds of data would have none of them; give another share."
                )
        return {"added": self._added} if self._added else {}

    def forecast(self, context: RunContext) -> DecisionCost:
        """What the selections will take, estimated from a few samples at the present weights."""
        needs = (self.method.needs | self._ordering.needs) & set(QUANTITIES)
        if not needs:
            return DecisionCost(seconds=self._trial_seconds(context))
        # Evenly spread over the data, which are often sorted by length or by domain.
        speed = scoring_speed(context, evenly(len(context.train), samples_timed(context)), needs)
        parts = scored_parts(self.method, context.annealing.train, self._parts(context), context.seed)
        scored, runs = sum(len(part.rows) for part in parts), self.method.times
        if self.method.validation_needs:
            held_out = len(_choosing(context))
            scored += min(held_out, self.method.validation_samples or held_out)
            runs *= 2
        startups = speed.startup + (runs - 1) * speed.later_startup
        seconds = startups + self.method.times * scored * speed.per_sample
        return DecisionCost(seconds=seconds + self._trial_seconds(context))

    def _trial_seconds(self, context: RunContext) -> float:
        method: Any = self.method
        if not method.contender_methods or method.winner is not None or context.time_training is None:
            return 0.0
        each = context.time_training(evenly(len(context.train), MORE))
        return len(method.contender_methods) * method.steps * context.in_run.batch_size * each

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
        start, method, phase = time.perf_counter(), self.method, context.annealing
        schedule = context.in_run.schedule(plan)
        batches, onsets = schedule.batches, self.onsets(schedule)
        number = onsets.index(step)
        room = batches.entries_between(step, (*onsets, schedule.steps)[number + 1])
        # Asked now: refreshes change what is selected until the phase begins.
        pool = None if method.pool == "all" else np.unique(self._selecting.picked(context))
        parts = scored_parts(method, phase.train, self._parts(context, pool), context.seed, number)
        rows = np.concatenate([part.rows for part in parts])
        needs, optimizer = method.needs | self._ordering.needs, method.uses_optimizer
        # One scoring run over all parts, since each run has a start of its own to pay for.
        signals = signals_now(phase, rows, needs, use_optimizer=optimizer)
        validation, judges = None, None
        chooses = _choosing(context) if method.uses_validation else None
        if method.contender_methods:
            assert chooses is not None
            half = halves(chooses, of_target=context.target is not None, pool=phase.train)
            chooses, judges = half.choosing, half.judging
        if method.validation_needs:
            validation = validation_signals(
                replace(context, validation=chooses),
                method.validation_needs,
                method.validation_samples,
                use_optimizer=optimizer,
            )
        took = {"signals": time.perf_counter() - start}
        # The first round keeps the run's own seed, so that `times` does not change what it chooses.
        seed = context.seed if not number else stream_seed(context.seed, "annealing round", number)
        choose = partial(
            select_parts, parts=parts, signals=signals, validation=validation, room=room, seed=seed
        )
        if judges is not None:
            method, trial_seconds = self._try_contenders(phase, judges, parts, choose, step)
            start += trial_seconds  # charged by the trial's own event
        # Also where the winner was known before (a resumed run, a recipe that is run again), so that both
        # ways choose alike.
        selections = [self._weighed(context, each) for each in choose(method)]
        order_signals = in_pool(phase, signals, rows, self._ordering.needs)
        first_order = FIRST_ORDER * (number + 1)
        after = self._following(phase, schedule, plan, parts, selections, order_signals, step, first_order)
        took["selection"] = time.perf_counter() - start - sum(took.values())
        selection = joined_selections(selections)
        _write_spectrum(phase, selection, step)
        keep_picks(phase, selection, step=step)
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
            **({"from_own_data": _counted(parts[-1], selections[-1])} if self._added else {}),
            **{name: value for name, value in selection.details.items() if name != "spectrum"},
        )
        return after

    def _weighed(self, context: RunContext, picked: Selection) -> Selection:
        """A selection with its weights as the recipe asks, and what to say of its samples in a plan."""
        if "fallback" in picked.details:
            context.say(f"Warning: {picked.details['fallback']}")
        reason = picked.why[0] if picked.summary is None else picked.summary
        described = replace(picked, summary=f"in the annealing phase: {reason}")
        return described.weighing(context.recipe.weights)

    def _try_contenders(
        self,
        phase: RunContext,
        judges: Samples,
        parts: Parts,
        choose: Callable[[Annealer], list[Selection]],
        step: int,
    ) -> tuple[Annealer, float]:
        """The contender that won, now or earlier, and the seconds of the trial. The winner is written into
        the recipe before it is used."""
        method: Any = phase.recipe.anneal
        seconds = 0.0
        if method.winner is None:
            picks = {name: choose(each) for name, each in method.contender_methods.items()}
            won, seconds = hold_trial(
                phase, picks, parts, judges, steps=method.steps, most=method.judges, step=step
            )
            method = replace(method, winner=won)
            phase.save_recipe(replace(phase.recipe, anneal=method))
        self.method = method
        return method.resolved(), seconds

    def _following(
        self,
        phase: RunContext,
        schedule: Schedule,
        plan: Plan,
        parts: Parts,
        selections: list[Selection],
        order_signals: Signals,
        step: int,
        first_order: int,
    ) -> Plan:
        """The plan with repetitions of the selections from `step` on, across epochs, so that every pick of a
        part is served once before any of that part is served again."""
        steps = schedule.batches.steps_per_epoch
        epochs = epochs_from(plan, step // steps)
        # What an epoch serves, which drop_last makes less than it holds: a pick must not stand where it is
        # dropped.
        lengths = [schedule.batches.entries_between(0, steps)] * len(epochs)
        lengths[0] -= step % steps * phase.in_run.batch_size
        entries = [
            repeated(
                selection,
                self._ordering,
                order_signals,
                first=first_order + number * FAR_APART // 2,
                length=count,
                epoch=0,
                seed=phase.seed,
            )
            for number, (selection, count) in enumerate(
                zip(selections, counts(parts, sum(lengths)), strict=True)
            )
        ]
        # Mixed before it is cut into epochs, so that each epoch has both kinds of data in their shares.
        mixed = rearranged(joined(entries, sum(lengths), 0), interleaving(parts, sum(lengths)))
        ends = np.cumsum(lengths)
        segments: list[Segment] = [
            replace(part_of(mixed, int(end - length), int(end)), epoch=epoch)
            for epoch, length, end in zip(epochs, lengths, ends, strict=True)
        ]
        return laid_out(plan, segments, served(schedule, step), epochs)

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self) -> Arrays:
        return {"added": np.array(self._added)} if self._added else {}

    def load_state_dict(self, arrays: Arrays, context: RunContext) -> None:
        self._added = context.added
        # Samples of the phase are numbered behind the training samples: another number of them would shift
        # what a plan points at.
        if (before := int(arrays.get("added", 0))) != self._added:
            raise CheckpointError(
                f"The run was started with {before} samples for its annealing phase only, now there are "
                f"{self._added}; give the same data, or start a new run."
            )


def _choosing(context: RunContext) -> Samples:
    """The samples by which is chosen: those of a target, which measure nothing, or else those that
    measure."""
    samples = context.validation if context.target is None else context.target
    assert samples is not None
    return samples


def _counted(part: Part, selection: Selection) -> dict[str, Any]:
    """What was chosen from the phase's own samples, for the record."""
    selected = len(np.unique(selection.indices))
    return {"share": part.share, "looked_at": len(part.rows), "selected": selected}


def _write_spectrum(context: RunContext, selection: Selection, step: int) -> None:
    if selection.details.get("spectrum") is not None:
        path = context.folder / "plan" / f"spectrum-{step}.json"
        on_first(lambda: write_json(path, selection.details))
