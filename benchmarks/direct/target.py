"""DiReCT where the validation samples are a target: another mix than the pool's.

    python -m benchmarks.direct.target      # some fifteen minutes on one core

stories260K, a pool of five sets with 640 records each, 64 samples of a target to choose by, 100 others to
measure by. 5 % are picked once and trained on for 60 steps of 8 records with Adam and a rate that falls
linearly to zero. Equal steps; the cost of collecting gradients is not charged.
"""

import copy
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import gradwise as gw
from benchmarks.common import tables
from benchmarks.common.frame import Script
from benchmarks.common.smollm2 import STORIES
from benchmarks.common.tables import Content, Page
from benchmarks.direct import stories
from gradwise.data import Collator

SETS = ("plays", "encyclopedia", "dolly", "commonsense", "gsm8k")
TARGETS = ("svamp", "mmlu")
PER_SET, CHOOSING, MEASURING, LENGTH = 640, 64, 100, 160
FRACTION, STEPS, BATCH, RATE, SEEDS = 0.05, 60, 8, 1e-3, 5
ARMS: dict[str, Any] = {
    "random": gw.baselines.RandomAnneal(fraction=FRACTION),
    "cosine_top": gw.baselines.CosineTop(fraction=FRACTION),
    "direct": gw.Direct(fraction=FRACTION),
}


@cache
def rows() -> stories.Rows:
    """Token ids of all records."""
    counts = dict.fromkeys(SETS, PER_SET) | dict.fromkeys(TARGETS, 400)
    return {name: stories.token_rows(name, count, LENGTH) for name, count in counts.items()}


def run(arm: str, target: str, seed: int) -> dict[str, Any]:
    """Select, train, measure."""
    known = stories.signals("target", rows())
    mixed = np.random.default_rng([seed, 77]).permutation(len(known[target]))
    choosing, measuring = mixed[:CHOOSING], mixed[CHOOSING : CHOOSING + MEASURING]
    pool = stories.joined([known[name] for name in SETS])
    picked = ARMS[arm].select(pool, validation=known[target].take(np.sort(choosing)), seed=seed)
    domains = np.repeat(SETS, [len(known[name]) for name in SETS])[picked.indices]
    every = [row for name in SETS for row in rows()[name]]
    loss = trained([every[i] for i in picked.indices], [rows()[target][i] for i in measuring], seed)
    counts = {name: int((domains == name).sum()) for name in SETS}
    return {"loss": loss, "domains": counts, "check": picked.details.get("check")}


def trained(picks: list[list[int]], held_out: list[list[int]], seed: int) -> float:
    """Held-out loss per token after training on the picks, each seen once before any is seen again."""
    model, collate = copy.deepcopy(_model()), Collator(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    rng, order = np.random.default_rng(seed), np.zeros(0, dtype=np.int64)
    while len(order) < STEPS * BATCH:
        order = np.concatenate([order, rng.permutation(len(picks))])
    for step, chosen in enumerate(order[: STEPS * BATCH].reshape(STEPS, BATCH)):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        model(**collate(stories.samples([picks[i] for i in chosen]))).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(held_out), 20):
            batch = collate(stories.samples(held_out[start : start + 20]))
            count = int((batch["labels"][:, 1:] != -100).sum())
            total, tokens = total + float(model(**batch).loss) * count, tokens + count
    return total / tokens


@cache
def _model() -> Any:
    return AutoModelForCausalLM.from_pretrained(STORIES)


def page(content: Content) -> Page:
    entries, sections, claims = content["entries"], [], []
    for target in TARGETS:
        runs = {arm: {seed: entries[f"{target}/{arm}/{seed}"] for seed in range(SEEDS)} for arm in ARMS}
        losses = {arm: {seed: run["loss"] for seed, run in own.items()} for arm, own in runs.items()}
        found = [
            [f"`{arm}`", tables.number(float(np.mean(list(own.values()))), 4),
             *(f"{np.mean([run['domains'][name] for run in runs[arm].values()]):.0f}" for name in SETS)]
            for arm, own in losses.items()
        ]  # fmt: skip
        checks = [run["check"] for run in runs["direct"].values()]
        seen = [f"{np.mean([check[name] for check in checks]):.3f}" for name in ("picks", "random", "cosine")]
        sections += [
            f"**{target.upper()}**: held-out loss, and picks by set, means of {SEEDS} seeds.",
            tables.table(["arm", "loss", *SETS], found),
            f"Held-out check before the phase, of the target samples that chose nothing: picks {seen[0]}, "
            f"random {seen[1]}, cosine {seen[2]} (root of the predicted decrease); the picks were used in "
            f"{sum(check['use'] == 'picks' for check in checks)} of {SEEDS} seeds.",
            *(part for arm in ("cosine_top", "random") for part in tables.comparisons(losses, [arm])),
        ]
        pairs = [
            (f"Picks towards {target.upper()}: DiReCT less {other}, equal steps", "direct", arm)
            for arm, other in (("cosine_top", "cosine"), ("random", "random"))
        ]
        for pair in pairs:
            claims += tables.compared_claims(losses, [pair[2]], (pair,))
    return Page(title="DiReCT with a target", sections=sections, claims=claims)


SCRIPT = Script(__doc__, "direct-target")


def main() -> None:
    _, result = SCRIPT.start()
    for seed in range(SEEDS):
        for target in TARGETS:
            for arm in ARMS:
                result.once(f"{target}/{arm}/{seed}", partial(run, arm, target, seed))


if __name__ == "__main__":
    main()
