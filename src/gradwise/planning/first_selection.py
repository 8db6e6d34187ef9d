"""What is selected before the first step, in a run or outside of one."""

import time
from typing import NamedTuple

from gradwise.methods.costs import SelectionForecast
from gradwise.methods.decision import Selection
from gradwise.methods.interfaces import SelectionState, Selector, TextMatch
from gradwise.numerics.ngrams import compile_kernels
from gradwise.planning.context import RunContext
from gradwise.planning.scoring import PoolSignals
from gradwise.signals import Signals


class FirstSelection(NamedTuple):
    """A selection before the first step."""

    selection: Selection
    state: SelectionState | None
    """What the method remembers."""
    order_signals: Signals
    """Signals of the whole pool, by which the selection is put in order."""


def first_selection(
    method: Selector,
    context: RunContext,
    scored: PoolSignals,
    *,
    order_needs: frozenset[str] = frozenset(),
    forecast: SelectionForecast | None = None,
    took: dict[str, float] | None = None,
    match: TextMatch | None = None,
) -> FirstSelection:
    """What a method selects before the first step, in a run or outside of one.

    Args:
        method: that selects.
        context: the samples and the seed.
        scored: signals of the samples that were scored.
        order_needs: signals by which the selection is put in order.
        forecast: how often the selection is refreshed.
        took: gets the seconds of its parts.
        match: how the texts of the pool compare with the target's, where the method asks that.
    """
    target = scored.target
    state = method.begin(
        scored.signals,
        scored_rows=scored.rows,
        pool=len(context.train),
        seed=context.seed,
        device=context.device,
        took=took,
        forecast=forecast,
        target=target,
        match=match,
    )
    order_signals = scored.signals
    if scored.rows is not None:
        order_signals = context.train.described(order_needs | method.needs | {"num_tokens"})
    selection = method.pick(state, order_signals, target=target, seed=context.seed).without(scored.bad)
    selection = selection.weighing(context.recipe.weights)
    return FirstSelection(selection, state, order_signals if scored.for_order is None else scored.for_order)


def match_pool_texts(method: Selector, context: RunContext) -> TextMatch | None:
    """What the texts of the pool and of the target say before a model is asked; written to the record."""
    if context.target is None or not method.uses_target:
        return None
    compile_kernels()
    start = time.perf_counter()
    pool = context.train.described(method.needs & {"texts", "num_tokens"})
    target = Signals(len(context.target), domain=context.target.domain, texts=context.target.texts)
    match = method.match_texts(pool, target)
    if match is not None:
        context.record.event(
            "ngrams",
            0,
            time.perf_counter() - start,
            samples=len(pool),
            target=len(target),
            garbled=int(match.garbled.sum()),
            closeness=match.closeness,
        )
    return match
