"""Puts what a run trains on in order: each epoch as it is laid out, and what is ahead as influence is
measured."""

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray

from gradwise.atomic import write_parquet
from gradwise.errors import RecipeError
from gradwise.methods.d3.graph import InfluenceGraph
from gradwise.methods.d3.units import Units
from gradwise.methods.decision import Order
from gradwise.methods.interfaces import Arrays, InfluenceOrder, Orderer, Timetable
from gradwise.numerics.streams import stream, stream_seed
from gradwise.planning.context import RunContext
from gradwise.planning.decider import MOST_COUNTED, Decider, DecisionCost, rounded, served
from gradwise.planning.epochs import epoch_length, joined, part_of, rearranged
from gradwise.probing import Probe, check_precision
from gradwise.ranks import on_first
from gradwise.signals import Signals
from gradwise.training.layout import Schedule
from gradwise.training.plan import Plan, Segment

GRAPH = "graph."
"""Prefix of the graph's arrays in a checkpoint."""

REARRANGED = 2**17
"""Entries that a measurement puts in order again, besides those trained on before the next one. Without a
limit, deciding takes time in the square of the run's length."""


class Ordering(Decider):
    """The decision of `order`.

    Args:
        method: that puts entries in order.
        batch_size: samples of a step.
    """

    name = "order"

    def __init__(self, method: Orderer, batch_size: int) -> None:
        self.method, self._batch_size = method, batch_size
        self._influence = method.influence
        self._onsets: tuple[int, ...] = ()
        self._steps_per_epoch = 0
        self._timetable = Timetable(0, 0)
        self._graph: InfluenceGraph | None = None
        self._group: NDArray[Any] | None = None
        self._warnings: set[str] = set()

    @property
    def needs(self) -> frozenset[str]:
        return self.method.needs

    def check(self, context: RunContext) -> None:
        influence = self._influence
        if influence is None:
            return
        name = self.method.method
        influence.check_in_run(self._batch_size)
        if context.in_run.pack is not None:
            raise RecipeError(
                f"order: {name} measures influence while it trains, and cannot go with packing yet; set "
                "packing: false, or take order: balanced."
            )
        if context.sharded:
            raise RecipeError(
                f"order: {name} makes trial steps, which a sharded model cannot do yet; take order: balanced."
            )
        # Before anything is measured: trial steps would move the loss scale of float16 and be skipped.
        check_precision(context.autocast)
        held_out = None if context.validation is None else context.validation.dataset
        if influence.target == "validation" and (
            context.validation_sets != 1 or not hasattr(held_out, "__getitem__")
        ):
            raise RecipeError(
                "order.target: validation needs one set of validation data that can be indexed; give "
                "data.validation (or an eval_dataset), or target: pool."
            )

    # ---- epochs, as they are laid out ----------------------------------------------------------------------

    def order(self, signals: Signals, entries: NDArray[np.int64], *, epoch: int, seed: int) -> Order:
        """The order of an epoch, before influence is measured in it."""
        if self._influence is None:
            return self.method.order(signals, entries, epoch=epoch, seed=seed)
        return self._influence.initial_order(
            signals,
            entries,
            group=self._groups(self._influence, signals, seed),
            batch_size=self._batch_size,
            epoch=epoch,
            seed=seed,
        )

    def _groups(self, influence: InfluenceOrder, signals: Signals, seed: int) -> NDArray[Any] | None:
        """(N,) the group of every sample; clusters are made once, at the weights the run starts from."""
        # Samples of the annealing phase only come behind the others.
        if influence.grouped and (self._group is None or len(self._group) < len(signals)):
            self._group = influence.groups(signals, seed=seed)
        return self._group

    # ---- when to measure -----------------------------------------------------------------------------------

    def planned(self, context: RunContext, plan: Plan) -> dict[str, Any]:
        influence = self._influence
        if influence is None:
            return {}
        batches, steps = context.in_run.schedule(plan)
        size = influence.units_of(np.arange(0), None, batches.batch_size).size
        length = epoch_length(plan)
        nodes = influence.window or -(-length // size)
        if self._group is not None:
            nodes = len(np.unique(self._group))
        self._timetable = influence.timetable(steps, batches.batch_size, nodes)
        if self.recurs and influence.grouped:
            influence.check_groups(nodes, length // size)
        self._steps_per_epoch = batches.steps_per_epoch if self._timetable.restarts else 0
        if self._timetable.problem is None:
            return {}
        self._say_once(context, self._timetable.problem)
        return {"unmeasured": self._timetable.problem}

    @property
    def expected(self) -> float | None:
        """Cost of measuring over that of ordinary training; None for an order that measures nothing."""
        return None if self._influence is None else self._timetable.cost

    def forecast(self, context: RunContext) -> DecisionCost:  # noqa: ARG002
        return DecisionCost(fraction=self._timetable.cost)

    @property
    def recurs(self) -> bool:
        return bool(self._timetable.every)

    def annealing_at(self, onsets: tuple[int, ...]) -> None:
        """Note the steps at which other data are selected, which no entry is moved across."""
        self._onsets = onsets

    def due(self, step: int, schedule: Schedule) -> bool:  # noqa: ARG002
        return self._measures(step) or (self.recurs and step in self._onsets)

    def costly_steps(self, schedule: Schedule) -> list[int]:
        steps = range(min(schedule.steps, MOST_COUNTED))
        return [step for step in steps if self._measures(step)] if self.recurs else []

    def _measures(self, step: int) -> bool:
        if not self.recurs:
            return False
        if not self._steps_per_epoch:
            return step % self._timetable.every == 0
        first = step - step % self._steps_per_epoch
        # The annealing phase draws its own chunks: those of the epoch it begins in end there.
        first = max([first, *(onset for onset in self._onsets if first < onset <= step)])
        return (step - first) % self._timetable.every == 0

    def _say_once(self, context: RunContext, sentence: str) -> None:
        if sentence not in self._warnings:
            context.say(sentence)
        self._warnings.add(sentence)

    # ---- measuring -----------------------------------------------------------------------------------------

    def decide(self, context: RunContext, plan: Plan, step: int) -> Plan:
        """The plan with what is ahead in the order that influence asks for; its segments keep their
        lengths."""
        influence, context = self._influence, context.annealing
        assert influence is not None
        start = time.perf_counter()
        schedule = context.in_run.schedule(plan)
        # What was served stays where it is: the loader reads ahead, and a checkpoint counts by it.
        after = served(schedule, step)
        ahead = self._ahead(influence, schedule, step, after)
        pieces = [
            joined(each.segments, sum(map(len, each.segments)), each.segments[0].epoch) for each in ahead
        ]
        units = [self._units(influence, piece, step) for piece in pieces]
        problem = None
        if self._measures(step):
            measured = self._measure(context, influence, pieces[0], units[0], step)
            if problem := influence.missing_note(units[0], measured):
                self._say_once(context, problem)
            self._write_graph(context, influence.threshold)
        took = {"measuring": time.perf_counter() - start}
        details: dict[str, Any] = {}
        segments = list(plan.segments[after:])
        for number, (each, piece, piece_units) in enumerate(zip(ahead, pieces, units, strict=True)):
            rng = stream(context.seed, "order of units", step, number)
            # Label words rather than gradients: the balance must not need a scoring run at each measurement.
            # Groups are balanced by their sizes instead.
            some = piece.indices[:0] if influence.grouped else piece.indices[: len(piece_units.entries)]
            features = context.train.words[some]
            arrangement = influence.arrange(
                piece_units, self._graph, features, rng, seed=context.seed, first=each.first
            )
            places = piece_units.in_order(arrangement.order)
            rest = np.arange(len(places), len(piece))
            moved = rearranged(piece, np.concatenate([places, rest]))
            segments[each.number : each.number + len(each.segments)] = _split(moved, each.segments)
            details = details or arrangement.details
        result = plan.followed_by(segments, after=after)
        took["ordering"] = time.perf_counter() - start - took["measuring"]
        context.record.event(
            "order",
            step,
            time.perf_counter() - start,
            edges=influence.edges_in_run,
            units=str(influence.units),
            **influence.measurement_details(self._timetable),
            parts=rounded(took),
            **details,
            **({"unmeasured": problem} if problem else {}),
            **({"graph": self._graph.step} if self._graph is not None else {}),
            digest=result.digest,
        )
        return result

    def _ahead(
        self, influence: InfluenceOrder, schedule: Schedule, step: int, after: int
    ) -> "list[_Stretch]":
        """What a decision puts in order: all that is trained on before the next measurement, and of the rest,
        which the next one puts in order again, no more than `REARRANGED` entries."""
        stretches = self._stretches(schedule, after)
        if not influence.grouped:
            # Single units are measured only in the stretch that begins now; groups are the same in later
            # epochs.
            return [_Stretch(0, stretches[0], None)]
        wanted, room, number = self._until_next(schedule, step), REARRANGED, 0
        ahead: list[_Stretch] = []
        for stretch in stretches:
            some, entries = stretch, sum(map(len, stretch))
            if wanted is not None:
                if wanted <= 0 and room <= 0:
                    break
                ends = np.cumsum([len(segment) for segment in stretch])
                some = stretch[: int(np.searchsorted(ends, max(wanted, room))) + 1]
            ahead.append(_Stretch(number, some, None if wanted is None else max(0, wanted)))
            number += len(stretch)
            wanted, room = None if wanted is None else wanted - entries, room - entries
        return ahead

    def _until_next(self, schedule: Schedule, step: int) -> int | None:
        """Entries that are trained on before influence is measured again; None where it is not."""
        batches = schedule.batches
        for later in range(step + 1, min(schedule.steps, step + 1 + self._timetable.every)):
            if self._measures(later):
                return batches.used(min(later, batches.steps)) - batches.used(step)
        return None

    def _stretches(self, schedule: Schedule, after: int) -> list[list[Segment]]:
        """Segments that are ahead, grouped so that samples may change places within a group."""
        batches = schedule.batches
        stretches: list[list[Segment]] = []
        for number, segment in enumerate(batches.plan.segments[after:], start=after):
            # No entry moves across the step at which other data are selected: it would be trained on in the
            # wrong phase.
            crosses = batches.first_step(number) in self._onsets
            if not stretches or stretches[-1][0].epoch != segment.epoch or crosses:
                stretches.append([])
            stretches[-1].append(segment)
        return stretches

    def _units(self, influence: InfluenceOrder, piece: Segment, step: int) -> Units:
        """Units of the places in a piece; where each unit is its own node, those of its first window."""
        places = np.arange(len(piece))
        if influence.grouped:
            assert self._group is not None
            return influence.units_of(places, self._group[piece.indices], self._batch_size)
        units = influence.units_of(places, None, self._batch_size)
        # All pairs are measured, so the cost grows with the square of the window.
        reach = len(units) if influence.window is None else influence.window
        first = places[: reach * units.size]
        if units.size == 1:
            names = (f"sample {index} (place {n + 1})" for n, index in enumerate(piece.indices[: len(first)]))
        else:
            names = (
                f"batch {number + 1} from step {step + 1}" for number in range(-(-len(first) // units.size))
            )
        return Units.of_batches(first, units.size, tuple(names))

    def _measure(
        self, context: RunContext, influence: InfluenceOrder, piece: Segment, units: Units, step: int
    ) -> InfluenceGraph | None:
        """Measure influence and remember it with earlier measurements; None if there are fewer than two
        nodes."""
        if len(units.nodes) < 2:
            return None
        measured = influence.measure(
            self._probe(context, influence, step),
            replace(units, entries=piece.indices[units.entries]),
            edges=influence.edges_in_run,
            rng=stream(context.seed, "probe samples", step),
            probes=self._timetable.probes,
        )
        if measured is None:
            return None
        graph = replace(measured, step=step)
        # The first rank's, on all of them: orders must be equal exactly.
        measured = on_first(lambda: graph)
        # Nodes that are single batches are other batches in every window, and nothing measured of earlier
        # ones holds for them.
        lasting = self._graph is not None and influence.grouped
        self._graph = self._graph.followed_by(measured, influence.keep) if lasting else measured  # type: ignore[union-attr]
        return measured

    def _probe(self, context: RunContext, influence: InfluenceOrder, step: int) -> Probe:
        assert context.model is not None and context.optimizer is not None
        samples = None if influence.target != "validation" else context.validation
        return Probe(
            context.model,
            context.optimizer,
            context.train.inputs,
            context.train.collate,
            target=None if samples is None else samples.inputs,
            clip=context.max_grad_norm,
            batch_tokens=context.recipe.signals.batch_tokens,
            autocast=context.autocast,
            # By the step: a run that is resumed here has drawn other numbers before.
            seed=stream_seed(context.seed, "trial steps", step),
        )

    def _write_graph(self, context: RunContext, threshold: float) -> None:
        if self._graph is not None:
            path = context.folder / "plan" / f"graph-{self._graph.step}.parquet"
            table = pyarrow.table(self._graph.columns(threshold))
            on_first(lambda: write_parquet(path, table))

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self) -> Arrays:
        if self._influence is None:
            return {}
        timetable = [self._timetable.every, self._timetable.probes, self._steps_per_epoch]
        arrays: Arrays = {"timetable": np.array(timetable)}
        if self._graph is not None:
            arrays |= {f"{GRAPH}{name}": values for name, values in self._graph.arrays().items()}
        if self._group is not None and self._group.dtype.kind != "U":  # domains are read again from the data
            arrays["group"] = self._group
        return arrays

    def load_state_dict(self, arrays: Arrays, context: RunContext) -> None:
        if self._influence is None:
            return
        every, probes, self._steps_per_epoch = (int(value) for value in arrays["timetable"])
        self._timetable = Timetable(every, probes)
        graph = {name[len(GRAPH) :]: values for name, values in arrays.items() if name.startswith(GRAPH)}
        self._graph = InfluenceGraph.of_arrays(graph) if graph else None
        self._group = arrays.get("group")
        if self._influence.grouped and self._group is None:
            self._group = self._influence.groups(context.annealing.train.described(), seed=context.seed)


class _Stretch(NamedTuple):
    """Segments ahead whose entries may change places."""

    number: int
    """Place of its first segment among those ahead."""
    segments: list[Segment]
    first: int | None
    """Entries that are trained on before the next measurement; None for all."""


def _split(piece: Segment, like: list[Segment]) -> list[Segment]:
    """A piece in segments of the lengths of others."""
    ends = np.cumsum([0, *(len(segment) for segment in like)])
    return [part_of(piece, int(start), int(stop)) for start, stop in pairwise(ends)]
