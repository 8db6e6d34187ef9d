"""A refresh: a few anchors are scored again, their changes are propagated, the graph is repaired.

An anchor's value is also predicted from the other anchors alone, as if it had not been scored. How well the
predictions agree with the scores shows whether the values of all other nodes can be trusted, and costs
nothing.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.grace.state import State
from gradwise.numerics.knn import repaired
from gradwise.numerics.nearest import unit
from gradwise.numerics.propagation import priority, spread, sweep, sweep_change
from gradwise.numerics.streams import stream

SHARE_RANGE = (0.02, 0.5)
"""Smallest and largest share of anchors, unless `anchors` sets a larger one."""

FEWEST_AT_RANDOM = 8
"""Anchors that are drawn at random at least, where any are.
Samples of high priority are unlike their neighbours: they say little about others, and make propagation look
better than it is. On a real run with 5 % anchors the rank correlation of losses was 0.05 by priority alone,
0.72 with three quarters drawn, and much the same with all of them drawn (docs/log.md)."""

GROWS, SHRINKS = 1.5, 1.25
"""Factors: multiply the anchor share if propagated and exact values disagree, divide it if they agree."""


@dataclass(frozen=True, eq=False)
class AnchorSignals:
    """The anchors' new values. Shapes: a anchors."""

    anchors: NDArray[np.int64]
    """(a,) nodes, ascending."""
    embedding: NDArray[np.float32]
    """(a, h)"""
    importance: NDArray[np.float64]
    """(a,)"""


@dataclass(frozen=True)
class Propagation:
    """How values spread from anchors."""

    change: bool
    """Spread what changed, rather than the values themselves."""
    beta: float
    drift: float
    """1 - cosine beyond which an anchor's place in the graph is repaired."""
    at_random: float
    """Share of the anchors that was drawn at random."""

    def guesses(
        self, old: NDArray[Any], scored: AnchorSignals, measured: NDArray[Any], state: State
    ) -> NDArray[Any]:
        """What the sweep makes of every node, the anchors themselves among them."""
        # Training raises and lowers whole neighbourhoods, while a neighbour's value says little about a
        # sample's own. With 10 % anchors, changes gave losses a rank correlation of 0.83 with exact ones,
        # values 0.20, and no propagation -0.09 (docs/results/grace-propagation.md).
        if self.change:
            return sweep_change(old, state.graph, scored.anchors, measured, self.beta)
        values = old.copy()
        values[scored.anchors] = measured
        return sweep(old, values, state.graph, self.beta)


@dataclass(frozen=True, eq=False)
class Refreshed:
    """The state after a refresh, and how it went."""

    state: State
    agreement: float | None
    """Spearman's correlation of guessed and measured importance over the anchors drawn at random (all of
    them, where none was drawn); None where it has none."""
    embedding_agreement: float | None
    """Mean cosine of guessed and measured embeddings around the centre, over the same."""
    moved: int
    """Anchors whose place in the graph was repaired."""
    searched: int
    """Rows of the graph that were searched again."""
    graph_seconds: float
    """What repairing the graph took."""

    def details(self) -> dict[str, Any]:
        """Plain values for the record."""
        agreements = {name: getattr(self, name) for name in ("agreement", "embedding_agreement")}
        return {
            **{name: None if value is None else round(value, 4) for name, value in agreements.items()},
            "next_share": round(self.state.share, 4),
            "moved": self.moved,
            "searched": self.searched,
        }


def anchors_of(state: State, step: int, staleness: float, at_random: float) -> NDArray[np.int64]:
    """The nodes to measure at a step, ascending: some at random, and those of highest priority, spread over
    the graph; none once the allowance is used up."""
    count = _affordable(state, int(np.clip(round(state.share * len(state)), 1, len(state))))
    ranked = priority(step - state.measured_at, state.importance, state.graph, staleness)
    return spread(state.graph, ranked, count, drawn_of(state, step, count, at_random))


def _affordable(state: State, count: int) -> int:
    """Of `count` anchors as many as the later refreshes can spare, each of which keeps its least share."""
    if state.allowance is None:
        return count
    # The forecast has paid for this many anchors over the whole run. What earlier refreshes took is gone:
    # where agreement was low they took it all, and later ones scored nothing.
    least = max(1, round(state.least_share * len(state)))
    later = max(0, state.planned - state.refreshes - 1)
    return min(count, max(least, state.allowance - later * least), state.allowance)


def drawn_of(state: State, step: int, count: int, at_random: float) -> NDArray[np.int64]:
    """Those of `count` anchors that are drawn at random, ascending; the same whenever they are asked for."""
    if not at_random:
        return np.zeros(0, dtype=np.int64)
    some = min(count, max(FEWEST_AT_RANDOM, round(at_random * count)))
    # Asked twice in a refresh, for choosing and for judging; a stream by step gives the same draw both times.
    rng = stream(state.seed, "grace anchors", step, state.refreshes)
    return np.sort(rng.choice(len(state), some, replace=False))


def refresh(
    state: State,
    scored: AnchorSignals,
    how: Propagation,
    step: int,
    *,
    anchor_count: int,
    device: str = "cpu",
) -> Refreshed:
    """The state after `anchor_count` anchors were scored; `scored` has those that could be.

    Where all nodes were to be, the state is that of a first scoring run: nothing is propagated (a node that
    could not be scored keeps its values) and the graph is built of where all nodes are now.
    """
    importance = how.guesses(state.importance, scored, scored.importance, state)
    embedding = how.guesses(state.embedding, scored, scored.embedding, state)
    # A shift that all anchors share is a shift of the pool: it moves the centre, and not a single row of the
    # graph.
    shift = scored.embedding.astype(np.float64) - state.embedding[scored.anchors]
    centre = state.centre + np.average(shift, axis=0, weights=state.counts[scored.anchors])
    # Agreement is judged by the random anchors alone. Those of high priority were chosen because their
    # neighbours do not explain them; judged by all, the check was too optimistic about the rest
    # (docs/log.md).
    drawn = np.isin(scored.anchors, drawn_of(state, step, anchor_count, how.at_random))
    drawn = drawn if drawn.any() or how.at_random else np.ones(len(drawn), dtype=bool)
    # Observed like this, it was 0.05 below the correlation over all other nodes on average
    # (docs/results/grace-propagation.md), so that a refresh does not trust propagation too much.
    agreement = _correlation(importance[scored.anchors[drawn]], scored.importance[drawn])
    placed = unit(scored.embedding - centre)
    guessed = unit(embedding[scored.anchors] - centre)
    agree = np.einsum("ah,ah->a", placed, guessed)[drawn]
    if anchor_count == len(state):
        importance, embedding = state.importance.copy(), state.embedding.copy()
    importance[scored.anchors] = scored.importance
    embedding[scored.anchors] = scored.embedding
    if anchor_count == len(state):
        # The mean of the samples in their order, as `nodes_of` takes it, to be the same to the last bit.
        samples = embedding if len(state.node) == len(state) else embedding[state.node]
        centre = samples.mean(axis=0, dtype=np.float64).astype(np.float32)
        where, moved = unit(embedding - centre), np.arange(len(state))
    else:
        cosines = np.einsum("ah,ah->a", placed, state.placed[scored.anchors])
        # A small drift hardly changes the order of neighbours, while each moved row costs a search of the
        # pool.
        far = 1 - cosines > how.drift
        moved = scored.anchors[far]
        where = state.placed.copy()
        where[moved] = placed[far]
    start = time.perf_counter()
    fixed = repaired(state.graph, where, moved, device=device)
    graph_seconds = time.perf_counter() - start
    measured_at = state.measured_at.copy()
    # Only anchors that could be used: the others stay stale, and so likely to be chosen again.
    measured_at[scored.anchors] = step
    after = state.changed(
        centre=centre.astype(np.float32),
        placed=where,
        embedding=embedding,
        importance=importance,
        measured_at=measured_at,
        graph=fixed.graph,
        refreshes=state.refreshes + 1,
    )
    searched = len(fixed.recomputed)
    embedding_agreement = float(agree.mean()) if len(agree) else None
    return Refreshed(after, agreement, embedding_agreement, len(moved), searched, graph_seconds)


def next_share(
    share: float, agreement: float | None, least_agreement: float | None, least: float = SHARE_RANGE[0]
) -> float:
    """Share of anchors of the next refresh: more where propagation cannot be trusted, fewer where it can; the
    same if no agreement is wanted.

    >>> round(next_share(0.1, agreement=0.4, least_agreement=0.8), 3), round(next_share(0.1, 0.9, 0.8), 3)
    (0.15, 0.08)
    """
    if least_agreement is None:
        return share
    # Without an agreement (fewer than three values, or all equal) nothing speaks for more anchors.
    trusted = agreement is None or agreement >= least_agreement
    most = max(SHARE_RANGE[1], share)
    return float(np.clip(share / SHRINKS if trusted else share * GROWS, min(least, most), most))


def _correlation(guessed: NDArray[np.float64], measured: NDArray[np.float64]) -> float | None:
    if len(measured) < 3 or np.ptp(guessed) == 0 or np.ptp(measured) == 0:
        return None
    from scipy.stats import rankdata  # a third of the time that commands take to start

    return float(np.corrcoef(rankdata(guessed), rankdata(measured))[0, 1])
