"""Do D³'s edges predict which of two steps should come first? Estimates against both orders, trained.

    python -m benchmarks.d3.commutator      # about an hour on one core

`two_steps` says how the truth is computed. Learning rates range from too small to too large, for SGD and for
AdamW in three states of its second moments.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gradwise as gw
from benchmarks.common.command_line import Script
from benchmarks.common.figure_style import BLUE, GREEN, GREY, VERMILION, panels, save
from benchmarks.common.tables import Claim, Content, Page, table
from benchmarks.d3.two_steps import (
    EACH,
    LENGTH,
    ProblemSamples,
    double_model,
    loss_of,
    optimizer_of,
    set_moments,
    step,
    truth,
)
from gradwise.methods.d3 import D3, InfluenceGraph, Units

ADAM_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
RATES = {
    "sgd": (1e-4, 1e-3, 1e-2, 3e-2, 1e-1),
    "adamw": ADAM_RATES,
    "adamw_late": (1e-4, 1e-3),
    "adamw_still": ADAM_RATES,
}
"""AdamW as it is after thirty steps; as it would be after a thousand, with the same second moments; and with
constant second moments."""
WITH_LOOKAHEAD = ("sgd", "adamw")
"""Lookahead edges do not depend on the age of second moments, so two states suffice."""
STANDS_OUT = 2.0
"""Standard errors, as in D³'s settings."""
PROBES = {"all": (EACH, 12), "four": (4, 12)}
"""Samples of each unit, and of the target, that estimates use."""


class Estimates:
    """D³'s graphs at one state."""

    def __init__(self, model: Any, optimizer: Any, samples: ProblemSamples, seed: int) -> None:
        data = [sample for unit in samples.units for sample in unit]
        self.probe = gw.Probe(model, optimizer, data, target=samples.target)
        group = np.repeat(np.array(samples.names), EACH)
        self.units = Units.by_group(np.arange(len(group)), group, EACH)
        assert self.units.names == samples.names
        self.seed = seed

    def graph(self, edges: str, probes: str) -> InfluenceGraph:
        """Measured on all of the units' samples, or on four."""
        count, targets = PROBES[probes]
        rng = np.random.default_rng(self.seed)
        method = D3(units="domains", probes=count, target_samples=targets)
        graph = method.measure(self.probe, self.units, edges=edges, rng=rng)
        assert graph is not None
        return graph

    def second_moments(self, probes: str) -> np.ndarray:
        """(n, n) gain of [u, v] over [v, u] because Adam's second moments change, in nats.

        A share 1 - b of a step is made at once and the rest by momentum, after the other gradient has entered
        the second moments, whose weights are s = (1 - c) / (1 - c^t). The effect is of first order in the
        learning rate; the one that `curvature` measures is of second order. Divided by 1 - b, as `along` is.
        """
        weights, optimizer = self.probe._weights(), self.probe.optimizer
        count, targets = PROBES[probes]
        n, group = len(self.units.names), optimizer.param_groups[0]
        target = self.probe._gradient(self.probe.target[:targets], weights)[1]
        starts = range(0, EACH * n, EACH)
        rows = [self.probe._gradient(range(start, start + count), weights)[1] for start in starts]
        gain = np.zeros((n, n))
        for place, parameter in enumerate(weights):
            state, beta = optimizer.state[parameter], group["betas"][1]
            steps = float(state["step"])
            before = state["exp_avg_sq"] / (1 - beta**steps)
            share = (1 - beta) / (1 - beta ** (steps + 1))
            for u, v in _pairs(n):
                moved = _moved(before, rows[u][place], rows[v][place], share, group)
                reverse = _moved(before, rows[v][place], rows[u][place], share, group)
                gain[u, v] += float((target[place] * (moved - reverse)).sum())
        return gain - gain.T


def _moved(before: Tensor, first: Tensor, second: Tensor, share: float, group: dict[str, Any]) -> Tensor:
    """Distance that the weights move, over 1 - b, if the gradients come in this order and do not change."""

    def scale(squares: Tensor) -> Tensor:
        return group["lr"] / (squares.sqrt() + group["eps"])

    momentum = group["betas"][0]
    once = (1 - share) * before + share * first.square()
    both = (1 - share) * once + share * second.square()
    distance = first * ((1 - momentum) * scale(once) + momentum * scale(both)) + second * scale(both)
    return distance / (1 - momentum)


def trained(kind: str, seed: int) -> dict[str, Any]:
    """The truth for all pairs u < v by learning rate, with the lookahead edges at each."""
    samples, model, optimizer = _warm(kind, seed)
    estimates = Estimates(model, optimizer, samples, seed)
    by_rate = {}
    for rate in RATES[kind]:
        _set_rate(optimizer, rate)
        differences = {when: _upper(matrix) for when, matrix in truth(model, optimizer, samples).items()}
        probes = PROBES if kind in WITH_LOOKAHEAD else ()
        lookahead = {name: _edges(estimates.graph("lookahead", name)) for name in probes}
        by_rate[f"{rate:g}"] = {**differences, "lookahead": lookahead}
    return {"rates": by_rate}


def estimated(kind: str, seed: int) -> dict[str, Any]:
    """Edges that are proportional to a power of the learning rate, at a rate of one."""
    samples, model, optimizer = _warm(kind, seed)
    _set_rate(optimizer, 1.0)
    estimates = Estimates(model, optimizer, samples, seed)
    entry: dict[str, Any] = {"target_loss": float(loss_of(model, samples.target).detach())}
    for edges in ("curvature", "first_order"):
        entry[edges] = {probes: _edges(estimates.graph(edges, probes)) for probes in PROBES}
    if kind != "sgd":
        entry["second_moments"] = {probes: _upper(estimates.second_moments(probes)) for probes in PROBES}
    return entry


def _warm(kind: str, seed: int) -> tuple[ProblemSamples, Any, Any]:
    """Samples, model and optimizer of the state at which everything is measured."""
    torch.manual_seed(seed)
    samples, model = ProblemSamples(seed), double_model()
    optimizer = optimizer_of(kind, model)
    for batch in samples.warming:
        step(model, optimizer, batch)
    optimizer.zero_grad()
    set_moments(kind, optimizer)
    return samples, model, optimizer


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _edges(graph: InfluenceGraph) -> dict[str, list[float]]:
    return {"difference": _upper(graph.weight - graph.weight.T), "error": _upper(graph.noise)}


def _upper(matrix: np.ndarray) -> list[float]:
    return [float(f"{matrix[u, v]:.6g}") for u, v in _pairs(len(matrix))]


def _pairs(n: int) -> Iterator[tuple[int, int]]:
    return combinations(range(n), 2)


def by_optimizer(content: Content) -> dict[str, list[dict[str, Any]]]:
    """By kind of optimizer: truth and estimates of every seed."""
    entries, joined = content["entries"], {}
    for key, entry in entries.items():
        part, kind, seed = key.split("/")
        if part == "trained" and (other := entries.get(f"estimated/{kind}/{seed}")):
            joined.setdefault(kind, []).append({**entry, **other})
    return joined


def accuracy(
    entries: list[dict[str, Any]], rate: str, when: str, edges: str, probes: str
) -> dict[str, float]:
    """Share of pairs whose sign is right, over the entries of all seeds.

    Args:
        entries: as in `by_optimizer`. rate: of the steps. when: `flushed` or `raw`. edges: `curvature`,
        `lookahead`, `first_order`, or `curvature_moments`, which adds the effect of second moments.
        probes: of `PROBES`.

    Returns: `all`: over all pairs; `out`: over pairs whose estimate exceeds its noise, `pairs_out` of them;
        `large`: over the half of each seed's pairs for which the order matters most.

    Raises:
        KeyError: these edges were not measured for this optimizer.
    """
    right, out, large = [], [], []
    for entry in entries:
        real = np.array(entry["rates"][rate][when])
        estimate, error = _estimate(entry, rate, edges, probes)
        right.append(np.sign(estimate) == np.sign(real))
        out.append(np.abs(estimate) > STANDS_OUT * error)
        large.append(np.abs(real) >= np.median(np.abs(real)))
    hit, visible, matters = (np.concatenate(each) for each in (right, out, large))
    return {
        "all": float(hit.mean()),
        "out": float(hit[visible].mean()) if visible.any() else float("nan"),
        "large": float(hit[matters].mean()),
        "pairs": len(hit),
        "pairs_out": int(visible.sum()),
    }


def _estimate(entry: dict[str, Any], rate: str, edges: str, probes: str) -> tuple[np.ndarray, np.ndarray]:
    if edges == "lookahead":
        graph = entry["rates"][rate]["lookahead"][probes]
    else:
        graph = entry["curvature" if edges == "curvature_moments" else edges][probes]
    difference, error = np.array(graph["difference"]), np.array(graph["error"])
    if edges == "curvature_moments":
        # Curvature was measured at a rate of one, as a share of the target's loss.
        moments = np.array(entry["second_moments"][probes]) / entry["target_loss"]
        return difference + moments / float(rate), error
    return difference, error


def raw_agrees(entries: list[dict[str, Any]], rate: str) -> float:
    """Share of pairs that have the same sign before and after momentum has run out."""
    signs = [[np.sign(entry["rates"][rate][when]) for when in ("raw", "flushed")] for entry in entries]
    return float(np.mean(np.concatenate([raw == flushed for raw, flushed in signs])))


OPTIMIZERS = {
    "sgd": "SGD, momentum 0.9",
    "adamw": "AdamW after 30 steps",
    "adamw_late": "AdamW as after 1,000 steps",
    "adamw_still": "AdamW, constant second moments",
}
EDGES = {
    "curvature": "curvature",
    "curvature_moments": "curvature and second moments",
    "lookahead": "lookahead",
    "first_order": "first order",
}


def page(content: Content) -> Page:
    entries = by_optimizer(content)
    text = (
        f"stories260K in double precision, six domains, a unit of {EACH} texts of at most {LENGTH} tokens of "
        f"each, {max(map(len, entries.values()))} seeds. The truth is the difference in the loss of 12 other "
        "texts between both orders. Both are trained from the same state with momentum at zero, and compared "
        "after momentum has run out; the truth is exact up to rounding in double precision. Columns: "
        "`typical` is the median difference in nats; then shares of pairs whose sign is right, among all "
        "pairs, among pairs whose estimate exceeds twice its standard error (`out`, with their number), and "
        "in the half for which the order matters most (`large`)."
    )
    parts = [text, "![accuracy by learning rate](figures/d3-commutator.png)"]
    titles = {
        "all": "**Estimates from all samples of the units.**",
        "four": "**From four samples of each unit.**",
    }
    for probes, title in titles.items():
        parts += [title, _accuracy_table(entries, probes)]
    held = (
        _accuracy(entries["adamw_still"], "0.0001", "curvature", "all") if "adamw_still" in entries else None
    )
    late = _accuracy(entries["adamw"], "0.001", "curvature", "all") if "adamw" in entries else None
    shares = {
        where: _share(one["all"])
        for where, one in (("constant second moments, rate 1e-4", held), ("after 30 steps, rate 1e-3", late))
        if one
    }
    claim = f"Curvature predicts the better order of two AdamW steps: {'; '.join(shares)}"
    claims = [Claim(claim, "; ".join(shares.values()), str(len(entries.get("adamw", []))))] if shares else []
    return Page(
        sections=[*parts, *_raw_table(entries)],
        claims=claims,
    )


def _accuracy_table(by_kind: dict[str, list[dict[str, Any]]], probes: str) -> str:
    rows = [
        [
            f"{OPTIMIZERS[kind]}, {EDGES[edges]}", rate, str(one["pairs"]), _typical(entries, rate),
            _share(one["all"]), f"{_share(one['out'])} of {one['pairs_out']}", _share(one["large"]),
        ]
        for kind, entries in by_kind.items()
        for edges in EDGES
        for rate in entries[0]["rates"]
        if (one := _accuracy(entries, rate, edges, probes))
    ]  # fmt: skip
    return table(["optimizer, edges", "learning rate", "pairs", "typical", "all", "out", "large"], rows)


def _raw_table(by_kind: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = [
        [
            OPTIMIZERS[kind], rate, _share(raw_agrees(entries, rate)),
            _share(accuracy(entries, rate, "raw", "curvature", "all")["all"]),
        ]
        for kind, entries in by_kind.items()
        for rate in entries[0]["rates"]
    ]  # fmt: skip
    text = (
        "**Right after the two steps**, before momentum has run out: the share of pairs for which the "
        "difference in loss has the sign that it has afterwards, and how often curvature agrees with the "
        "sign at this point. By then 19 % of the first step's total movement are made but only 10 % of the "
        "second's, so this mostly shows which unit helps the target more."
    )
    return [text, table(["optimizer", "learning rate", "same sign", "curvature agrees"], rows)]


def _accuracy(entries: list[dict[str, Any]], rate: str, edges: str, probes: str) -> dict[str, float] | None:
    try:
        return accuracy(entries, rate, "flushed", edges, probes)
    except KeyError:
        return None


def _typical(entries: list[dict[str, Any]], rate: str) -> str:
    return f"{np.median(np.abs(np.concatenate([each['rates'][rate]['flushed'] for each in entries]))):.1e}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


STYLES: dict[str, dict[str, Any]] = {
    "curvature": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "curvature_moments": {"color": GREEN, "marker": "D", "linestyle": "-."},
    "lookahead": {"color": VERMILION, "marker": "s", "linestyle": "--"},
    "first_order": {"color": GREY, "marker": "^", "linestyle": ":"},
}


def draw(content: Content, folder: Path) -> None:
    """One panel per optimizer: accuracy over all pairs, from all samples of the units."""
    kinds = ("sgd", "adamw_still", "adamw")
    figure, axes = panels(len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        entries = by_optimizer(content)[kind]
        rates = list(entries[0]["rates"])
        for edges, style in STYLES.items():
            if edges == "curvature_moments" and kind != "adamw":
                continue
            shares = [one["all"] for rate in rates if (one := _accuracy(entries, rate, edges, "all"))]
            if shares:
                axis.plot([float(rate) for rate in rates], shares, markersize=4, label=EDGES[edges], **style)
        axis.axhline(0.5, color="black", linewidth=0.5)
        axis.set_xscale("log")
        axis.set_ylim(0, 1.03)
        axis.set_title(OPTIMIZERS[kind], fontsize=9)
        axis.set_xlabel("learning rate")
    axes[0].set_ylabel("pairs whose sign is right")
    axes[-1].legend(frameon=False, fontsize=7)
    save(figure, folder / "d3-commutator.png")


SCRIPT = Script(__doc__, "d3-commutator")
SCRIPT.add_argument("--seeds", type=int, default=3, help="states (default: 3)")


def main() -> None:
    options, result = SCRIPT.start()
    for seed in range(options.seeds):
        for kind in RATES:
            result.once(f"trained/{kind}/{seed}", partial(trained, kind, seed))
            result.once(f"estimated/{kind}/{seed}", partial(estimated, kind, seed))


if __name__ == "__main__":
    main()
