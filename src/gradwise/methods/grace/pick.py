"""From what GRACE knows of its nodes to a selection: facility location, copies last, a reason for each."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.decision import Selection
from gradwise.methods.grace.cascade import combined, minimum_shares, region
from gradwise.methods.grace.importance import Worth, worth
from gradwise.methods.grace.state import State
from gradwise.methods.targeting import percentiles
from gradwise.numerics import interleaved
from gradwise.numerics.facility import Covered, Facility, Minimum
from gradwise.numerics.streams import stream

WEIGHT_RANGE = (0.25, 4.0)
"""Smallest and largest weight of a pick; the mean is 1."""


LEAST_CHOICE = 1.5
"""Samples scored for every one picked among them, at least."""


@dataclass(frozen=True)
class Amount:
    """How much to pick; either `count`, or `tokens` with what each sample costs."""

    count: int | None = None
    tokens: float | None = None
    costs: NDArray[np.float64] | None = None
    """(pool,) label tokens of each sample."""

    def size(self, state: State) -> float:
        """Number of nodes to pick, or their label tokens."""
        if self.count is not None:
            return min(self.count, len(state))
        assert self.tokens is not None
        return self.tokens

    def node_costs(self, state: State) -> NDArray[np.float64] | None:
        """(m,) label tokens of each node, where the budget is in tokens."""
        # A sample without a label token would cost nothing and be picked without end.
        return None if self.costs is None else np.maximum(self.costs[state.sample], 1)

    def part(self, state: State) -> "Amount":
        """The part that is picked among the candidates: all of it, unless they are too few for a choice."""
        if len(state.scored_rows) == state.pool:
            return self
        if self.count is not None:
            # As many as the others cannot fill, whatever the choice.
            missing = self.count - (state.pool - len(state.scored_rows))
            most = max(1, int(len(state.rows) / LEAST_CHOICE), missing)
            return self if self.count <= most else Amount(count=most)
        assert self.tokens is not None and self.costs is not None
        usable_tokens = float(self.costs[state.rows].sum())
        other_tokens = float(self.costs.sum()) - float(self.costs[state.scored_rows].sum())
        most_tokens = max(usable_tokens / LEAST_CHOICE, self.tokens - other_tokens)
        return self if self.tokens <= most_tokens else Amount(tokens=most_tokens, costs=self.costs)


@dataclass(frozen=True, eq=False)
class Coreset:
    """Nodes in the order picked, and what is known of them."""

    picks: NDArray[np.int64]
    objective: float
    coverage: float
    """Fraction of the candidates that the picks cover, by similarity."""
    covered: Covered
    worth: Worth


def choose(state: State, budget: Amount, trade_off: float, minimum: Minimum | None = None) -> Coreset:
    """The nodes that facility location picks.

    Args:
        state: graph, importance and counts of the nodes.
        budget: how much to pick.
        trade_off: weight of coverage.
        minimum: how much of each group of nodes.
    """
    valued, counts = worth(state.importance), state.counts.astype(np.float64)
    if state.has_target:
        valued = replace(valued, scores=combined(valued.scores, state.by_words))
    if budget.tokens is None:
        assert budget.count is not None
        size = min(budget.count, len(state))
        if state.has_target:
            counts *= region(valued.scores, size)
        problem = Facility.of(state.graph, valued.scores, size, trade_off, counts)
        picks = problem.greedy(size, minimum=minimum)
    else:
        costs = budget.node_costs(state)
        assert costs is not None
        # One that is longer than the budget can never be picked, and must not make all others look short.
        fitting = np.minimum(costs, max(1.0, costs.max(initial=0.0, where=costs <= budget.tokens)))
        size, scores = budget.tokens / fitting.mean(), valued.scores
        if state.has_target:
            counts *= region(scores, size)
            # Closeness is that of a token: as that of a sample, short samples that have nothing to do with
            # the target outweighed long ones that have.
            size, scores = budget.tokens / fitting.max(), scores * (fitting / fitting.max())
        problem = Facility.of(state.graph, scores, size, trade_off, counts)
        # With costs the better of the two greedies is guaranteed 1/2 (1 - 1/e) of the best
        # (`facility_location`).
        both = [
            problem.greedy(budget.tokens, costs, by_cost=by_cost, minimum=minimum)
            for by_cost in (False, True)
        ]
        picks = max(both, key=problem.value)
    if trade_off:
        coverage = problem.coverage(picks) / trade_off
    else:
        coverage = Facility.of(state.graph, np.zeros(len(state)), 1, 1.0, state.counts).coverage(picks)
    return Coreset(picks, problem.value(picks), coverage, problem.covered(picks), valued)


def minimum_of(state: State, budget: Amount, domain: NDArray[np.str_], share: float) -> Minimum:
    """The minimum for each domain: `share` times its proportional part, at most its nodes."""
    names, codes = np.unique(domain[state.rows], return_inverse=True)
    weight = None if budget.costs is None else budget.costs[state.rows]
    part = np.bincount(codes, weight, minlength=len(names))
    # A node has the domain of its first sample; copies of it in other domains are not asked.
    group = np.searchsorted(names, domain[state.sample])
    return minimum_shares(
        group, share * part / max(1, part.sum()), budget.size(state), budget.node_costs(state)
    )


def selection(state: State, chosen: Coreset, budget: Amount, *, weighted: bool, summary: str) -> Selection:
    """Samples instead of nodes; where the budget asks for more than there are nodes, copies follow.

    Args:
        state: the nodes.
        chosen: the nodes picked.
        budget: what was asked for.
        weighted: give each pick the number of samples it stands for as its weight.
        summary: the reason that a plan gives for each sample.
    """
    samples = state.sample[chosen.picks]
    covers = _covers(state, chosen)
    ranked = chosen.worth.scores if state.has_target else state.importance
    percentile = 100 * (np.argsort(np.argsort(ranked)) + 0.5) / len(state)
    columns: dict[str, NDArray[Any]] = {
        "rank": np.arange(len(samples)),
        "importance": state.importance[chosen.picks],
        "importance_percentile": percentile[chosen.picks],
        "covers": covers,
        "copies": state.counts[chosen.picks] - 1,
        "measured_at": state.measured_at[chosen.picks],
    }
    if state.by_words is not None:
        columns["words_percentile"] = 100 * np.maximum(state.by_words, 0)[chosen.picks]
    of = "closeness to the target" if state.has_target else "importance"
    why = [_reason(row, of) for row in zip(*(columns[name] for name in _SAID), strict=True)]
    if state.by_words is not None:
        # Both stages of the cascade, among the samples that were scored.
        by_model = 100 * percentiles(state.importance)[chosen.picks]
        stages = zip(why, columns["words_percentile"], by_model, strict=True)
        why = [
            f"{each} (by its words {words:.0f} %, by the model {model:.0f} %)"
            for each, words, model in stages
        ]
    # A pick that stands for a tenth of the pool would otherwise be seen a hundred times as often as an
    # outlier.
    weights = np.clip(covers / covers.mean(), *WEIGHT_RANGE) if weighted and len(covers) else None
    copies = _more_copies(state, chosen.picks, budget)
    if len(copies):
        node = state.node[np.searchsorted(state.rows, copies)]
        # A copy is worth what its node is, and stands for nothing that its node does not.
        more = {
            "rank": np.arange(len(samples), len(samples) + len(copies)),
            "importance": state.importance[node],
            "importance_percentile": percentile[node],
            "covers": np.zeros(len(copies), dtype=np.int64),
            "copies": state.counts[node] - 1,
            "measured_at": state.measured_at[node],
        }
        if state.by_words is not None:
            more["words_percentile"] = 100 * np.maximum(state.by_words, 0)[node]
        columns = {name: np.concatenate([values, more[name]]) for name, values in columns.items()}
        samples = np.concatenate([samples, copies])
        why += ["a copy: no other sample was left"] * len(copies)
        weights = None if weights is None else np.concatenate([weights, np.full(len(copies), weights.min())])
    if weights is not None:
        weights = weights / weights.mean()
    return Selection(
        samples,
        why=tuple(why),
        weights=weights,
        scores=columns["importance"],
        objective=chosen.objective,
        summary=summary,
        columns=columns,
        details={
            "coverage": round(chosen.coverage, 6),
            "objective": round(chosen.objective, 6),
            "importance": _mean(state.importance[chosen.picks]),
            "pool_importance": _mean(state.importance),
            "distinct": len(state),
            "looked_at": len(state.rows),
            "outliers": state.sample[chosen.worth.outliers][:8].tolist(),
            "outlier_count": len(chosen.worth.outliers),
            # An exact graph misses no neighbour.
            **({"recall": round(state.graph.recall, 4)} if state.graph.recall < 1 else {}),
        },
    )


def _mean(values: NDArray[np.float64]) -> float:
    return round(float(values.mean()), 6) if len(values) else 0.0


_SAID = ("rank", "covers", "copies", "importance_percentile")


def _reason(values: tuple[Any, ...], of: str) -> str:
    rank, covers, copies, percentile = values
    copied = f", {copies} of them copies" if copies else ""
    return f"pick {rank + 1}: stands for {covers} samples{copied}; {of} above {percentile:.0f} % of all"


def _covers(state: State, chosen: Coreset) -> NDArray[np.int64]:
    """(picks,) samples that each pick is the nearest one of, itself and its copies among them."""
    nodes = chosen.covered.by >= 0
    counts = np.bincount(chosen.covered.by[nodes], weights=state.counts[nodes], minlength=len(chosen.picks))
    return counts.astype(np.int64)


def _copies(state: State, picks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Samples that no node stands for: second copies in the order of the picks, then third ones, ..."""
    place = np.full(len(state), len(picks))
    place[picks] = np.arange(len(picks))
    order = np.argsort(state.node, kind="stable")
    starts = np.concatenate([[0], np.cumsum(state.counts)[:-1]])
    turn = np.empty(len(state.rows), dtype=np.int64)
    turn[order] = np.arange(len(order)) - np.repeat(starts, state.counts)
    ranked = np.lexsort((place[state.node], turn))
    return state.rows[ranked[turn[ranked] > 0]]


def _more_copies(state: State, picks: NDArray[np.int64], budget: Amount) -> NDArray[np.int64]:
    """Copies that the budget still has room for once every node is picked."""
    if len(picks) < len(state):
        return np.zeros(0, dtype=np.int64)
    copies = _copies(state, picks)
    if budget.tokens is None:
        assert budget.count is not None
        return copies[: budget.count - len(picks)]
    assert budget.costs is not None
    return _fitting(copies, budget.costs, budget.tokens - budget.costs[state.sample[picks]].sum())


def filled(
    picked: Selection, state: State, budget: Amount, domain: NDArray[np.str_] | None, seed: int
) -> Selection:
    """A selection with samples that were not scored, up to the whole budget: by their n-grams where a target
    is given, otherwise at random with every domain in proportion. What is not known of them is masked in the
    columns and NaN in the scores."""
    if state.ranked is not None:
        others = state.ranked[~np.isin(state.ranked, state.scored_rows)]
    else:
        rng = stream(seed, "grace random fill")
        others = rng.permutation(np.setdiff1d(np.arange(state.pool), state.scored_rows))
        if domain is not None:
            others = others[interleaved(domain[others])]
    if budget.count is not None:
        more = others[: budget.count - len(picked.indices)]
    else:
        assert budget.tokens is not None and budget.costs is not None
        more = _fitting(others, budget.costs, budget.tokens - budget.costs[picked.indices].sum())
    count = len(more)
    if state.ranked is None:
        why, counted = ("not scored; drawn at random to fill the budget",) * count, "at_random"
    else:
        place = np.empty(state.pool, dtype=np.int64)
        place[state.ranked] = np.arange(len(state.ranked))
        why = tuple(f"not scored; number {place[row] + 1:,} of {state.pool:,} by its n-grams" for row in more)
        counted = "by_words"
    weights, scores = picked.weights, picked.scores
    return replace(
        picked,
        indices=np.concatenate([picked.indices, more]),
        why=picked.why + why,
        weights=None if weights is None else np.concatenate([weights, np.ones(count)]),
        scores=None if scores is None else np.concatenate([scores, np.full(count, np.nan)]),
        columns={name: _unknown(values, count) for name, values in picked.columns.items()}
        | {"rank": np.arange(len(picked.indices) + count)},
        details=picked.details | {counted: count},
    )


def random_picks(details: dict[str, Any], picked: int) -> str | None:
    """A sentence on how many of `picked` samples were drawn at random, given a selection's details; None if
    none."""
    count = details.get("at_random", 0)
    if not count:
        return None
    scored = f"{details['looked_at']:,}"
    return f"{count:,} of {picked:,} picks are random, since only {scored} samples were scored"


def unscored_picks(details: dict[str, Any], picked: int) -> str | None:
    """A sentence on how many of `picked` samples were not scored, given a selection's details; None if
    none."""
    count = details.get("by_words", 0)
    if not count:
        return random_picks(details, picked)
    scored = f"{details['looked_at']:,}"
    return f"{count:,} of {picked:,} picks follow n-grams alone, since only {scored} samples were scored"


def _fitting(samples: NDArray[np.int64], costs: NDArray[np.float64], left: float) -> NDArray[np.int64]:
    """Samples in the order given, each that still fits."""
    fitting = []
    # A sample without a label token would cost nothing, and every one of them be taken.
    for sample, cost in zip(samples.tolist(), np.maximum(costs[samples], 1).tolist(), strict=True):
        if cost <= left:
            fitting.append(sample)
            left -= cost
    return np.array(fitting, dtype=np.int64)


def _unknown(values: NDArray[Any], more: int) -> NDArray[Any]:
    """Values with `more` masked ones after them."""
    mask = np.repeat([False, True], [len(values), more])
    return np.ma.masked_array(np.concatenate([values, np.zeros(more, dtype=values.dtype)]), mask)
