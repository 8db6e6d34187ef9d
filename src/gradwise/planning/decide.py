"""Decides what a run trains on: at its start, and again while it trains where the selection is kept fresh.

A planner has two moments: `first`, before anything is trained, and `again`, at the steps that `due` names,
with the weights as they then are. What it remembers in between goes into checkpoints as plain arrays.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.console import say
from gradwise.errors import RecipeError
from gradwise.methods.d3 import D3
from gradwise.methods.decision import Selection
from gradwise.methods.grace import Grace
from gradwise.methods.grace.costs import Forecast
from gradwise.methods.grace.method import REFRESHING
from gradwise.methods.grace.refresh import SHARE_RANGE
from gradwise.methods.grace.state import State
from gradwise.numerics.sampling import stratified_sample
from gradwise.planning.dial import run_size, settled
from gradwise.planning.finish import Finish
from gradwise.planning.make import (
    Cuts,
    continued,
    epochs_ahead,
    epochs_from,
    laid_out,
    make_plan,
    passes_over,
)
from gradwise.planning.ordering import Reordering
from gradwise.planning.picks import write_picks
from gradwise.planning.pool import check_samples, domains, pool_signals, signals_of
from gradwise.ranks import on_first
from gradwise.recipe import Recipe
from gradwise.settings import default_of
from gradwise.signals import Signals
from gradwise.signals.wanted import QUANTITIES
from gradwise.training.batches import Batches
from gradwise.training.plan import Plan
from gradwise.training.record import Record

CHOSEN = "chosen"
"""Name of an array in a checkpoint."""

Passes = Callable[[Plan], int]
"""How many passes to plan, given the plan of a single one."""


class Planner:
    """Makes the plan of a trainer's data that a recipe's `select` and `order` ask for.

    Args:
        trainer: a `gradwise.Trainer`, whose model measures what is needed.
        recipe: its `select`, `order`, `signals` and `seed`.
        folder: of the run; what was picked is written there.
        shared: folder in which several runs keep the signals that they have in common.
    """

    def __init__(self, trainer: Any, recipe: Recipe, folder: Path, *, shared: Path | None = None) -> None:
        self.trainer, self.folder, self.shared = trainer, folder, shared
        self._signals: Signals | None = None
        self._state: State | None = None
        self._picked: Selection | None = None
        self._reordering = Reordering(trainer, recipe, folder) if isinstance(recipe.order, D3) else None
        self._order: Any = self._reordering or recipe.order
        self._finish = None if recipe.anneal is None else Finish(trainer, recipe, folder, self._order)
        self._chosen: NDArray[np.int64] | None = None
        """What `select` chose for good, where the last phase chooses from it."""
        self.later = 0.0
        """Seconds per step that decisions while training are expected to take."""
        self.tell: Callable[[str], Any] = _silent if trainer.args.disable_tqdm else say
        """Gets a sentence on what is expected to be spent, on the first rank."""

    @property
    def recipe(self) -> Recipe:
        """The run's, with what was measured on this machine."""
        return self.trainer.session.recipe

    def due(self, step: int) -> bool:
        """Whether to decide again before `step`, or to lay out further epochs."""
        batches = self.trainer.session.schedule
        return self._runs_out(step, batches) or self._due(step, batches)

    @staticmethod
    def _runs_out(step: int, batches: Batches) -> bool:
        """Whether the epochs laid out end before a step, and others follow."""
        return step == batches.steps and batches.plan.until is not None

    def _due(self, step: int, batches: Batches) -> bool:
        onsets = self._onsets(batches)
        return step in onsets or self._refreshing(step, onsets) or self._reorders(step, onsets)

    def _onsets(self, batches: Batches) -> tuple[int, ...]:
        """The steps before which the last phase selects."""
        return () if self._finish is None else self._finish.steps(batches)

    def _refreshing(self, step: int, onsets: tuple[int, ...]) -> bool:
        """Whether the selection is made again; in the last phase it no longer counts."""
        every = 0 if self._state is None else self._state.every
        return bool(every) and step > 0 and step % every == 0 and not (onsets and step >= onsets[0])

    def _reorders(self, step: int, onsets: tuple[int, ...]) -> bool:
        return self._reordering is not None and self._reordering.due(step, onsets)

    @property
    def measuring(self) -> float:
        """Passes over a sample that measuring while training takes, for each that training takes."""
        return 0.0 if self._reordering is None else self._reordering.share

    def ahead(self) -> float:
        """Seconds that decisions at certain steps are expected to take, told from a few samples."""
        return 0.0 if self._finish is None else self._finish.expected_seconds()

    def first(self, passes: Passes, record: Record) -> Plan:
        """The plan of a run that begins."""
        check_samples(self.trainer, self.recipe)
        if self._finish is not None:
            self._finish.check(self.tell)
        if self._reordering is not None:
            self._reordering.check()
        needs = self.recipe.select.needs | self.recipe.order.needs
        forecast = self._settled(record)
        recipe = self.recipe
        rows = None if forecast is None else self._looked_at(forecast.candidates)
        signals, seconds, found = pool_signals(
            self.trainer, needs, recipe.signals, record, seed=recipe.seed, shared=self.shared, rows=rows
        )
        bad = [] if signals.ok is None else np.flatnonzero(~signals.ok).tolist()
        if needs:
            told = {"quantities": sorted(needs), "samples": len(signals), "set_aside": len(bad)}
            record.event(
                "signals",
                0,
                seconds,
                **told,
                first=self._places(bad, rows)[:8],
                **({"shared": True} if found else {}),
            )
        start, took = time.perf_counter(), {}
        if isinstance(recipe.select, Grace):
            selection, signals = self._begun(recipe.select, signals, rows, forecast, took)
        else:
            selection = recipe.select.select(signals, seed=recipe.seed).without(bad)
        took["selection"] = time.perf_counter() - start - sum(took.values())
        one_pass = make_plan(selection, self._order, signals, epochs=1, seed=recipe.seed)
        epochs = passes(one_pass)
        ahead = min(epochs, epochs_ahead(len(one_pass)))
        plan = make_plan(selection, self._order, signals, epochs=ahead, seed=recipe.seed)
        if ahead < epochs:
            plan = self._continuing(plan, epochs)
        unmeasured = None
        if self._reordering is not None:
            unmeasured = self._reordering.settle(self.trainer.session.batches_of(plan), self.tell)
        plan = self._cut(plan)
        if self._state is None and recipe.anneal is not None and recipe.anneal.pool == "selection":
            self._chosen = np.unique(selection.indices)
        self._keep(signals, selection, step=0)
        if isinstance(recipe.select, Grace):
            self._say(recipe.select.random_picks(selection))
        record.event(
            "plan",
            0,
            time.perf_counter() - start,
            select=recipe.select.method,
            order=recipe.order.method,
            pool=plan.pool,
            selected=len(np.unique(selection.indices)),
            weighted=selection.weights is not None,
            length=len(plan),
            epochs=plan.epochs_of_run,
            digest=plan.digest,
            parts={name: round(seconds, 4) for name, seconds in took.items()},
            **({"unmeasured": unmeasured} if unmeasured else {}),
            **selection.told,
        )
        return plan

    def again(self, plan: Plan, served: int, step: int, record: Record) -> Plan:
        """The plan from a later decision on; what was served stays.

        Args:
            plan: followed so far.
            served: how many of its segments were.
            step: optimizer steps done.
            record: gets what was decided and what it cost.
        """
        batches = self.trainer.session.batches_of(plan)
        if self._runs_out(step, batches):
            plan = self._continued(plan, step, record)
            batches = self.trainer.session.batches_of(plan)
            served = batches.segment(step)
        onsets = self._onsets(batches)
        if self._finish is not None and step in onsets:
            due = partial(self._due, batches=batches)
            chosen = self._finish.decide(plan, served, step, record, self._selected, due)
            self._write(chosen.selection, step)
            plan = chosen.plan
        elif self._refreshing(step, onsets):
            plan = self._refreshed(plan, served, step, record)
        if self._reordering is not None and self._reorders(step, onsets):
            plan = self._reordering.decide(plan, served, step, record, onsets, self.tell)
        return plan

    def _continuing(self, plan: Plan, epochs: int) -> Plan:
        """A plan that lays out the first epochs of so many."""
        if self.trainer.session.packed_length is not None:
            raise RecipeError(
                f"A packed run lays out all of its epochs at once, and {epochs:,} are more than the "
                f"{plan.epochs:,} that a plan holds; train fewer epochs or steps, or set packing: false."
            )
        return replace(plan, until=epochs)

    def _continued(self, plan: Plan, step: int, record: Record) -> Plan:
        """The plan with further epochs, cut where decisions are due in them."""
        start = time.perf_counter()
        longer = continued(plan)
        batches = self.trainer.session.batches_of(longer)
        segments = [
            piece
            for segment in longer.segments
            for piece in (self._pieces(segment, batches) if segment.epoch >= plan.epochs else [segment])
        ]
        longer = replace(longer, segments=tuple(segments))
        record.event(
            "epochs",
            step,
            time.perf_counter() - start,
            first=plan.epochs,
            last=longer.epochs - 1,
            length=len(longer),
            digest=longer.digest,
        )
        return longer

    def _pieces(self, segment: Any, batches: Batches) -> list[Any]:
        """An epoch's only segment in pieces that end where a decision is due."""
        return Cuts.of(batches, segment.epoch, lambda step: self._due(step, batches)).apply(segment)

    def _refreshed(self, plan: Plan, served: int, step: int, record: Record) -> Plan:
        """The plan after a look at how scores have changed, and a new selection."""
        grace, state, signals = self.recipe.select, self._state, self._known()
        assert isinstance(grace, Grace) and state is not None
        start = time.perf_counter()
        anchors = grace.anchors_at(state, step)
        if not anchors.size:
            record.event("refresh", step, time.perf_counter() - start, anchors=0, digest=plan.digest)
            return plan
        measured = signals_of(
            self.trainer, state.sample[anchors], grace.needs, self.recipe.signals, seed=self.recipe.seed
        )
        took = {"signals": time.perf_counter() - start}
        done = grace.refresh(state, anchors, measured, step, device=self._device)
        took["graph"] = done.graph_seconds
        took["propagation"] = time.perf_counter() - start - sum(took.values())
        before = self._picks(signals)
        selection = grace.pick(done.state, signals, seed=self.recipe.seed)
        after = self._following(plan, served, selection, signals, step, done.state)
        took["selection"] = time.perf_counter() - start - sum(took.values())
        self._state = done.state
        self._keep(signals, selection, step=step)
        record.event(
            "refresh",
            step,
            time.perf_counter() - start,
            parts={name: round(seconds, 4) for name, seconds in took.items()},
            anchors=len(anchors),
            set_aside=0 if measured.ok is None else int((~measured.ok).sum()),
            agreement=_rounded(done.agreement),
            embedding_agreement=_rounded(done.embedding_agreement),
            next_share=round(done.state.share, 4),
            moved=done.moved,
            searched=done.searched,
            stayed=len(np.intersect1d(before, selection.indices)),
            selected=len(np.unique(selection.indices)),
            digest=after.digest,
            **selection.told,
        )
        return after

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What has to be remembered besides the plan; empty where there is nothing more to decide."""
        kept = {} if self._state is None else self._state.arrays()
        kept = kept if self._chosen is None else {CHOSEN: self._chosen}
        return kept if self._reordering is None else kept | self._reordering.arrays()

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Remember what `arrays` gave."""
        if self._reordering is not None:
            self._reordering.restore(arrays, self._known)
            arrays = self._reordering.others(arrays)
        self._chosen = arrays.get(CHOSEN)
        self._state = State.of_arrays(arrays) if arrays and self._chosen is None else None

    def check_resumed(self, plan: Plan, step: int) -> None:
        """Raise CheckpointError where the plan is not cut at the decisions that are still to come."""
        if self._finish is not None:
            self._finish.check_resumed(self.trainer.session.batches_of(plan), step)

    # ---- how -----------------------------------------------------------------------------------------------

    def _settled(self, record: Record) -> Forecast | None:
        """What GRACE may spend, decided and said before anything is spent."""
        grace = self.recipe.select
        if not isinstance(grace, Grace):
            return None
        if once := self._once():
            given = [name for name in REFRESHING if getattr(grace, name) != default_of(Grace, name)]
            if grace.refresh_every or given:
                setting = "refresh_every" if grace.refresh_every else given[0]
                raise RecipeError(
                    f"select.{setting} is about selecting again, and {once}; leave one of them out."
                )
            grace = replace(grace, refresh_every=0)
        if self.recipe.order.needs & set(QUANTITIES):
            # The order has to know all that may be selected.
            grace = replace(grace, candidates=grace.candidates or "all")
        start = time.perf_counter()
        last = None if self.recipe.anneal is None else self.recipe.anneal.last
        done = settled(self.trainer, grace, self.recipe.signals, seed=self.recipe.seed, last=last)
        filled = {name: getattr(done.grace, name) for name in Grace.left_to_run}
        # Before anything goes by it.
        self.trainer.session.resolve(replace(self.recipe, select=replace(self.recipe.select, **filled)))
        found = done.forecast
        self.later = found.refreshes / run_size(self.trainer, grace).steps
        record.event("forecast", 0, time.perf_counter() - start, **found.as_dict())
        self._say(str(done))
        return found

    def _say(self, sentence: str | None) -> None:
        if sentence and self.trainer.is_world_process_zero():
            self.tell(sentence)

    def _once(self) -> str | None:
        """Why the selection is made only once, if it is."""
        if self.trainer.proxy is not None:
            return "signals.model scores with a model that does not learn"
        if self.recipe.order.needs & set(QUANTITIES):
            return f"order: {self.recipe.order.method} goes by what was measured before the run"
        if self.trainer.session.packed_length is not None:
            return "packing cannot go with that yet"
        return None

    def _looked_at(self, candidates: int) -> NDArray[np.int64] | None:
        pool = self.trainer.train_dataset
        if candidates >= len(pool):
            return None
        if self.recipe.order.needs & set(QUANTITIES):
            raise RecipeError(
                f"order: {self.recipe.order.method} has to know all samples, and select.candidates looks at "
                f"{candidates:,} of {len(pool):,}; give candidates: all."
            )
        return stratified_sample(len(pool), candidates, domains(pool), self.recipe.seed)

    def _begun(
        self,
        grace: Grace,
        signals: Signals,
        rows: NDArray[np.int64] | None,
        forecast: Forecast | None,
        took: dict[str, float],
    ) -> tuple[Selection, Signals]:
        """GRACE's first selection, and what is known of the whole pool."""
        assert forecast is not None
        pool = len(self.trainer.train_dataset)
        state = grace.begin(
            signals, looked=rows, pool=pool, seed=self.recipe.seed, device=self._device, took=took
        )
        whole = signals if rows is None else self._known()
        if forecast.every:
            # The forecast is of samples; where some are copies, it is for more of the nodes.
            more = forecast.candidates / len(state) if grace.anchors is None else 1.0
            self._state = state.changed(
                every=forecast.every,
                share=min(more * forecast.anchors, max(SHARE_RANGE[1], forecast.anchors)),
                allowance=forecast.allowance,
                least_share=min(more * forecast.least_anchors, SHARE_RANGE[1]),
            )
        return grace.pick(state, whole, seed=self.recipe.seed), whole

    def _cut(self, plan: Plan) -> Plan:
        """The plan in segments that end where a decision is due."""
        batches = self.trainer.session.batches_of(plan)
        reorders = self._reordering is not None and bool(self._reordering.timetable.every)
        decides = self._state is not None or self._finish is not None or reorders
        if not decides or batches.pack is not None:
            return plan
        segments = [piece for segment in plan.segments for piece in self._pieces(segment, batches)]
        return replace(plan, segments=tuple(segments))

    def _following(
        self, plan: Plan, served: int, selection: Selection, signals: Signals, step: int, state: State
    ) -> Plan:
        """The plan with passes over a new selection from `step` on, each in a new order."""
        batches = self.trainer.session.batches_of(plan)
        steps, rows = batches.steps_per_epoch, batches.batch_size
        length = sum(len(segment) for segment in plan.of_epoch(plan.first_epoch))
        begun = state.refreshes * (plan.epochs_of_run + 1)
        segments: list[Any] = []
        epochs = epochs_from(plan, step // steps)
        for epoch in epochs:
            done = (step % steps) * rows if epoch == step // steps else 0
            ahead = passes_over(
                selection,
                self._order,
                signals,
                first=begun + epoch,
                length=length - done,
                epoch=epoch,
                seed=self.recipe.seed,
            )
            due = partial(self._due, batches=batches)
            segments += Cuts.of(batches, epoch, due, done=done).apply(ahead)
        return laid_out(plan, segments, served, epochs)

    @property
    def _device(self) -> str:
        return "cuda" if self.trainer.args.device.type == "cuda" else "cpu"

    @staticmethod
    def _places(bad: list[int], rows: NDArray[np.int64] | None) -> list[int]:
        return bad if rows is None else rows[bad].tolist()

    def _known(self) -> Signals:
        """What does not change about the pool; after a resume it is read again from the data."""
        if self._signals is None:
            fixed, quiet = frozenset({"num_tokens"}), Record(self.folder, writes=False)
            self._signals = pool_signals(self.trainer, fixed, self.recipe.signals, quiet).signals
        return self._signals

    def _selected(self) -> NDArray[np.int64]:
        """What `select` has picked by now."""
        if self._chosen is not None:
            return self._chosen
        return self._picks(self._known())

    def _picks(self, signals: Signals) -> NDArray[np.int64]:
        grace = self.recipe.select
        assert isinstance(grace, Grace) and self._state is not None
        return (
            grace.pick(self._state, signals, seed=self.recipe.seed).indices
            if self._picked is None
            else self._picked.indices
        )

    def _keep(self, signals: Signals, selection: Selection, *, step: int) -> None:
        self._picked = selection
        if self._state is not None:
            unchanging = {
                "num_tokens": signals.num_tokens,
                "domain": signals.domain,
                "weight": signals.weight,
            }
            self._signals = Signals(len(signals), **unchanging)
        self._write(selection, step)

    def _write(self, selection: Selection, step: int) -> None:
        if selection.columns:
            path = self.folder / "plan" / f"picks-{step}.parquet"
            dataset, tokenizer = self.trainer.train_dataset, self.trainer.processing_class
            on_first(lambda: write_picks(path, selection, dataset, tokenizer))


def _silent(_: str) -> None:
    pass


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
