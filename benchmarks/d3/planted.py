"""D³ on planted orders: is an order found that matters by construction, does the run end better for it?

    python -m benchmarks.d3.planted         # about an hour on one core

A Llama of 0.1 M weights trains once on a pool of `benchmarks/d3/synthetic.py`, in 80 steps; arms differ
only in the order. `oracle` is the planted order (all of `first`, then all of `last`), `opposite` its
reverse, and `last alone` leaves the first domain out. `d3` has its default settings except for the target
and its units, which are whole batches; `quarters` are units of a quarter of a batch, the default. `free`
has neither window nor balance, and `early: 0` if nothing else is named. `d3, free, orders` trains both
orders at the start, 20 steps on each domain, which takes as many steps as the whole run.
"""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from datasets import Dataset
from scipy.stats import beta
from transformers import TrainingArguments

import gradwise as gw
from benchmarks.common import tables
from benchmarks.common.command_line import Script
from benchmarks.common.tables import Content, Page
from benchmarks.d3.synthetic import (
    BATCH,
    KINDS,
    RATE,
    SAMPLES,
    Planted,
    adamw,
    columns,
    loss,
    starting_model,
    step,
)
from gradwise.data import Collator
from gradwise.methods.baselines import Shuffle
from gradwise.methods.d3 import D3, Units

RUNS = ("conflict", "prerequisite")
"""Kinds of pools that whole runs are made on."""
STATES = (
    *((kind, edges, 40, 16) for kind in RUNS for edges in ("curvature", "lookahead")),
    *((kind, "orders", 40, 4) for kind in RUNS),
)
"""Kind, edges, steps on both domains mixed beforehand, probe samples. Runs measure at their start."""
HORIZONS = (1, 5, 10, 20)
"""Steps on each domain, where both orders are trained."""

FREE: dict[str, Any] = {"window": None, "balance": None}
"""Allows domains to stand in blocks."""
D3_ARMS: dict[str, dict[str, Any]] = {
    "d3": {},
    "d3, quarters": {"size": None},
    "d3, free": FREE,
    "d3, free, quarters": {**FREE, "size": None},
    "d3, free, early 1": {**FREE, "early": 1.0},
    "d3, free, lookahead": {**FREE, "edges": "lookahead"},
    "d3, free, orders": {**FREE, "edges": "orders", "overhead": 1.1},
}
ARMS = ("random", "oracle", "opposite", "last alone", *D3_ARMS)
"""`last alone` trains only on the second domain, for as many steps as the others train on it."""


def run(kind: str, arm: str, seed: int) -> dict[str, Any]:
    """One run in an arm's order: the final losses, and the graphs that D³ measured."""
    planted = Planted(kind, seed)
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as name:
        folder = Path(name)
        trainer = _trainer(planted, arm, seed, folder)
        trainer.train()
        with torch.no_grad():
            model = trainer.model.eval()
            entry: dict[str, Any] = {
                part: float(loss(model, getattr(planted, part))) for part in ("target", "first", "last")
            }
        if graphs := sorted((folder / "plan").glob("graph-*.parquet"), key=_step_of):
            entry["graphs"] = [graph for path in graphs if (graph := _read_graph(path))]
    return entry


def _trainer(planted: Planted, arm: str, seed: int, folder: Path) -> Any:
    arguments = TrainingArguments(
        str(folder), seed=seed, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, save_strategy="no", logging_steps=40, report_to=[],
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    pool, target = planted.pool(), Dataset.from_dict(columns(planted.target))
    order: dict[str, Any]
    if arm in ("oracle", "opposite", "last alone"):
        order = {"plan": gw.Plan.of([_fixed_order(arm, seed).tolist()], pool=len(pool))}
    else:
        settings = {"units": "domains", "target": "validation", "size": BATCH, **D3_ARMS.get(arm, {})}
        method = Shuffle() if arm == "random" else D3(**settings)
        order = {"recipe": gw.Recipe(order=method, seed=seed)}
    return gw.Trainer(starting_model(seed), arguments, Collator(0), pool, eval_dataset=target, **order)


def _fixed_order(arm: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 2])
    first, last = (rng.permutation(SAMPLES) + start for start in (0, SAMPLES))
    return np.concatenate({"oracle": [first, last], "opposite": [last, first], "last alone": [last]}[arm])


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("graph-"))


def _read_graph(path: Path) -> dict[str, Any] | None:
    """Difference between the two edges, its noise, and the precedence that D³ makes of it.

    None if only one of the two nodes is left.
    """
    rows = {row["source"]: row for row in parquet.read_table(path).to_pylist()}
    first, last = rows.get("first"), rows.get("last")
    if first is None or last is None:
        return None
    return {
        "step": _step_of(path),
        "difference": first["weight"] - last["weight"],
        "error": float(first["noise"]),
        "precedes": "first" if first["precedes"] else "last" if last["precedes"] else None,
        "influence": [first["source_influence"], last["source_influence"]],
    }


def direction(kind: str, edges: str, seed: int, *, trained: int = 0, probes: int = 4) -> dict[str, Any]:
    """The graph at one state, without a run: at the start, or after some steps on both domains mixed."""
    planted, model = Planted(kind, seed), starting_model(seed)
    optimizer = adamw(model)
    rows = np.concatenate([planted.first, planted.last])
    rng = np.random.default_rng([seed, 3])
    for _ in range(trained):
        step(model, optimizer, rows[rng.choice(len(rows), BATCH, replace=False)])
    pool = planted.pool()
    target = Dataset.from_dict(columns(planted.target)).to_list()
    probe = gw.Probe(model, optimizer, pool.remove_columns("domain"), Collator(0), target=target)
    units = Units.by_group(np.arange(len(pool)), np.array(pool["domain"]), BATCH)
    method = D3(units="domains", probes=probes)
    graph = method.measure(probe, units, edges=edges, rng=np.random.default_rng([seed, 4]))
    assert graph is not None
    first, last = graph.names.index("first"), graph.names.index("last")
    before = graph.precedences(method.threshold)
    return {
        "difference": float(graph.weight[first, last] - graph.weight[last, first]),
        "error": float(graph.noise[first, last]),
        "precedes": "first" if before[first, last] else "last" if before[last, first] else None,
        "influence": [float(graph.influence[first]), float(graph.influence[last])],
    }


def both_orders(kind: str, seed: int) -> dict[str, Any]:
    """Gain in the target's loss of n steps on `first` before n on `last` over the reverse, both trained.

    It shows how many steps ahead an estimate has to look.
    """
    planted, start = Planted(kind, seed), starting_model(seed)
    gains = {}
    for steps in HORIZONS:
        parts = [rows[: steps * BATCH].reshape(steps, BATCH, -1) for rows in (planted.first, planted.last)]
        ends = [_loss_after(start, np.concatenate(order), planted.target) for order in (parts, parts[::-1])]
        gains[str(steps)] = ends[1] - ends[0]
    return {"gains": gains}


def _loss_after(start: Any, batches: np.ndarray, target: np.ndarray) -> float:
    model = copy.deepcopy(start)
    optimizer = adamw(model)
    for rows in batches:
        step(model, optimizer, rows, clip=1.0)
    with torch.no_grad():
        return float(loss(model, target))


def page(content: Content) -> Page:
    parts = []
    claims = []
    for kind in dict.fromkeys(key.split("/")[0] for key in tables.of_kind(content, "run")):
        losses = tables.losses_of(tables.by_arm(content, f"run/{kind}"), "target")
        rows = [[f"`{arm}`", str(len(by_seed)), *_summary(by_seed)] for arm, by_seed in losses.items()]
        parts += [
            f"**{kind.capitalize()}.**",
            tables.table(["arm", "seeds", "target's loss", "sd", "median"], rows),
        ]
        parts += tables.comparisons(losses, ["random"])
        start = f"Planted {kind}: target's loss,"
        # Curvature sees no prerequisite, as the page shows; a conflict it does see.
        how, arm = (
            ("(curvature, whole batches, no window or balance)", "d3, free")
            if kind == "conflict"
            else ("(both orders trained, whole batches, no window or balance)", "d3, free, orders")
        )
        text = f"{start} D³ {how} against a shuffle"
        claims += tables.compared_claims(losses, ["random"], [(text, arm, "random")])
    return Page(
        sections=[*parts, *_directions(content), *_horizons(content)],
        claims=claims,
    )


def _summary(by_seed: dict[int, float]) -> list[str]:
    mean, sd = tables.mean_sd(by_seed)
    return [tables.number(value, 3) for value in (mean, sd, float(np.median(list(by_seed.values()))))]


FIRST_GRAPHS = {
    "d3": "curvature, 4 probes",
    "d3, free, lookahead": "lookahead, 4 probes",
    "d3, free, orders": "both orders trained, 20 steps on each",
}
"""Arms whose first graph is evaluated, and how it was measured."""


def _directions(content: Content) -> list[str]:
    graphs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, entry in tables.of_kind(content, "run").items():
        kind, arm, _ = key.split("/")
        if arm in FIRST_GRAPHS:
            start = [graph for graph in entry["graphs"] if graph["step"] == 0]
            graphs.setdefault((kind, f"{FIRST_GRAPHS[arm]}, at the start"), []).extend(start)
    for key, entry in tables.of_kind(content, "state").items():
        kind, edges, trained, probes, _ = key.split("/")
        sampled = "" if edges == "orders" else f", {probes} probes"
        graphs.setdefault((kind, f"{edges}, after {trained} steps{sampled}"), []).append(entry)
    rows = [
        [
            f"{kind}: {name}", *_positive([graph["difference"] for graph in entries]),
            *(str(sum(graph["precedes"] == which for graph in entries)) for which in ("first", "last")),
        ]
        for (kind, name), entries in graphs.items()
    ]  # fmt: skip
    text = (
        "**Direction.** How often the difference of the two weights has the planted sign, with its 95 % "
        "interval (Clopper and Pearson), and for how many seeds it became a precedence: in the planted "
        "direction, and in the opposite one."
    )
    head = ["pool, edges", "seeds", "sign", "95 % interval", "precedence", "opposite"]
    return [text, tables.table(head, rows)] if rows else []


def _horizons(content: Content) -> list[str]:
    gains: dict[tuple[str, str], list[float]] = {}
    for key, entry in tables.of_kind(content, "tried").items():
        for steps, gain in entry["gains"].items():
            gains.setdefault((key.split("/")[0], steps), []).append(gain)
    rows = []
    for (kind, steps), values in gains.items():
        seeds, positive, interval = _positive(values)
        rows.append([kind, steps, seeds, f"{np.mean(values):+.4f}", positive, interval])
    text = (
        "**Both orders trained** from the start, for a number of steps on each domain: the gain of the "
        "planted order over its reverse in the target's loss, and how often it is positive. In the pool "
        "`unrelated` the first half says nothing about the second: what it shows comes from training on the "
        "second half last, not from a prerequisite."
    )
    head = ["pool", "steps on each", "seeds", "mean gain", "positive", "95 % interval"]
    return [text, tables.table(head, rows)] if rows else []


def _positive(values: list[float]) -> list[str]:
    """Count, share of positive values, and the interval of the share."""
    hits = sum(value > 0 for value in values)
    low, high = binomial(hits, len(values))
    return [str(len(values)), f"{hits / len(values):.0%}", f"{low:.0%} to {high:.0%}"]


def binomial(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Clopper and Pearson).

    >>> [round(end, 3) for end in binomial(10, 10)]
    [0.692, 1.0]
    """
    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


SCRIPT = Script(__doc__, "d3-planted")
SCRIPT.add_argument("--seeds", type=int, default=10, help="seeds of runs and states (default: 10)")


def main() -> None:
    options, result = SCRIPT.start()
    for kind in RUNS:
        for seed in range(options.seeds):
            for arm in ARMS:
                result.once(f"run/{kind}/{arm}/{seed}", partial(run, kind, arm, seed))
    for seed in range(options.seeds):
        for kind in KINDS:
            result.once(f"tried/{kind}/{seed}", partial(both_orders, kind, seed))
        for kind, edges, trained, probes in STATES:
            work = partial(direction, kind, edges, seed, trained=trained, probes=probes)
            result.once(f"state/{kind}/{edges}/{trained}/{probes}/{seed}", work)


if __name__ == "__main__":
    main()
