"""Makes the plan of a run: collects what decisions need, selects, orders, and charges every part."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradwise.methods.decision import Selection
from gradwise.planning.make import make_plan
from gradwise.planning.pool import pool_signals
from gradwise.recipe import Recipe
from gradwise.training.plan import Plan
from gradwise.training.record import Record


def decide(
    trainer: Any,
    recipe: Recipe,
    epochs: Callable[[Plan], int],
    record: Record,
    *,
    shared: Path | None = None,
) -> Plan:
    """The plan that a recipe's `select` and `order` make of a trainer's data.

    Args:
        trainer: a `gradwise.Trainer`, whose model measures what is needed.
        recipe: its `select`, `order`, `signals` and `seed`.
        epochs: how many passes to plan, given the plan of a single one.
        record: gets what was decided and what it cost.
        shared: folder in which several runs keep the signals that they have in common.
    """
    needs = recipe.select.needs | recipe.order.needs
    signals, seconds, found = pool_signals(
        trainer, needs, recipe.signals, record, seed=recipe.seed, shared=shared
    )
    bad = [] if signals.ok is None else np.flatnonzero(~signals.ok).tolist()
    if needs:
        told = {"quantities": sorted(needs), "samples": len(signals), "set_aside": len(bad), "first": bad[:8]}
        record.event("signals", 0, seconds, **told, **({"shared": True} if found else {}))
    start = time.perf_counter()
    selection = _without(bad, recipe.select.select(signals, seed=recipe.seed))
    planned = partial(make_plan, selection, recipe.order, signals, seed=recipe.seed)
    plan = planned(epochs=epochs(planned(epochs=1)))
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
    )
    return plan


def _without(bad: list[int], selection: Selection) -> Selection:
    """Set samples aside whose measured values are not finite, whatever selected them."""
    keep = ~np.isin(selection.indices, bad)
    if keep.all():
        return selection
    parts: dict[str, Any] = {"indices": selection.indices[keep]}
    for name in ("weights", "scores"):
        values = getattr(selection, name)
        parts[name] = None if values is None else values[keep]
    if len(selection.why) > 1:
        parts["why"] = tuple(why for why, kept in zip(selection.why, keep, strict=True) if kept)
    return replace(selection, **parts)
