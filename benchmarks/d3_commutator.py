"""Whether D3's edges know which of two steps comes first: estimates against both orders, really trained.

stories260K in double precision throughout, six units of 16 texts of at most 40 tokens, each of a domain of
its own, and 12 other texts, two of each, whose loss is to fall. Thirty steps on mixed batches warm the
moments; then momentum is set to zero, and every pair of units is trained on in both orders from the same
state, with steps of the optimizer itself, at learning rates from too small to too large.

The truth is L(v then u) - L(u then v): positive where u belongs first. It is read twice: after momentum has
run out (`flushed`), and right after the two steps (`raw`).
"""

import copy
import json
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import torch
from frame import DATA
from small_data import chunks, instructions
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradwise as gw
from gradwise.demo import ASSETS
from gradwise.methods.d3 import D3, InfluenceGraph, Units

EACH, LENGTH, AIMS = 16, 40, 2
"""Texts of a unit, tokens of a text, texts of each domain whose loss is to fall."""
WARM = 30
"""Steps that warm the moments."""
WARM_RATE = {"sgd": 1e-2, "adamw": 1e-3}
ADAM_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
RATES = {
    "sgd": (1e-4, 1e-3, 1e-2, 3e-2, 1e-1),
    "adamw": ADAM_RATES,
    "adamw_late": (1e-4, 1e-3),
    "adamw_still": ADAM_RATES,
}
"""AdamW as it is after the thirty steps; as it would be after a thousand, with the same second moments; and
with second moments that never move again."""
LATE, STILL = 1000, 1e7
LOOKING = ("sgd", "adamw")
"""Where looking ahead is tried, whose answer no second moments change."""
STANDS_OUT = 2.0
"""Standard errors, as in D3's settings."""
PROBES = {"all": (EACH, 12), "four": (4, 12)}
"""Samples of each unit, and of the target, that estimates see."""


# ---- texts -------------------------------------------------------------------------------------------------


@cache
def texts() -> dict[str, list[str]]:
    """By domain; plays and grade school questions are the demo's own."""
    found = {
        "plays": [json.loads(line)["text"] for line in _lines("plays_train.jsonl")],
        "gsm8k": [" ".join(json.loads(line).values()) for line in _lines("gsm8k_train.jsonl")],
    }
    for name, path in (("stories", "text/tinystories.txt"), ("encyclopedia", "text/wikitext2-test.raw.txt")):
        found[name] = [piece["text"] for piece in chunks((DATA / path).read_text(encoding="utf-8")[:400_000])]
    records = json.loads((DATA / "commonsense/train/openbookqa.json").read_text(encoding="utf-8"))[:1500]
    found["openbookqa"] = [
        " ".join(str(record[key]) for key in ("instruction", "output")) for record in records
    ]
    found["dolly"] = [" ".join(record.values()) for record in instructions("dolly")[:1500]]
    return {name: found[name] for name in sorted(found)}


def _lines(name: str) -> list[str]:
    return (ASSETS / name).read_text(encoding="utf-8").splitlines()


class Drawn:
    """The samples of a seed."""

    def __init__(self, seed: int) -> None:
        tokenizer, rng = AutoTokenizer.from_pretrained(ASSETS / "stories260K"), np.random.default_rng(seed)
        self.names = tuple(texts())
        self.units: list[list[Any]] = []
        self.aims: list[Any] = []
        self.warming: list[list[Any]] = [[] for _ in range(WARM)]
        for own in texts().values():
            picked = rng.choice(len(own), EACH + AIMS + 2 * WARM, replace=False)
            rows = [tokenizer(own[place][:400])["input_ids"][:LENGTH] for place in picked]
            samples = [{"input_ids": ids, "labels": ids} for ids in rows]
            self.units.append(samples[:EACH])
            self.aims += samples[EACH : EACH + AIMS]
            for step in range(WARM):
                self.warming[step] += samples[EACH + AIMS + 2 * step :][:2]


# ---- a model without single precision ----------------------------------------------------------------------


def double_model() -> Any:
    """stories260K; the norms of transformers compute in single precision whatever the weights are, which
    would drown what small steps do, and are replaced."""
    model: Any = AutoModelForCausalLM.from_pretrained(ASSETS / "stories260K").double().eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _Norm(module)
    return model


class _Norm:
    def __init__(self, module: Any) -> None:
        self.weight, self.epsilon = module.weight, module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def loss_of(model: Any, samples: list[Any]) -> Tensor:
    """Token mean, in double precision; that of transformers is always in single."""
    inputs = gw.Collator(0)(samples)
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())


# ---- optimizers --------------------------------------------------------------------------------------------


def optimizer_of(kind: str, model: Any) -> Any:
    """Before its first step, at the rate of the warming."""
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=WARM_RATE["sgd"], momentum=0.9, fused=True)
    return torch.optim.AdamW(
        model.parameters(), lr=WARM_RATE["adamw"], betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )


def settled(kind: str, optimizer: Any) -> None:
    """Momentum set to zero, second moments as the kind wants them."""
    for state in optimizer.state.values():
        state["momentum_buffer" if kind == "sgd" else "exp_avg"].zero_()
        if kind == "adamw_late":
            state["exp_avg_sq"] *= (1 - 0.999**LATE) / (1 - 0.999 ** float(state["step"]))
            state["step"].fill_(LATE)
    if kind == "adamw_still":
        hold(optimizer)


def step(model: Any, optimizer: Any, samples: list[Any]) -> None:
    """A step of an ordinary training loop."""
    optimizer.zero_grad()
    loss_of(model, samples).backward()
    optimizer.step()


# ---- the truth ---------------------------------------------------------------------------------------------


class State:
    """Weights and moments, taken and put back."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.weights = [p.detach().clone() for p in model.parameters()]
        self.moments = [copy.deepcopy(dict(optimizer.state[p])) for p in model.parameters()]
        self.betas = [group.get("betas") for group in optimizer.param_groups]

    def back(self, model: Any, optimizer: Any) -> None:
        with torch.no_grad():
            for parameter, weights, moments in zip(
                model.parameters(), self.weights, self.moments, strict=True
            ):
                parameter.copy_(weights)
                optimizer.state[parameter] = copy.deepcopy(moments)
        for group, betas in zip(optimizer.param_groups, self.betas, strict=True):
            if betas is not None:
                group["betas"] = betas


def truth(model: Any, optimizer: Any, drawn: Drawn) -> dict[str, np.ndarray]:
    """(n, n) L(v then u) - L(u then v) by [u, v], `flushed` and `raw`; model and optimizer are given back."""
    start, n = State(model, optimizer), len(drawn.units)
    ends = {way: np.zeros((n, n)) for way in ("flushed", "raw")}
    for first in range(n):
        start.back(model, optimizer)
        step(model, optimizer, drawn.units[first])
        once = State(model, optimizer)
        for second in range(n):
            if second == first:
                continue
            once.back(model, optimizer)
            step(model, optimizer, drawn.units[second])
            for way in ("raw", "flushed"):
                if way == "flushed":
                    flush(model, optimizer)
                with torch.no_grad():
                    ends[way][first, second] = float(loss_of(model, drawn.aims))
    start.back(model, optimizer)
    return {way: found.T - found for way, found in ends.items()}


def flush(model: Any, optimizer: Any) -> None:
    """What steps on zero gradients would still move, all at once: second moments stay meanwhile, as the
    gradients of other batches would keep them."""
    group, state = optimizer.param_groups[0], optimizer.state
    if "betas" in group:
        hold(optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            own = state[parameter]
            if "betas" in group:
                beta = group["betas"][0]
                to_come = own["exp_avg"] * beta / (1 - beta) / (own["exp_avg_sq"].sqrt() + group["eps"])
            else:
                to_come = own["momentum_buffer"] * group["momentum"] / (1 - group["momentum"])
            parameter.sub_(group["lr"] * to_come)


def hold(optimizer: Any) -> None:
    """Second moments that never move again; their bias correction by 1 - 1/e makes every step 0.8 times as
    long."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state["exp_avg_sq"] /= 1 - group["betas"][1] ** float(state["step"])
            state["step"].fill_(STILL)
        group["betas"] = (group["betas"][0], 1 - 1 / STILL)


# ---- estimates ---------------------------------------------------------------------------------------------


class Estimates:
    """D3's graphs of a state, as its method makes them."""

    def __init__(self, model: Any, optimizer: Any, drawn: Drawn, seed: int) -> None:
        self.data = [sample for unit in drawn.units for sample in unit]
        self.probe = gw.Probe(model, optimizer, self.data, target=drawn.aims)
        group = np.repeat(np.array(drawn.names), EACH)
        self.units = Units.by_group(np.arange(len(group)), group, EACH)
        assert self.units.names == drawn.names
        self.seed = seed

    def graph(self, edges: str, probes: str) -> InfluenceGraph:
        """Measured on all of the units' samples, or on four."""
        count, targets = PROBES[probes]
        rng = np.random.default_rng(self.seed)
        method = D3(units="domains", probes=count, target_samples=targets)
        return method.measured(self.probe, self.units, edges=edges, rng=rng)

    def second_moments(self, probes: str) -> np.ndarray:
        """(n, n) what [u, v] gains over [v, u] by how Adam's second moments move, in nats.

        A share 1 - b of a step is made at once and the rest by momentum, after the other gradient has come
        into the second moments, whose weights are s = (1 - c) / (1 - c^t). Of the first order in the rate,
        where what `curvature` sees is of the second. Divided by 1 - b, as `along` is.
        """
        weights, optimizer = self.probe._weights(), self.probe.optimizer
        count, targets = PROBES[probes]
        n, group = len(self.units.names), optimizer.param_groups[0]
        aim = self.probe._gradient(self.probe.target[:targets], weights)[1]
        starts = range(0, EACH * n, EACH)
        rows = [self.probe._gradient(range(start, start + count), weights)[1] for start in starts]
        found = np.zeros((n, n))
        for place, parameter in enumerate(weights):
            state, beta = optimizer.state[parameter], group["betas"][1]
            steps = float(state["step"])
            before = state["exp_avg_sq"] / (1 - beta**steps)
            share = (1 - beta) / (1 - beta ** (steps + 1))
            for u, v in _pairs(n):
                way = _moved(before, rows[u][place], rows[v][place], share, group) - _moved(
                    before, rows[v][place], rows[u][place], share, group
                )
                found[u, v] += float((aim[place] * way).sum())
        return found - found.T


def _moved(before: Tensor, first: Tensor, second: Tensor, share: float, group: dict[str, Any]) -> Tensor:
    """How far the weights go, over 1 - b, when the gradients come in this order and do not change."""

    def scale(squares: Tensor) -> Tensor:
        return group["lr"] / (squares.sqrt() + group["eps"])

    momentum = group["betas"][0]
    once = (1 - share) * before + share * first.square()
    both = (1 - share) * once + share * second.square()
    way = first * ((1 - momentum) * scale(once) + momentum * scale(both)) + second * scale(both)
    return way / (1 - momentum)


# ---- one piece of work -------------------------------------------------------------------------------------


def trained(kind: str, seed: int) -> dict[str, Any]:
    """The truth for all pairs u < v by learning rate, and what looking ahead says at each."""
    drawn, model, optimizer = _warm(kind, seed)
    estimates = Estimates(model, optimizer, drawn, seed)
    found = {}
    for rate in RATES[kind]:
        _set_rate(optimizer, rate)
        real = {way: _pairs_of(matrix) for way, matrix in truth(model, optimizer, drawn).items()}
        looks = PROBES if kind in LOOKING else ()
        ahead = {probes: _told(estimates.graph("lookahead", probes)) for probes in looks}
        found[f"{rate:g}"] = {**real, "lookahead": ahead}
    return {"rates": found}


def estimated(kind: str, seed: int) -> dict[str, Any]:
    """What edges say that are proportional to a power of the rate, at a rate of one."""
    drawn, model, optimizer = _warm(kind, seed)
    _set_rate(optimizer, 1.0)
    estimates = Estimates(model, optimizer, drawn, seed)
    found: dict[str, Any] = {"target_loss": float(loss_of(model, drawn.aims).detach())}
    for edges in ("curvature", "first_order"):
        found[edges] = {probes: _told(estimates.graph(edges, probes)) for probes in PROBES}
    if kind != "sgd":
        moments = {probes: estimates.second_moments(probes) for probes in PROBES}
        found["second_moments"] = {probes: _pairs_of(matrix) for probes, matrix in moments.items()}
    return found


def _warm(kind: str, seed: int) -> tuple[Drawn, Any, Any]:
    """Samples, model and optimizer of the state that everything is asked at."""
    torch.manual_seed(seed)
    drawn, model = Drawn(seed), double_model()
    optimizer = optimizer_of(kind, model)
    for batch in drawn.warming:
        step(model, optimizer, batch)
    optimizer.zero_grad()
    settled(kind, optimizer)
    return drawn, model, optimizer


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _told(graph: InfluenceGraph) -> dict[str, list[float]]:
    return {"difference": _upper(graph.weight), "error": _pairs_of(graph.noise)}


def _upper(weight: np.ndarray) -> list[float]:
    return _pairs_of(weight - weight.T)


def _pairs_of(matrix: np.ndarray) -> list[float]:
    return [float(f"{matrix[u, v]:.6g}") for u, v in _pairs(len(matrix))]


def _pairs(n: int) -> Iterator[tuple[int, int]]:
    return combinations(range(n), 2)


# ---- what a result file says -------------------------------------------------------------------------------


def together(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By kind of optimizer: what was trained and what was estimated, seed by seed."""
    entries, found = content["entries"], {}
    for key, entry in entries.items():
        part, kind, seed = key.split("/")
        if part == "trained" and (other := entries.get(f"estimated/{kind}/{seed}")):
            found.setdefault(kind, []).append({**entry, **other})
    return found


def accuracy(entries: list[dict[str, Any]], rate: str, way: str, edges: str, probes: str) -> dict[str, float]:
    """Share of pairs whose sign is right, over the entries of all seeds.

    Args:
        entries: as `together` gives them. rate: of the steps. way: `flushed` or `raw`. edges: `curvature`,
        `lookahead`, `first_order`, or `curvature_moments`, which adds what second moments do.
        probes: of `PROBES`.

    Returns:
        `all`: over all pairs; `out`: over those whose estimate stands out of its noise, `pairs_out` of them;
        `large`: over the half of each seed's pairs where the order matters most.
    """
    right, out, large = [], [], []
    for entry in entries:
        real = np.array(entry["rates"][rate][way])
        told, error = _estimate(entry, rate, edges, probes)
        right.append(np.sign(told) == np.sign(real))
        out.append(np.abs(told) > STANDS_OUT * error)
        large.append(np.abs(real) >= np.median(np.abs(real)))
    hit, seen, matters = (np.concatenate(each) for each in (right, out, large))
    return {
        "all": float(hit.mean()),
        "out": float(hit[seen].mean()) if seen.any() else float("nan"),
        "large": float(hit[matters].mean()),
        "pairs": len(hit),
        "pairs_out": int(seen.sum()),
        "right_out": int(hit[seen].sum()),
    }


def raw_agrees(entries: list[dict[str, Any]], rate: str) -> float:
    """Share of pairs that have the same sign before and after momentum has run out."""
    ways = [[np.sign(entry["rates"][rate][way]) for way in ("raw", "flushed")] for entry in entries]
    return float(np.mean(np.concatenate([raw == flushed for raw, flushed in ways])))


def _estimate(entry: dict[str, Any], rate: str, edges: str, probes: str) -> tuple[np.ndarray, np.ndarray]:
    if edges == "lookahead":
        told = entry["rates"][rate]["lookahead"][probes]
    else:
        told = entry["curvature" if edges == "curvature_moments" else edges][probes]
    difference, error = np.array(told["difference"]), np.array(told["error"])
    if edges == "curvature_moments":
        # Curvature was measured at a rate of one, as a share of the target's loss.
        moments = np.array(entry["second_moments"][probes]) / entry["target_loss"]
        return difference + moments / float(rate), error
    return difference, error
