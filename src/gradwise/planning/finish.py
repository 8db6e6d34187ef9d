"""Decides what the last phase of a run trains on, as the learning rate begins to decay."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.atomic import write_json
from gradwise.errors import CheckpointError, RecipeError
from gradwise.methods.decision import Selection
from gradwise.methods.layer_policy import LayerPolicy
from gradwise.methods.phase import Phase
from gradwise.numerics.sampling import evenly, stratified_sample
from gradwise.planning.make import Cuts, epochs_from, laid_out, part_of, passes_over
from gradwise.planning.pool import (
    described_signals_of,
    domains,
    spread_out,
    validation_signals,
)
from gradwise.planning.speed import MORE, measuring_speed
from gradwise.ranks import on_first
from gradwise.recipe import Recipe
from gradwise.signals import Signals
from gradwise.signals.wanted import QUANTITIES
from gradwise.training.arguments import decay_steps
from gradwise.training.batches import Batches
from gradwise.training.layout import total_steps
from gradwise.training.plan import Plan, Segment
from gradwise.training.record import Record

FIRST_PASS = 10_000_000
"""Number of the first pass of a round, far from those before it, so that no two have the same order."""


class Chosen(NamedTuple):
    """What one round decided."""

    plan: Plan
    selection: Selection


def rounds(last: float, times: int, steps: int) -> tuple[int, ...]:
    """The steps before which is decided, in a run of so many; fewer where the decay has fewer steps.

    >>> rounds(0.5, 3, 30), rounds(0.1, 3, 20)
    ((15, 20, 25), (18, 19))
    """
    length = decay_steps(last, steps)
    within = [math.ceil(length * number / times) for number in range(times)]
    return tuple(dict.fromkeys(steps - length + each for each in within if each < length))


class Finish:
    """The last phase of a trainer's run: when it begins, and what is then chosen.

    Args:
        trainer: a `gradwise.Trainer`, whose model measures what is needed.
        recipe: its `anneal`, `signals` and `seed`.
        folder: of the run.
        order: what orders a pass.
    """

    def __init__(self, trainer: Any, recipe: Recipe, folder: Path, order: Any) -> None:
        assert isinstance(recipe.anneal, Phase)
        self.trainer, self.recipe, self.folder, self.order = trainer, recipe, folder, order
        self.phase: Any = recipe.anneal

    def check(self, tell: Callable[[str], Any]) -> None:
        """Refuse, before anything is trained, what could not be decided later; say where it would mislead.

        Raises:
            RecipeError: when there are no validation data, or the model that trains cannot measure.
        """
        trainer, method = self.trainer, self.phase.method
        measures = (self.phase.needs | self.phase.validation_needs) & set(QUANTITIES)
        if trainer.proxy is not None and measures:
            raise RecipeError(
                f"anneal: {method} measures the model as it is when the learning rate begins to decay, and "
                "signals.model measures with one that does not learn; leave one of them out."
            )
        if measures and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise RecipeError(f"anneal: {method} cannot measure a sharded model yet; take random or full.")
        pool = len(trainer.train_dataset) if self.phase.pool == "all" else None
        if pool is not None and (self.phase.count or 0) > pool:
            raise RecipeError(
                f"anneal.count is {self.phase.count}, but only {pool} samples can be chosen from; lower it."
            )
        if getattr(self.phase, "precondition", False):
            self._check_moments()
        if trainer.session.packed_length is not None:
            raise RecipeError("anneal cannot go with packing yet; set packing: false.")
        if not self.phase.validation_needs:
            return
        held_out = trainer.eval_dataset
        if held_out is None:
            raise RecipeError(
                f"anneal: {method} selects by the gradients of validation data, and there are none; give "
                "data.validation (or an eval_dataset)."
            )
        if not hasattr(held_out, "__len__"):
            raise RecipeError(f"anneal: {method} needs an eval_dataset that can be indexed.")
        if isinstance(held_out, dict):
            raise RecipeError(
                f"anneal: {method} needs one eval_dataset to select by; found {len(held_out)} of them."
            )
        if shared := _in_common(trainer.train_dataset, held_out):
            sentence = (
                f"{shared} of {len(held_out)} validation samples also stand in the training data: {method} "
                "will find them best, and the validation loss will flatter the run. Take them out of one."
            )
            tell(f"Warning: {sentence}")
            warnings.warn(sentence, stacklevel=2)

    def _check_moments(self) -> None:
        """Refuse an optimizer that will have no second moments of some parameter when they are asked for."""
        optimizer, asked = self.trainer.optimizer, self.trainer.args.optim
        name = str(getattr(asked, "value", asked)).lower()
        adam = "adam" in name if optimizer is None else "betas" in optimizer.param_groups[0]
        if not adam or isinstance(self.recipe.layers, LayerPolicy):
            raise RecipeError(
                "anneal.precondition divides by Adam's second moments of every parameter; it needs an "
                "Adam-like optimizer and layers: all."
            )

    def steps(self, batches: Batches) -> tuple[int, ...]:
        """The steps before which is decided, the first being that at which the decay begins."""
        return rounds(self.phase.last, self.phase.times, total_steps(self.trainer, batches))

    def check_resumed(self, batches: Batches, step: int) -> None:
        """Raise CheckpointError where a run that goes on at `step` has another length than it was planned
        for, so that its last phase would begin within what is already laid out."""
        end = total_steps(self.trainer, batches)
        for due in rounds(self.phase.last, self.phase.times, end):
            later = batches.plan.until is not None and due >= batches.steps
            if due < step or later:
                continue
            if due >= batches.steps or batches.first_step(batches.segment(due)) != due:
                raise CheckpointError(
                    f"The last phase of a run of {end} steps begins before step {due + 1}, and the run "
                    "was planned with another number of steps; go on with the same, or start a new run."
                )

    def expected_seconds(self) -> float:
        """What deciding will take, told from a few samples at the present weights."""
        needs = (self.phase.needs | self.order.needs) & set(QUANTITIES)
        if not needs:
            return 0.0
        pool = len(self.trainer.train_dataset)
        speed = measuring_speed(
            self.trainer, evenly(pool, MORE), needs, self.recipe.signals, seed=self.recipe.seed
        )
        looked = min(pool, self.phase.candidates or pool)
        if self.phase.validation_needs:
            held_out = len(self.trainer.eval_dataset)
            looked += min(held_out, self.phase.validation_samples or held_out)
        return self.phase.times * (speed.begin + looked * speed.each)

    def decide(
        self,
        plan: Plan,
        served: int,
        step: int,
        record: Record,
        selected: Callable[[], NDArray[np.int64]],
        due: Callable[[int], bool],
    ) -> Chosen:
        """The plan from `step` on, which trains on what is selected now.

        Args:
            plan: followed so far.
            served: how many of its segments were.
            step: optimizer steps done.
            record: gets what was decided and what it cost.
            selected: what `select` has picked by now.
            due: tells of a step whether anything is decided before it.
        """
        start, phase = time.perf_counter(), self.phase
        batches = self.trainer.session.batches_of(plan)
        times = self.steps(batches)
        number = times.index(step)
        until = (*times, total_steps(self.trainer, batches))[number + 1]
        room = batches.entries_between(step, until)
        rows = self._looked_at(selected, number)
        signals = self._signals(rows)
        validation = None
        if phase.validation_needs:
            validation = validation_signals(
                self.trainer, phase.validation_needs, self.recipe.signals, seed=self.recipe.seed,
                most=phase.validation_samples, optimizer=self._optimizer,
            )  # fmt: skip
        took = {"signals": time.perf_counter() - start}
        seed = self.recipe.seed + _ROUNDS_APART * number
        picked = phase.select(signals, validation=validation, room=room, seed=seed)
        selection = _in_pool(picked, rows)
        known = spread_out(self.trainer, signals, rows, self.order.needs)
        first = FIRST_PASS * (number + 1)
        following = self._following(batches, plan, selection, known, step, first)
        cut = [
            piece for part, done in following for piece in Cuts.of(batches, part.epoch, due, done).apply(part)
        ]
        after = laid_out(plan, cut, served, epochs_from(plan, step // batches.steps_per_epoch))
        took["selection"] = time.perf_counter() - start - sum(took.values())
        self._write(selection, step)
        record.event(
            "anneal",
            step,
            time.perf_counter() - start,
            method=phase.method,
            round=number + 1,
            looked_at=len(rows),
            room=room,
            selected=len(np.unique(selection.indices)),
            parts={name: round(seconds, 4) for name, seconds in took.items()},
            digest=after.digest,
            **{name: value for name, value in selection.told.items() if name != "spectrum"},
        )
        return Chosen(after, selection)

    # ---- how -----------------------------------------------------------------------------------------------

    @property
    def _optimizer(self) -> Any:
        """Whose second moments the gradients are divided by, if they are."""
        if not getattr(self.phase, "precondition", False):
            return None
        optimizer = self.trainer.optimizer
        return getattr(optimizer, "optimizer", optimizer)

    def _looked_at(self, selected: Callable[[], NDArray[np.int64]], number: int) -> NDArray[np.int64]:
        """The samples that are chosen from, ascending."""
        dataset = self.trainer.train_dataset
        rows = np.arange(len(dataset)) if self.phase.pool == "all" else np.unique(selected())
        if self.phase.candidates is None or self.phase.candidates >= len(rows):
            return rows
        domain = domains(dataset)
        own = None if domain is None else domain[rows]
        return rows[stratified_sample(len(rows), self.phase.candidates, own, self.recipe.seed + number)]

    def _signals(self, rows: NDArray[np.int64]) -> Signals:
        needs = self.phase.needs | self.order.needs
        how = {"seed": self.recipe.seed, "optimizer": self._optimizer}
        return described_signals_of(self.trainer, rows, needs, self.recipe.signals, **how)

    def _following(
        self, batches: Batches, plan: Plan, selection: Selection, signals: Signals, step: int, first_pass: int
    ) -> list[tuple[Segment, int]]:
        """What is ahead of `step` in each epoch, and how much of that epoch is done: one row of passes over
        the selection, across epochs, so that every pick has its turn before any has another."""
        first, lengths = step // batches.steps_per_epoch, {}
        for epoch in epochs_from(plan, first):
            lengths[epoch] = sum(len(segment) for segment in plan.of_epoch(plan.first_epoch))
        done = (step % batches.steps_per_epoch) * batches.batch_size
        lengths[first] -= done
        passes = passes_over(
            selection,
            self.order,
            signals,
            first=first_pass,
            length=sum(lengths.values()),
            epoch=0,
            seed=self.recipe.seed,
        )
        parts, at = [], 0
        for epoch, length in lengths.items():
            piece = replace(part_of(passes, at, at + length), epoch=epoch)
            parts.append((piece, done if epoch == first else 0))
            at += length
        return parts

    def _write(self, selection: Selection, step: int) -> None:
        spectrum = selection.told.get("spectrum")
        if spectrum is not None:
            path = self.folder / "plan" / f"spectrum-{step}.json"
            on_first(lambda: write_json(path, selection.told))


def _in_pool(picked: Selection, rows: NDArray[np.int64]) -> Selection:
    """The same picks by their places in the pool."""
    said = picked.why[0] if picked.summary is None else picked.summary
    return replace(picked, indices=rows[picked.indices], summary=f"in the last phase: {said}")


def _in_common(pool: Any, held_out: Any) -> int:
    from gradwise.data.pool import common_samples

    columns = [getattr(dataset, "column_names", None) or () for dataset in (pool, held_out)]
    return common_samples(pool, held_out) if all("input_ids" in names for names in columns) else 0


_ROUNDS_APART = 7919
"""Between the seeds of two rounds."""
