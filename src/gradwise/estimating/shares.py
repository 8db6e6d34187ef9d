"""Computing time of a run's parts, as shares of its training, by arithmetic on forward passes.

A forward pass over a sample counts 1, the gradient of activations 1, the gradient of weights 1. So ordinary
training takes 3 per sample, and a scoring run 1, or 3 where it needs gradients.
"""

from typing import Any

from gradwise.methods.grace.budget import USUAL_OVERHEAD
from gradwise.recipe import Recipe

GRADIENTS = {"grad", "grad_norm"}
"""Signals that need a backward pass."""


def cost_per_sample(recipe: Recipe, layers: int) -> float:
    """Forward passes that training on one sample is worth; with a layer policy averaged over uniform
    draws."""
    recomputed = 1.0 if _checkpointing(recipe) else 0.0
    policy = recipe.layers.policy
    if policy is not None and layers:
        active = min(policy.active, layers)
        # The expected index of the lowest of `active` layers drawn out of `layers`, from 0.
        reached = 1 - (layers - active) / (active + 1) / layers
        return 1 + reached * (1 + recomputed) + active / layers
    return 2 + recomputed + (1.0 if recipe.adapter is None else 0.0)


def shares(recipe: Recipe, layers: int) -> dict[str, dict[str, Any]]:
    """For each method that decides: its time as a share of the training time, and how that was found.

    A share is None where it depends on the size of the data.
    """
    training = cost_per_sample(recipe, layers)
    found: dict[str, dict[str, Any]] = {}
    for name in ("select", "order", "anneal"):
        method: Any = getattr(recipe, name)
        if method is None:
            continue
        if hasattr(method, "overhead"):
            share = USUAL_OVERHEAD if method.overhead is None else method.overhead
            found[name] = {"share": share, "why": f"{method.method}: at most its overhead"}
        elif scored := set(method.needs) - {"num_tokens", "domain", "words"}:
            found[name] = _once_over_the_pool(recipe, method, scored, training)
    policy = recipe.layers.policy
    if policy is not None and policy.probes:
        found["layers"] = _probe(recipe, policy, training)
    return found


def _once_over_the_pool(recipe: Recipe, method: Any, scored: set[str], training: float) -> dict[str, Any]:
    score = 3.0 if scored & GRADIENTS else 1.0
    why = f"{method.method}: scores the pool once, {score:g} forward passes a sample against {training:.2f}"
    fraction = getattr(recipe.select, "fraction", None) or 1.0
    if recipe.train.arguments.get("max_steps", -1) > 0 or getattr(recipe.select, "count", None):
        return {"share": None, "why": f"{why}; the share depends on the size of the pool"}
    return {"share": score / (training * fraction * recipe.train.epochs), "why": why}


def _probe(recipe: Recipe, policy: Any, training: float) -> dict[str, Any]:
    steps = recipe.train.arguments.get("max_steps", -1)
    probes = policy.probes_in(steps if steps > 0 else None)
    why = f"{policy.method}: {probes} steps measure all layers before the first update"
    if steps <= 0:
        return {"share": None, "why": f"{why}; the share depends on the number of steps"}
    return {"share": probes * 3 / (training * steps), "why": why}


def _checkpointing(recipe: Recipe) -> bool:
    given = recipe.train.arguments
    return bool(given.get("gradient_checkpointing") or given.get("activation_checkpointing"))
