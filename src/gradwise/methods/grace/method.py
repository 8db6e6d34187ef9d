"""GRACE's settings, and its three verbs: begin from signals, pick, refresh."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import RecipeError, SignalError
from gradwise.methods.costs import RunSize, SelectionForecast, Speeds
from gradwise.methods.decision import Selection, check_signals, domain_mix
from gradwise.methods.grace import cascade
from gradwise.methods.grace.budget import budgeted, decide_once
from gradwise.methods.grace.costs import USUAL_ANCHORS
from gradwise.methods.grace.importance import NEEDS, Kind, MeanDirection, finite_rows, importance
from gradwise.methods.grace.nodes import nodes_of, rows_of, search_of
from gradwise.methods.grace.pick import Amount, choose, filled, minimum_of, selection, unscored_picks
from gradwise.methods.grace.published import PublishedGrace
from gradwise.methods.grace.refresh import (
    SHARE_RANGE,
    AnchorSignals,
    Propagation,
    Refreshed,
    anchors_of,
    next_share,
    refresh,
)
from gradwise.methods.grace.state import State
from gradwise.methods.interfaces import Arrays, Budgeted
from gradwise.methods.targeting import NgramMatch, Targeted, check_target
from gradwise.numerics.sampling import stratified_sample
from gradwise.settings import default_of
from gradwise.signals import Signals

REFRESHING = ("anchors", "random_anchors", "staleness", "propagate", "beta", "min_agreement", "drift")
"""Settings of what happens at a refresh."""

UNUSED_BY_ALL = ("random_anchors", "staleness", "min_agreement", "drift")
"""Those without effect where a refresh scores all candidates; agreement is still reported."""

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Grace(PublishedGrace, Targeted):
    """A coreset by coverage and importance, kept fresh while training (GRACE, arXiv 2604.11810).

    Maximises F(S) = trade_off * mean_i max_{j in S} sim(i, j) + (1 - trade_off) * mean_{j in S} s_j on the
    k-NN graph of the samples' embeddings, copies merged, by lazy greedy.

    >>> rng = np.random.default_rng(0)
    >>> signals = Signals(20, embedding=rng.standard_normal((20, 4)), loss=rng.random(20).astype("f4"))
    >>> picked = Grace(fraction=0.2, importance="loss", by_length=False).select(signals)
    >>> len(picked.indices), picked.why[0].startswith("pick 1: stands for")
    (4, True)
    """

    method: Literal["grace"] = "grace"
    """Coverage and importance on a k-NN graph."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    """Budget in label tokens, instead of a share or a number of samples."""

    importance: Kind | None = None
    """How importance is measured: `head_norm` (norm of the output head's gradient; no backward pass through
    the model), `alignment` (mean cosine of the sample's gradient with those of the others, or of the target),
    `loss`, `norm` (of the gradient), or with a target `relevance` (how near a target sample its middle
    embedding is, by rank). `loss` and `norm` rank garbage first. If unset, `relevance` with a target,
    otherwise `head_norm`."""

    by_length: bool = True
    """Multiply importance, which is that of a mean token, by the sample's label tokens over their mean."""

    trade_off: Share | None = None
    """Weight of coverage; the rest is that of importance. If unset, 0.9; with a target 0.5."""

    neighbours: Annotated[int, Field(ge=1)] = 16
    """k of the k-NN graph."""

    search: Literal["auto", "exact", "approximate"] = "auto"
    """How neighbours are found. `approximate` needs the extra `faiss`; `auto` uses it if more than 100,000
    samples are scored and it is installed. A run then writes its choice into its recipe."""

    weighted: bool = False
    """Weigh each pick by the number of samples it stands for, within a factor of four; see `weights`."""

    domain_minimum: Share = 0.0
    """Smallest part of the budget for a domain, as a fraction of its proportional share."""

    overhead: Annotated[float, Field(gt=0)] | None = None
    """Share of a run's training time for deciding; unset `candidates`, `refresh_every` and `anchors` follow
    from it and `speeds`. If unset, 0.15; settings that cost more are then used, and the run says so."""

    speeds: Speeds | None = None
    """How fast the machine trains and scores, in seconds. If unset, a run measures it before its first step
    and writes it into its recipe, so that the recipe decides the same on any machine."""

    candidates: Annotated[int, Field(ge=2)] | Literal["all"] | None = None
    """Samples of the pool that are scored, or `all`. If they are too few to choose from, part of the budget
    is filled at random from the others."""

    refresh_every: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps from one selection to the next; 0 selects once."""

    anchors: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the candidates that the first refresh scores again; later refreshes adapt it. With 1, all are
    scored and nothing is propagated."""

    random_anchors: Share = 0.75
    """Share of the anchors drawn at random (at least 8), not by priority; 0 for the authors' rule."""

    staleness: Share = 0.5
    """Weight of a score's age in the anchors' priority; the rest weighs the difference from neighbours."""

    propagate: Literal["value", "change"] = "change"
    """What spreads from anchors over the graph: their values (as the authors do), or the values' change."""

    beta: Share = 0.5
    """Weight of the neighbours in a propagated score; 0 propagates nothing."""

    min_agreement: Annotated[float, Field(ge=-1, le=1)] | None = 0.8
    """Rank correlation of propagated with measured importance below which later refreshes score more anchors,
    and above which fewer; null keeps their number."""

    drift: Annotated[float, Field(ge=0, le=2)] = 0.05
    """Change of an embedding, as 1 - cosine, above which its neighbours are searched again."""

    def check(self) -> None:
        sizes = [name for name in ("fraction", "count", "tokens") if getattr(self, name) is not None]
        if len(sizes) != 1:
            raise RecipeError(
                "select: grace needs one of fraction, count and tokens; found "
                f"{' and '.join(sizes) or 'none of them'}."
            )
        self._refuse("refresh_every: 0 selects once", REFRESHING, self.refresh_every == 0)
        self._refuse("anchors: 1 scores all candidates again", UNUSED_BY_ALL, self.anchors == 1)
        self._refuse("random_anchors: 1 draws all of them", ("staleness",), self.random_anchors == 1)
        self._refuse("beta: 0 propagates nothing", ("propagate",), self.beta == 0)
        self._refuse("relevance to a target has no length", ("by_length",), self.uses_target)
        if self.uses_target and self.importance not in (None, *cascade.TARGETED_KINDS):
            raise RecipeError(
                f"select.importance: {self.importance} does not compare with the target, which is "
                "select.target or, where that is unset, data.target; "
                f"give {' or '.join(cascade.TARGETED_KINDS)}, or leave importance out."
            )
        if self.importance == "relevance" and not self.uses_target:
            raise RecipeError("select.importance: relevance needs a target; give select.target.")
        unused = () if self.importance == "loss" else ("importance",)
        self._refuse("trade_off: 1 counts coverage alone", (*unused, "by_length"), self.trade_off == 1)

    def _refuse(self, why: str, names: tuple[str, ...], applies: bool) -> None:
        """Refuse settings that are not as they are by default, and would have no effect."""
        changed = [name for name in names if getattr(self, name) != default_of(Grace, name)]
        if applies and changed:
            raise RecipeError(f"select: {why}, so that {changed[0]} has no effect; leave one of them out.")

    left_to_run: ClassVar[tuple[str, ...]] = ("speeds", "search")

    plots: ClassVar[str | None] = "coreset"

    @property
    def kind(self) -> Kind:
        """What importance is made of: where coverage alone counts, the loss, which comes with embeddings."""
        if self.trade_off == 1 and not self.uses_target:
            return "loss"
        return self.importance or ("relevance" if self.uses_target else "head_norm")

    @property
    def coverage_weight(self) -> float:
        """`trade_off`, or its default."""
        # With a tenth of the weight on head norms by length, a tenth of the dirty pool ended at 2.883, by
        # coverage alone at 3.048, with half of the weight on plain head norms at 3.185 (docs/log.md).
        return (0.5 if self.uses_target else 0.9) if self.trade_off is None else self.trade_off

    @property
    def needs(self) -> frozenset[str]:
        """The signals it decides by."""
        needed = {"num_tokens", *cascade.measured_for(self.kind)}
        optional = (("domain", self.domain_minimum), ("texts", self.uses_target))
        more = {name for name, is_needed in optional if is_needed}
        return frozenset(needed | more)

    def select(self, signals: Signals, *, target: Signals | None = None, seed: int = 0) -> Selection:
        """A coreset of the pool, once.

        Args:
            signals: of the pool.
            target: of examples of what the model should become good at, collected alike. Their `domain`s are
                subtasks, each of which gets its share.
            seed: of what is left to chance.

        Raises:
            SignalError: when a signal it needs is missing, or no sample can be used; or a target is set and
                not given.
        """
        check_signals(signals, self.method, seed=seed)
        if target is not None and not self.uses_target:
            return replace(self, target="target").select(signals, target=target, seed=seed)
        target = check_target(target, self.method) if self.uses_target else None
        match = None if target is None else self.match_texts(signals, target)
        rows = self.rows_to_score(len(signals), signals.domain, seed, match)
        scored = signals if rows is None else signals.take(rows)
        state = self.begin(scored, scored_rows=rows, pool=len(signals), seed=seed, target=target, match=match)
        picked = self.pick(state, signals, seed=seed)
        for advice in (self.advice(picked), None if match is None else match.advice()):
            if advice:
                warnings.warn(advice, stacklevel=2)
        return picked

    def advice(self, selection: Selection) -> str | None:
        """A sentence on picks that were drawn at random to fill the budget, and on what to do, or on a pool
        that holds little that resembles the target; None if there is nothing to say."""
        said = [super().advice(selection)]
        if shortfall := unscored_picks(selection.details, len(selection.indices)):
            size = next(name for name in ("fraction", "count", "tokens") if getattr(self, name) is not None)
            more = "overhead, or candidates: all" if self.candidates is None else "candidates"
            said.append(
                f"grace: {shortfall}. Give more select.{more}, or a smaller {size}, to choose them all."
            )
        return " ".join(sentence for sentence in said if sentence) or None

    def standalone_advice(self) -> str | None:
        if self.candidates is not None or self.uses_target:
            return None
        return (
            "grace scores all samples here; a run scores as many as its overhead affords. Give "
            "select.candidates to have both alike."
        )

    # ---- in a run ------------------------------------------------------------------------------------------

    def size_in_run(self, pool: int, mean_tokens: Callable[[], float]) -> int:
        if self.tokens is None:
            return self.size(pool)
        return min(pool, max(1, round(self.tokens / max(1.0, mean_tokens()))))

    def budgeted(
        self, size: Callable[[], RunSize], speeds: Callable[[], Speeds], *, once: str | None, scores_all: bool
    ) -> Budgeted:
        """How many samples are scored, how often the selection is refreshed, and what that should cost.

        Raises:
            RecipeError: the given overhead cannot be kept, or a setting has no effect in this run.
        """
        changed = [name for name in REFRESHING if getattr(self, name) != default_of(Grace, name)]
        return budgeted(self, size, speeds, once=once, scores_all=scores_all, changed=changed)

    def compile_kernels(self) -> None:
        decide_once(self)

    def match_texts(self, signals: Signals, target: Signals) -> NgramMatch | None:
        """How the words of all samples compare with the target's; None where texts are not known."""
        if not self.uses_target or signals.texts is None or target.texts is None:
            return None
        return cascade.match_pool(signals, target, self._usual_size(len(signals), signals))

    def _usual_size(self, pool: int, signals: Signals) -> int:
        """Samples of a selection from `pool`, estimated from some of them where the budget is in tokens."""
        if self.tokens is None:
            return self.size(pool)
        tokens = np.asarray(signals.require("num_tokens", "grace with tokens"), dtype=np.float64)
        return self.size_in_run(pool, lambda: tokens[tokens <= max(self.tokens or 0, tokens.min())].mean())

    def rows_to_score(
        self,
        pool: int,
        domain: NDArray[np.str_] | None,
        seed: int,
        match: NgramMatch | None = None,
    ) -> NDArray[np.int64] | None:
        """The samples that `candidates` scores, ascending; None where that is all of them. If it is unset,
        all are scored, and with a target `cascade.SURVIVORS` for each pick."""
        count = self.candidates
        if match is not None and count is None:
            # n-grams rank the whole pool without a model; only the best few per pick are worth a scoring run.
            count = cascade.SURVIVORS * match.size
        if not isinstance(count, int) or count >= pool:
            return None
        return stratified_sample(pool, count, domain, seed) if match is None else np.sort(match.best(count))

    def begin(
        self,
        signals: Signals,
        *,
        scored_rows: NDArray[np.int64] | None = None,
        pool: int | None = None,
        step: int = 0,
        seed: int = 0,
        device: str = "cpu",
        took: dict[str, float] | None = None,
        forecast: SelectionForecast | None = None,
        target: Signals | None = None,
        match: NgramMatch | None = None,
    ) -> State:
        """What to remember of the first scoring run of a pool.

        Args:
            signals: of the candidates.
            scored_rows: their positions in the pool, ascending. If unset, all of it.
            pool: samples of the pool.
            step: optimizer steps done.
            seed: of an approximate search.
            device: where exact neighbours are searched, "cpu" or "cuda".
            took: gets the seconds that the graph took, as "graph".
            forecast: how often the selection is refreshed. If unset, never.
            target: signals of the target samples, where the selection aims at some.
            match: how the words of the whole pool compare with theirs.
        """
        check_signals(signals, self.method, seed=seed)
        signals, target = cascade.embedded(self.kind, signals, target)
        scored_rows = np.arange(len(signals)) if scored_rows is None else scored_rows
        embedding = np.asarray(signals.require("embedding", "grace"))
        usable = np.flatnonzero(self._usable(signals))
        if not usable.size:
            raise SignalError("grace found no sample whose embedding and importance are finite.")
        start = time.perf_counter()
        nodes = nodes_of(
            np.asarray(rows_of(embedding, usable), dtype=np.float32),
            self.neighbours,
            approximate=search_of(self.search, len(usable)) == "approximate",
            device=device,
            seed=seed,
        )
        if took is not None:
            took["graph"] = time.perf_counter() - start
        # Copies have one node, scored once: they can differ in nothing that is measured.
        stands = usable[nodes.first]
        mean_tokens = None
        if self.by_length and not self.uses_target:
            mean_tokens = float(signals.require("num_tokens", "grace with by_length")[stands].mean())
        if self.uses_target:
            # Of the whole pool: a smaller one, or all candidates, would give subtasks other shares.
            usual = self._usual_size(pool or len(signals), signals) if match is None else match.size
            size = min(len(stands), usual) if match is None else usual
            compared = cascade.compared_with(self.kind, signals, stands, target, size, nodes.centre)
        else:
            size, compared = 0, self._target(signals, stands)
        state = State(
            pool=pool or len(signals),
            scored_rows=scored_rows,
            rows=scored_rows[usable],
            node=nodes.node,
            sample=scored_rows[stands],
            centre=nodes.centre,
            placed=nodes.placed,
            embedding=np.array(embedding[stands], dtype=np.float32),
            importance=importance(self.kind, signals, stands, mean_tokens=mean_tokens, target=compared),
            measured_at=np.full(len(stands), step),
            graph=nodes.graph,
            share=self.anchors or USUAL_ANCHORS,
            target=compared.mean if isinstance(compared, MeanDirection) else None,
            mean_tokens=mean_tokens,
            middle=signals.middle_embedding is not None,
            seed=seed,
        )
        if isinstance(compared, cascade.Comparison):
            vectors, by_tokens = signals.require(NEEDS[self.kind], "grace")[stands], self.tokens is not None
            state = cascade.with_target(state, compared, vectors, size, match, by_tokens=by_tokens)
        # Without a refresh there is no share to adapt and no allowance to spend.
        if forecast is None or not forecast.every:
            return state
        # The forecast counts samples; where some are copies, the same cost covers more of the nodes.
        more = forecast.candidates / len(state) if self.anchors is None else 1.0
        share = min(more * forecast.anchors, max(SHARE_RANGE[1], forecast.anchors))
        return state.changed(
            every=forecast.every,
            share=share,
            allowance=forecast.allowance,
            planned=-(-forecast.steps // forecast.every) - 1,
            least_share=min(more * forecast.least_anchors, share),
        )

    @staticmethod
    def restored(arrays: Arrays) -> State:
        return State.of_arrays(arrays)

    def pick(
        self, state: State, signals: Signals, *, target: Signals | None = None, seed: int = 0
    ) -> Selection:
        """A coreset by what is known now.

        Args:
            state: of the candidates.
            signals: of the whole pool; only what does not change counts: tokens, domains, weights.
            target: not needed again.
            seed: of what is filled at random, if few samples were scored.
        """
        del target
        tokens = signals.num_tokens
        full_budget = self._budget(state, signals)
        # If few samples of the pool were scored, they get the share of the budget that they can fill well;
        # the rest is drawn at random.
        budget = full_budget.part(state)
        minimum = None
        if self.domain_minimum:
            domain = signals.require("domain", "grace with domain_minimum")
            minimum = minimum_of(state, budget, domain, self.domain_minimum)
        else:
            minimum = cascade.in_shares(state, budget.size(state), budget.node_costs(state))
        chosen = choose(state, budget, self.coverage_weight, minimum)
        when = f"after refresh {state.refreshes}" if state.refreshes else "at the start"
        picked = selection(
            state, chosen, budget, weighted=self.weighted, summary=f"in the coreset chosen {when}"
        )
        if budget is not full_budget:
            picked = filled(picked, state, full_budget, signals.domain, seed)
        if not len(picked.indices):
            raise RecipeError(
                f"select.tokens is {self.tokens}, and no sample has so few label tokens; give more."
            )
        details = picked.details | domain_mix(signals.domain, picked.indices)
        if state.closeness is not None:
            details["closeness"] = state.closeness
        if tokens is not None:
            details["label_tokens"] = int(np.asarray(tokens)[picked.indices].sum())
        picked.details.update(details)
        if signals.weight is None:
            return picked
        # Weights of the data and of the coreset are independent reasons to see a sample more often, so they
        # multiply.
        data_weights = signals.weight[picked.indices]
        return replace(
            picked, weights=data_weights if picked.weights is None else data_weights * picked.weights
        )

    def _budget(self, state: State, signals: Signals) -> Amount:
        if self.tokens is None:
            # Unusable candidates cannot be picked; samples that were not scored can.
            return Amount(count=self.size(state.pool - len(state.scored_rows) + len(state.rows)))
        costs = np.asarray(signals.require("num_tokens", "grace with tokens"), dtype=np.float64)
        return Amount(tokens=float(self.tokens), costs=costs)

    def anchors_at(self, state: State, step: int) -> NDArray[np.int64]:
        """The nodes to score again at a step; `state.sample` gives their samples."""
        return anchors_of(state, step, self.staleness, self.random_anchors)

    def refresh(
        self,
        state: State,
        anchors: NDArray[np.int64],
        signals: Signals,
        step: int,
        *,
        target: Signals | None = None,
        device: str = "cpu",
    ) -> Refreshed:
        """The state after some nodes were scored again.

        Args:
            state: before.
            anchors: (a,) nodes, ascending.
            signals: of those a nodes, in the same order; nodes that are not ok keep their values.
            step: optimizer steps done.
            target: signals of the target samples as they are now, where the selection aims at some.
            device: where exact neighbours are searched.
        """
        signals, target = cascade.embedded(self.kind, signals, target, state)
        rows = np.flatnonzero(self._usable(signals))
        if not rows.size:
            raise SignalError(
                "grace scored its anchors again, and not one has a finite embedding and importance; the "
                "model may have diverged."
            )
        embedding = np.asarray(signals.require("embedding", "grace"), dtype=np.float32)[rows]
        compared = None
        if self.uses_target:
            compared = cascade.compared_again(state, self.kind, target, anchors[rows], embedding)
        if state.target is not None:
            # Without a target the direction is the pool's own mean gradient, which only the anchors know now.
            grads = np.asarray(signals.grad)[rows].astype(np.float64)
            compared = MeanDirection(state.target, len(state)).moved(grads)
        measured = importance(self.kind, signals, rows, mean_tokens=state.mean_tokens, target=compared)
        scored = AnchorSignals(anchors[rows], embedding, measured)
        how = Propagation(self.propagate == "change", self.beta, self.drift, self.random_anchors)
        done = refresh(state, scored, how, step, anchor_count=len(anchors), device=device)
        share = next_share(state.share, done.agreement, self.min_agreement, state.least_share)
        # Anchors that could not be used have been scored all the same, so they count against the allowance.
        left = None if state.allowance is None else max(0, state.allowance - len(anchors))
        after = done.state.changed(
            # anchors: 1 promises that nothing is ever propagated, whatever the agreement.
            share=1.0 if self.anchors == 1 else share,
            allowance=left,
            target=compared.mean if isinstance(compared, MeanDirection) else None,
        )
        return replace(done, state=after)

    def _target(self, signals: Signals, rows: NDArray[np.int64]) -> MeanDirection | None:
        if self.kind != "alignment":
            return None
        return MeanDirection.of(np.asarray(signals.require("grad", "grace"))[rows].astype(np.float64))

    def _usable(self, signals: Signals) -> NDArray[np.bool_]:
        needed = np.asarray(signals.require(NEEDS[self.kind], f"grace with importance {self.kind}"))
        embedding = np.asarray(signals.require("embedding", "grace"))
        finite = finite_rows(embedding) & finite_rows(needed.reshape(len(signals), -1))
        return finite if signals.ok is None else finite & signals.ok
