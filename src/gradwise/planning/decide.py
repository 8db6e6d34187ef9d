"""Decides what a run trains on: at its start, and again while it trains where the selection is kept fresh.

A planner has two moments: `first`, before anything is trained, and `again`, at the steps that `due` names,
with the weights as they then are. What it remembers in between goes into checkpoints as plain arrays.
"""

import time
from collections.abc import Callable
from dataclasses import replace
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
from gradwise.methods.grace.refresh import SHARE_RANGE
from gradwise.methods.grace.state import State
from gradwise.numerics.sampling import looked_at
from gradwise.planning.dial import run_size, settled
from gradwise.planning.finish import Finish
from gradwise.planning.make import Cuts, make_plan, passes_over
from gradwise.planning.ordering import Reordering
from gradwise.planning.picks import write_picks
from gradwise.planning.pool import domains, pool_signals, signals_of
from gradwise.ranks import on_first
from gradwise.recipe import Recipe
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
        self.trainer, self.recipe, self.folder, self.shared = trainer, recipe, folder, shared
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

    def due(self, step: int) -> bool:
        """Whether to decide again before `step`."""
        return self._due(step, self.trainer.session.schedule)

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
        recipe = self.recipe
        if self._finish is not None:
            self._finish.check(self.tell)
        if self._reordering is not None:
            self._reordering.check()
        needs = recipe.select.needs | recipe.order.needs
        forecast = self._settled(record)
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
        plan = make_plan(selection, self._order, signals, epochs=passes(one_pass), seed=recipe.seed)
        plan = self._cut(plan)
        if self._state is None and recipe.anneal is not None and recipe.anneal.pool == "selection":
            self._chosen = np.unique(selection.indices)
        self._keep(signals, selection, step=0)
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
            digest=plan.digest,
            parts={name: round(seconds, 4) for name, seconds in took.items()},
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
        onsets = self._onsets(batches)
        if self._finish is not None and step in onsets:
            chosen = self._finish.decide(plan, served, step, record, self._selected, self.due)
            self._write(chosen.selection, step)
            plan = chosen.plan
        elif self._refreshing(step, onsets):
            plan = self._refreshed(plan, served, step, record)
        if self._reordering is not None and self._reorders(step, onsets):
            plan = self._reordering.decide(plan, served, step, record, onsets)
        return plan

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
        after = plan.followed_by(self._following(plan, selection, signals, step, done.state), after=served)
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
        """What GRACE may spend, measured and told before anything is."""
        grace = self.recipe.select
        if not isinstance(grace, Grace):
            return None
        if self.trainer.proxy is not None:
            if grace.refresh_every:
                raise RecipeError(
                    "select.refresh_every measures the model as it learns, and signals.model measures with "
                    "one that does not; leave one of them out."
                )
            grace = replace(grace, refresh_every=0)
        if self.recipe.order.needs & set(QUANTITIES):
            if grace.refresh_every:
                raise RecipeError(
                    f"order: {self.recipe.order.method} goes by what was measured before the run, and "
                    "select.refresh_every selects anew while it changes; leave one of them out."
                )
            # The order has to know all that may be selected, as it is when it is selected.
            grace = replace(grace, candidates=grace.candidates or "all", refresh_every=0)
        start = time.perf_counter()
        last = None if self.recipe.anneal is None else self.recipe.anneal.last
        found = settled(
            self.trainer, grace, self.recipe.signals, self.folder, seed=self.recipe.seed, last=last
        )
        self.later = found.refreshes / run_size(self.trainer, grace).steps
        record.event("forecast", 0, time.perf_counter() - start, **found.as_dict())
        if self.trainer.is_world_process_zero():
            self.tell(f"{found}.")
        return found

    def _looked_at(self, candidates: int) -> NDArray[np.int64] | None:
        pool = self.trainer.train_dataset
        if candidates >= len(pool):
            return None
        if self.recipe.order.needs & set(QUANTITIES):
            raise RecipeError(
                f"order: {self.recipe.order.method} has to know all samples, and select.candidates looks at "
                f"{candidates:,} of {len(pool):,}; give candidates: all."
            )
        return looked_at(len(pool), candidates, domains(pool), self.recipe.seed)

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
        if self._reordering is not None:
            self._reordering.settle(batches, self.tell)
        reorders = self._reordering is not None and bool(self._reordering.timetable.every)
        decides = self._state is not None or self._finish is not None or reorders
        if not decides or batches.pack is not None:
            if self._state is not None:
                raise RecipeError(
                    "select.refresh_every cannot go with packing yet; set packing: false, or refresh_every: "
                    "0."
                )
            return plan
        segments = [
            piece
            for segment in plan.segments
            for piece in Cuts.of(batches, segment.epoch, lambda step: self._due(step, batches)).apply(segment)
        ]
        return replace(plan, segments=tuple(segments))

    def _following(
        self, plan: Plan, selection: Selection, signals: Signals, step: int, state: State
    ) -> list[Any]:
        """Segments from `step` to the plan's end: passes over the new selection, each in a new order."""
        batches = self.trainer.session.batches_of(plan)
        steps, rows = batches.steps_per_epoch, batches.batch_size
        length = sum(len(segment) for segment in plan.of_epoch(0))
        begun = state.refreshes * (plan.epochs + 1)
        segments: list[Any] = []
        for epoch in range(step // steps, plan.epochs):
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
            segments += Cuts.of(batches, epoch, self.due, done=done).apply(ahead)
        return segments

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
