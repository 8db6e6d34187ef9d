"""The page of a comparison: learning rates, held-out loss, paired verdicts, and the figures with its
curves."""

import shlex
from pathlib import Path
from typing import Any

from benchmarks.common import tables
from benchmarks.common.tables import Claim, Content, Page, Runs
from benchmarks.compare.task import Comparison, Task
from benchmarks.compare.tasks import TASKS
from gradwise.atomic import write_bytes
from gradwise.report.curves import loss_curves
from gradwise.report.reading import Point, Results, RunResult

BUDGETS = {
    "steps": "Equal optimizer steps",
    "time": "Equal time: every arm's whole schedule was planned to end within the same charged seconds",
}


def page(content: Content) -> Page:
    task = TASKS[content["settings"]["name"]]()
    tuned = (
        f"**Learning rates**, chosen by the loss after {task.tuning_steps} steps on a seed and held-out "
        "records that no table uses; "
        + ("each arm has its own:" if task.own_rates else "all arms have the best one for `random`:")
    )
    parts = [_setting(content, task), *tables.learning_rates(content, tuned)]
    for comparison in task.comparisons:
        if runs := tables.by_arm(content, comparison.budget):
            parts += _comparison(task, comparison, runs)
    return Page(
        title=f"Comparison: {task.title}",
        command=f"python -m benchmarks.compare.run --task {task.name}",
        sections=parts,
        claims=[claim for comparison in task.comparisons for claim in _claims(content, task, comparison)],
    )


def _claims(content: Content, task: Task, comparison: Comparison) -> list[Claim]:
    claims = (
        (f"{text}, equal {budget}", arm, reference)
        for budget, text, arm, reference in task.claims
        if budget == comparison.budget
    )
    return tables.compared_claims(
        tables.losses_of(tables.by_arm(content, comparison.budget)), comparison.references, claims
    )


def _setting(content: Content, task: Task) -> str:
    recipe = content["settings"]["recipe"]
    train = recipe["train"]
    untrained = content["entries"].get("untrained/check")
    before = f" Held-out loss before training: {untrained['loss']:.4f}." if untrained else ""
    return (
        f"{task.text} Batches of {train['batch_size']}, AdamW, float32, {train['schedule']} schedule with "
        f"{train['warmup_steps']:.0%} warm-up, at most {recipe['data']['max_length']} tokens. Recipe and "
        "arms are in `benchmarks/compare`. Loss in nats per label token, every token with the same "
        f"weight.{before} Charged seconds are those of training and of all decisions (scoring, selecting, "
        "ordering, GRASS's probe and draws), without loading and evaluation."
    )


def _comparison(task: Task, comparison: Comparison, runs: Runs) -> list[str]:
    seeds = max(map(len, runs.values()))
    parts = [
        f"## {BUDGETS[comparison.budget]}",
        f"`{shlex.join(task.command(comparison, seeds))}`",
        _losses(runs),
        *([_took(comparison, runs)] if comparison.budget == "time" else []),
        *tables.comparisons(tables.losses_of(runs), comparison.references),
    ]
    if _has_curves(runs):
        parts.append(f"![loss against seconds](figures/{figure_name(task.name, comparison.budget)})")
    return parts


def _losses(runs: Runs) -> str:
    domains = list(next(iter(next(iter(runs.values())).values()))["domains"])
    shown = domains if len(domains) > 1 else []
    rows = []
    for arm, by_seed in runs.items():
        entries = list(by_seed.values())
        loss, sd = tables.mean_sd({seed: run["loss"] for seed, run in by_seed.items()})
        rates = "/".join(dict.fromkeys(f"{run['learning_rate']:g}" for run in entries))
        each = [f"{tables.mean([run['domains'] for run in entries], name):.3f}" for name in shown]
        rows.append(
            [
                f"`{arm}`", rates, str(len(entries)), f"{tables.mean(entries, 'steps'):.0f}",
                f"{tables.mean(entries, 'tokens'):,.0f}", f"{loss:.4f}", tables.number(sd, 4),
                _lowest(entries), *each,
                f"{tables.mean(entries, 'seconds'):.1f}", f"{tables.mean(entries, 'deciding_seconds'):.1f}",
            ]
        )  # fmt: skip
    head = [
        "arm",
        "learning rate",
        "seeds",
        "steps",
        "tokens",
        "held-out loss",
        "sd",
        "lowest on the way",
        *shown,
    ]
    return tables.table([*head, "charged s", "decisions s"], rows)


def _lowest(entries: list[dict[str, Any]]) -> str:
    """Mean over runs of the lowest held-out loss on the way or at the end; a dash where none was evaluated
    while it trained."""
    if not all(any(step > 0 for step, *_ in run["curve"]) for run in entries):
        return "-"
    losses = [min([run["loss"], *(loss for step, _, loss in run["curve"] if step > 0)]) for run in entries]
    return f"{sum(losses) / len(losses):.4f}"


def _took(comparison: Comparison, runs: Runs) -> str:
    """How far the arms were from equal time."""
    means = {arm: tables.mean(list(by_seed.values()), "seconds") for arm, by_seed in runs.items()}
    first, last = min(means, key=lambda arm: means[arm]), max(means, key=lambda arm: means[arm])
    budget = f"of {comparison.amount} s, " if comparison.amount else ""
    return (
        f"Speeds were measured before the runs: {budget}arms took from {means[first]:.1f} (`{first}`) to "
        f"{means[last]:.1f} s (`{last}`) on average. Whoever took longer made more steps for it."
    )


def figure_name(task: str, budget: str) -> str:
    """The file of a comparison's curves."""
    return f"compare-{task}-{budget}.png"


def draw(content: Content, folder: Path) -> None:
    """Held-out loss against charged seconds, for every budget."""
    name = content["settings"]["name"]
    for comparison in TASKS[name]().comparisons:
        runs = tables.by_arm(content, comparison.budget)
        if _has_curves(runs):
            picture = loss_curves(_results(name, comparison, runs), "seconds")
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / figure_name(name, comparison.budget), picture)


def _has_curves(runs: Runs) -> bool:
    return any(len(run["curve"]) > 1 for by_seed in runs.values() for run in by_seed.values())


def _results(name: str, comparison: Comparison, runs: Runs) -> Results:
    """As `gradwise compare` reads them from its folder."""
    results = [_run(run) for by_seed in runs.values() for run in by_seed.values()]
    return Results(
        name=f"{name}-{comparison.budget}",
        reference=comparison.references[0],
        arms=tuple(runs),
        seeds=tuple(sorted({run.seed for run in results})),
        budget={"kind": comparison.budget},
        runs=tuple(results),
    )


def _run(run: dict[str, Any]) -> RunResult:
    points = [Point(step=step, tokens=0, seconds=seconds, loss=loss) for step, seconds, loss in run["curve"]]
    return RunResult(arm=run["arm"], seed=run["seed"], finished=True, curve=tuple(points))
