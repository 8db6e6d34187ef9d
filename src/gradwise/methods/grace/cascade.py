"""GRACE towards a target: relevance takes the place of importance, and coverage counts the relevant region.

A cascade, cheap first. Hashed n-grams rank the whole pool without a model; `SURVIVORS` samples for each pick
are then scored by the model. Their embeddings in the middle of it are compared with those of the target
samples, which take turns (`relevance`), or their gradients with the target's mean direction (`alignment`).
Changes spread over the k-NN graph at refreshes. Both ranks count alike.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import CheckpointError, SignalError
from gradwise.methods.grace.importance import NEEDS, Kind
from gradwise.methods.grace.state import State
from gradwise.methods.grace.turns import TargetTurns
from gradwise.methods.targeting import (
    Direction,
    NgramMatch,
    Subtasks,
    bounds,
    check_target,
    match_ngrams,
    percentiles,
    texts_of,
)
from gradwise.methods.validation import check_aligned
from gradwise.numerics.facility import Minimum
from gradwise.signals import Signals

TARGETED_KINDS: tuple[Kind, ...] = ("relevance", "alignment")
"""Kinds of importance that compare samples with the target."""

SURVIVORS = 4
"""Samples that are scored for each one picked, after n-grams ranked them all."""

TURNS = 4
"""Target samples, or groups of them, that take turns for each one picked, at most. With 1 all of five
selections of 16 samples were worse (docs/log.md)."""

REGION = 2
"""Relevant samples for each one picked; coverage counts them alone."""

GARBLED = -1.0
"""Rank of a garbled sample, below all others."""


def measured_for(kind: Kind) -> frozenset[str]:
    """The signals that a kind of importance and the graph are made of."""
    # Half of a forward pass instead of a whole one, and no worse picks (docs/log.md).
    return frozenset({"middle_embedding"} if kind == "relevance" else {"embedding", NEEDS[kind]})


def embedded(
    kind: Kind, signals: Signals, target: Signals | None, state: State | None = None
) -> tuple[Signals, Signals | None]:
    """The signals with middle embeddings as their embeddings, where relevance is by these; without
    `middle_embedding` otherwise.

    Args:
        kind: of importance.
        signals: of the candidates.
        target: of the target samples.
        state: that these are to change; None at the first selection.

    Raises:
        SignalError: one set has middle embeddings, and the other has not.
        CheckpointError: the state has the others, and these are middle.
    """
    has_middle, has_others = (
        all(getattr(each, name) is not None for each in (signals, target) if each is not None)
        for name in ("middle_embedding", "embedding")
    )
    # What was collected by hand may have the others alone.
    by_middle = state.middle if state is not None else has_middle or not has_others
    if kind == "relevance" and has_middle and not has_others and not by_middle:
        raise CheckpointError(
            "grace: the checkpoint is of an earlier version, which measured another relevance; resume with "
            "that version, or start again."
        )
    if kind != "relevance" or not by_middle:
        plain = None if target is None else replace(target, middle_embedding=None)
        return replace(signals, middle_embedding=None), plain
    names = "grace", "grace, of the target samples,"
    middle, aims = (
        None if each is None else replace(each, embedding=each.require("middle_embedding", by))
        for each, by in zip((signals, target), names, strict=True)
    )
    assert middle is not None
    return middle, aims


@dataclass(frozen=True, eq=False)
class TargetDirection:
    """The directions that gradients are compared with. Shapes: T subtasks."""

    direction: Direction
    bounds: NDArray[np.float64]
    """(T,) cosines that are taken off, so that those of several subtasks can be compared."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """(T,) of a selection."""
        return self.direction.shares

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the subtasks, T of them."""
        return self.direction.names

    def by_subtask(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(T, n) of (n, k) vectors, higher is closer."""
        return self.direction.cosines(vectors) - self.bounds[:, None]

    def importance(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(n,) `by_subtask` of the subtask where it is highest."""
        return self.by_subtask(vectors).max(axis=0)


Comparison = TargetDirection | TargetTurns
"""How samples are compared with a target."""


def compared_with(
    kind: Kind,
    signals: Signals,
    rows: NDArray[np.int64],
    target: Signals | None,
    size: int,
    centre: NDArray[np.floating],
) -> Comparison:
    """How the samples of a pool are compared with a target.

    Args:
        kind: relevance, by embeddings; or alignment, by gradients.
        signals: of the candidates.
        rows: of those that stand for a node.
        target: signals of the target samples.
        size: samples of the selection.
        centre: (h,) mean of the candidates' embeddings.
    """
    target, subtasks, vectors = _target_vectors(kind, target)
    candidates = np.asarray(signals.require(NEEDS[kind], "grace"))[rows]
    if kind == "relevance":
        return TargetTurns.of(vectors, subtasks, candidates, centre, TURNS * size)
    direction = Direction.of(vectors, subtasks)
    cosines = direction.cosines(candidates)
    check_aligned(cosines, "grace", "grads")
    return TargetDirection(direction, bounds(cosines, direction.shares, size))


def compared_again(
    state: State,
    kind: Kind,
    target: Signals | None,
    anchors: NDArray[np.int64],
    embedding: NDArray[np.float32],
) -> Comparison:
    """The same at a refresh, with the target samples scored again.

    Args:
        state: before the refresh.
        kind: relevance or alignment.
        target: signals of the target samples.
        anchors: (a,) the nodes that were scored again.
        embedding: (a, h) theirs.
    """
    target, subtasks, vectors = _target_vectors(kind, target)
    if kind == "alignment":
        # The bounds stay those of the first selection: they need the cosines of all candidates, and a refresh
        # scores only some.
        assert state.bounds is not None
        direction = Direction.of(vectors, subtasks)
        if len(direction.names) != len(state.bounds):
            raise SignalError(
                f"grace: {len(state.bounds)} subtasks of the target had finite gradients at the first "
                f"selection, and {len(direction.names)} have now; the model may have diverged."
            )
        return TargetDirection(direction, state.bounds)
    if state.bounds is not None:
        raise CheckpointError(
            "grace: the checkpoint is of an earlier version, whose relevance has another scale; resume with "
            "that version, or start again."
        )
    # Places are those among all candidates as far as they are known: where all cosines have grown, those that
    # were scored again would otherwise all be first.
    shift = np.mean(embedding.astype(np.float64) - state.embedding[anchors], axis=0).astype(np.float32)
    estimates = state.embedding + shift
    estimates[anchors] = embedding
    samples = estimates if len(state.node) == len(state) else estimates[state.node]
    centre = samples.mean(axis=0, dtype=np.float64).astype(np.float32)
    return TargetTurns.of(vectors, subtasks, estimates, centre, TURNS * state.size)


def _target_vectors(kind: Kind, target: Signals | None) -> tuple[Signals, Subtasks, NDArray[Any]]:
    target = check_target(target, "grace")
    vectors = np.asarray(target.require(NEEDS[kind], "grace, of the target samples,"))
    return target, Subtasks.of_target(target), vectors


def match_pool(signals: Signals, target: Signals, size: int) -> NgramMatch:
    """The first stage of the cascade, over a whole pool."""
    target = check_target(target, "grace")
    return match_ngrams(
        texts_of(signals, "grace"),
        texts_of(target, "grace, of the target samples,"),
        Subtasks.of_target(target),
        size,
    )


def with_target(
    state: State,
    compared: Comparison,
    vectors: NDArray[Any],
    size: int,
    match: NgramMatch | None,
    *,
    by_tokens: bool,
) -> State:
    """A state with what a target adds to it.

    Args:
        state: of the nodes.
        compared: how they compare with the target.
        vectors: (m, k) by which they are compared.
        size: samples of the selection.
        match: of the words.
        by_tokens: whether the budget is in tokens.
    """
    shares = compared.shares
    by_subtask = compared.by_subtask(vectors) if len(shares) > 1 else np.zeros((1, len(vectors)))
    ranks = np.stack([percentiles(each) for each in by_subtask])
    bounds = compared.bounds if isinstance(compared, TargetDirection) else None
    state = state.changed(bounds=bounds, shares=shares, size=size)
    if match is None:
        return state.changed(subtask=_nearest(ranks, shares, size))
    # Ranked by words alone, they fill the budget where too few candidates can be used; where all are
    # candidates there are no others.
    # How many short samples a budget in tokens holds is not known, so that all are ranked.
    most = state.pool if by_tokens else match.size + len(state.scored_rows)
    others = match.best(most) if len(state.scored_rows) < state.pool else None
    score, garbled = match.score[state.sample], match.garbled[state.sample]
    by_words = np.where(garbled, GARBLED, percentiles(score))
    # A target sample that could not be measured may have been the last of its subtask.
    if match.subtasks == compared.names:
        ranks += [percentiles(each[state.sample]) for each in match.by_subtask]
    subtask = np.full(len(garbled), len(shares))
    subtask[~garbled] = _nearest(ranks[:, ~garbled], shares, size)
    return state.changed(subtask=subtask, by_words=by_words, ranked=others, closeness=match.closeness)


def _nearest(scores: NDArray[np.float64], shares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """(m,) the subtask whose picks each node is nearest to, by its rank."""
    return (scores - bounds(scores, shares, size)[:, None]).argmax(axis=0)


def in_shares(state: State, budget: float, costs: NDArray[np.float64] | None) -> Minimum | None:
    """What each subtask must have of a budget; None for a single subtask.

    A sample belongs to the subtask whose picks it is nearest to, and a garbled one to none.

    Args:
        state: the nodes.
        budget: number of picks, or their label tokens.
        costs: (m,) label tokens of the nodes, where the budget is in tokens.
    """
    if state.shares is None or len(state.shares) < 2:
        return None
    assert state.subtask is not None
    return minimum_shares(state.subtask, np.append(state.shares, 0.0), budget, costs)


def minimum_shares(
    group: NDArray[np.int64],
    shares: NDArray[np.float64],
    budget: float,
    costs: NDArray[np.float64] | None = None,
) -> Minimum:
    """Shares of a budget for groups of nodes, at most what all nodes of a group cost (1 each by default)."""
    # A billionth, or a part that comes out whole could round to one less.
    least = np.floor(shares * budget + 1e-9)
    return Minimum(group, np.minimum(least, np.bincount(group, costs, minlength=len(shares))))


def combined(scores: NDArray[np.float64], by_words: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """(m,) 0..1: ranks by the model and by words together; garbled samples have 0."""
    if by_words is None:
        return scores
    # Ranks rather than values, since cosines and log-likelihood ratios have no common unit. A garbled sample
    # lies below all others, whatever the model says of it.
    both = percentiles(scores) + by_words
    return np.where(by_words == GARBLED, 0.0, percentiles(np.where(by_words == GARBLED, -2.0, both)))


def region(scores: NDArray[np.float64], size: float) -> NDArray[np.float64]:
    """(m,) 1 for the relevant nodes, whose coverage counts, 0 for others; 1 for all if none is relevant."""
    count = min(len(scores), max(1, round(REGION * size)))
    # Coverage of the whole pool would draw picks to samples that the target has nothing to do with.
    least = -np.partition(-scores, count - 1)[count - 1]
    relevant = (scores >= least) & (scores > 0)
    return (relevant if relevant.any() else np.ones(len(scores))).astype(np.float64)
