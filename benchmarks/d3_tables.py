"""The tables of a `d3` result file, in Markdown."""

import math
from typing import Any

import d3_commutator
import numpy as np
from frame import compare, mean_sd
from scipy.stats import beta
from tables import COMPARISON_HEAD, comparison_row, number, of_kind, table

OPTIMIZERS = {
    "sgd": "SGD, momentum 0.9",
    "adamw": "AdamW after 30 steps",
    "adamw_late": "AdamW as after 1,000 steps",
    "adamw_still": "AdamW, second moments held",
}
EDGES = {
    "curvature": "curvature",
    "curvature_moments": "curvature and second moments",
    "lookahead": "lookahead",
    "first_order": "first order",
}


def sections(content: dict[str, Any]) -> list[str]:
    """Paragraphs and tables, to be put below the file's heading."""
    return {
        "commutator": _commutator,
        "planted": _planted,
        "cost": _cost,
        "solver": _solver,
        "published": _published,
    }[content["settings"]["part"]](content)


# ---- commutator --------------------------------------------------------------------------------------------


def _commutator(content: dict[str, Any]) -> list[str]:
    together = d3_commutator.together(content)
    seeds = max(map(len, together.values()))
    told = (
        f"**Which of two steps comes first.** stories260K in double precision, six domains, a unit of "
        f"{d3_commutator.EACH} texts of at most {d3_commutator.LENGTH} tokens of each, {seeds} seeds. The "
        "truth is the difference in the loss of 12 other texts between both orders, really trained from the "
        "same state with momentum at zero, after momentum has run out; it is exact but for rounding in "
        "double precision. Shares of pairs whose sign is right: `all` pairs, those whose estimate exceeds "
        "twice its standard error (`out`, with their number), and the `large` half, where the order matters "
        "most. "
        "`typical` is the median difference in nats."
    )
    parts = [told, "![accuracy by learning rate](figures/d3-commutator.png)"]
    for probes, name in (
        ("all", "Estimates from all samples of the units"),
        ("four", "From four samples of each unit"),
    ):
        rows = [
            [
                f"{OPTIMIZERS[kind]}, {EDGES[edges]}", rate, str(one["pairs"]), _typical(entries, rate),
                _share(one["all"]), _out(one), _share(one["large"]),
            ]
            for kind, entries in together.items()
            for edges in EDGES
            for rate in entries[0]["rates"]
            if (one := _accuracy(entries, rate, "flushed", edges, probes))
        ]  # fmt: skip
        head = ["optimizer, edges", "learning rate", "pairs", "typical", "all", "out", "large"]
        parts += [f"{name}:", table(head, rows)]
    return [*parts, *_unflushed(together)]


def _unflushed(together: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = [
        [
            OPTIMIZERS[kind], rate,
            _share(d3_commutator.raw_agrees(entries, rate)),
            _share(d3_commutator.accuracy(entries, rate, "raw", "curvature", "all")["all"]),
        ]
        for kind, entries in together.items()
        for rate in entries[0]["rates"]
    ]  # fmt: skip
    told = (
        "Momentum not flushed: the share of pairs for which the loss right after two steps has the sign that "
        "it has after momentum has run out, and how often curvature agrees with the former. Of the first "
        "step's way 1.9 parts in 10 are made by then, of the second's only one, so that this mostly reads "
        "which unit helps the target more."
    )
    return [told, table(["optimizer", "learning rate", "same sign", "curvature agrees"], rows)]


def _accuracy(
    entries: list[dict[str, Any]], rate: str, way: str, edges: str, probes: str
) -> dict[str, float] | None:
    try:
        return d3_commutator.accuracy(entries, rate, way, edges, probes)
    except KeyError:
        return None


def _typical(entries: list[dict[str, Any]], rate: str) -> str:
    return f"{np.median(np.abs(np.concatenate([each['rates'][rate]['flushed'] for each in entries]))):.1e}"


def _out(one: dict[str, float]) -> str:
    return f"{_share(one['out'])} of {one['pairs_out']}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


# ---- planted -----------------------------------------------------------------------------------------------


def _planted(content: dict[str, Any]) -> list[str]:
    parts = [
        "**Planted orders** (`benchmarks/d3_planted.py` says how). A Llama of 0.1 M weights, 80 steps in "
        "all, of which the order alone differs; the target's loss at the end. `oracle` is the planted order, "
        "`opposite` its reverse, `last alone` leaves the first domain out. `d3` has its default settings but "
        "for the target; `free` has neither window nor balance, and `early: 0` unless said otherwise. To try "
        "both orders, 20 steps on each of two domains, takes as many steps as the whole run; `d3, free, "
        "orders` is allowed that."
    ]
    kinds = list(dict.fromkeys(key.split("/")[1] for key in of_kind(content, "run")))
    for kind in kinds:
        losses: dict[str, dict[int, float]] = {}
        for key, entry in of_kind(content, f"run/{kind}").items():
            _, _, arm, seed = key.split("/")
            losses.setdefault(arm, {})[int(seed)] = entry["target"]
        rows = []
        for arm, by_seed in losses.items():
            mean, sd = mean_sd(by_seed)
            median = float(np.median(list(by_seed.values())))
            rows.append([f"`{arm}`", str(len(by_seed)), number(mean, 3), number(sd, 3), number(median, 3)])
        parts += [f"**{kind.capitalize()}.**", table(["arm", "seeds", "target's loss", "sd", "median"], rows)]
        parts += [
            "Against `random`, paired by seed (negative: the arm is better):",
            table(COMPARISON_HEAD, [comparison_row(one) for one in compare(losses, "random")]),
        ]
    return [*parts, *_directions(content), *_tried(content)]


_MEASURED = {
    "d3": "curvature, 4 probes",
    "d3, free, lookahead": "lookahead, 4 probes",
    "d3, free, orders": "both orders tried, 20 steps on each",
}
"""Arms of which the first graph is looked at, and how it was made."""


def _directions(content: dict[str, Any]) -> list[str]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, entry in of_kind(content, "run").items():
        _, kind, arm, _ = key.split("/")
        if arm in _MEASURED:
            start = [graph for graph in entry["graphs"] if graph["step"] == 0]
            found.setdefault((kind, f"{_MEASURED[arm]}, at the start"), []).extend(start)
    for key, entry in of_kind(content, "state").items():
        _, kind, edges, trained, probes, _ = key.split("/")
        drawn = "" if edges == "orders" else f", {probes} probes"
        found.setdefault((kind, f"{edges}, after {trained} steps{drawn}"), []).append(entry)
    rows = []
    for (kind, name), graphs in found.items():
        right = sum(graph["difference"] > 0 for graph in graphs)
        bound = [sum(graph["precedes"] == which for graph in graphs) for which in ("first", "last")]
        low, high = binomial(right, len(graphs))
        rows.append(
            [
                f"{kind}: {name}",
                str(len(graphs)),
                f"{right / len(graphs):.0%}",
                f"{low:.0%} to {high:.0%}",
                *map(str, bound),
            ]
        )
    told = (
        "Direction found: how often the difference of the two weights has the planted sign, with its 95 % "
        "interval (Clopper and Pearson), and for how many seeds it became a precedence, in the planted "
        "direction and in the other."
    )
    head = ["pool, edges", "seeds", "sign", "95 % interval", "precedence", "the other way"]
    return [told, table(head, rows)] if rows else []


def _tried(content: dict[str, Any]) -> list[str]:
    found: dict[tuple[str, str], list[float]] = {}
    for key, entry in of_kind(content, "tried").items():
        for steps, gain in entry["gains"].items():
            found.setdefault((key.split("/")[1], steps), []).append(gain)
    rows = []
    for (kind, steps), gains in found.items():
        right = sum(gain > 0 for gain in gains)
        low, high = binomial(right, len(gains))
        rows.append(
            [
                kind,
                steps,
                str(len(gains)),
                f"{np.mean(gains):+.4f}",
                f"{right / len(gains):.0%}",
                f"{low:.0%} to {high:.0%}",
            ]
        )
    told = (
        "Both orders really tried from the start, so many steps on each domain: the gain of the planted "
        "order over its reverse in the target's loss, and how often it is positive."
    )
    head = ["pool", "steps on each", "seeds", "mean gain", "positive", "95 % interval"]
    return [told, table(head, rows)] if rows else []


def binomial(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share, after Clopper and Pearson.

    >>> [round(end, 3) for end in binomial(10, 10)]
    [0.692, 1.0]
    """
    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


# ---- cost and solver ---------------------------------------------------------------------------------------


def _cost(content: dict[str, Any]) -> list[str]:
    told = (
        "**What measuring costs**, in processor time, as a multiple of an ordinary forward and backward pass "
        "over one sample of 128 tokens. `trial step` is what a step of AdamW and its taking back cost "
        "besides the gradient and the losses that are compared; `keeping` the copies made once for all trial "
        "steps of a measurement. Both are per step, whatever its samples, and grow with the weights alone. "
        "`singly` takes every sample as a part of its own, as edges do to tell their noise, the "
        "products of all pairs included."
    )
    rows = [
        [
            key.split("/")[1], f"{entry['parameters'] / 1e6:.1f}", number(entry["pass_seconds"], 3),
            *(number(entry[name], 2) for name in _COSTS),
        ]
        for key, entry in of_kind(content, "cost").items()
    ]  # fmt: skip
    return [
        told,
        table(["model", "M weights", "pass, s", *(name.replace("_", " ") for name in _COSTS)], rows),
    ]


_COSTS = (
    "forward", "gradient", "first_order", "first_order_singly", "hessian", "hessian_singly", "trial_step",
    "keeping",
)  # fmt: skip


def _published(content: dict[str, Any]) -> list[str]:
    entries = list(of_kind(content, "published").values())
    rows = []
    for n in sorted({entry["n"] for entry in entries}):
        own = [entry for entry in entries if entry["n"] == n]
        gaps = [entry["gap_percent"] for entry in own]
        mean, seconds = (sum(values) / len(own) for values in (gaps, [entry["seconds"] for entry in own]))
        rows.append([str(n), str(len(own)), number(mean, 3), number(max(gaps), 3), number(seconds, 2)])
    told = (
        "**The solver on published instances** (XLOLIB: input-output tables extended to 150 and 250 items): "
        "gap to the best value known, in percent, and seconds on one core, at the default number of moves."
    )
    return [told, table(["n", "instances", "mean gap", "largest", "seconds"], rows)]


def _solver(content: dict[str, Any]) -> list[str]:
    told = (
        "**The solver** on instances made as those of the literature (`benchmarks/d3_solver.py`): the gap to "
        "the best value known, in percent, by the number of moves as a multiple of the default, and the "
        "seconds that the default takes on one core. Up to 16 items the optimum is found exactly."
    )
    rows = []
    for key, entry in of_kind(content, "curve").items():
        _, kind, n = key.split("/")
        if "runs" not in entry:
            rows.append(
                [
                    kind,
                    n,
                    "optimum",
                    "",
                    "",
                    "",
                    "",
                    number(entry["seconds"], 3),
                    number(entry["sorted_gap_percent"], 2),
                ]
            )
            continue
        runs = entry["runs"]
        gaps = [number(run["gap_percent"], 3) for run in runs.values()]
        rows.append([kind, n, *gaps, number(runs["1"]["seconds"], 2), number(entry["sorted_gap_percent"], 2)])
    head = ["kind", "n", "1/8", "1/4", "1/2", "1", "4", "seconds", "sorted by sums"]
    return [told, table(head, rows)]
