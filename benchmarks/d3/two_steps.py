"""Pairs of steps, trained in both orders from the same state: the truth that D³'s edges are compared with.

stories260K in double precision throughout. Six units of 16 texts of at most 40 tokens, each unit from one
domain, and 12 other texts, two of each domain, whose loss is the target. Thirty steps on mixed batches warm
the moments up; then momentum is set to zero, and every pair of units is trained on in both orders with steps
of the optimizer.
"""

import copy
import json
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradwise as gw
from benchmarks.common.folders import DATA
from benchmarks.common.records import chunks, instructions
from benchmarks.common.smollm2 import STORIES
from gradwise.demo import ASSETS

EACH, LENGTH, TARGETS = 16, 40, 2
"""Texts of a unit, tokens of a text, texts of each domain in the target."""
WARM = 30
"""Steps that warm the moments up."""
WARM_RATE = {"sgd": 1e-2, "adamw": 1e-3}
LATE, CONSTANT = 1000, 1e7
"""Step counts of AdamW's state: as after 1,000 steps, and so late that second moments no longer change."""


@cache
def texts() -> dict[str, list[str]]:
    """By domain; plays and grade school questions are those of the demo."""
    by_domain = {
        "plays": [json.loads(line)["text"] for line in _lines("plays_train.jsonl")],
        "gsm8k": [" ".join(json.loads(line).values()) for line in _lines("gsm8k_train.jsonl")],
    }
    for name, path in (("stories", "text/tinystories.txt"), ("encyclopedia", "text/wikitext2-test.raw.txt")):
        text = (DATA / path).read_text(encoding="utf-8")[:400_000]
        by_domain[name] = [piece["text"] for piece in chunks(text)]
    records = json.loads((DATA / "commonsense/train/openbookqa.json").read_text(encoding="utf-8"))[:1500]
    by_domain["openbookqa"] = [f"{record['instruction']} {record['output']}" for record in records]
    by_domain["dolly"] = [" ".join(record.values()) for record in instructions("dolly")[:1500]]
    return {name: by_domain[name] for name in sorted(by_domain)}


def _lines(name: str) -> list[str]:
    return (ASSETS / name).read_text(encoding="utf-8").splitlines()


class ProblemSamples:
    """The samples of a seed: units, target, batches for warming up."""

    def __init__(self, seed: int) -> None:
        tokenizer, rng = AutoTokenizer.from_pretrained(STORIES), np.random.default_rng(seed)
        self.names = tuple(texts())
        self.units: list[list[Any]] = []
        self.target: list[Any] = []
        self.warming: list[list[Any]] = [[] for _ in range(WARM)]
        for domain_texts in texts().values():
            drawn = rng.choice(len(domain_texts), EACH + TARGETS + 2 * WARM, replace=False)
            rows = [tokenizer(domain_texts[place][:400])["input_ids"][:LENGTH] for place in drawn]
            samples = [{"input_ids": ids, "labels": ids} for ids in rows]
            self.units.append(samples[:EACH])
            self.target += samples[EACH : EACH + TARGETS]
            for number in range(WARM):
                self.warming[number] += samples[EACH + TARGETS + 2 * number :][:2]


def double_model() -> Any:
    """stories260K. Its norms are replaced: those of transformers compute in single precision, whose rounding
    exceeds the effect of small steps."""
    model: Any = AutoModelForCausalLM.from_pretrained(STORIES).double().eval()
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
    """Token mean in double precision; that of transformers is always in single precision."""
    inputs = gw.Collator(0)(samples)
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())


def optimizer_of(kind: str, model: Any) -> Any:
    """Before its first step, at the learning rate of the warm-up."""
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=WARM_RATE["sgd"], momentum=0.9, fused=True)
    return torch.optim.AdamW(
        model.parameters(), lr=WARM_RATE["adamw"], betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )


def set_moments(kind: str, optimizer: Any) -> None:
    """Set momentum to zero and second moments as the kind of optimizer requires."""
    for state in optimizer.state.values():
        state["momentum_buffer" if kind == "sgd" else "exp_avg"].zero_()
        if kind == "adamw_late":
            state["exp_avg_sq"] *= (1 - 0.999**LATE) / (1 - 0.999 ** float(state["step"]))
            state["step"].fill_(LATE)
    if kind == "adamw_still":
        hold(optimizer)


def hold(optimizer: Any) -> None:
    """Make second moments constant. Their bias correction by 1 - 1/e then shortens every step by a factor of
    0.8."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state["exp_avg_sq"] /= 1 - group["betas"][1] ** float(state["step"])
            state["step"].fill_(CONSTANT)
        group["betas"] = (group["betas"][0], 1 - 1 / CONSTANT)


def step(model: Any, optimizer: Any, samples: list[Any]) -> None:
    """A step of an ordinary training loop."""
    optimizer.zero_grad()
    loss_of(model, samples).backward()
    optimizer.step()


def flush(model: Any, optimizer: Any) -> None:
    """Move the weights by what is left in momentum, as infinitely many steps with zero gradients would.

    Second moments stay constant meanwhile, as the gradients of other batches would keep them.
    """
    group, state = optimizer.param_groups[0], optimizer.state
    if "betas" in group:
        hold(optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            moments = state[parameter]
            if "betas" in group:
                beta = group["betas"][0]
                rest = moments["exp_avg"] * beta / (1 - beta) / (moments["exp_avg_sq"].sqrt() + group["eps"])
            else:
                rest = moments["momentum_buffer"] * group["momentum"] / (1 - group["momentum"])
            parameter.sub_(group["lr"] * rest)


class State:
    """Weights and moments, saved and restored."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.weights = [p.detach().clone() for p in model.parameters()]
        self.moments = [copy.deepcopy(dict(optimizer.state[p])) for p in model.parameters()]
        self.betas = [group.get("betas") for group in optimizer.param_groups]

    def restore(self, model: Any, optimizer: Any) -> None:
        with torch.no_grad():
            for parameter, weights, moments in zip(
                model.parameters(), self.weights, self.moments, strict=True
            ):
                parameter.copy_(weights)
                optimizer.state[parameter] = copy.deepcopy(moments)
        for group, betas in zip(optimizer.param_groups, self.betas, strict=True):
            if betas is not None:
                group["betas"] = betas


def truth(model: Any, optimizer: Any, samples: ProblemSamples) -> dict[str, np.ndarray]:
    """(n, n) L(v then u) - L(u then v) by [u, v]: positive where u should come first.

    Computed twice: after momentum has run out (`flushed`), and right after the two steps (`raw`). Model and
    optimizer are restored.
    """
    start, n = State(model, optimizer), len(samples.units)
    ends = {when: np.zeros((n, n)) for when in ("flushed", "raw")}
    for first in range(n):
        start.restore(model, optimizer)
        step(model, optimizer, samples.units[first])
        between = State(model, optimizer)
        for second in range(n):
            if second == first:
                continue
            between.restore(model, optimizer)
            step(model, optimizer, samples.units[second])
            for when in ("raw", "flushed"):
                if when == "flushed":
                    flush(model, optimizer)
                with torch.no_grad():
                    ends[when][first, second] = float(loss_of(model, samples.target))
    start.restore(model, optimizer)
    return {when: losses.T - losses for when, losses in ends.items()}
