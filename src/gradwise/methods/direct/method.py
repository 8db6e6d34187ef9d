"""DiReCT: select the samples of the annealing phase, while the learning rate decays (arXiv 2605.31175).

In the eigenbasis of the validation samples' gradients, few directions are stiff: they hold most of the
curvature. Both objectives bound what the picks move in those, sum_i w_i a_i <= tau * mean(a) * K with
a_i = sum over stiff j of lam_j (g_i . v_j)^2, and differ in what they ask of the rest:

- `paper` (section 4 of the paper): the longest movement in the flat directions, ||sum_i w_i g_i,flat||^2,
  whichever way it points.
- `curvature`: movement along (H + ridge I)^-1 b, the validation loss's way down, as in
  `gradwise.methods.direct.descent`. Movement along it costs nothing; a_i is of the rest of g_i.
- `alignment`: movement along b itself, within no budget unless `tau` is given. Where the validation samples
  are a target, b is stiff, and to bound movement along it is to forbid what helps (docs/log.md).
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradwise.errors import RecipeError, SignalError
from gradwise.methods.annealer import Annealer
from gradwise.methods.decision import Selection, check_signals, domain_mix
from gradwise.methods.direct.check import held_out_check
from gradwise.methods.direct.descent import Descent, descent
from gradwise.methods.direct.details import spectrum_details, warn_of_unknown_curvature
from gradwise.methods.direct.problem import (
    CandidatePool,
    Normalise,
    Outliers,
    Problem,
    cosine_to,
    cosines_of,
    lengths_of,
    mean_tokens,
    movement_budget,
    relative_lengths,
    stiff_costs,
    target_gradients,
    unlikeness,
    usable,
    without_copies,
    without_odd,
)
from gradwise.methods.direct.published import PublishedDirect
from gradwise.methods.validation import check_aligned
from gradwise.numerics.budgeted import (
    BudgetedTop,
    budgeted_top,
    rounded_at_random,
    upper_bound,
    whole_rows,
)
from gradwise.numerics.movement import longest_sum, longest_weighted_sum
from gradwise.numerics.rows import Rows
from gradwise.numerics.spectrum import Spectrum
from gradwise.numerics.streams import stream
from gradwise.settings import default_of
from gradwise.signals import Signals

USUAL_TAU = {"curvature": 1.0, "paper": 0.1, "alignment": math.inf}
"""The authors' share for their objective; for ours what random picks have, which ended runs best
(docs/log.md)."""

TARGET = 0.15
"""Unlikeness from which on the validation samples are a target. Samples of the pool's own mix had 0, of MMLU
0.11 to 0.13, of sets that the pool did without 0.18 to 0.63, of PIQA, SIQA and SVAMP 0.53 to 0.72
(benchmarks/direct/target.py)."""

FALLBACKS = {
    "cosine": "the samples with the highest cosine to the validation gradient",
    "random": "random ones",
}
"""What takes the place of picks that the held-out check rejects."""


@dataclass(frozen=True)
class Direct(PublishedDirect, Annealer):
    """Samples whose gradients lower the validation loss, with a limit on movement in directions of high
    curvature.

    >>> rng = np.random.default_rng(0)
    >>> pool, held_out = (
    ...     Signals(n, grad=rng.standard_normal((n, 8)), num_tokens=np.full(n, 5)) for n in (50, 20)
    ... )
    >>> picked = Direct(count=5, tau=0.5).select(pool, validation=held_out)
    >>> len(picked.indices), picked.details["budget_used"] <= 1
    (5, True)
    """

    method: Literal["direct"] = "direct"
    """Against the curvature's spectrum."""

    objective: Literal["auto", "curvature", "alignment", "paper"] = "auto"
    """`curvature` follows the direction in which the validation loss falls, with less weight where its
    curvature is high. `alignment` follows the mean validation gradient. `paper` moves as far as possible in
    flat directions, in either sense. `auto` is `alignment` where the validation samples are a target (their
    mean gradient is far from the pool's), otherwise `curvature`."""

    tau: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Largest cost of the picks in stiff directions, as a fraction of the average cost. A value that cannot
    be met is rejected. If unset, it is 1, and for `paper` 0.1 as in the authors' code, raised as far as
    necessary; for `alignment` there is no bound."""

    tau_relative: bool = True
    """Whether `tau` is a fraction of the average cost; false for a bound on the cost itself, as in the
    paper's Eq. 2."""

    variant: Literal["subset", "weights"] = "subset"
    """`subset` picks samples; `weights` gives samples weights that sum to the number to keep (the paper's
    Algorithm 1) and act as the recipe's `weights` says."""

    largest_weight: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Largest weight of a sample with `variant: weights`; null for no limit, as in the paper, where at most
    two samples get all of the weight."""

    rounding: Literal["cheapest", "random"] = "cheapest"
    """The optimum has at most two samples with a fractional weight. `cheapest` keeps the cheapest and
    improves the picks by exchanges; `random` draws them by their weights and meets the budget on average."""

    stiff: Annotated[float, Field(gt=0, le=1)] = 0.945
    """Share of the spectrum's trace that the stiff directions hold."""

    normalise: Normalise = "unit"
    """How gradients are made comparable: `unit` length, `length` (times the root of the label tokens), or
    `none`."""

    outliers: Outliers = "leave_out"
    """What happens to samples whose gradients are longer than those of 95 % of the validation samples, such
    as random tokens: `leave_out`, as long as twice as many remain as are picked; `clip` to that length; or
    `keep`. `leave_out` also leaves out fragments: samples with fewer than 16 label tokens, and less than half
    of what the pool's median and 95 % of the validation samples have."""

    held_out_check: bool = True
    """Compare the picks with random ones on validation samples that did not choose them. If they are worse
    by more than 0.7 standard errors, the highest cosines or random picks take their place, and the run says
    so; picks of `objective: paper` stay. Not with `variant: weights`, which picks no samples."""

    precondition: bool = False
    """In a run: divide gradients by the root of Adam's second moments, as its updates are."""

    copies: Annotated[int, Field(ge=1)] | None = 1
    """Largest number of picks among samples that are copies of each other; null for no limit."""

    alike: Annotated[float, Field(ge=0.95, le=1)] = 0.999
    """Cosine of gradients above which samples count as copies of each other."""

    starts: Annotated[int, Field(ge=1)] = 8
    """Number of starting points of the search with `objective: paper`."""

    plots: ClassVar[str | None] = "spectrum"
    needs: ClassVar[frozenset[str]] = frozenset({"grad", "num_tokens"})
    validation_needs: ClassVar[frozenset[str]] = frozenset({"grad", "num_tokens"})

    @property
    def uses_optimizer(self) -> bool:
        return self.precondition

    def check(self) -> None:
        super().check()
        if self.variant == "weights" and (self.tokens is not None or self.rounding == "random"):
            setting = "tokens" if self.tokens is not None else "rounding: random"
            raise RecipeError(f"anneal.{setting} is about picked samples; leave it or variant: weights out.")
        if self.variant != "weights" and self.largest_weight is not None:
            raise RecipeError("anneal.largest_weight is about variant: weights; leave it out.")
        if self.objective != "paper" and self.starts != default_of(Direct, "starts"):
            raise RecipeError(
                f"anneal.starts is about objective: paper, and this is {self.objective}; leave it out."
            )
        if self.copies is None and self.alike != default_of(Direct, "alike"):
            raise RecipeError(
                "anneal.alike says what copies are, and copies: null limits none; leave it out."
            )

    def select(
        self,
        signals: Signals,
        *,
        validation: Signals | None = None,
        curvature: Spectrum | None = None,
        room: int | None = None,
        seed: int = 0,
    ) -> Selection:
        """The best samples of a pool.

        Args:
            signals: of the pool: `grad`, `num_tokens`, and `domain` if the details should have it.
            validation: of the validation samples, measured with the same projection.
            curvature: another estimate of it than the second moments of the validation samples' gradients.
            room: samples that the phase trains on, where nothing else says how many to pick.
            seed: of halves and beginnings.

        Raises:
            RecipeError: tau cannot be met (the message has the smallest that can), or the pool is too small.
            SignalError: no sample can be used, or nothing is known of the validation data.
        """
        check_signals(signals, self.method, seed=seed)
        z, length = target_gradients(validation, self.normalise)
        rows, pool = self._pool(signals, validation, z.shape[1], room)
        # Gradients of whole samples overlap with the Hessian's top 20 directions by 0.11 only. Gradients of
        # tokens, or of drawn labels, overlap by 0.21 to 0.24 and take 18 to 93 times as long
        # (docs/results/direct-curvature.md).
        spectrum = Spectrum.of_rows(z) if curvature is None else _checked(curvature, z.shape[1])
        # All gradients are divided by the validation samples' usual length, so that numbers are near 1
        # whatever the model; objective and bound are multiplied back.
        scale = self._scale(signals, rows, validation) / length
        gradients = Rows(signals.require("grad", "direct"), rows, scale)
        # Where the validation data are a target, their common direction is stiff itself, and the curvature's
        # budget forbids what would help: it cost more than it gained on SVAMP and SIQA (docs/log.md).
        unlike = unlikeness(z, gradients)
        if self.objective == "auto":
            objective = "alignment" if unlike > TARGET else "curvature"
            settled = replace(self, objective=objective)
        else:
            settled = self
        problem = settled._problem(pool._replace(length=length), gradients, spectrum, z, seed)
        tau = movement_budget(problem, self.tau, USUAL_TAU[settled.objective], relative=self.tau_relative)
        solution = settled._solved(problem, tau, seed)
        # Predicted from samples that chose nothing: picks towards PIQA were worse than random ones in five of
        # five runs, and only this check can see that before the phase (docs/log.md).
        if self.held_out_check and self.variant == "subset":
            solution = settled._checked_by_halves(signals, problem, z, tau, solution, curvature, seed)
        solution["details"] |= {
            "direction": settled.objective,
            "unlike_pool": round(unlike, 4),
            "tau": None if math.isinf(tau) else tau,
            "least_tau": problem.least_tau(relative=self.tau_relative),
            "curvature": "given" if curvature is not None else "gradients of samples",
        }
        budget = problem.budget(tau, relative=self.tau_relative)
        return settled._selection(signals, problem, z, solution, budget)

    def _scale(
        self, signals: Signals, rows: NDArray[np.int64], validation: Signals | None
    ) -> NDArray[np.float64]:
        """(n,) what the gradients are multiplied with."""
        scale = lengths_of(signals, rows, self.normalise, mean_tokens(validation, self.normalise))
        if self.outliers == "clip":
            scale = scale / np.maximum(1, relative_lengths(signals, rows, validation))
        return scale

    def _pool(
        self, signals: Signals, validation: Signals | None, width: int, room: int | None
    ) -> tuple[NDArray[np.int64], CandidatePool]:
        """(n,) places of the samples to choose from, and what is known of them."""
        rows = usable(signals)
        grad: Any = signals.grad
        if grad.shape[1] != width:
            raise SignalError(
                f"direct: the pool's gradients have {grad.shape[1]} numbers, the validation samples' "
                f"{width}; collect both with the same grad_dim."
            )
        set_aside = len(signals) - len(rows)
        # Before outliers are counted: a thousand copies of one odd sample are one odd sample.
        rows, copies = without_copies(grad, rows, self.alike, self.copies)
        sizes, count = None, 0.0
        if self.tokens is None:
            # A fraction is one of the pool as the user knows it, copies and unusable samples included.
            count = float(self.budget(len(rows) if self.fraction is None else len(signals), room))
            if count > len(rows):
                raise RecipeError(
                    f"anneal: {count:,.0f} samples are to be picked, but only {len(rows):,} of "
                    f"{len(signals):,} can be ({copies:,} are copies, {set_aside:,} have no usable "
                    "gradient); choose fewer, or allow more copies."
                )
        else:
            sizes = signals.require("num_tokens", "direct with tokens")[rows].astype(np.float64)
            count = float(min(self.tokens, sizes.sum()))
            if sizes.min() > count:
                raise RecipeError(
                    f"anneal.tokens is {self.tokens}, and the shortest sample has {sizes.min():.0f} label "
                    "tokens; give more."
                )
        inliers, outliers, short = np.arange(len(rows)), 0, 0
        # Random tokens have gradients twice as long as text and point a little everywhere; kept, they were 11
        # to 13 of 40 picks, and fragments up to 29 (docs/log.md).
        if self.outliers == "leave_out":
            amounts = np.ones(len(rows)) if sizes is None else sizes
            inliers, outliers, short = without_odd(signals, rows, validation, amounts, count)
        sizes, largest = None if sizes is None else sizes[inliers], None
        if self.variant == "weights":
            largest = min(count, self.largest_weight or count)
            # Weights up to `largest` are weights in 0..1 times it, so that the solver's bounds stay as they
            # are.
            sizes, count = np.ones(len(inliers)), count / largest
        left_out = (set_aside, copies, outliers, short)
        return rows[inliers], CandidatePool(rows[inliers], sizes, count, *left_out, largest)

    def _problem(
        self, pool: CandidatePool, gradients: Rows, spectrum: Spectrum, z: NDArray[np.float64], seed: int
    ) -> Problem:
        way = None
        if self.objective == "curvature":
            way = descent(z, spectrum, seed=seed)
        elif self.objective == "alignment":
            mean = z.mean(axis=0)
            # An infinite ridge leaves b itself: plain alignment with the mean validation gradient.
            way = Descent(mean / (np.linalg.norm(mean) or 1.0), math.inf)
        stiff = spectrum.stiff(self.stiff)
        along = None if way is None else way.direction
        return Problem(pool, gradients, spectrum, stiff, stiff_costs(gradients, spectrum, stiff, along), way)

    def _solved(self, problem: Problem, tau: float, seed: int) -> dict[str, Any]:
        """Places of the picks, what they were ranked by, and details."""
        budget = problem.budget(tau, relative=self.tau_relative)
        if self.objective == "paper":
            return self._by_movement(problem, budget, seed)
        return self._by_descent(problem, budget, seed)

    def _checked_by_halves(
        self,
        signals: Signals,
        problem: Problem,
        z: NDArray[np.float64],
        tau: float,
        solution: dict[str, Any],
        curvature: Spectrum | None,
        seed: int,
    ) -> dict[str, Any]:
        """The solution with its check, or what takes its place, within the same budget."""

        def choose(half: NDArray[np.float64]) -> NDArray[np.int64]:
            spectrum = Spectrum.of_rows(half) if curvature is None else curvature
            halved = self._problem(problem.pool, problem.gradients, spectrum, half, seed)
            # Half of the samples have another spectrum, for which the budget can be too small.
            least_tau = halved.least_tau(relative=self.tau_relative)
            return self._solved(halved, max(tau, least_tau), seed)["places"]

        def by_cosine(half: NDArray[np.float64]) -> NDArray[np.int64]:
            return problem.best(cosine_to(problem.gradients, half.mean(axis=0)), math.inf)

        # The check predicts training steps, which move by the gradients as they are, so these are not
        # normalised.
        shrunk = np.full(len(problem.rows), 1 / problem.pool.length)
        trained = Rows(signals.require("grad", "direct"), problem.rows, shrunk)
        check = held_out_check(choose, by_cosine, trained, z, len(solution["places"]), seed)
        if check is None:
            return solution
        solution["details"]["check"] = check.details()
        sentence = check.sentence()
        if sentence is None:
            return solution
        stays = self.objective == "paper"
        instead = "they stay, as published" if stays else f"{FALLBACKS[check.use]} take their place"
        solution["details"]["fallback"] = f"{sentence}; {instead}."
        # A published objective is reported as it is, so that its result can be compared with the paper's.
        if stays:
            return solution
        scores = stream(seed, "random annealing").random(len(problem.rows))
        if check.use == "cosine":
            scores = cosine_to(problem.gradients, z.mean(axis=0))
        places = problem.best(scores, problem.budget(tau, relative=self.tau_relative))
        objective, bound = float(scores[places].sum()), float(np.sort(scores)[-len(places) :].sum())
        return solution | {"places": places, "scores": scores, "objective": objective, "bound": bound}

    def _by_movement(self, problem: Problem, budget: float, seed: int) -> dict[str, Any]:
        # This objective has no direction of descent: its picks ended 0.88 nats above random ones on a clean
        # pool, and took all 120 records of random tokens of another one (docs/results/direct-decay_clean.md,
        # direct-decay_planted.md).
        stiffest = float(problem.spectrum.values[0])
        cosines = np.sqrt(problem.costs / (stiffest * problem.gradients.squares()))
        check_aligned(cosines, "direct with objective paper")
        flat = problem.flat
        if flat.squares().sum() <= 1e-6 * problem.gradients.squares().sum():
            raise SignalError(
                f"direct with objective paper: the {problem.stiff} stiff directions hold all of the pool's "
                "movement, so that none is left to be flat; lower `stiff`, or give a larger grad_dim."
            )
        limits = (problem.costs, problem.count, budget)
        starts: dict[str, Any] = {"starts": self.starts, "seed": seed, "sizes": problem.sizes}
        if self.variant == "subset" and self.rounding == "cheapest":
            longest = longest_sum(flat, *limits, **starts)
            places, weights, total = longest.rows, None, flat.sum_of(longest.rows)
        else:
            longest = longest_weighted_sum(flat, *limits, **starts)
            places, weights = self._places_and_weights(problem, longest.optimum, seed)
            total = flat.sum_of(places, weights)
        return {
            "places": places,
            "weights": weights,
            "scores": flat.times(total),
            "objective": float(total @ total) * problem.pool.length**2,
            "bound": longest.bound * ((problem.pool.largest or 1.0) * problem.pool.length) ** 2,
            "details": {"steps": longest.steps},
        }

    def _places_and_weights(
        self, problem: Problem, optimum: BudgetedTop, seed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Places of an optimum that is not rounded to the cheapest rows, and their weights if they have
        some."""
        if self.variant == "subset":
            rng = stream(seed, "direct rounding")
            return rounded_at_random(optimum.weights, rng), None
        places = np.flatnonzero(optimum.weights > 0)
        return places, optimum.weights[places] * (problem.pool.largest or 1.0)

    def _by_descent(self, problem: Problem, budget: float, seed: int) -> dict[str, Any]:
        way = problem.way
        assert way is not None
        scores = problem.gradients.times(way.direction)
        check_aligned(scores / np.sqrt(problem.gradients.squares()), "direct")
        best = budgeted_top(scores, problem.costs, problem.count, budget, sizes=problem.sizes)
        if self.variant == "subset" and self.rounding == "cheapest":
            places = whole_rows(best, scores, problem.costs, problem.count, budget, sizes=problem.sizes)
            weights = None
        else:
            places, weights = self._places_and_weights(problem, best, seed)
        ridge = None if math.isinf(way.ridge) else way.ridge
        bound = upper_bound(scores, problem.costs, problem.count, budget, sizes=problem.sizes)
        return {
            "places": places,
            "weights": weights,
            "scores": scores,
            "objective": float(scores[places] @ (np.ones(len(places)) if weights is None else weights)),
            "bound": bound * (problem.pool.largest or 1.0),
            "details": {"ridge": ridge, "multiplier": best.multiplier},
        }

    def _selection(
        self,
        signals: Signals,
        problem: Problem,
        z: NDArray[np.float64],
        solution: dict[str, Any],
        budget: float,
    ) -> Selection:
        """Best first, with what each pick is there for."""
        places, scores, weights = solution["places"], solution["scores"], solution["weights"]
        if not places.size:
            raise RecipeError("anneal: no sample fits the budget; give a larger tau, or more tokens.")
        # Solvers return places in ascending order; a user reads the best first.
        best = np.argsort(-scores[places], kind="stable")
        places = places[best]
        indices = problem.rows[places]
        shares = np.ones(len(places)) if weights is None else weights[best] / (problem.pool.largest or 1.0)
        weights = None if weights is None else weights[best]
        if signals.weight is not None:
            weights = signals.weight[indices] * (1.0 if weights is None else weights)
        spent, usual = math.fsum(problem.costs[places] * shares), float(problem.costs.mean())
        relative = problem.costs[places] / usual if usual > 0 else np.zeros(len(places))
        cosine = cosines_of(problem.gradients, places, z.mean(axis=0))
        details = {
            "objective": solution["objective"],
            "bound": solution["bound"],
            "budget_used": spent / budget if budget > 0 else 0.0,
            "copies_left_out": problem.pool.copies,
            "outliers_left_out": problem.pool.outliers,
            "short_left_out": problem.pool.short,
            "set_aside": problem.pool.set_aside,
            "validation_samples": len(z),
            **solution["details"],
            **spectrum_details(problem, places),
            **domain_mix(signals.domain, indices),
        }
        if self.objective == "paper":
            warn_of_unknown_curvature(details)
        if signals.num_tokens is not None:
            details["label_tokens"] = int(np.asarray(signals.num_tokens)[indices].sum())
        criterion = {"paper": "flat movement", "alignment": "alignment"}.get(self.objective, "descent")
        if "fallback" in details and self.objective != "paper":
            criterion = details["check"]["use"]
        left_out = problem.pool.left_out
        why = tuple(
            f"pick {rank} by {criterion}: {score:.4g}, stiff cost {cost:.2g} of the average{left_out}"
            for rank, (score, cost) in enumerate(zip(scores[places], relative, strict=True), start=1)
        )
        return Selection(
            indices,
            why=why,
            weights=weights,
            scores=scores[places],
            objective=solution["objective"],
            summary=f"picked by direct, {criterion}{left_out}",
            columns={"stiff_cost": relative, "cosine": cosine},
            details=details,
        )


def _checked(curvature: Any, width: int) -> Spectrum:
    if not isinstance(curvature, Spectrum):
        raise SignalError(f"direct: curvature must be a Spectrum; found {type(curvature).__name__}.")
    if len(curvature.vectors) != width:
        raise SignalError(
            f"direct: the curvature given has {len(curvature.vectors)} dimensions, the gradients {width}."
        )
    return curvature
