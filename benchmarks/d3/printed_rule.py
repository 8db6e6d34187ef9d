"""The published D³'s two rules against the order of two steps that really is better, on linear regression.

    python -m benchmarks.d3.printed_rule

A model of 8 weights, two samples (x_i, y_i), l_i = (theta . x_i - y_i)^2 / 2, both orders of one plain
gradient step on each, and the sum of both losses after them. A rule is right where it places first what
really is better first. With x of unit length both samples are as long; with Gaussian x they are not. The
printed estimate is -gamma g_j.g_i + gamma^2/2 lambda_j with lambda_j = g_j^T diag(H) g_j, of the exact
diagonal of the total loss's Hessian. Beside it: of 60 samples, how many of 20,000 swaps lower the cost of the
order that sorts lambda, under the printed estimate with first-order terms of a random sketch.
"""

from typing import Any

import numpy as np

from benchmarks.common.command_line import Script
from benchmarks.common.tables import Claim, Content, Page, of_kind, table

PAIRS, WIDTH, RATE, TRIAL = 20_000, 8, 1e-3, 1e-1
"""Pairs of samples; weights of the model; learning rate; gamma, 100 times as long."""

RULES = ("commutator", "definition", "printed")


def agreement(kind: str) -> dict[str, float]:
    """Share of the pairs in which each rule places first what really is better first."""
    rng = np.random.default_rng([0, kind == "unit"])
    x = rng.standard_normal((PAIRS, 2, WIDTH))
    if kind == "unit":
        x /= np.linalg.norm(x, axis=2, keepdims=True)
    theta, y = rng.standard_normal((PAIRS, WIDTH)), rng.standard_normal((PAIRS, 2))
    truth = _after(theta, x, y, (1, 0)) - _after(theta, x, y, (0, 1))
    residual = np.einsum("pw,piw->pi", theta, x) - y
    g = residual[:, :, None] * x
    total = g.sum(axis=1)
    # H_v g_u = x_v (x_v . g_u); positive where the first sample belongs before the second.
    turned = [x[:, v] * np.einsum("pw,pw->p", x[:, v], g[:, 1 - v])[:, None] for v in (0, 1)]
    commutator = np.einsum("pw,pw->p", total, turned[0] - turned[1])
    moved = [_losses(theta - TRIAL * g[:, i], x, y) for i in (0, 1)]
    influence = [moved[i][:, 1 - i] - residual[:, 1 - i] ** 2 / 2 for i in (0, 1)]
    diagonal = (x**2).sum(axis=1)
    lambdas = np.einsum("pw,piw->pi", diagonal, g**2)
    guesses = (commutator, influence[1] - influence[0], lambdas[:, 0] - lambdas[:, 1])
    signs = zip(RULES, guesses, strict=True)
    return {rule: round(float((np.sign(guess) == np.sign(truth)).mean()), 3) for rule, guess in signs}


def _losses(theta: Any, x: Any, y: Any) -> Any:
    """(pairs, 2) of both samples."""
    return (np.einsum("pw,piw->pi", theta, x) - y) ** 2 / 2


def _after(theta: Any, x: Any, y: Any, order: tuple[int, int]) -> Any:
    """(pairs,) sum of both losses after a step on each in an order."""
    for i in order:
        theta = theta - RATE * (np.einsum("pw,pw->p", theta, x[:, i]) - y[:, i])[:, None] * x[:, i]
    return _losses(theta, x, y).sum(axis=1)


def swaps(units: int = 60) -> dict[str, int]:
    """Swaps accepted by the published solver after lambda was sorted."""
    rng = np.random.default_rng(1)
    sketched, lambdas = rng.standard_normal((units, 50)), rng.standard_normal(units)
    influence = -TRIAL * sketched @ sketched.T + TRIAL**2 / 2 * lambdas
    advantage = influence.T - influence
    order = np.argsort(-lambdas)
    accepted = 0
    for _ in range(PAIRS):
        p, q = np.sort(rng.choice(units, 2, replace=False))
        swapped = order.copy()
        swapped[[p, q]] = order[[q, p]]
        if _cost(advantage, swapped) < _cost(advantage, order) - 1e-9:
            order, accepted = swapped, accepted + 1
    return {"swaps": PAIRS, "accepted": accepted}


def _cost(advantage: Any, order: Any) -> float:
    return float(np.maximum(np.tril(advantage[np.ix_(order, order)], -1), 0).sum())


def page(content: Content) -> Page:
    signs = of_kind(content, "signs")
    rows = [[kind, *(f"{entry[rule]:.3f}" for rule in RULES)] for kind, entry in signs.items()]
    tried = next(iter(of_kind(content, "solver").values()))
    return Page(
        command="python -m benchmarks.d3.printed_rule",
        sections=[
            table(["x", *RULES], rows),
            f"Swaps that lower the cost of lambda descending: {tried['accepted']} of {tried['swaps']:,}.",
        ],
        claims=[
            Claim(
                "The printed estimate of D³, its definition and our commutator name the better order of "
                "two steps, Gaussian x",
                ", ".join(f"{signs['gaussian'][rule]:.3f}" for rule in reversed(RULES)),
            )
        ],
    )


SCRIPT = Script(__doc__, "d3-printed_rule")


def main() -> None:
    _, result = SCRIPT.start()
    for kind in ("unit", "gaussian"):
        result.once(f"signs/{kind}", lambda kind=kind: agreement(kind))
    result.once("solver/swaps", swaps)


if __name__ == "__main__":
    main()
