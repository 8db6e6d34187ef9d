"""GRACE's settings, and its three verbs: begin from signals, pick, refresh."""

import time
import warnings
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import RecipeError, SignalError
from gradwise.methods.decision import Selection, check_signals, domain_mix
from gradwise.methods.grace.costs import EXACT_UP_TO, USUAL_ANCHORS, Speeds
from gradwise.methods.grace.importance import NEEDS, Kind, Target, importance
from gradwise.methods.grace.nodes import nodes_of, rows_of
from gradwise.methods.grace.pick import Budget, choose, filled, random_picks, selection
from gradwise.methods.grace.refresh import Measured, Propagation, Refreshed, anchors_of, next_share, refresh
from gradwise.methods.grace.state import State
from gradwise.methods.subset import Subset
from gradwise.numerics.facility import Minimum
from gradwise.numerics.kernels import parts
from gradwise.numerics.sampling import stratified_sample
from gradwise.settings import default_of
from gradwise.signals import Signals

USUAL_OVERHEAD = 0.15
"""Share of the training time that deciding may take if `overhead` is unset."""

REFRESHING = ("anchors", "staleness", "propagate", "beta", "min_agreement", "drift")
"""Settings of what happens at a refresh."""

UNUSED_BY_ALL = ("staleness", "min_agreement", "drift")
"""Those without effect where a refresh scores all candidates; how far propagation agrees is still "
"reported."""

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Grace(Subset):
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

    importance: Kind = "head_norm"
    """What a sample is worth in itself: `head_norm` (of the output head's gradient; no backward pass through
    the model), `alignment` (mean cosine of its gradient with the others'), `loss`, or `norm` (of its
    gradient). By `loss` and `norm` garbage is worth most."""

    by_length: bool = True
    """Scale importance by the sample's label tokens over their mean: from a token's to the sample's."""

    trade_off: Share = 0.9
    """Weight of coverage; the rest is that of importance."""

    neighbours: Annotated[int, Field(ge=1)] = 16
    """k of the k-NN graph."""

    search: Literal["auto", "exact", "approximate"] = "auto"
    """How neighbours are found; `approximate` needs the extra `faiss`, `auto` takes it for large pools. A run
    writes into its recipe what `auto` came to where more than 100,000 samples are scored."""

    weighted: bool = False
    """Show each pick as often as the number of samples it stands for says, within a factor of four."""

    domain_minimum: Share = 0.0
    """Least share of its proportional part that every domain keeps; 1 selects from each in proportion."""

    overhead: Annotated[float, Field(gt=0)] | None = None
    """Share of the training time that deciding may take in a run. Whatever of `candidates`, `refresh_every`
    and `anchors` is unset follows from it and from `speeds`. If unset, it is 0.15; settings that cost more
    are then obeyed and said to, while a given overhead refuses them."""

    speeds: Speeds | None = None
    """How fast the machine trains and scores, in seconds. If unset, a run measures it before its first step
    and writes it into its recipe, so that the recipe decides the same on any machine."""

    candidates: Annotated[int, Field(ge=2)] | Literal["all"] | None = None
    """Samples of the pool that are scored, or `all`. If they are too few to choose from, part of the budget
    is filled at random from the others."""

    refresh_every: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps from one selection to the next; 0 selects once."""

    anchors: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the candidates that the first refresh scores again; later refreshes adapt it. 1 scores all of
    them at every refresh, and nothing is propagated."""

    staleness: Share = 0.5
    """Weight of age against being unlike one's neighbours in what is measured first."""

    propagate: Literal["value", "change"] = "change"
    """What spreads from anchors over the graph: their values (as the authors do), or what changed in them."""

    beta: Share = 0.5
    """How far the others follow their neighbours."""

    min_agreement: Annotated[float, Field(ge=-1, le=1)] = 0.8
    """Rank correlation of guessed and measured importance below which the next refresh measures more."""

    drift: Annotated[float, Field(ge=0, le=2)] = 0.05
    """1 - cosine beyond which an embedding's place in the graph is repaired."""

    def check(self) -> None:
        given = [name for name in ("fraction", "count", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RecipeError(
                "select: grace needs one of fraction, count and tokens; found "
                f"{' and '.join(given) or 'none of them'}."
            )
        if self.tokens is not None and self.domain_minimum:
            raise RecipeError("select: domain_minimum needs fraction or count; it cannot go with tokens.")
        self._refuse("refresh_every: 0 selects once", REFRESHING, self.refresh_every == 0)
        self._refuse("anchors: 1 scores all candidates again", UNUSED_BY_ALL, self.anchors == 1)
        self._refuse("beta: 0 propagates nothing", ("propagate",), self.beta == 0)
        unused = () if self.importance == "loss" else ("importance",)
        self._refuse("trade_off: 1 counts coverage alone", (*unused, "by_length"), self.trade_off == 1)

    def _refuse(self, why: str, names: tuple[str, ...], applies: bool) -> None:
        """Refuse settings that are not as they are by default, and would have no effect."""
        given = [name for name in names if getattr(self, name) != default_of(Grace, name)]
        if applies and given:
            raise RecipeError(f"select: {why}, so that {given[0]} has no effect; leave one of them out.")

    left_to_run: ClassVar[tuple[str, ...]] = ("speeds", "search")

    @property
    def dial(self) -> float:
        """Share of the training time that deciding may take."""
        return USUAL_OVERHEAD if self.overhead is None else self.overhead

    @property
    def kind(self) -> Kind:
        """What importance is made of: where coverage alone counts, the loss, which comes with embeddings."""
        return "loss" if self.trade_off == 1 else self.importance

    @property
    def needs(self) -> frozenset[str]:
        """The signals it decides by."""
        needed = {"embedding", "num_tokens", NEEDS[self.kind]}
        return frozenset(needed | ({"domain"} if self.domain_minimum else set()))

    def select(self, signals: Signals, *, seed: int = 0) -> Selection:
        """A coreset of the pool, once.

        Raises:
            SignalError: when a signal it needs is missing, or no sample can be used.
        """
        check_signals(signals, self.method, seed=seed)
        looked = self.looked(len(signals), signals.domain, seed)
        if looked is None:
            return self.pick(self.begin(signals, seed=seed), signals, seed=seed)
        state = self.begin(signals.take(looked), looked=looked, pool=len(signals), seed=seed)
        picked = self.pick(state, signals, seed=seed)
        if said := self.random_picks(picked):
            warnings.warn(said, stacklevel=2)
        return picked

    def random_picks(self, picked: Selection) -> str | None:
        """A sentence on picks that were drawn at random to fill the budget, and on what to do; None if there
        are none."""
        found = random_picks(picked.told, len(picked.indices))
        size = next(name for name in ("fraction", "count", "tokens") if getattr(self, name) is not None)
        more = "overhead, or candidates: all" if self.candidates is None else "candidates"
        return found and f"grace: {found}. Give more select.{more}, or a smaller {size}, to choose them all."

    def looked(self, pool: int, domain: NDArray[np.str_] | None, seed: int) -> NDArray[np.int64] | None:
        """The samples that `candidates` looks at; None where that is all of them, or not said."""
        if not isinstance(self.candidates, int) or self.candidates >= pool:
            return None
        return stratified_sample(pool, self.candidates, domain, seed)

    def begin(
        self,
        signals: Signals,
        *,
        looked: NDArray[np.int64] | None = None,
        pool: int | None = None,
        step: int = 0,
        seed: int = 0,
        device: str = "cpu",
        tell: Any = None,
        took: dict[str, float] | None = None,
    ) -> State:
        """What to remember of the first measurement of a pool.

        Args:
            signals: of the samples looked at.
            looked: their places in the pool, ascending; all of it unless given.
            pool: samples of the pool.
            step: optimizer steps done.
            seed: of an approximate search.
            device: where exact neighbours are looked for, "cpu" or "cuda".
            tell: gets the number of rows whose neighbours are found.
            took: gets the seconds that the graph took, as "graph".
        """  # fmt: skip
        check_signals(signals, self.method, seed=seed)
        looked = np.arange(len(signals)) if looked is None else looked
        embedding = np.asarray(signals.require("embedding", "grace"))
        usable = np.flatnonzero(self._usable(signals))
        if not usable.size:
            raise SignalError("grace found no sample whose embedding and importance are finite.")
        start = time.perf_counter()
        nodes = nodes_of(
            np.asarray(rows_of(embedding, usable), dtype=np.float32),
            self.neighbours,
            approximate=self.searches(len(usable)) == "approximate",
            device=device,
            seed=seed,
            progress=tell,
        )
        if took is not None:
            took["graph"] = time.perf_counter() - start
        first = usable[nodes.first]
        mean_tokens = None
        if self.by_length:
            mean_tokens = float(signals.require("num_tokens", "grace with by_length")[first].mean())
        target = self._target(signals, first)
        return State(
            pool=pool or len(signals),
            looked=looked,
            rows=looked[usable],
            node=nodes.node,
            sample=looked[first],
            centre=nodes.centre,
            placed=nodes.placed,
            embedding=np.array(embedding[first], dtype=np.float32),
            importance=importance(self.kind, signals, first, mean_tokens=mean_tokens, target=target),
            measured_at=np.full(len(first), step),
            graph=nodes.graph,
            share=self.anchors or USUAL_ANCHORS,
            target=None if target is None else target.mean,
            mean_tokens=mean_tokens,
        )

    def pick(self, state: State, signals: Signals, *, seed: int = 0) -> Selection:
        """A coreset by what is known now.

        Args:
            state: of the samples looked at.
            signals: of the whole pool; only what does not change counts: tokens, domains, weights.
            seed: of what is filled at random, where few samples were looked at.
        """
        tokens = signals.num_tokens
        whole = self._budget(state, signals)
        budget = whole.part(state)
        chosen = choose(state, budget, self.trade_off, self._minimum(state, budget, signals))
        when = f"after refresh {state.refreshes}" if state.refreshes else "at the start"
        picked = selection(
            state, chosen, budget, weighted=self.weighted, told=f"in the coreset chosen {when}"
        )
        if budget is not whole:
            picked = filled(picked, state, whole, signals.domain, seed)
        if not len(picked.indices):
            raise RecipeError(
                f"select.tokens is {self.tokens}, and no sample has so few label tokens; give more."
            )
        told = picked.told | domain_mix(signals.domain, picked.indices)
        if tokens is not None:
            told["label_tokens"] = int(np.asarray(tokens)[picked.indices].sum())
        picked.told.update(told)
        if signals.weight is None:
            return picked
        own = signals.weight[picked.indices]
        return replace(picked, weights=own if picked.weights is None else own * picked.weights)

    def _budget(self, state: State, signals: Signals) -> Budget:
        if self.tokens is None:
            # Samples that cannot be used are not there; of those not looked at nothing is known.
            return Budget(count=self.size(state.pool - len(state.looked) + len(state.rows)))
        costs = np.asarray(signals.require("num_tokens", "grace with tokens"), dtype=np.float64)
        return Budget(tokens=float(self.tokens), costs=costs)

    def anchors_at(self, state: State, step: int) -> NDArray[np.int64]:
        """The nodes to measure at a step; `state.sample` says which samples of the pool they are."""
        return anchors_of(state, step, self.staleness)

    def refresh(
        self, state: State, anchors: NDArray[np.int64], signals: Signals, step: int, *, device: str = "cpu"
    ) -> Refreshed:
        """The state after some nodes were measured.

        Args:
            state: before.
            anchors: (a,) nodes, ascending.
            signals: of those a nodes, in the same order; those that are not ok keep what was believed.
            step: optimizer steps done.
            device: where exact neighbours are looked for.
        """
        usable = self._usable(signals)
        rows = np.flatnonzero(usable)
        if not rows.size:
            raise SignalError(
                "grace measured its anchors anew, and not one has a finite embedding and importance; the "
                "model may have diverged."
            )
        target = None
        if state.target is not None:
            grads = np.asarray(signals.grad)[rows].astype(np.float64)
            target = Target(state.target, len(state)).moved(grads)
        found = Measured(
            anchors[rows],
            np.asarray(signals.require("embedding", "grace"), dtype=np.float32)[rows],
            importance(self.kind, signals, rows, mean_tokens=state.mean_tokens, target=target),
        )
        how = Propagation(self.propagate == "change", self.beta, self.drift)
        done = refresh(state, found, how, step, asked=len(anchors), device=device)
        share = next_share(state.share, done.agreement, self.min_agreement, state.least_share)
        left = None if state.allowance is None else max(0, state.allowance - len(anchors))
        after = done.state.changed(
            share=1.0 if self.anchors == 1 else share,
            allowance=left,
            target=None if target is None else target.mean,
        )
        return replace(done, state=after)

    def _target(self, signals: Signals, rows: NDArray[np.int64]) -> Target | None:
        if self.kind != "alignment":
            return None
        return Target.of(np.asarray(signals.require("grad", "grace"))[rows].astype(np.float64))

    def _usable(self, signals: Signals) -> NDArray[np.bool_]:
        needed = np.asarray(signals.require(NEEDS[self.kind], f"grace with importance {self.kind}"))
        embedding = np.asarray(signals.require("embedding", "grace"))
        finite = _finite_rows(embedding) & _finite_rows(needed.reshape(len(signals), -1))
        return finite if signals.ok is None else finite & signals.ok

    def searches(self, rows: int) -> Literal["auto", "exact", "approximate"]:
        """How the neighbours of so many samples are found; `auto` where both would be the exact search.

        Raises:
            RecipeError: the approximate search is asked for, and faiss is not installed.
        """
        if self.search == "approximate" and not _has_faiss():
            raise RecipeError(
                "select.search is approximate, and faiss is not installed; install the extra `faiss`, or "
                "give search: exact."
            )
        if self.search != "auto" or rows <= EXACT_UP_TO:
            return self.search
        if not _has_faiss():
            warnings.warn(
                f"The neighbours of {rows:,} samples are searched exactly, which takes long; install the "
                "extra `faiss` for an approximate search with a measured recall, or score fewer candidates.",
                stacklevel=4,
            )
            return "exact"
        return "approximate"

    def _minimum(self, state: State, budget: Budget, signals: Signals) -> Minimum | None:
        """The minimum for each domain: `domain_minimum` times its proportional part, at most its nodes."""
        if not self.domain_minimum:
            return None
        domain = signals.require("domain", "grace with domain_minimum")
        names, codes = np.unique(domain[state.rows], return_inverse=True)
        assert budget.count is not None
        share = np.bincount(codes, minlength=len(names)) / len(codes)
        group = np.searchsorted(names, domain[state.sample])
        # A billionth, or a part that comes out whole could round to one less.
        least = np.floor(self.domain_minimum * share * min(budget.count, len(state)) + 1e-9).astype(np.int64)
        return Minimum(group, np.minimum(least, np.bincount(group, minlength=len(names))))


def _finite_rows(values: NDArray[Any]) -> NDArray[Any]:
    """(N,) whether all numbers of a row are finite; gradients of a large pool are read a part at a time."""
    found = np.empty(len(values), dtype=bool)
    for part in parts(len(values), 2**14):
        found[part] = np.isfinite(values[part]).all(axis=1)
    return found


def _has_faiss() -> bool:
    from importlib.util import find_spec

    return find_spec("faiss") is not None
