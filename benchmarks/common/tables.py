"""Markdown of the result pages: tables, numbers, paired comparisons, rows of the index.

Verdicts are those of `gradwise compare`: differences paired by seed, 95 % t intervals and p-values corrected
over the arms of a table (Holm).
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradwise.report.statistics import ArmDifference, compare, mean_sd

__all__ = ["mean_sd"]

Content = dict[str, Any]
"""A result file as read from JSON."""
Runs = dict[str, dict[int, dict[str, Any]]]
"""Entries by arm and seed."""
Losses = Mapping[str, Mapping[int, float]]

COMPARISON_HEAD = ["arm", "pairs", "difference", "95 % interval", "p (Holm)", "verdict"]


@dataclass(frozen=True)
class Claim:
    """A row of the index."""

    text: str
    number: str
    seeds: str = "-"
    verdict: str = "-"


def joined(text: str, claims: Sequence[Claim]) -> Claim:
    """Several claims as one row of the index, each under its own text."""
    numbers = "; ".join(f"{claim.text} {claim.number}" for claim in claims)
    seeds = sorted({claim.seeds for claim in claims})
    verdicts = [claim.verdict for claim in claims]
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "; ".join(verdicts)
    return Claim(text, numbers, ", ".join(seeds), verdict)


@dataclass(frozen=True)
class Page:
    """The page of a result file, apart from its head and its origin, which all pages share."""

    sections: list[str]
    claims: list[Claim]
    title: str = ""
    """If empty, from the docstring of the page's module."""
    command: str = ""
    """Reproduces the result file; if empty, the page's module does without options."""


def of_kind(content: Content, kind: str) -> dict[str, dict[str, Any]]:
    """Entries whose key starts with `kind/`, by the rest of the key."""
    start = f"{kind}/"
    return {key.removeprefix(start): one for key, one in content["entries"].items() if key.startswith(start)}


def by_arm(content: Content, kind: str) -> Runs:
    """Entries with keys `kind/arm/seed`; runs without a finite loss are left out."""
    runs: Runs = {}
    for key, entry in of_kind(content, kind).items():
        arm, seed = key.split("/")
        if entry.get("loss", 0) is not None:
            runs.setdefault(arm, {})[int(seed)] = entry
    return runs


def losses_of(runs: Runs, name: str = "loss") -> dict[str, dict[int, float]]:
    """One number of every run."""
    return {arm: {seed: run[name] for seed, run in by_seed.items()} for arm, by_seed in runs.items()}


def mean(entries: Iterable[Mapping[str, Any]], name: str) -> float:
    """Mean of one number over entries."""
    return statistics.fmean(entry[name] for entry in entries)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def number(value: float | None, digits: int) -> str:
    """With `digits` decimals; a dash for None and NaN."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def plural(count: int, word: str) -> str:
    """Such as "1 thread", "2 threads"."""
    return f"{count} {word}{'s' if count != 1 else ''}"


def comparison_row(one: ArmDifference) -> list[str]:
    """A row below `COMPARISON_HEAD`."""
    interval = f"{one.interval[0]:+.4f} to {one.interval[1]:+.4f}" if one.interval else "-"
    p = "< 0.001" if one.p is not None and one.p < 0.001 else number(one.p, 3)
    return [f"`{one.arm}`", str(one.seeds), f"{one.difference:+.4f}", interval, p, one.verdict]


def comparisons(losses: Losses, references: Sequence[str]) -> list[str]:
    """A table against each reference; two references are compared once, in the table of the first."""
    parts = []
    for reference in references:
        if compared := _compared(losses, references, reference):
            head = f"Against `{reference}`, paired by seed (negative: the arm is better):"
            parts.append(f"{head}\n\n" + table(COMPARISON_HEAD, map(comparison_row, compared)))
    return parts


def _compared(losses: Losses, references: Sequence[str], reference: str) -> list[ArmDifference]:
    """All arms against one of the references, without the references before it."""
    earlier = references[: references.index(reference)]
    arms = {arm: losses[arm] for arm in losses if arm not in earlier}
    return compare(arms, reference) if reference in arms else []


def compared_claims(
    losses: Losses, references: Sequence[str], claims: Iterable[tuple[str, str, str]]
) -> list[Claim]:
    """Rows of the index for arms in the tables of `comparisons`.

    Args:
        losses, references: as for `comparisons`. claims: text, arm, reference; skipped if an arm is missing.
    """
    return [
        _claim(text, one)
        for text, arm, reference in claims
        for one in _compared(losses, references, reference)
        if one.arm == arm
    ]


def _claim(text: str, one: ArmDifference) -> Claim:
    interval = f" ({one.interval[0]:+.3f} to {one.interval[1]:+.3f})" if one.interval else ""
    return Claim(text, f"{one.difference:+.3f}{interval}", str(one.seeds), one.verdict)


def learning_rates(content: Content, head: str) -> list[str]:
    """Losses of the tuning runs and the chosen rates; nothing if no rates were tuned."""
    rows = []
    for arm, entry in of_kind(content, "tuning").items():
        tries = ", ".join(f"{t['learning_rate']:g}: {number(t['loss'], 4)}" for t in entry["tries"])
        chosen = f"{entry['chosen']:g}" + (" (edge of the grid)" if entry["at_edge"] else "")
        rows.append([f"`{arm}`", tries, chosen])
    return [head, table(["arm", "loss by learning rate", "chosen"], rows)] if rows else []
