"""Computing time of a run's decisions as shares of its training, by arithmetic on forward passes.

The counts are those of `gradwise.methods.cost_counts`. `gradwise estimate` has the recipe alone; a run has
its size, the lengths of its samples and what its methods have measured as well.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gradwise.methods.cost_counts import (
    ORDINARY,
    PROBE,
    Shape,
    adapting,
    engine_check,
    measured,
    per_sample,
    scoring,
    training,
    updating,
)  # fmt: skip
from gradwise.methods.costs import RunSize
from gradwise.methods.grace.budget import USUAL_OVERHEAD
from gradwise.methods.grace.costs import USUAL_ANCHORS
from gradwise.recipe import Recipe

CostShare = dict[str, Any]
"""`share` of the training time, None where it is not known, and `why`."""


def cost_per_sample(recipe: Recipe, layers: int, shape: Shape) -> float:
    """Forward passes that training on one sample is worth, its share of the update included; with a layer
    policy averaged over uniform draws.

    Args:
        recipe: of the run.
        layers: blocks that a layer policy draws from.
        shape: of the model.
    """
    return _forward_backward(recipe, layers, shape) + updating(_trained(recipe, layers, shape), shape)


def _forward_backward(recipe: Recipe, layers: int, shape: Shape) -> float:
    head = shape.head
    recomputed = 1.0 if _checkpointing(recipe) else 0.0
    policy = recipe.layers.policy
    if policy is not None and layers:
        active = min(policy.active, layers)
        # The expected index of the lowest of `active` layers drawn out of `layers`, from 0.
        reached = 1 - (layers - active) / (active + 1) / layers
        trained = _trained(recipe, layers, shape)
        return training(trained=trained, reached=reached, recomputed=recomputed, head=head)
    if recipe.adapter is not None:
        return training(trained=adapting(shape.width), recomputed=recomputed, head=head)
    return training(recomputed=recomputed, head=head)


def _trained(recipe: Recipe, layers: int, shape: Shape) -> float:
    """Share of the weights that a step updates; that of adapters is next to nothing."""
    policy = recipe.layers.policy
    if policy is not None and layers:
        blocks = (1 - shape.head) * min(policy.active, layers) / layers
        return blocks + (shape.head if policy.embeddings == "always" else 0.0)
    return 0.0 if recipe.adapter is not None else 1.0


def measuring_share(recipe: Recipe, cost: float, layers: int, shape: Shape) -> float:
    """What D3 takes as a share of the training time.

    Args:
        recipe: of the run.
        cost: of its measurements, over the forward/backward passes of ordinary training that updates all
            weights.
        layers: blocks that a layer policy draws from.
        shape: of the model.
    """
    method: Any = recipe.order
    influence = method.influence
    passes = cost_per_sample(recipe, layers, shape)
    # Measuring uses the model as it trains, with the same weights frozen, and recomputes nothing.
    measuring_passes = _forward_backward(recipe, layers, shape) - (1.0 if _checkpointing(recipe) else 0.0)
    if influence is not None and influence.edges_in_run == "curvature":
        # Differentiating twice multiplies the work of the backward pass alone, which frozen layers shorten.
        return cost * ORDINARY / passes * (measuring_passes - 1) / (ORDINARY - 1)
    return cost * measuring_passes / passes


def shares(
    recipe: Recipe,
    layers: int,
    size: RunSize | None = None,
    expected: Mapping[str, float] | None = None,
    *,
    shape: Shape | None = None,
) -> dict[str, CostShare]:
    """For each section that decides by a model: its time as a share of the training time, and how that was
    found.

    Args:
        recipe: of the run.
        layers: blocks that a layer policy draws from.
        size: of the run. If unset, what depends on it is None.
        expected: shares by section that the run has found otherwise.
        shape: of the model and its data.
    """
    shape = shape or Shape()
    run = _Run(recipe, size, shape, layers)
    section_shares = {
        "select": _selecting(run),
        "order": _ordering(run),
        "layers": _probing(run),
        "anneal": _annealing(run),
    }
    for name, share in (expected or {}).items():
        method: Any = getattr(recipe, name)
        section_shares[name] = {
            "share": share,
            "why": f"{method.method}: by what the run has measured and planned",
        }
    return {name: share for name, share in section_shares.items() if share is not None}


def deciding(section_shares: Mapping[str, CostShare]) -> str | None:
    """The forecast in a sentence; None where no section costs anything."""
    if not section_shares:
        return None
    figures = [f"{name} {_percent(part['share'])}" for name, part in section_shares.items()]
    total = sum(part["share"] or 0.0 for part in section_shares.values())
    least = "at least " if any(part["share"] is None for part in section_shares.values()) else ""
    return (
        f"Deciding is expected to take {least}{_percent(total)} of the training time: {', '.join(figures)}."
    )


class _Run:
    """What is known of a run's size."""

    def __init__(self, recipe: Recipe, size: RunSize | None, shape: Shape, layers: int) -> None:
        self.recipe, self.size, self.shape, self.layers = recipe, size, shape, layers
        self.training = cost_per_sample(recipe, layers, shape)
        select: Any = recipe.select
        count, steps = getattr(select, "count", None), recipe.train.arguments.get("max_steps", -1)
        if count and steps <= 0:
            steps = math.ceil(recipe.train.epochs * math.ceil(count / recipe.train.batch_size))
        self.steps: int | None = size.steps if size else steps if steps > 0 else None
        self.batch = size.batch if size else recipe.train.batch_size

    @property
    def each(self) -> float:
        """Forward passes over a mean sample that training on an entry of the plan is worth."""
        return self.training * self.shape.padding

    def share(self, passes: float) -> float | None:
        """Forward passes as a share of the training's."""
        return passes / (self.each * self.steps * self.batch) if self.steps else None

    def scored(
        self, needs: Iterable[str], samples: int | None, *, besides: Iterable[str] = (), again: bool = False
    ) -> float | None:
        """Scoring some samples, or all of the pool for None, as a share of the training; what is needed
        `besides` is paid for already. `again` as in `passes.scoring`."""
        samples = self.size.pool if samples is None and self.size else samples
        paid, both = frozenset(besides), frozenset(needs) | frozenset(besides)
        if samples is not None:
            more, less = (scoring(needed, samples, self.shape, again=again) for needed in (both, paid))
            return self.share(more - less)
        if self.steps or getattr(self.recipe.select, "tokens", None):
            return None
        # The steps are as many as the epochs over a fraction of the pool have, however large it is.
        fraction = getattr(self.recipe.select, "fraction", None) or 1.0
        passes = per_sample(both, self.shape) - per_sample(paid, self.shape)
        return passes / (self.each * fraction * self.recipe.train.epochs)

    def of_target(self, method: Any) -> float:
        """Scoring the target samples of a selection that aims at some, as a share of the training."""
        if self.size is None or not getattr(method, "uses_target", False):
            return 0.0
        return self.share(self.size.aside * per_sample(method.needs, self.shape)) or 0.0


def _selecting(run: _Run) -> CostShare | None:
    method: Any = run.recipe.select
    if method.contender_methods and method.resolved() is None:
        return _trial_share(run, method)
    in_trial, method = bool(method.contender_methods), method.resolved()
    if not measured(method.needs):
        return None
    if run.recipe.signals.model is not None:
        return {"share": None, "why": f"{method.method}: scores with signals.model"}
    if method.warm_up_training is not None:
        return _warmed_up(run, method)
    if in_trial:
        # The winner of a trial has no overhead to keep to: it scores what it would score as a contender.
        return _one_scoring_run(run, method, samples=_scored_in_trial(run))
    if not hasattr(method, "overhead"):
        return _one_scoring_run(run, method)
    if method.overhead is not None or method.candidates is None:
        share = USUAL_OVERHEAD if method.overhead is None else method.overhead
        return {"share": share, "why": f"{method.method}: at most its overhead"}
    candidates = None if method.candidates == "all" else method.candidates
    first = run.scored(method.needs, candidates)
    if method.refresh_every is None:
        share = None if first is None else max(first, USUAL_OVERHEAD)
        return {"share": share, "why": f"{method.method}: its candidates, or its overhead"}
    refreshes = 0
    if method.refresh_every:
        refreshes = None if run.steps is None else max(0, math.ceil(run.steps / method.refresh_every) - 1)
    anchors = USUAL_ANCHORS if method.anchors is None else method.anchors
    share = None
    if first is not None and refreshes is not None:
        again = _refreshes(run, method, refreshes, anchors, candidates)
        share = None if again is None else first + again + (1 + refreshes) * run.of_target(method)
    return {"share": share, "why": f"{method.method}: its candidates and {refreshes or 'no'} refreshes"}


def _refreshes(
    run: _Run, method: Any, refreshes: int, anchors: float, candidates: int | None
) -> float | None:
    """Scoring the anchors, as often as the selection is refreshed."""
    if not refreshes:
        return 0.0
    pool = candidates if candidates is not None or run.size is None else run.size.pool
    each = None if pool is None else run.scored(method.needs, max(1, int(anchors * pool)), again=True)
    return None if each is None else refreshes * each


def _warmed_up(run: _Run, method: Any) -> CostShare:
    """The steps of a warm-up, and scoring the pool at each of its checkpoints."""
    warm_up = method.warm_up_training
    why = f"{method.method}: {warm_up.epochs} epochs of warm-up, and scoring the pool after each"
    # The model is tried at the first checkpoint alone.
    scored, trained = run.scored(method.needs, None, again=True), None
    tried = (run.share(engine_check(method.needs, run.shape)) or 0.0) if run.size is not None else 0.0
    if run.size is not None:
        trained = run.share(warm_up.fraction * run.size.pool * run.each)
    elif run.steps is None and method.fraction is not None:
        trained = warm_up.fraction / (method.fraction * run.recipe.train.epochs)
    if scored is None or trained is None:
        return {"share": None, "why": f"{why}; depends on the size of the pool and the number of steps"}
    return {"share": tried + warm_up.epochs * (scored + run.of_target(method) + trained), "why": why}


def _scored_in_trial(run: _Run) -> int | None:
    return None if run.size is None else run.size.scored


def _trial_share(run: _Run, method: Any) -> CostShare:
    """Scoring for all contenders at once, their steps, and the judges' losses before and after them."""
    count, samples = len(method.contender_methods), _scored_in_trial(run)
    of_pool = f", {samples:,} samples scored" if samples is not None and measured(method.needs) else ""
    # In a run the closeness is known by now.
    held = "" if run.size or method.max_closeness is None else ", where the pool is far from the target"
    why = f"{method.method}: {count} contenders, {method.steps} steps each{of_pool}{held}"
    if run.recipe.signals.model is not None and measured(method.needs):
        return {"share": None, "why": f"{why}; scores with signals.model"}
    scored = run.scored(method.needs, samples)
    judges = 0 if run.size is None else run.size.aside // 2
    judges = judges if method.judges is None else min(judges, method.judges)
    trained = run.share(count * method.steps * run.batch * run.each + (count + 1) * judges)
    if scored is None or trained is None:
        return {"share": None, "why": f"{why}; depends on the size of the pool and the number of steps"}
    return {"share": scored + run.of_target(method) + trained, "why": why}


def _ordering(run: _Run) -> CostShare | None:
    method: Any = run.recipe.order
    if hasattr(method, "overhead"):
        # A share of the forward and backward passes of ordinary training.
        share = measuring_share(run.recipe, method.overhead, run.layers, run.shape)
        return {"share": share, "why": f"{method.method}: at most its overhead"}
    select = run.recipe.select
    # What is measured at a warm-up's checkpoints is measured again for the order.
    shared = frozenset[str]() if select.warm_up_training is not None else select.needs
    if not measured(method.needs) - measured(shared):
        return None
    return _one_scoring_run(run, method, besides=shared)


def _one_scoring_run(
    run: _Run, method: Any, besides: Iterable[str] = (), samples: int | None = None
) -> CostShare:
    share = run.scored(method.needs, samples, besides=besides)
    share = None if share is None else share + run.of_target(method)
    passes = per_sample(frozenset(method.needs) | frozenset(besides), run.shape)
    scores = "the pool" if samples is None else f"{samples:,} samples"
    why = (
        f"{method.method}: scores {scores} once, {passes:.2g} forward passes a sample against {run.each:.2f}"
    )
    return {"share": share, "why": why if share is not None else f"{why}; depends on the size of the pool"}


def _probing(run: _Run) -> CostShare | None:
    policy = run.recipe.layers.policy
    if policy is None or not policy.probes:
        return None
    probes = policy.probes_in(run.steps)
    why = f"{policy.method}: {probes} steps measure all layers before the first update"
    if run.steps is None:
        return {"share": None, "why": f"{why}; the share depends on the number of steps"}
    return {"share": run.share(PROBE * run.shape.padding * probes * run.batch), "why": why}


def _annealing(run: _Run) -> CostShare | None:
    method: Any = run.recipe.anneal
    if method is None or not (method.contender_methods or measured(method.needs | method.validation_needs)):
        return None
    held_out: int | None = 0
    if method.uses_validation and run.size:
        usable = run.size.choosing // (2 if method.contender_methods else 1)
        held_out = min(usable, method.validation_samples or usable)
    elif method.uses_validation:
        held_out = method.validation_samples
    pool = None if run.size is None else _choosable(method, run.size)
    candidates = method.candidates if pool is None else min(pool, method.candidates or pool)
    passes = per_sample(method.needs, run.shape)
    why = f"{method.method}: {method.times} selections, {passes:.2g} forward passes a sample"
    if candidates is None or held_out is None:
        where = "the pool" if method.data is None else "anneal.data"
        return {"share": None, "why": f"{why}; depends on the size of {where}"}
    # The model is tried by the first selection alone, and once for the same signals.
    scored = scoring(method.needs, candidates, run.shape, again=True)
    held_out_scored = scoring(method.validation_needs, held_out, run.shape, again=True)
    passes = method.times * (scored + held_out_scored) + engine_check(method.needs, run.shape)
    if measured(method.validation_needs) != measured(method.needs) and held_out:
        passes += engine_check(method.validation_needs, run.shape)
    if method.contender_methods and method.winner is None:
        passes += len(method.contender_methods) * method.steps * run.batch * run.each
        passes += (len(method.contender_methods) + 1) * (held_out if method.judges is None else method.judges)
    return {"share": run.share(passes), "why": why}


def _choosable(method: Any, size: RunSize) -> int:
    """Samples that an annealing selection chooses from."""
    training = size.picks if method.pool == "selection" and size.picks else size.pool
    if not size.added:
        return training
    return size.added + (0 if method.share in (None, 1) else training)


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _checkpointing(recipe: Recipe) -> bool:
    arguments = recipe.train.arguments
    return bool(arguments.get("gradient_checkpointing") or arguments.get("activation_checkpointing"))
