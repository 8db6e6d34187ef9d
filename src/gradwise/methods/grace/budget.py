"""What a selection by GRACE may cost in a run, and the settings that follow from it."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradwise.errors import RecipeError
from gradwise.methods.costs import RunSize, Speeds
from gradwise.methods.grace.cascade import SURVIVORS
from gradwise.methods.grace.costs import forecast, single
from gradwise.methods.grace.nodes import search_of
from gradwise.methods.interfaces import Budgeted
from gradwise.signals import Signals

if TYPE_CHECKING:
    from gradwise.methods.grace.method import Grace

USUAL_OVERHEAD = 0.15
"""Share of the training time that deciding may take if `overhead` is unset."""


def budgeted(
    method: "Grace",
    size: Callable[[], RunSize],
    speeds: Callable[[], Speeds],
    *,
    once: str | None,
    scores_all: bool,
    changed: list[str],
) -> Budgeted:
    """As `Grace.budgeted`; `changed` names settings of refreshes that differ from their defaults.

    Speeds are measured only where something follows from them and the settings have none: the training steps
    that are timed took a third of what deciding took on a model of 135 M parameters.
    """
    every, candidates = method.refresh_every, method.candidates
    if once:
        if every or changed:
            setting = "refresh_every" if every else changed[0]
            raise RecipeError(
                f"select.{setting} is about selecting again, and {once}; leave one of them out."
            )
        every = 0
    # Another decision scores the whole pool anyway, and its signals are there for the taking.
    if scores_all:
        candidates = candidates or "all"
    run, run_speeds = size(), method.speeds
    pool = run.pool
    if method.uses_target and candidates is None:
        # Words rank the pool for nothing; what is left to score is what they let through.
        run = replace(run, pool=min(pool, SURVIVORS * run.picks))
    scored = None if candidates is None else pool if candidates == "all" else min(candidates, pool)
    dial = USUAL_OVERHEAD if method.overhead is None else method.overhead
    if run_speeds is None and method.overhead is None and scored is not None and every == 0:
        expected = single(scored, run.steps)
    else:
        run_speeds = run_speeds or speeds()
        expected = forecast(run, run_speeds, dial, candidates=scored, every=every, anchors=method.anchors)
    if method.overhead is not None and expected.share is not None and expected.share > method.overhead:
        raise RecipeError(
            f"select.overhead is {method.overhead:g}, but scoring {expected.candidates:,} samples"
            + (f" and some of them again every {expected.every} steps" if expected.every else "")
            + f" is expected to take {expected.share:.2g} of the training time; give a larger overhead, "
            "fewer candidates, rarer refreshes, or a smaller model under signals.model."
        )
    sentence = [str(expected)]
    if expected.share is not None and method.overhead is None and expected.share > 1.005 * dial:
        sentence.append(
            f"that is more than the default overhead of {dial:.0%}, since the recipe's settings ask for "
            "it; give select.overhead to bound it"
        )
    if not expected.every and changed:
        sentence.append(f"without a refresh select.{changed[0]} has no effect; give more overhead")
    filled = replace(
        method,
        speeds=run_speeds,
        search=search_of(method.search, expected.candidates),
        candidates="all" if expected.candidates == pool else expected.candidates,
    )
    return Budgeted(filled, expected, "; ".join(sentence) + ".")


def decide_once(method: "Grace") -> None:
    """Decide, and decide again, over a few random samples: what numba compiles the first time on a machine
    takes seconds, and belongs to no selection."""
    rng, count = np.random.default_rng(0), 64
    signals = Signals(
        count,
        embedding=rng.standard_normal((count, 8), dtype=np.float32),
        grad=rng.standard_normal((count, 8), dtype=np.float32),
        loss=rng.random(count, dtype=np.float32),
        grad_norm=rng.random(count, dtype=np.float32),
        head_norm=rng.random(count, dtype=np.float32),
        num_tokens=np.full(count, 5, dtype=np.int32),
        domain=np.full(count, "any"),
    )
    some = replace(method, fraction=0.5, count=None, tokens=None, candidates="all", search="exact")
    target = signals if method.uses_target else None
    state = some.begin(signals, target=target)
    some.pick(state, signals)
    anchors = some.anchors_at(state, 1)
    elsewhere = replace(signals, embedding=-np.asarray(signals.embedding)).take(anchors)
    some.pick(some.refresh(state, anchors, elsewhere, 1, target=target).state, signals)
