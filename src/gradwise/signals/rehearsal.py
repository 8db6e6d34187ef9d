"""Tries the engine on two short samples against autograd before it is trusted with a pool.

Whatever a model does that cannot be watched (a custom kernel, a convolution, statistics over the batch) shows
up here as a parameter whose norm differs, and costs speed instead of exactness: the pass then goes one sample
at a time, and autograd gives the gradients of those parameters.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwise.precision import autocasting
from gradwise.signals.measure import Batch, Measured, Measurer
from gradwise.signals.scope import precise
from gradwise.signals.sums import Asked
from gradwise.signals.wanted import Wanted


@dataclass(frozen=True)
class Verdict:
    """How a model can be measured."""

    one_at_a_time: bool = False
    unseen: tuple[str, ...] = ()
    """Parameters whose gradients autograd must give."""
    tried: bool = True
    """Whether there was a finite loss to compare."""


def rehearse(
    model: nn.Module,
    asked: Asked,
    pair: Batch,
    alone: Sequence[Batch],
    tell: Callable[[str], None],
    autocast: torch.dtype | None = None,
) -> Verdict:
    """Compare losses and the norm of every kind of parameter with autograd's.

    Args:
        model: lent.
        asked: its scope is what is compared.
        pair: two samples of different lengths in one batch.
        alone: the same two, each in a batch of its own.
        tell: gets a sentence when samples have to go one at a time.
        autocast: what forward passes compute in; None for the weights' own type.
    """
    plain = replace(asked, projector=None, whole=False, norms=True, preconditioner=None)
    wanted = Wanted(("loss", "grad_norm"))
    compared = _representatives(list(asked.scope.parameters))
    measure = Measurer(model, wanted, plain, autocast=autocast)
    together = measure(pair, apart=True)
    parameters = {name: asked.scope.parameters[name] for name in compared}
    truth = [_autograd(model, batch, parameters, autocast) for batch in alone]
    if not all(loss.isfinite() for loss, _ in truth):
        return Verdict(tried=False)
    computed = autocast or next(iter(asked.scope.parameters.values())).dtype
    tolerance = 1e-2 if precise(computed) else 0.1
    if not _wrong(truth, [(together, i) for i in range(len(alone))], compared, tolerance):
        return Verdict()
    wrong = _wrong(truth, [(measure(batch, apart=True), 0) for batch in alone], compared, tolerance)
    kinds = {_kind(name) for name in wrong}
    unseen = tuple(name for name in asked.scope.parameters if _kind(name) in kinds)
    tell(_slow(model, unseen))
    return Verdict(True, unseen)


def _slow(model: nn.Module, unseen: tuple[str, ...]) -> str:
    why = (
        f"the gradients of {len(unseen)} parameters cannot be watched (first: {unseen[0]})"
        if unseen
        else "samples influence each other within a batch"
    )
    return (
        f"{type(model).__name__}: {why}; signals are collected one sample at a time, which is exact and "
        "takes several times as long. Leave such parameters out with `parameters` where they do not matter."
    )


def _kind(name: str) -> str:
    """What parameters of different layers have in common."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _representatives(names: list[str]) -> list[str]:
    """The first and the last parameter of each kind: comparing all would hold a whole gradient."""
    first: dict[str, str] = {}
    last: dict[str, str] = {}
    for name in names:
        first.setdefault(_kind(name), name)
        last[_kind(name)] = name
    return list(dict.fromkeys([*first.values(), *last.values()]))


def _autograd(
    model: nn.Module, batch: Batch, parameters: dict[str, nn.Parameter], autocast: torch.dtype | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of one sample, and squared norms by parameter, without any of the engine."""
    device = next(model.parameters()).device
    inputs = {n: value.to(device) if isinstance(value, Tensor) else value for n, value in batch.items()}
    labels = inputs.pop("labels")[0, 1:]
    # Float16 gradients would underflow.
    half = torch.float16 in (autocast, *(p.dtype for p in parameters.values()))
    scale = 2.0**12 if half else 1.0
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            with autocasting(device, autocast):
                logits: Any = model(**inputs, use_cache=False).logits[0, :-1]
            wide = logits if logits.dtype == torch.float64 else logits.float()
            loss = functional.cross_entropy(wide, labels)
            found = torch.autograd.grad(loss * scale, list(parameters.values()), allow_unused=True)
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    squares = [loss.new_zeros(()) if g is None else (g.to(wide.dtype) / scale).square().sum() for g in found]
    return loss.detach(), dict(zip(parameters, squares, strict=True))


def _wrong(
    truth: list[tuple[Tensor, dict[str, Tensor]]],
    found: list[tuple[Measured, int]],
    compared: list[str],
    tolerance: float,
) -> list[str]:
    """Parameters whose norms differ by more than rounding explains; all of them where a loss does."""
    wrong: list[str] = []
    for (loss, squares), (measured, row) in zip(truth, found, strict=True):
        if not torch.isclose(measured.values["loss"][row], loss, rtol=tolerance, atol=1e-6):
            return compared
        total = sum(squares.values(), loss.new_zeros(())).sqrt()
        for name in compared:
            mine = measured.by_parameter.get(name)
            norm = loss.new_zeros(()) if mine is None else mine[row].sqrt()
            if (norm - squares[name].sqrt()).abs() > tolerance * squares[
                name
            ].sqrt() + 1e-3 * tolerance * total:
                wrong.append(name)
    return wrong
