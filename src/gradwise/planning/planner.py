"""Lets the deciders of a run decide: before its first step, and before each step at which one of them is
due."""

import time
from dataclasses import replace

import numpy as np

from gradwise.errors import CheckpointError, PlanError
from gradwise.methods.costs import RunSize
from gradwise.methods.interfaces import Arrays
from gradwise.planning.annealing import Annealing
from gradwise.planning.context import RunContext
from gradwise.planning.decider import Decider
from gradwise.planning.epochs import continued, cut_where_due
from gradwise.planning.ordering import Ordering
from gradwise.planning.scoring import check_proxy, check_samples, selection_signals
from gradwise.planning.selecting import Selecting
from gradwise.planning.shape import shape_of
from gradwise.planning.shares import CostShare, cost_per_sample, deciding, measuring_share, shares
from gradwise.recipe import Recipe
from gradwise.signals.request import QUANTITIES
from gradwise.structure import group_layers
from gradwise.training.layout import Layout, Schedule
from gradwise.training.plan import Plan


class Planner:
    """Makes the plan that a recipe's `select`, `order` and `anneal` ask for, and changes it while the run
    trains.

    Args:
        recipe: of the run.
        batch_size: samples of a step.
    """

    def __init__(self, recipe: Recipe, batch_size: int) -> None:
        anneal = recipe.anneal
        self.ordering = Ordering(recipe.order, batch_size)
        self.selecting = Selecting(
            recipe.select,
            self.ordering,
            until=lambda schedule: self.annealing.onsets(schedule) if self.annealing else (),
            last=None if anneal is None else anneal.last,
            keeps=anneal is not None and anneal.pool == "selection",
        )
        self.annealing = None
        if anneal is not None:
            frozen = recipe.layers.policy is not None
            self.annealing = Annealing(anneal, self.selecting, self.ordering, freezes_layers=frozen)
        # In the order in which they decide at one step: what is selected, then how it is ordered.
        parts = (self.selecting, self.annealing, self.ordering)
        self.deciders: list[Decider] = [part for part in parts if part is not None]
        self._methods = {"select": recipe.select, "order": recipe.order}
        if anneal is not None:
            self._methods["anneal"] = anneal

    # ---- before the first step -----------------------------------------------------------------------------

    @property
    def measures_first(self) -> bool:
        """Whether samples are measured before the first step."""
        return any(decider.needs & set(QUANTITIES) for decider in self.deciders)

    def first_plan(self, context: RunContext) -> Plan:
        """The plan of a run that begins."""
        check_samples(context, self._methods)
        check_proxy(context)
        for decider in self.deciders:
            decider.check(context)
        for decider in self.deciders:
            # All have checked by now: a recipe that one of them refuses has cost nothing yet.
            context = decider.prepare(context)
        select = context.recipe.select
        if sentence := self._trial_forecast(context):
            context.say(sentence)
        self._score(context)
        # After scoring: contenders select by the signals that all of them share.
        context = self.selecting.try_contenders(context)
        start = time.perf_counter()
        plan, details = self.selecting.first_plan(context)
        # Samples of the annealing phase only stand behind the training samples; indices of both are in one
        # range.
        plan = replace(plan, pool=len(context.annealing.train))
        for decider in self.deciders:
            details |= decider.planned(context, plan)
        if context.recipe.anneal is None:
            _check_weighted(context, plan)
        # Only now, when all deciders know at which steps they are due.
        plan = self._cut(context.in_run, plan)
        # From counts and speeds that are known already: the forecast must cost nothing itself.
        # With a trial that was held as it was before, since its winner alone costs less.
        expected = self._expected(context, plan, replace(context.recipe, select=select))
        if sentence := deciding(expected):
            context.say(sentence)
        context.record.event(
            "plan",
            0,
            time.perf_counter() - start,
            order=self.ordering.method.method,
            pool=len(context.train),
            length=len(plan),
            **({"batch_size": context.in_run.batch_size} if context.in_run.pack is None else {}),
            epochs=plan.epochs_of_run,
            digest=plan.digest,
            expected={name: part["share"] for name, part in expected.items()},
            ahead=self._each(context, plan, expected),
            **details,
        )
        return plan

    def _trial_forecast(self, context: RunContext) -> str | None:
        """What a trial of selections is expected to cost; None where none is about to be held."""
        size = self.selecting.size_of_trial(context)
        if size is None:
            return None
        part = shares(context.recipe, 0, size, shape=shape_of(context, None))["select"]
        share = "an unknown share" if part["share"] is None else f"{part['share']:.0%}"
        return f"select: {part['why']}; that is expected to take {share} of the training time."

    def _expected(self, context: RunContext, plan: Plan, recipe: Recipe) -> dict[str, CostShare]:
        """What each decision of the run is expected to cost, over what training costs."""
        layout, rows = context.in_run, self.selecting.rows
        choosing = context.validation if context.target is None else context.target
        size = RunSize(
            pool=len(context.train),
            steps=layout.schedule(plan).steps,
            batch=layout.batch_size,
            picks=len(np.unique(plan.indices)),
            aside=0 if context.target is None else len(context.target),
            choosing=len(choosing) if choosing is not None and hasattr(choosing.dataset, "__len__") else 0,
            added=context.added,
            scored=None if rows is None else len(rows),
        )
        layers = 0
        if recipe.layers.policy is not None and context.model is not None:
            layers = len(group_layers(context.model).blocks)
        shape = shape_of(context, layout.schedule(plan))
        passes = cost_per_sample(recipe, layers, shape)
        measured_shares = {}
        if (selecting := self.selecting.expected(size.steps, passes)) is not None:
            measured_shares["select"] = selecting
        if (measuring := self.ordering.expected) is not None:
            measured_shares["order"] = measuring_share(recipe, measuring, layers, shape)
        return shares(recipe, layers, size, measured_shares, shape=shape)

    def _each(self, context: RunContext, plan: Plan, expected: dict[str, CostShare]) -> dict[str, float]:
        """What each decision that is due while the run trains is expected to cost, over what training costs,
        by section."""
        schedule, shares_by_section = context.in_run.schedule(plan), {}
        for decider in self.deciders:
            share = expected.get(decider.name, {}).get("share")
            times = len(decider.costly_steps(schedule))
            if share is not None and times:
                shares_by_section[decider.name] = round(decider.while_training(share) / times, 6)
        return shares_by_section

    def costly_steps(self, schedule: Schedule) -> dict[str, list[int]]:
        """The steps before which each decision is made, by section."""
        return {decider.name: decider.costly_steps(schedule) for decider in self.deciders}

    def _score(self, context: RunContext) -> None:
        """Score the pool once for all decisions that need it before the first step."""
        needs = self.selecting.needs | self.ordering.needs
        scored = selection_signals(
            context, self.selecting.needs, self.selecting.rows, order_needs=self.ordering.needs
        )
        if needs & {*QUANTITIES, "num_tokens"}:
            context.record.event(
                "signals",
                0,
                scored.seconds,
                quantities=sorted(needs),
                samples=len(scored.signals),
                set_aside=len(scored.bad),
                first=scored.bad[:8].tolist(),
                **({"shared": True} if scored.shared else {}),
            )
        self.selecting.scored(scored)

    # ---- while the run trains ------------------------------------------------------------------------------

    def due(self, step: int, schedule: Schedule) -> bool:
        """Whether anything is decided before a step, or further epochs are laid out."""
        return _runs_out(step, schedule) or any(decider.due(step, schedule) for decider in self.deciders)

    def again(self, context: RunContext, plan: Plan, step: int) -> Plan:
        """The plan from `step` on; what was served stays.

        Args:
            context: of the run.
            plan: followed so far.
            step: optimizer steps done.
        """
        layout = context.in_run
        if _runs_out(step, layout.schedule(plan)):
            # First, or deciders would see a plan that ends before the step at which they are due.
            plan = self._continued(context, plan, step)
        schedule = layout.schedule(plan)
        for decider in (each for each in self.deciders if each.due(step, schedule)):
            before = _form(plan)
            plan = decider.decide(context, plan, step)
            if _form(plan) != before:
                plan = self._cut(layout, plan, step)
        return plan

    def _continued(self, context: RunContext, plan: Plan, step: int) -> Plan:
        """The plan with further epochs, cut where decisions are due in them."""
        start = time.perf_counter()
        longer = self._cut(context.in_run, continued(plan), step)
        context.record.event(
            "epochs",
            step,
            time.perf_counter() - start,
            first=plan.epochs,
            last=longer.epochs - 1,
            length=len(longer),
            digest=longer.digest,
        )
        return longer

    def _cut(self, layout: Layout, plan: Plan, step: int = 0) -> Plan:
        """The plan with what is ahead of `step` in segments that end where a decision is due."""
        recurring = [decider for decider in self.deciders if decider.recurs]
        # A packed run lays its rows out once; a cut would tear a row of several samples apart.
        if not recurring or layout.pack is not None:
            return plan
        schedule = layout.schedule(plan)

        def due(later: int) -> bool:
            return any(decider.due(later, schedule) for decider in recurring)

        return cut_where_due(plan, schedule.batches, due, after=schedule.batches.segment(step))

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self) -> Arrays:
        """What has to be remembered besides the plan, by decider."""
        return {
            f"{decider.name}.{name}": values
            for decider in self.deciders
            for name, values in decider.state_dict().items()
        }

    def load_state_dict(self, arrays: Arrays, context: RunContext) -> None:
        """Remember what `state_dict` gave; raises CheckpointError for what another version gave."""
        names = {decider.name for decider in self.deciders}
        if unknown := [name for name in arrays if name.partition(".")[0] not in names]:
            raise CheckpointError(
                f"The checkpoint was taken with another version of gradwise, whose decisions ({unknown[0]}) "
                "cannot be resumed; start a new run, or resume with that version."
            )
        for decider in self.deciders:
            prefix = f"{decider.name}."
            # Names are prefixed by the decider, so that two may remember something under the same name.
            state = {name[len(prefix) :]: each for name, each in arrays.items() if name.startswith(prefix)}
            decider.load_state_dict(state, context)

    def check_resumed(self, context: RunContext, plan: Plan, step: int) -> None:
        """Raise CheckpointError if the plan is not cut at the decisions that are still to come."""
        for decider in self.deciders:
            decider.check_resumed(context, plan, step)


class FixedPlanner(Planner):
    """A planner whose plan was made by somebody else; nothing is decided.

    Args:
        plan: to be followed.
    """

    def __init__(self, plan: Plan) -> None:
        self.deciders = []
        self._plan = plan

    def first_plan(self, context: RunContext) -> Plan:
        plan = self._plan
        if plan.dropped is not None or plan.until is not None:
            raise PlanError("The plan holds only a part of another run, whose later epochs it does not know.")
        if (needed := context.in_run.epochs_needed(plan)) > plan.epochs:
            raise PlanError(
                f"The plan has {plan.epochs} epochs, and the run asks for {needed:,}; train less, or give a "
                "plan with as many."
            )
        if (largest := int(plan.indices.max())) >= (count := len(context.train)):
            raise PlanError(
                f"The plan names sample {largest}, and the data have {count}; give a plan of these data."
            )
        _check_weighted(context, plan)
        # Of the data, whichever samples are named: a checkpoint is compared with them when it is resumed.
        return replace(plan, pool=count)


def _check_weighted(context: RunContext, plan: Plan) -> None:
    """Warn if weights are to multiply losses and no sample has one."""
    if context.recipe.weights == "loss" and all(segment.weights is None for segment in plan.segments):
        context.say(
            "Warning: weights: loss has no effect: neither the data nor the selection gives samples weights."
        )


def _form(plan: Plan) -> list[tuple[int, int]]:
    """Epoch and length of each segment, by which it is known where cuts are missing. Of a run that is longer
    than its plan, later epochs can come in the place of earlier ones of the same length."""
    return [(segment.epoch, len(segment)) for segment in plan.segments]


def _runs_out(step: int, schedule: Schedule) -> bool:
    """Whether the epochs laid out end before a step, and others follow."""
    batches = schedule.batches
    return step == batches.steps and batches.plan.until is not None
