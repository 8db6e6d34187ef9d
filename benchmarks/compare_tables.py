"""The tables of a `compare` result file, in Markdown, and its figures."""

import statistics
from typing import Any

from frame import ROOT, compare, mean_sd
from tables import COMPARISON_HEAD, comparison_row, number, of_kind, table

FIGURES = ROOT / "docs" / "figures"

BUDGETS = {
    "steps": "Equal optimizer steps",
    "time": "Equal time: every arm's whole schedule ends inside the same charged seconds",
}

Runs = dict[str, dict[int, dict[str, Any]]]
"""Entries by arm and seed."""


def sections(content: dict[str, Any]) -> list[str]:
    """Paragraphs and tables, to be put below the file's heading."""
    parts = [_setting(content["settings"]), _tuning(content)]
    for comparison in content["settings"]["comparisons"]:
        parts += _comparison(content, comparison)
    return [part for part in parts if part]


def _setting(told: dict[str, Any]) -> str:
    recipe, train = told["recipe"], told["recipe"]["train"]
    return (
        f"{told['told']} Batches of {train['batch_size']}, AdamW, float32, {train['schedule']} schedule with "
        f"{train['warmup_steps']:.0%} warm-up, at most {recipe['data']['max_length']} tokens. "
        f"{_selections(told['fraction']) if 'fraction' in told else _selections_and_layers()}"
        "The recipe and the arms are in `benchmarks/compare`; loss in nats per label token, every token with "
        "the same weight."
    )


def _selections(fraction: float | None) -> str:
    if fraction is None:
        return "Every arm trains on all records. "
    return (
        f"Selections keep {fraction:.0%} of the records and go over them as often as the steps need; "
        "`random` draws anew for every seed, `full` takes records from all of them. "
    )


def _selections_and_layers() -> str:
    return (
        "Selections keep a quarter of the records and go over it as often as the steps need; `random` draws "
        "anew for every seed, `easy_first` has the records of `random`; `full` and the layer policies take "
        "records from all of them. "
        "Layer policies: 2 active blocks, embeddings, head and final norm frozen. LoRA on all linear layers, "
        "r 16, alpha 32. "
    )


def _tuning(content: dict[str, Any]) -> str:
    rows = []
    for key, entry in of_kind(content, "tuning").items():
        tries = ", ".join(f"{t['learning_rate']:g}: {number(t['loss'], 4)}" for t in entry["tries"])
        chosen = f"{entry['chosen']:g}" + (" (edge of the grid)" if entry["at_edge"] else "")
        rows.append([f"`{key.split('/')[1]}`", tries, chosen])
    if not rows:
        return ""
    told = (
        f"**Learning rates**, chosen for every arm by its loss after {content['settings']['tuning_steps']} "
        "steps on a seed and held-out records that no table uses"
    )
    if "words" in content["settings"]:
        told += "; here one for all, the best for `random`"
    told += ":"
    return told + "\n\n" + table(["arm", "loss by learning rate", "chosen"], rows)


# ---- one comparison ----------------------------------------------------------------------------------------


def _comparison(content: dict[str, Any], comparison: dict[str, Any]) -> list[str]:
    budget = comparison["budget"]
    runs = runs_of(content, budget)
    if not runs:
        return []
    told = f"**{BUDGETS[budget]}.** `{content['entries'][f'command/{budget}']['command']}`"
    parts = [told, _charged(content), _quality(runs), *_verdicts(runs, comparison["references"])]
    if (figure := FIGURES / figure_name(content["settings"]["name"], budget)).exists():
        parts.append(f"![loss against seconds]({figure.relative_to(ROOT / 'docs')})")
    return parts


def figure_name(task: str, budget: str) -> str:
    """The file, in `docs/figures`, of a comparison's curves."""
    return f"compare-{task}-{budget}.png"


def runs_of(content: dict[str, Any], budget: str) -> Runs:
    """The finished runs of a comparison."""
    found: Runs = {}
    for entry in of_kind(content, budget).values():
        if entry["loss"] is not None:
            found.setdefault(entry["arm"], {})[entry["seed"]] = entry
    return found


def _named(comparison: dict[str, Any]) -> str:
    _, _, part = comparison["budget"].partition("-")
    return f"{BUDGETS[comparison['budget']].capitalize()}" + (f" ({part})" if part else "")


def _charged(content: dict[str, Any]) -> str:
    untrained = content["entries"].get("untrained/check")
    whole = f"Held-out loss before training: {untrained['loss']:.4f}. " if untrained else ""
    return (
        f"{whole}Seconds are what a run is charged: training with everything decided (measuring the pool, "
        "selecting, ordering, GRASS's probe and draws); loading and evaluation are left out."
    )


def _quality(runs: Runs) -> str:
    domains = list(next(iter(next(iter(runs.values())).values()))["domains"])
    shown = domains if len(domains) > 1 else []
    head = ["arm", "learning rate", "seeds", "steps", "tokens", "held-out loss", "sd", *shown]
    head += ["charged s", "of it deciding s"]
    return table(head, [_quality_row(arm, by_seed, shown) for arm, by_seed in runs.items()])


def _quality_row(arm: str, by_seed: dict[int, dict[str, Any]], domains: list[str]) -> list[str]:
    mean, sd = mean_sd({seed: run["loss"] for seed, run in by_seed.items()})
    rates = "/".join(dict.fromkeys(f"{run['learning_rate']:g}" for run in by_seed.values()))
    each = [statistics.fmean(run["domains"][name] for run in by_seed.values()) for name in domains]
    return [
        f"`{arm}`", rates, str(len(by_seed)), f"{_mean(by_seed, 'steps'):.0f}",
        f"{_mean(by_seed, 'tokens'):,.0f}", f"{mean:.4f}", number(sd, 4), *(f"{loss:.3f}" for loss in each),
        f"{_mean(by_seed, 'seconds'):.1f}", f"{_mean(by_seed, 'deciding_seconds'):.1f}",
    ]  # fmt: skip


def _mean(by_seed: dict[int, dict[str, Any]], name: str) -> float:
    return statistics.fmean(run[name] for run in by_seed.values())


def _verdicts(runs: Runs, references: list[str]) -> list[str]:
    losses = {arm: {seed: run["loss"] for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    parts = []
    for place, reference in enumerate(references):
        # What two references are to each other is told once, by the first.
        left = {arm: losses[arm] for arm in losses if arm not in references[:place]}
        if reference in left and (found := compare(left, reference)):
            told = f"Against `{reference}`, paired by seed (negative: the arm is better):"
            parts.append(f"{told}\n\n" + table(COMPARISON_HEAD, [comparison_row(one) for one in found]))
    return parts
