"""DiReCT where the validation samples are a target: another mix than the pool's.

    python -m benchmarks.direct.target      # half an hour on one core

stories260K, a pool of five sets with 640 records each, 64 samples of a target to choose by, 100 others to
measure by. 5 % are picked once and trained on for 60 steps of 8 records with Adam and a rate that falls
linearly to zero. Equal steps; the cost of collecting gradients is not charged. The bar from which on
validation samples count as a target was set when SVAMP and MMLU had been seen; PIQA and SIQA came later, and
then the targets that are a set of the pool, which the pool does without. The bar of the held-out check
(0.7 standard errors) was set when all of them had been seen.
"""

import copy
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import gradwise as gw
from benchmarks.common import tables
from benchmarks.common.command_line import Script
from benchmarks.common.smollm2 import STORIES
from benchmarks.common.tables import Content, Page
from benchmarks.direct import stories
from gradwise.data import Collator

SETS = ("plays", "encyclopedia", "dolly", "commonsense", "gsm8k")
TARGETS = ("svamp", "mmlu", "piqa", "siqa")
LEFT_OUT = {f"{name}, left out": name for name in SETS}
"""Targets that are one of the pool's sets, which the pool then does without."""
MIX = "mix"
"""Validation samples of the pool's own mix."""
PER_SET, MORE, CHOOSING, MEASURING, LENGTH = 640, 20, 64, 100, 160
FRACTION, STEPS, BATCH, RATE = 0.05, 60, 8, 1e-3
SEEDS = {target: 3 if target in LEFT_OUT else 5 for target in (*TARGETS, *LEFT_OUT)}
MIX_SEEDS = 5
ARMS: dict[str, Any] = {
    "random": gw.baselines.RandomAnneal(fraction=FRACTION),
    "cosine_top": gw.baselines.CosineTop(fraction=FRACTION),
    "curvature": gw.Direct(fraction=FRACTION, objective="curvature"),
    "direct": gw.Direct(fraction=FRACTION),
}
ARMS_OF_LEFT_OUT = ("random", "cosine_top", "direct")


@cache
def rows() -> stories.Rows:
    """Token ids of all records."""
    counts = dict.fromkeys(SETS, PER_SET + MORE) | dict.fromkeys(TARGETS, 400)
    return {name: stories.token_rows(name, count, LENGTH) for name, count in counts.items()}


@cache
def record_signals() -> dict[str, gw.Signals]:
    """Gradients of all records."""
    return stories.signals("target", rows())


def sets(target: str) -> list[str]:
    """Names of the sets that the pool is made of, in the order of its rows."""
    return [name for name in SETS if name != LEFT_OUT.get(target)]


def pool(target: str) -> gw.Signals:
    """The records of all sets but the target's."""
    return stories.joined([record_signals()[name].take(np.arange(PER_SET)) for name in sets(target)])


def arms(target: str) -> list[str]:
    """Arms that are run for a target."""
    return [arm for arm in ARMS if target not in LEFT_OUT or arm in ARMS_OF_LEFT_OUT]


def validating(target: str, seed: int) -> tuple[gw.Signals, np.ndarray]:
    """Validation samples, and the places of those that measure."""
    if target == MIX:
        others = stories.joined([record_signals()[name].take(PER_SET + np.arange(MORE)) for name in SETS])
    else:
        others = record_signals()[LEFT_OUT.get(target, target)]
    mixed = np.random.default_rng([seed, 77]).permutation(len(others))
    return others.take(np.sort(mixed[:CHOOSING])), mixed[CHOOSING : CHOOSING + MEASURING]


def run(arm: str, target: str, seed: int) -> dict[str, Any]:
    """Select, train, measure."""
    validation, measuring = validating(target, seed)
    picked = ARMS[arm].select(pool(target), validation=validation, seed=seed)
    domains = np.repeat(sets(target), PER_SET)[picked.indices]
    every = [row for name in sets(target) for row in rows()[name][:PER_SET]]
    held_out = [rows()[LEFT_OUT.get(target, target)][i] for i in measuring]
    loss = trained([every[i] for i in picked.indices], held_out, seed)
    counts = {name: int((domains == name).sum()) for name in sets(target)}
    details = {name: picked.details.get(name) for name in ("check", "unlike_pool", "direction")}
    return {"loss": loss, "domains": counts, **details}


def seen_as(seed: int) -> dict[str, Any]:
    """How far validation samples of the pool's own mix are from it."""
    details = ARMS["direct"].select(pool(MIX), validation=validating(MIX, seed)[0], seed=seed).details
    return {name: details[name] for name in ("unlike_pool", "direction")}


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
    for target, seeds in SEEDS.items():
        runs = {
            arm: {seed: entries[f"{target}/{arm}/{seed}"] for seed in range(seeds)} for arm in arms(target)
        }
        losses = {arm: {seed: run["loss"] for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
        loss_rows = [
            [f"`{arm}`", tables.number(float(np.mean(list(by_seed.values()))), 4),
             *(_mean_picks(runs[arm], name) for name in sets(target))]
            for arm, by_seed in losses.items()
        ]  # fmt: skip
        direct_runs = list(runs["direct"].values())
        seen = [
            f"{np.mean([run['check'][name] for run in direct_runs]):.3f}"
            for name in ("picks", "random", "cosine")
        ]
        sections += [
            f"**{_title(target)}**: held-out loss, and picks by set, means of {seeds} seeds.",
            tables.table(["arm", "loss", *sets(target)], loss_rows),
            f"Distance of the validation samples' mean gradient from the pool's: {_range(direct_runs)}; "
            f"{sum(run['direction'] == 'alignment' for run in direct_runs)} of {seeds} seeds took them "
            "for a target. "
            f"Held-out check before the phase: picks {seen[0]}, random {seen[1]}, cosine {seen[2]} (root of "
            f"the predicted decrease), picks less random {_apart(direct_runs)} standard errors; the picks "
            f"were used in {sum(run['check']['use'] == 'picks' for run in direct_runs)} of {seeds} seeds.",
            *(part for arm in ("cosine_top", "random") for part in tables.comparisons(losses, [arm])),
        ]
        if target in TARGETS:
            claims += tables.compared_claims(losses, ["random"], ((_title(target), "direct", "random"),))
    mix = list(tables.of_kind(content, MIX).values())
    sections.append(
        f"With validation samples of the pool's own mix the distance was {_range(mix)}, and "
        f"{sum(run['direction'] == 'alignment' for run in mix)} of {len(mix)} seeds took them for a target."
    )
    claim = tables.joined("Picks towards a target: DiReCT less random, equal steps", claims)
    return Page(title="DiReCT with a target", sections=sections, claims=[claim])


def _mean_picks(runs: dict[int, dict[str, Any]], name: str) -> str:
    return f"{np.mean([run['domains'][name] for run in runs.values()]):.0f}"


def _title(target: str) -> str:
    return target.upper() if target in TARGETS else target.capitalize()


def _range(runs: list[dict[str, Any]]) -> str:
    values = [run["unlike_pool"] for run in runs]
    return f"{min(values):.2f} to {max(values):.2f}"


def _apart(runs: list[dict[str, Any]]) -> str:
    checks = [run["check"] for run in runs]
    values = [(check["picks"] - check["random"]) / check["noise"] for check in checks]
    return f"{min(values):+.2f} to {max(values):+.2f}"


SCRIPT = Script(__doc__, "direct-target")


def main() -> None:
    _, result = SCRIPT.start()
    for target, seeds in SEEDS.items():
        for seed in range(seeds):
            for arm in arms(target):
                result.once(f"{target}/{arm}/{seed}", partial(run, arm, target, seed))
    for seed in range(MIX_SEEDS):
        result.once(f"{MIX}/{seed}", partial(seen_as, seed))


if __name__ == "__main__":
    main()
