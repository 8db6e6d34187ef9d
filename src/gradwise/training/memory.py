"""Memory of a run by part, measured at a few of its steps and written to its record.

Sums over weights, gradients and optimizer state take milliseconds, and are made in the second step (the first
begins without optimizer state), in each step that draws layers, and in the last. What forward and backward
need besides is known only by following every tensor, which makes a step take about a third longer. So it is
followed in the second step alone, and in the first micro-batch of a probe.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gradwise.signals.model_state import unwrapped
from gradwise.signals.shards import reshard
from gradwise.training.layers import LayerSwitch
from gradwise.training.offload.arena import is_streamed
from gradwise.training.record import RunRecord
from gradwise.training.record_names import GRADIENTS, PARTS, PASSES, PROBE, STATE, UPDATE
from gradwise.training.sharding import local_part
from gradwise.training.tensor_bytes import TensorBytes, weights_of

BytesByPart = dict[str, int]
"""Bytes by part."""


class StepMemory:
    """Measures a run from `begin` on; before, its methods do nothing.

    No number of the run depends on it: every operation is made as it would be otherwise, by the same kernels.
    """

    def __init__(self) -> None:
        self._record: RunRecord | None = None
        self._followed = False
        self._phases: dict[str, BytesByPart] = {}
        self.forecast: dict[str, BytesByPart] | None = None
        """What the phases were expected to take; written beside what the step that is followed took."""

    def begin(
        self,
        record: RunRecord,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        switch: LayerSwitch | None,
        steps: int,
        followed: bool,
    ) -> None:
        """The model and its optimizer are as the first step to come will find them.

        Args:
            record: gets a `memory` event for each measured step; one that writes nothing measures nothing.
            model: that trains.
            optimizer: of the model.
            switch: draws the layers that are updated, if any does.
            steps: of the whole run.
            followed: whether tensors can be followed through the model.
        """
        self._record = record if record.writes else None
        self._model, self._optimizer = model, unwrapped(optimizer)
        self._switch, self._steps, self._draws = switch, steps, switch.draws if switch else 0
        # Those of a compiled or quantised model are not what its operations return.
        kinds = (nn.Parameter, DTensor)
        self._followed = followed and all(type(p) in kinds for p in model.parameters())
        self._phases, self._counted = {}, None

    @contextmanager
    def passes(self, step: int) -> Iterator[None]:
        """Around the forward and backward runs of a micro-batch, `step` steps having been done."""
        if not self._followed or step != self._second:
            yield
            return
        # On all ranks, since they gather together what evaluation has left whole.
        reshard(self._model)
        if self._record is None:
            yield
            return
        if self._counted is None:
            self._counted = TensorBytes()
            self._counted.add(self._state()[0], STATE)
        # By hand, a followed step took 0.171 instead of 0.122 s on stories260K, and 5.06 instead of 4.15 s in
        # the shape of SmolLM2-135M (docs/log.md, 2026-11-29).
        with self._counted.following(self._model):
            yield
        self._phases[PASSES] = _larger(self._phases.get(PASSES, {}), self._counted.at_peak)

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Around the forward and backward runs of a micro-batch that measures layers."""
        if self._record is None or not self._followed or PROBE in self._phases:
            yield
            return
        with TensorBytes().following(self._model) as counted:
            yield
        self._phases[PROBE] = _larger({}, counted.at_peak)

    def before_update(self, step: int) -> None:
        """The gradients of the step are complete that follows `step` others."""
        if self._record is None:
            return
        draws = self._switch.draws if self._switch else 0
        # Only a draw changes which gradients and states exist, so steps between two draws are not measured.
        drawn, self._draws = draws != self._draws, draws
        if not (drawn or step == self._second or step + 1 >= self._steps):
            return
        start = time.perf_counter()
        parts = {part: _bytes(tensors) for part, tensors in weights_of(self._model).items()}
        parts[GRADIENTS] = _bytes(p.grad for p in self._model.parameters() if p.grad is not None)
        self._phases[UPDATE] = parts
        self._took = time.perf_counter() - start

    def after_update(self, step: int) -> None:
        """The step was made; `step` counts it. Writes what was measured in it."""
        if self._record is None or UPDATE not in self._phases:
            return
        start = time.perf_counter()
        on_device, host = self._state()
        stream = getattr(self._optimizer, "offloaded_state", None)
        came = 0 if stream is None else stream.on_device
        self._phases[UPDATE][STATE] = _bytes(on_device) + came
        phases = {name: {part: parts.get(part, 0) for part in PARTS} for name, parts in self._phases.items()}
        more: dict[str, Any] = {"host": host} if host else {}
        if self.forecast and step == self._second + 1:
            more["forecast"] = self.forecast
        device = next(self._model.parameters()).device
        if device.type == "cuda":
            # Never reset: the run's own peak, or that of a benchmark around it, would be lost (docs/log.md).
            more["allocated"] = torch.cuda.max_memory_allocated(device)
        self._phases, self._counted = {}, None
        self._record.event("memory", step, self._took + time.perf_counter() - start, phases=phases, **more)

    @property
    def _second(self) -> int:
        """Steps done before the step that is followed: the second, or the only one."""
        return min(1, self._steps - 1)

    def _state(self) -> tuple[list[Tensor], int]:
        """The optimizer's state on the device, and bytes of it in host memory."""
        states = [state for state in self._optimizer.state.values() if isinstance(state, dict)]
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        if not hasattr(self._optimizer, "offloaded_state"):
            return tensors, 0
        on_device = [value for value in tensors if not is_streamed(value)]
        return on_device, _bytes(value for value in tensors if is_streamed(value))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of what this rank holds of tensors."""
    return sum(local_part(tensor)[0].nbytes for tensor in tensors)


def _larger(one: BytesByPart, other: BytesByPart) -> BytesByPart:
    return dict(max(one, other, key=lambda parts: sum(parts.values())))
