"""Tries the engine on a few samples before it is trusted with a pool.

Short samples and the longest one are compared with autograd: what cannot be watched (a custom kernel, a
convolution) shows up as a parameter whose norm differs. Then the first and the last batch are measured as
they will be, and some of their samples alone: what depends on neighbours or padding (statistics over the
batch, a mask that leaks) differs. Both cost speed instead of exactness: the model is then measured one sample
at a time, and autograd gives the gradients of the parameters that cannot be watched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gradwise.precision import autocasting, full_products
from gradwise.ranks import gathered, on_each
from gradwise.signals.batching import Batcher, batches
from gradwise.signals.head import Head
from gradwise.signals.measure import Batch, InseparableError, Measured, Measurer
from gradwise.signals.rank_schedule import RankSchedule, RunKind
from gradwise.signals.request import SignalRequest
from gradwise.signals.rows import wide
from gradwise.signals.scope import kind, precise
from gradwise.signals.shards import Shards, class_name, device_of, gathered_in
from gradwise.signals.sums import GradientRequest

PAIRS = 8
"""Pairs of short samples that are tried until one has finite losses."""

TOLERANCES = {
    "loss": 1e-4, "embedding": 1e-3, "middle_embedding": 1e-3,
    "grad_norm": 1e-2, "grad": 1e-2, "head_norm": 1e-2,
}  # fmt: skip
"""Relative differences between a sample in a batch and alone that rounding of float32 explains. Gradients of
samples that are nearly learned are small differences of larger numbers."""

COARSE, SAME_SHAPE = 0.05, 1e-3
"""Relative differences of hidden states that rounding of half precision explains: between a sample in a batch
and alone, and between batches of the same shape in which only a neighbour's tokens differ."""


@dataclass(frozen=True)
class EngineCheckResult:
    """How a model can be measured."""

    one_at_a_time: bool = False
    unseen: tuple[str, ...] = ()
    """Parameters whose gradients autograd must give."""
    tried: bool = True
    """Whether there was a finite loss to compare."""
    plain_head: bool = False
    """Whether the head's part can be computed in pieces (`Head.returns_product`)."""
    certain: bool = True
    """Whether there was a gradient to compare of every kind of parameter. An adapter's first factor has none
    before the first step."""


@dataclass
class EngineCheck:
    """Arguments: as `gradwise.signals.scoring_run.ScoringRun` has them."""

    model: nn.Module
    batcher: Batcher
    signal_request: SignalRequest
    gradient_request: GradientRequest | None
    batch_tokens: int
    tell: Callable[[str], None]
    autocast: torch.dtype | None = None
    rank_schedule: RankSchedule | None = None

    def __post_init__(self) -> None:
        self.whole_batches: dict[int, dict[str, NDArray]] = {}
        """What was measured of whole batches, by their first sample."""
        self.plain_head = False

    def run(self, order: NDArray[np.int64]) -> EngineCheckResult:
        """How the model can be measured; a collective call for a model that is sharded.

        Args:
            order: distinct samples that can be measured, longest first.
        """
        # Before anything else is measured, and by all ranks on the same sample: how a run of a sharded model
        # goes must be known before the first one.
        # Where the head is not reached, nothing depends on it.
        reached = not self.signal_request.middle_alone
        self.plain_head = reached and self._returns_product(order[-1:])
        return replace(self._agreed(order), plain_head=self.plain_head)

    def _agreed(self, order: NDArray[np.int64]) -> EngineCheckResult:
        if self.rank_schedule is None:
            return self._result(order)
        with self.rank_schedule.together():
            mine = self._result(order)
        # All ranks try the same samples. Should rounding decide differently, the most careful result counts.
        agreed = max(gathered(mine), key=lambda each: (each.one_at_a_time, len(each.unseen)))
        if agreed != mine:
            self.whole_batches.clear()
        return agreed

    def _returns_product(self, row: NDArray[np.int64]) -> bool:
        device = device_of(self.model)
        # Where ranks share the model, one whose collator fails must not leave the others within it.
        made = (
            self.batcher.batch(row)
            if self.rank_schedule is None
            else on_each(lambda: self.batcher.batch(row))
        )
        batch = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in made.items()}
        with autocasting(device, self.autocast):
            return Head(self.model).returns_product(batch)

    def _result(self, order: NDArray[np.int64]) -> EngineCheckResult:
        result = self._by_autograd(order)
        if result.one_at_a_time:
            return result
        blocks = batches(order, self.batcher.inspection.lengths, self.batch_tokens)
        if self._depends_on_neighbours(blocks[0], 0) or self._depends_on_neighbours(blocks[-1], -1):
            self.whole_batches.clear()
            self.tell(_slow(self.model))
            return EngineCheckResult(True, certain=result.certain)
        return result

    def _by_autograd(self, order: NDArray[np.int64]) -> EngineCheckResult:
        result = EngineCheckResult()
        for first, second in self._pairs(order):
            pair = np.array([first, second])
            batch = self.batcher.batch(pair)
            if len(batch["labels"]) != 2 or (
                self.signal_request.needs_mask and "attention_mask" not in batch
            ):
                why = "its collator joins samples in one row, or does not tell padding apart"
                self.tell(_slow(self.model, because=why))
                return EngineCheckResult(True)
            if self.gradient_request is None:
                return result
            result = self._compared(batch, [self.batcher.batch(pair[i : i + 1]) for i in range(2)])
            if result.tried:
                break
        if self.gradient_request is None or result.one_at_a_time or not result.tried:
            return result
        # Once more with the longest sample, for which other kernels may run than for short ones.
        longest = self.batcher.batch(order[:1])
        last = self._compared(longest, [longest])
        return replace(last, tried=True, certain=last.certain and result.certain)

    def _pairs(self, order: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Short samples that differ, in pairs of different lengths where possible; a few
        pairs, for a pool may begin with samples that have no finite loss."""
        short, inspection = order[::-1], self.batcher.inspection
        telling = short[inspection.num_tokens[short] > 1]
        firsts = telling if len(telling) else short
        for first in firsts[:PAIRS].tolist():
            longer = short[inspection.lengths[short] > inspection.lengths[first]]
            others = longer if len(longer) else short[short != first]
            yield first, int(others[0]) if len(others) else first

    def _compared(self, together: Batch, alone: Sequence[Batch]) -> EngineCheckResult:
        """Losses and the norm of every kind of parameter, of samples in one batch, beside autograd's."""
        assert self.gradient_request is not None
        parameters = self.gradient_request.scope.parameters
        plain = replace(self.gradient_request, projector=None, whole=False, norms=True, preconditioner=None)
        compared = _representatives(list(parameters))
        measure = self._measurer(SignalRequest(("loss", "grad_norm")), plain)
        measured = measure(together, apart=True)
        some = {name: parameters[name] for name in compared}
        truth = [by_autograd(self.model, batch, some, self.autocast, self.rank_schedule) for batch in alone]
        if not all(loss.isfinite() for loss, _ in truth):
            return EngineCheckResult(tried=False)
        tolerance = 1e-2 if self._precise else 0.1
        if not _wrong(truth, [(measured, i) for i in range(len(alone))], compared, tolerance):
            return EngineCheckResult(
                certain=all(any(squares[name] > 0 for _, squares in truth) for name in compared)
            )
        wrong = _wrong(truth, [(measure(batch, apart=True), 0) for batch in alone], compared, tolerance)
        kinds = {kind(name) for name in wrong}
        unseen = tuple(name for name in parameters if kind(name) in kinds)
        self.tell(_slow(self.model, unseen, mixed=measured.lost))
        return EngineCheckResult(True, unseen)

    def _depends_on_neighbours(self, rows: NDArray[np.int64], end: int) -> bool:
        """Whether samples of a block, measured as it will be, differ from the same alone.

        Args:
            rows: the block.
            end: 0 for the first of its parts that are measured at once, -1 for the last.
        """
        measure = self._measurer(self.signal_request, self.gradient_request)
        part = self.batcher.parts(rows, measure.device)[end]
        if len(part) < 2 or int(rows[0]) in self.whole_batches:
            return False
        try:
            together = self.batcher.measure(measure, rows)
        except InseparableError:
            return True
        # The scoring run takes these values when it comes to this block, so that the trial of a batch costs
        # only the samples that are measured alone.
        self.whole_batches[int(rows[0])] = together
        if not self._precise:
            return self._seen_in_half_precision(part[[0, -1]])
        # The longest, the one padded least, and the one padded most; without padding any two.
        lengths = self.batcher.inspection.lengths[part]
        tried = [0, -1] if lengths[0] == lengths[-1] else [0, 1, -1]
        for row in dict.fromkeys(part[tried].tolist()):
            alone = self.batcher.measure(measure, np.array([row]))
            place = int(np.flatnonzero(rows == row)[0])
            if any(_differs(together[name], place, alone[name][0], TOLERANCES[name]) for name in together):
                return True
        return False

    def _seen_in_half_precision(self, pair: NDArray[np.int64]) -> bool:
        """Whether either sample's hidden states differ by more than rounding when they are measured alone, or
        when the other one's tokens are replaced."""
        measure = self._measurer(SignalRequest(("loss", "embedding")), None)
        batch = self.batcher.batch(pair)
        together = measure(batch).values["embedding"].float()
        for place, neighbour in ((0, 1), (1, 0)):
            # Other tokens of the same number: the same kernels run on the same shapes, so that a difference
            # can only come from what the neighbour says.
            ids = batch["input_ids"].clone()
            ids[neighbour] = (ids[neighbour] + 1) % (ids.max() + 1)
            beside_other = measure({**batch, "input_ids": ids}).values["embedding"]
            alone = measure(self.batcher.batch(pair[place : place + 1])).values["embedding"]
            state = together[place]
            for other, tolerance in ((beside_other[place], SAME_SHAPE), (alone[0], COARSE)):
                if (other - state).norm() > tolerance * state.norm():
                    return True
        return False

    def _measurer(self, signal_request: SignalRequest, gradient_request: GradientRequest | None) -> Measurer:
        return Measurer(
            self.model,
            signal_request,
            gradient_request,
            autocast=self.autocast,
            rank_schedule=self.rank_schedule,
            plain_head=self.plain_head,
        )

    @property
    def _precise(self) -> bool:
        """Whether a sample comes out the same in other shapes to more than three digits."""
        weight_dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        computed = self.autocast or gathered_in(self.model) or weight_dtype
        return precise(computed) and full_products()


def _differs(among: NDArray, place: int, alone: NDArray, tolerance: float) -> bool:
    """Whether a row differs from the same measured alone, by the scale of the largest row beside it."""
    rows = among.reshape(len(among), -1).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    scale = max(lengths[np.isfinite(lengths)].max(initial=0.0), 0.1 if alone.ndim == 0 else 0.0)
    return bool(np.linalg.norm(rows[place] - alone.reshape(-1)) > tolerance * scale)


def _slow(
    model: nn.Module,
    unseen: Sequence[str] = (),
    mixed: Sequence[str] = (),
    because: str = "samples influence each other within a batch",
) -> str:
    why = because
    if unseen:
        why = f"the gradients of {len(unseen)} parameters cannot be watched (first: {unseen[0]})"
    elif mixed:
        why = f"gradients of {mixed[0]} cannot be assigned to samples"
    advice = (
        " Leave such parameters out with `parameters` where they do not matter." if unseen or mixed else ""
    )
    return (
        f"{class_name(model)}: {why}; signals are collected one sample at a time, which is exact and "
        f"takes several times as long.{advice}"
    )


def _representatives(names: list[str]) -> list[str]:
    """The first and the last parameter of each kind: comparing all would hold a whole gradient."""
    first: dict[str, str] = {}
    last: dict[str, str] = {}
    for name in names:
        first.setdefault(kind(name), name)
        last[kind(name)] = name
    return list(dict.fromkeys([*first.values(), *last.values()]))


def by_autograd(
    model: nn.Module,
    batch: Batch,
    parameters: dict[str, nn.Parameter],
    autocast: torch.dtype | None,
    rank_schedule: RankSchedule | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of one sample, and squared norms by parameter, without any of the engine."""
    device, shards = device_of(model), Shards(model)
    inputs = {n: value.to(device) if isinstance(value, Tensor) else value for n, value in batch.items()}
    labels = inputs.pop("labels")[0, 1:]
    # Float16 gradients would underflow.
    half = torch.float16 in (autocast, gathered_in(model), *(p.dtype for p in parameters.values()))
    scale = 2.0**12 if half else 1.0
    shared = (
        nullcontext()
        if rank_schedule is None
        else rank_schedule.shared_run(RunKind(learning=tuple(parameters)))
    )
    whole: dict[int, Tensor] = {}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        with shared, torch.enable_grad():
            watched = shards.watched(lambda sharded, now: whole.update({id(sharded): now}))
            with watched, autocasting(device, autocast):
                logits: Any = model(**inputs, use_cache=False).logits[0, :-1]
            loss = functional.cross_entropy(wide(logits), labels)
            targets = [whole.get(id(parameter), parameter) for parameter in parameters.values()]
            gradients = torch.autograd.grad(loss * scale, targets, allow_unused=True)
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    squares = [
        loss.new_zeros(()) if g is None else (g.to(loss.dtype) / scale).square().sum() for g in gradients
    ]
    return loss.detach(), dict(zip(parameters, squares, strict=True))


def _wrong(
    truth: list[tuple[Tensor, dict[str, Tensor]]],
    by_engine: list[tuple[Measured, int]],
    compared: list[str],
    tolerance: float,
) -> list[str]:
    """Parameters whose norms differ by more than rounding explains; all of them where a loss does."""
    wrong: list[str] = []
    for (loss, squares), (measured, row) in zip(truth, by_engine, strict=True):
        if not torch.isclose(measured.values["loss"][row], loss, rtol=tolerance, atol=1e-6):
            return compared
        total = sum(squares.values(), loss.new_zeros(())).sqrt()
        for name in compared:
            mine = measured.by_parameter.get(name)
            norm = loss.new_zeros(()) if mine is None else mine[row].sqrt()
            # The second term passes parameters whose gradient is so small beside the whole that rounding
            # decides its norm.
            if (norm - squares[name].sqrt()).abs() > tolerance * squares[
                name
            ].sqrt() + 1e-3 * tolerance * total:
                wrong.append(name)
    return wrong
