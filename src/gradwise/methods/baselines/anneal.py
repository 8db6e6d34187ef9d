"""Baselines for the annealing phase: everything, at random, by loss, by gradient, by herding, InfoBatch."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import RecipeError, SignalError
from gradwise.methods.annealer import Annealer
from gradwise.methods.baselines.select import best_first
from gradwise.methods.decision import Selection, check_signals, domain_mix, share_of
from gradwise.methods.validation import check_aligned, validation_rows
from gradwise.numerics.coresets import herd_towards
from gradwise.numerics.nearest import unit
from gradwise.numerics.rows import Rows
from gradwise.numerics.streams import stream
from gradwise.signals import Signals

_Ranking = tuple[NDArray[np.int64], NDArray[np.float64] | None, str]
"""Places best first, their scores, and a sentence."""


@dataclass(frozen=True)
class _Ranked(Annealer):
    """The first samples of a ranking."""

    def select(
        self,
        signals: Signals,
        *,
        validation: Signals | None = None,
        room: int | None = None,
        seed: int = 0,
    ) -> Selection:
        """The first samples of the ranking, as many as `fraction`, `count` or `tokens` say, or as the phase
        trains on.

        Args: see `Annealer.select`.

        Raises:
            RecipeError: there are fewer samples.
            SignalError: a signal is missing or of no use.
        """
        check_signals(signals, self.method, seed=seed)
        if signals.ok is not None and not signals.ok.all():
            sound = np.flatnonzero(signals.ok)
            picked = self.select(signals.take(sound), validation=validation, room=room, seed=seed)
            return replace(picked, indices=sound[picked.indices])
        count = None if self.tokens is not None else self._size(signals, room)
        ranked, scores, reason = self._ranked(signals, validation, count or len(signals), seed)
        if count is None:
            assert self.tokens is not None
            tokens = signals.require("num_tokens", "a budget in tokens")[ranked]
            fits = tokens <= self.tokens  # a first sample longer than the budget would leave none
            ranked, scores = ranked[fits], None if scores is None else scores[fits]
            count = int(np.searchsorted(np.cumsum(tokens[fits]), self.tokens, side="right"))
        if self.fraction is None and self.count is None and self.tokens is None:
            count = min(count, len(ranked))  # as many as there are, where nobody asked for more
        if not count or count > len(ranked):
            raise RecipeError(
                f"anneal: {len(ranked):,} samples can be chosen from, which does not make {count or 'one'}; "
                "give another size."
            )
        picks = ranked[:count]
        details: dict[str, Any] = domain_mix(signals.domain, picks)
        if signals.num_tokens is not None:
            details["label_tokens"] = int(np.asarray(signals.num_tokens)[picks].sum())
        return Selection(
            picks,
            why=(reason,),
            weights=self._weights(signals, picks),
            scores=None if scores is None else scores[:count],
            details=details,
        )

    def _size(self, signals: Signals, room: int | None) -> int:
        """Number of samples to pick, where no number of tokens is given."""
        return self.budget(len(signals), room)

    def _weights(self, signals: Signals, picks: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """(n,) weights of the picks; those of the data by default."""
        return None if signals.weight is None else signals.weight[picks]

    @abstractmethod
    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:
        """Places best first, at least `count` where there are as many; their scores; and a sentence."""


@dataclass(frozen=True)
class FullAnneal(_Ranked):
    """All of the data: an annealing phase without a selection. `fraction`, `count` and `tokens` are
    rejected."""

    method: Literal["full"] = "full"
    """Every sample, in shuffled epochs."""

    def check(self) -> None:
        super().check()
        if self.fraction is not None or self.count is not None or self.tokens is not None:
            raise RecipeError("anneal: full takes all of the data; leave fraction, count and tokens out.")

    def budget(self, pool: int, room: int | None = None) -> int:  # noqa: ARG002
        """All of them."""
        return pool

    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:  # noqa: ARG002
        return np.arange(len(signals)), None, "all of the data"


@dataclass(frozen=True)
class RandomAnneal(_Ranked):
    """A random part of the candidates, another one for each seed."""

    method: Literal["random"] = "random"
    """A random part."""

    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:  # noqa: ARG002
        mixed = stream(seed, "random annealing").permutation(len(signals))
        return mixed, None, f"drawn at random with seed {seed}"


@dataclass(frozen=True)
class LossAnneal(_Ranked):
    """The samples with the highest loss as the annealing phase begins."""

    method: Literal["loss_top"] = "loss_top"
    """Highest loss first."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:  # noqa: ARG002
        # Highest are the losses of random tokens: all 120 records of them were picked from a pool with junk
        # (docs/results/direct-decay_planted.md).
        scores = signals.require("loss", "loss_top").astype(np.float64)
        return *best_first(scores, "loss"), "highest loss as the phase began"


@dataclass(frozen=True)
class PerplexityAnneal(_Ranked):
    """The samples with the highest perplexity as the annealing phase begins: the ranking of the loss, which
    DiReCT's authors report as a baseline of its own."""

    method: Literal["perplexity_top"] = "perplexity_top"
    """Highest perplexity first."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:  # noqa: ARG002
        loss = signals.require("loss", "perplexity_top").astype(np.float64)
        best, losses = best_first(loss, "loss")
        return best, np.exp(losses), "highest perplexity as the phase began"


@dataclass(frozen=True)
class GradNormAnneal(_Ranked):
    """The samples with the longest gradient as the annealing phase begins."""

    method: Literal["grad_norm_top"] = "grad_norm_top"
    """Longest gradient first."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad_norm"})

    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:  # noqa: ARG002
        scores = signals.require("grad_norm", "grad_norm_top").astype(np.float64)
        return *best_first(scores, "gradient norm"), "longest gradient as the phase began"


@dataclass(frozen=True)
class InfoBatch(_Ranked):
    """Random pruning of samples whose loss is below the mean; those that remain of them count for more, so
    that the expected gradient is kept (Qin et al. 2024, arXiv 2303.04947). If no size is set, 80 % of the
    candidates are kept, or all with a loss above the mean if these are more.

    The authors prune again in every epoch; here each of the `times` selections prunes once.
    """

    method: Literal["infobatch"] = "infobatch"
    """Low losses pruned at random, the remaining ones weighted up."""

    rescale: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 1.25
    """Weight of the remaining samples with a loss below the mean, as DiReCT's authors set it; null for what
    keeps the expected gradient."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def check(self) -> None:
        super().check()
        if self.tokens is not None:
            raise RecipeError(
                "anneal: infobatch keeps all samples with a loss above the mean, whatever their tokens; give "
                "fraction or count instead of tokens."
            )

    def budget(self, pool: int, room: int | None = None) -> int:
        """As many as the settings say; if they say nothing, 80 %, as in DiReCT's comparisons."""
        if self.fraction is None and self.count is None:
            return share_of(0.8, pool, "anneal")
        return super().budget(pool, room)

    def _size(self, signals: Signals, room: int | None) -> int:
        size = super()._size(signals, room)
        if self.fraction is not None or self.count is not None:
            return size
        # Nobody asked for 80 %, so a few low losses must not end a run as its phase begins.
        loss = signals.require("loss", "infobatch").astype(np.float64)
        return max(size, int((np.isfinite(loss) & ~_is_low(loss)).sum()))

    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:  # noqa: ARG002
        loss = signals.require("loss", "infobatch").astype(np.float64)
        mixed = stream(seed, "infobatch").permutation(np.flatnonzero(np.isfinite(loss)))
        # InfoBatch keeps what is above the mean whole and prunes at random below it.
        low = _is_low(loss)[mixed]
        if count < len(mixed) - low.sum():
            raise RecipeError(
                f"anneal: infobatch keeps all samples with a loss above the mean, {len(mixed) - low.sum():,} "
                f"of {len(mixed):,}, and {count:,} are to be kept; keep at least as many."
            )
        ranked = np.concatenate([mixed[~low], mixed[low]])
        return ranked, loss[ranked], "kept by infobatch"

    def _weights(self, signals: Signals, picks: NDArray[np.int64]) -> NDArray[np.float64] | None:
        loss = signals.require("loss", "infobatch").astype(np.float64)
        low = _is_low(loss)
        # Without a given factor the pruned samples' share of the gradient is kept in expectation.
        rescale = self.rescale or low.sum() / max(1, low[picks].sum())
        weights = np.where(low[picks], rescale, 1.0)
        return weights if signals.weight is None else weights * signals.weight[picks]


def _is_low(loss: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether a loss is below the mean of the finite ones, within rounding."""
    finite = loss[np.isfinite(loss)]
    return loss < (finite.mean() * (1 - 1e-12) if finite.size else 0.0)


@dataclass(frozen=True)
class CosineTop(_Ranked):
    """The samples whose gradient has the highest cosine with the mean validation gradient."""

    method: Literal["cosine_top"] = "cosine_top"
    """Most like the validation gradient."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})
    validation_needs: ClassVar[frozenset[str]] = frozenset({"grad"})

    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:  # noqa: ARG002
        target, rows = _mean_gradient(validation, "cosine_top"), Rows(signals.require("grad", "cosine_top"))
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = rows.times(target / np.linalg.norm(target)) / np.sqrt(rows.squares())
        check_aligned(scores, "cosine_top")
        return *best_first(scores, "gradient"), "highest cosine with the validation gradient"


@dataclass(frozen=True)
class Herding(_Ranked):
    """Samples picked one by one so that the mean of their unit gradients nears that of the validation
    samples. Holds the pool's gradients in memory and reads them once a pick: a baseline for small pools."""

    method: Literal["herding"] = "herding"
    """Mean gradient near the validation samples'."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})
    validation_needs: ClassVar[frozenset[str]] = frozenset({"grad"})

    def _ranked(self, signals: Signals, validation: Signals | None, count: int, seed: int) -> _Ranking:  # noqa: ARG002
        _mean_gradient(validation, "herding")
        assert validation is not None
        rows, units = _units(signals, "herding")
        target = _units(validation, "herding, of the validation samples,")[1].mean(axis=0)
        check_aligned(units @ target / np.linalg.norm(target), "herding")
        picks = rows[herd_towards(units, target, min(count, len(rows)))]
        return picks, None, "herded towards the mean of the validation gradients"


def _mean_gradient(validation: Signals | None, by: str) -> NDArray[np.float64]:
    rows = validation_rows(validation, by)
    assert validation is not None
    mean = validation.require("grad", by)[rows].astype(np.float64).mean(axis=0)
    if not mean.any():
        raise SignalError(f"{by}: the validation samples' gradients cancel; give other validation data.")
    return mean


def _units(signals: Signals, by: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(n,) samples with a gradient that is finite and not zero, and (n, k) their gradients at length 1."""
    grad = np.asarray(signals.require("grad", by))
    rows = np.flatnonzero(np.isfinite(grad).all(axis=1) & grad.any(axis=1))
    # Squares of gradients of 1e25 overflow in single precision, and those of 1e-30 vanish.
    return rows, unit(grad[rows])
