"""Puts what is ahead of a run in order by the influence of its parts, measured as the model learns."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from gradwise.atomic import write_parquet
from gradwise.data import label_words
from gradwise.errors import RecipeError
from gradwise.methods.d3 import D3, InfluenceGraph, Units
from gradwise.methods.d3.method import STREAM
from gradwise.methods.decision import Order
from gradwise.planning.make import joined, part_of
from gradwise.precision import autocast_of
from gradwise.probing import Probe, check_precision
from gradwise.ranks import on_first
from gradwise.recipe import Recipe
from gradwise.signals import Signals
from gradwise.training.batches import Batches
from gradwise.training.layout import total_steps
from gradwise.training.plan import Plan, Segment
from gradwise.training.record import Record

FORWARD, FIRST_ORDER, HESSIAN = 1 / 3, 2.0, 6.0
"""What a sample costs without a backward pass, with a gradient of its own, and with a Hessian-vector product
of its own, in passes of a training step (benchmarks/d3.py; the two latter on a busy machine)."""

STEP = 0.5
"""What a trial step's update and its taking back cost besides, about, in the same."""

FEWEST = 2
"""Probe samples of a node below which noise cannot be told."""


@dataclass(frozen=True)
class Timetable:
    """How often influence is measured, and on how many samples of each node."""

    every: int
    """Steps between two measurements, the first being before the first step; 0 for never."""
    probes: int


class Reordering:
    """The order of a trainer's run where it goes by D3.

    Args:
        trainer: a `gradwise.Trainer`.
        recipe: its `order`, `anneal`, `signals` and `seed`.
        folder: of the run.
    """

    def __init__(self, trainer: Any, recipe: Recipe, folder: Path) -> None:
        assert isinstance(recipe.order, D3)
        self.trainer, self.recipe, self.folder, self.d3 = trainer, recipe, folder, recipe.order
        self.graph: InfluenceGraph | None = None
        self.timetable = Timetable(0, 0)
        self.share = 0.0
        """Passes over a sample that measuring takes, for each that training takes."""
        self._group: NDArray[Any] | None = None
        self._words: NDArray[np.float32] | None = None
        self._said: set[str] = set()

    @property
    def needs(self) -> frozenset[str]:
        """Signals that are needed of every sample before the run."""
        return self.d3.needs

    @property
    def method(self) -> str:
        """Name in the record."""
        return self.d3.method

    def check(self) -> None:
        """Refuse, before anything is trained, what could not be measured later."""
        trainer, d3 = self.trainer, self.d3
        if not self._measures:
            return
        if trainer.session.packed_length is not None:
            raise RecipeError(
                "order: d3 measures influence while it trains, and cannot go with packing yet; set packing: "
                "false, or leave order.units out."
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise RecipeError("order: d3 cannot measure a sharded model yet; leave order.units out.")
        check_precision(autocast_of(trainer.args))
        held_out = trainer.eval_dataset
        if d3.target == "validation" and (isinstance(held_out, dict) or not hasattr(held_out, "__getitem__")):
            raise RecipeError(
                "order.target: validation needs one set of validation data that can be indexed; give "
                "data.validation (or an eval_dataset), or target: pool."
            )

    @property
    def _measures(self) -> bool:
        return self.d3.units is not None

    @property
    def _edges(self) -> str:
        return self.d3.edges or "curvature"

    @property
    def features(self) -> NDArray[np.float32]:
        """(N, d) what is kept in balance: which label tokens every sample of the pool has."""
        if self._words is None:
            self._words = label_words(self.trainer._training_samples()[0])
        return self._words

    # ---- the order that a pass begins with -----------------------------------------------------------------

    def order(self, signals: Signals, entries: NDArray[np.int64], *, epoch: int, seed: int) -> Order:
        """The balanced order, before anything is measured."""
        rng = np.random.default_rng([seed, STREAM, epoch])
        mixed = self.d3.balanced(entries, self.features[entries], rng)
        units = self.d3.units_of(mixed, self._groups(signals), self._batch)
        found = self.d3.arranged(units, None, self.features, rng, seed=seed)
        over = "" if self.d3.units is None else f" over {self.d3.units}"
        return Order(units.arranged(found.order), why=(f"by d3{over}",), told=found.told)

    def _groups(self, signals: Signals) -> NDArray[Any] | None:
        """(N,) the group of every sample; clusters are made once, at the weights the run starts from."""
        if not self.d3.grouped:
            return None
        if self._group is None:
            self._group = self.d3.groups(signals, seed=self.recipe.seed)
        return self._group

    @property
    def _batch(self) -> int:
        args = self.trainer.args
        return self.trainer._train_batch_size * args.gradient_accumulation_steps * args.world_size

    # ---- when to measure -----------------------------------------------------------------------------------

    def settle(self, batches: Batches, tell: Callable[[str], Any]) -> str | None:
        """Decide how often influence is measured, so that it costs no more than `overhead` of the samples
        that the run trains on, evenly spread over it. Reads no clock.

        Returns:
            Why nothing is measured, where that is so.
        """
        if not self._measures:
            return None
        nodes = self.d3.window or batches.steps_per_epoch
        if self.d3.grouped:
            assert self._group is not None
            nodes = len(np.unique(self._group))
        steps = total_steps(self.trainer, batches)
        allowed = self.d3.overhead * steps * batches.batch_size
        fewest = min(FEWEST, self.d3.probes)
        for probes in range(self.d3.probes, fewest - 1, -1):
            # Before its first step Adam knows no squares; they are had from the gradients of all probes.
            squares = 0 if self._edges in ("lookahead", "orders") else nodes * probes * FIRST_ORDER
            left = allowed - squares
            if (cost := self._cost(nodes, probes)) <= left:
                every = max(self._least, math.ceil(steps / int(left / cost)))
                self.timetable = Timetable(every, probes)
                self.share = cost / (every * batches.batch_size)
                return None
        fewer = "nodes or order.trial_steps" if self._edges == "orders" else "nodes"
        said = (
            f"order: d3 would need {self._cost(nodes, fewest):,.0f} forward and backward passes over a "
            f"sample to measure the influence of {nodes} nodes once, and order.overhead allows "
            f"{allowed:,.0f} in this run; the order is only balanced. Give more overhead, or fewer {fewer}."
        )
        self._say(said, tell)
        return said

    def _say(self, sentence: str, tell: Callable[[str], Any]) -> None:
        """Say once what could not be measured."""
        if sentence not in self._said and self.trainer.is_world_process_zero():
            tell(sentence)
        self._said.add(sentence)

    @property
    def _least(self) -> int:
        """Steps that what is committed at a time lasts, where units are nodes of their own."""
        if self.d3.grouped:
            return 1
        size = 1 if self.d3.units == "samples" else self.d3.size or self._batch
        return max(1, self.d3.commit * size // self._batch)

    def _cost(self, nodes: int, probes: int) -> float:
        """Cost of one measurement, in training passes over one sample."""
        d3, target = self.d3, self.d3.target_samples
        if self._edges == "orders":
            trials = nodes**2 * d3.steps * (d3.size_of(self._batch) + STEP)
            return trials + (nodes**2 + 1) * target * FORWARD
        if self._edges != "lookahead":
            return nodes * probes * (HESSIAN if self._edges == "curvature" else FIRST_ORDER) + target
        near = min(nodes, d3.neighbours + 1)
        sketches = nodes * probes if nodes > near else 0
        evaluated = (nodes * probes + target) + nodes * (near * probes + target)
        return sketches + nodes * (probes + STEP) + evaluated * FORWARD

    def due(self, step: int, onsets: tuple[int, ...]) -> bool:
        """Whether to put in order what is ahead of `step`; also where the last phase begins, which trains on
        other data."""
        return self._measuring(step) or (bool(self.timetable.every) and step in onsets)

    def _measuring(self, step: int) -> bool:
        every = self.timetable.every
        return bool(every) and step % every == 0

    # ---- measuring -----------------------------------------------------------------------------------------

    def decide(
        self,
        plan: Plan,
        served: int,
        step: int,
        record: Record,
        onsets: tuple[int, ...],
        tell: Callable[[str], Any],
    ) -> Plan:
        """The plan with what is ahead put in order by what is measured now; its segments keep their lengths.

        Args:
            plan: followed so far.
            served: how many of its segments were.
            step: optimizer steps done.
            record: gets what was decided and what it cost.
            onsets: steps at which the annealing phase selects its data, which nothing is moved across.
            tell: gets a sentence on what could not be measured.
        """
        start = time.perf_counter()
        stretches = _stretches(self.trainer.session.batches_of(plan), served, onsets)
        whole = [joined(stretch, sum(map(len, stretch)), stretch[0].epoch) for stretch in stretches]
        units = [self._units(piece, step) for piece in (whole if self.d3.grouped else whole[:1])]
        said = None
        if self._measuring(step):
            measured = self._measure(whole[0], units[0], step)
            if said := self.d3.unmeasured(units[0], measured):
                self._say(said, tell)
            self._write()
        took = {"measuring": time.perf_counter() - start}
        told: dict[str, Any] = {}
        for number, own in enumerate(units):
            rng = np.random.default_rng([self.recipe.seed, STREAM, step, number])
            features = self.features[whole[number].indices]
            found = self.d3.arranged(own, self.graph, features, rng, seed=self.recipe.seed)
            whole[number] = _moved(whole[number], own.arranged(found.order))
            told = told or found.told
        again = zip(whole, stretches, strict=True)
        after = plan.followed_by([part for pair in again for part in _split(*pair)], after=served)
        took["ordering"] = time.perf_counter() - start - took["measuring"]
        asked = {"probes": self.timetable.probes}
        if self._edges == "orders":
            asked = {"trial_steps": self.d3.steps}
        record.event(
            "order",
            step,
            time.perf_counter() - start,
            edges=self._edges,
            units=str(self.d3.units),
            **asked,
            parts={name: round(seconds, 4) for name, seconds in took.items()},
            **told,
            **({"unmeasured": said} if said else {}),
            digest=after.digest,
        )
        return after

    def _units(self, piece: Segment, step: int) -> Units:
        """Units of the places in a piece; where they are nodes of their own, of its first window."""
        places = np.arange(len(piece))
        if self.d3.grouped:
            assert self._group is not None
            return self.d3.units_of(places, self._group[piece.indices], self._batch)
        units = self.d3.units_of(places, None, self._batch)
        reach = len(units) if self.d3.window is None else self.d3.window
        first = places[: reach * units.size]
        return Units.of_batches(first, units.size, self._named(piece, units.size, len(first), step))

    def _named(self, piece: Segment, size: int, count: int, step: int) -> tuple[str, ...]:
        if size == 1:
            return tuple(f"sample {index} (place {n + 1})" for n, index in enumerate(piece.indices[:count]))
        return tuple(f"batch {number + 1} from step {step + 1}" for number in range(-(-count // size)))

    def _measure(self, piece: Segment, units: Units, step: int) -> InfluenceGraph | None:
        """Measure influence, remember it with what was known before, and return it; None if there are fewer
        than two nodes."""
        if len(units.nodes) < 2:
            return None
        probe = self._probe()
        rng = np.random.default_rng([self.recipe.seed, STREAM, step, _PROBES])
        rows = replace(units, entries=piece.indices[units.entries])
        found = self.d3.measured(probe, rows, edges=self._edges, rng=rng, probes=self.timetable.probes)
        found = replace(self._agreed(found), step=step)
        lasting = self.graph is not None and self.d3.grouped
        self.graph = self.graph.followed_by(found, self.d3.keep) if lasting else found  # type: ignore[union-attr]
        return found

    def _probe(self) -> Probe:
        trainer = self.trainer
        samples, collate = trainer._training_samples()
        target = trainer._validation_samples()[0] if self.d3.target == "validation" else None
        return Probe(
            trainer.model,
            trainer.optimizer,
            samples,
            collate,
            target=target,
            clip=trainer.args.max_grad_norm,
            batch_tokens=self.recipe.signals.batch_tokens,
            autocast=autocast_of(trainer.args),
        )

    def _agreed(self, found: InfluenceGraph) -> InfluenceGraph:
        """The first rank's, on all of them: orders must be equal exactly."""
        return on_first(lambda: found)

    def _write(self) -> None:
        if self.graph is not None:
            path = self.folder / "plan" / f"graph-{self.graph.step}.parquet"
            table = pyarrow.table(self.graph.columns(self.d3.threshold))
            on_first(lambda: write_parquet(path, table))

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What has to be remembered besides the plan."""
        own = self.timetable
        kept: dict[str, NDArray[Any]] = {"timetable": np.array([own.every, own.probes])}
        if self.graph is not None:
            kept |= {f"graph.{name}": values for name, values in self.graph.arrays().items()}
        if self._group is not None and self.d3.units != "domains":
            kept["group"] = self._group
        return {f"{_PREFIX}{name}": values for name, values in kept.items()}

    def restore(self, arrays: dict[str, NDArray[Any]], signals: Callable[[], Signals]) -> None:
        """Remember what `arrays` gave; domains are read again from the data."""
        kept = {name.removeprefix(_PREFIX): values for name, values in arrays.items() if _is_ours(name)}
        self.timetable = Timetable(*(int(value) for value in kept["timetable"]))
        graph = {name[6:]: values for name, values in kept.items() if name.startswith("graph.")}
        self.graph = InfluenceGraph.of_arrays(graph) if graph else None
        self._group = kept.get("group")
        if self._group is None:
            self._groups(signals())

    @staticmethod
    def others(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What of a checkpoint's arrays is not of the order."""
        return {name: values for name, values in arrays.items() if not _is_ours(name)}


_PREFIX = "order."
_PROBES = 7
"""Keeps the drawing of probes apart from that of orders."""


def _is_ours(name: str) -> bool:
    return name.startswith(_PREFIX)


def _stretches(batches: Batches, served: int, onsets: tuple[int, ...]) -> list[list[Segment]]:
    """Segments that are ahead, those together within which samples may change places."""
    stretches: list[list[Segment]] = []
    for number in range(served, len(batches.plan.segments)):
        segment = batches.plan.segments[number]
        first = batches.first_step(number)
        if not stretches or stretches[-1][0].epoch != segment.epoch or first in onsets:
            stretches.append([])
        stretches[-1].append(segment)
    return stretches


def _moved(piece: Segment, places: NDArray[np.int64]) -> Segment:
    """A piece whose first entries are put in another order."""
    order = np.arange(len(piece))
    order[: len(places)] = places
    changed = {
        name: None if values is None else values[order]
        for name in ("indices", "reasons", "weights")
        for values in [getattr(piece, name)]
    }
    return replace(piece, **changed)


def _split(piece: Segment, like: list[Segment]) -> list[Segment]:
    """A piece in segments of the lengths of others."""
    ends = np.cumsum([0, *(len(segment) for segment in like)])
    return [part_of(piece, int(start), int(stop)) for start, stop in pairwise(ends)]
